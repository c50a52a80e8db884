"""The error tree. Every error that crosses a module border is one of these.

    AgentError
    ├── Refused                the caller's matter: say what to change; never retried
    │   ├── InvalidInput       a field of a request or document breaks a rule (400)
    │   ├── InvalidTarget      the same for a target state; lists every problem (400)
    │   ├── NotFound           no such service, job or container (404)
    │   │   └── NoSuchApp          no such app
    │   ├── Locked             an update lock of the user, names app and service (423)
    │   ├── NotInLocalMode     a local target without local mode (400)
    │   ├── RefusedByHost      logind, systemd or NetworkManager said no, in their words
    │   └── AccessDenied       the caller may not do this (401/403)
    ├── Unavailable            the world's matter: retried with back-off, reported as a state
    │   ├── EngineUnavailable  the engine's socket does not answer
    │   ├── BusUnavailable     the system bus, or a service on it, does not answer
    │   ├── DeadlineExceeded   a call did not come back in its time
    │   ├── DiskFull           what is asked for cannot fit into the free space
    │   └── StillProcessing    somebody else is still at work on it: asked again, no failure
    ├── EngineFailed           the engine answered with an error; its words and HTTP status
    ├── Cancelled              given up on purpose, because no plan wants it any more
    └── Broken                 our own defect: stack in the journal, a plain sentence to the caller

Adapters translate library errors at the edge and chain the cause. Errors never log themselves.
Each class carries the HTTP status and D-Bus error name under which the faces show it.
"""

from __future__ import annotations

from typing import ClassVar

_OURS = "io.balena.Agent1.Error."
_STANDARD = "org.freedesktop.DBus.Error."
_CONFLICT = 409


class AgentError(Exception):
    """Base of all. `str(error)` is fit for a caller: no secrets, no traceback."""

    http_status: ClassVar[int] = 500
    dbus_name: ClassVar[str] = _STANDARD + "Failed"

    @property
    def message(self) -> str:
        return str(self)


class Refused(AgentError):
    http_status = 400
    dbus_name = _STANDARD + "InvalidArgs"


class InvalidInput(Refused):
    """`path` names the field (`$.local.apps.1`), the message the value and the rule."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class InvalidTarget(Refused):
    """A rejected target. The first line is the one that clients look for (spec 20 §4)."""

    dbus_name = _OURS + "InvalidTarget"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(("Invalid target state.", *problems)))
        self.problems = problems


class NotFound(Refused):
    http_status = 404
    dbus_name = _OURS + "NoSuchService"


class NoSuchApp(NotFound):
    dbus_name = _OURS + "NoSuchApp"


class Locked(Refused):
    http_status = 423
    dbus_name = _OURS + "Locked"


class NotInLocalMode(Refused):
    dbus_name = _OURS + "NotInLocalMode"


class RefusedByHost(Refused):
    http_status = 500
    dbus_name = _OURS + "RefusedByHost"


class AccessDenied(Refused):
    http_status = 401
    dbus_name = _STANDARD + "AccessDenied"


class Unavailable(AgentError):
    http_status = 503


class EngineUnavailable(Unavailable):
    """`reason` is what is behind "the engine does not answer", in a few words."""

    dbus_name = _OURS + "EngineUnavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The container engine does not answer: {reason or 'no answer'}")
        self.reason = reason or "no answer"


class BusUnavailable(Unavailable):
    dbus_name = _STANDARD + "ServiceUnknown"


class DeadlineExceeded(Unavailable):
    dbus_name = _STANDARD + "Timeout"


class DiskFull(Unavailable):
    dbus_name = _OURS + "DiskFull"


class StillProcessing(Unavailable):
    """Not a failure: the same step is due again after `pause` seconds, and nothing counts it."""

    dbus_name = _STANDARD + "Timeout"

    def __init__(self, message: str, pause: float) -> None:
        super().__init__(message)
        self.pause = pause


class EngineFailed(AgentError):
    """`status` is the engine's HTTP status, or 0 for an error inside a stream."""

    http_status = 503

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def in_use(self) -> bool:
        """Somebody uses what was to be removed, or has the name that was to be given (409)."""
        return self.status == _CONFLICT


class Cancelled(AgentError):
    http_status = 503


class Broken(AgentError):
    """A defect of ours; the cause is chained and goes to the journal."""
