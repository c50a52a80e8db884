"""The D-Bus library, fenced in: what we use of it, and the values that cross our own border.

Theory: everything else in host/ and api/dbus*.py takes the library's few names from here, so that
`dbus_fast` (a fork with the same names) can take the place of `dbus_next` by changing one import.
The high-level halves of the library (proxies, service classes, run-time introspection) are not
used: they answer callers with tracebacks, know nothing of who calls, and lose annotations.

Invariants: a string that leaves us has no NUL and no lone surrogate (the first makes the bus close
our connection, the second cannot be written); a D-Bus error becomes one of our errors exactly here.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import AgentError, BusUnavailable, DeadlineExceeded, RefusedByHost

if not hasattr(typing, "no_type_check_decorator"):  # gone in Python 3.15; the library imports it
    typing.no_type_check_decorator = lambda decorator: decorator

from dbus_next import constants as _constants
from dbus_next import message as _message
from dbus_next import signature as _signature
from dbus_next.aio import message_bus as _message_bus

# Any, because the library's own annotations are wrong in places (Optional left out).
BusType: Any = _constants.BusType
MessageFlag: Any = _constants.MessageFlag
MessageType: Any = _constants.MessageType
Message: Any = _message.Message
Variant: Any = _signature.Variant
MessageBus: Any = _message_bus.MessageBus

DAEMON = "org.freedesktop.DBus"
DAEMON_PATH = "/org/freedesktop/DBus"
PROPERTIES = "org.freedesktop.DBus.Properties"
PEER = "org.freedesktop.DBus.Peer"

_ERROR = "org.freedesktop.DBus.Error."
FAILED = _ERROR + "Failed"
_ABSENT = frozenset(
    _ERROR + word
    for word in ("ServiceUnknown", "NameHasNoOwner", "Disconnected", "NoServer", "NoReply")
)
_LATE = frozenset(_ERROR + word for word in ("Timeout", "TimedOut"))


class BusRefusal(RefusedByHost):
    """A service answered with an error: `error_name` is its D-Bus name, `words` its own text."""

    def __init__(self, error_name: str, words: str) -> None:
        super().__init__(f"{words} ({error_name})" if words else error_name)
        self.error_name = error_name
        self.words = words


@dataclass(frozen=True, slots=True)
class Call:
    """A method call that reached our exported objects. `sender` is proved by the bus daemon."""

    sender: str
    path: str
    interface: str
    member: str
    signature: str = ""
    body: Sequence[Any] = ()
    interactive: bool = False


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal from the bus; the body still has its Variants (see `plain`)."""

    sender: str
    path: str
    interface: str
    member: str
    body: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """Which signals are wanted. Empty fields match everything; `sender` may be a known name."""

    sender: str = ""
    path: str = ""
    path_namespace: str = ""
    interface: str = ""
    member: str = ""
    arg0: str = ""

    def rule(self) -> str:
        """The match rule as the bus daemon reads it."""
        names = ("sender", "path", "path_namespace", "interface", "member", "arg0")
        fields = ((name, getattr(self, name)) for name in names)
        return "type='signal'" + "".join(f",{name}='{value}'" for name, value in fields if value)

    def accepts(self, signal: Signal) -> bool:
        """Whether the signal is a wanted one; its sender is judged by the bus thread."""
        below = f"{self.path_namespace.rstrip('/')}/"
        return (
            self.path in ("", signal.path)
            and (not self.path_namespace or f"{signal.path}/".startswith(below))
            and self.interface in ("", signal.interface)
            and self.member in ("", signal.member)
            and (not self.arg0 or (bool(signal.body) and signal.body[0] == self.arg0))
        )


def clean(value: Any) -> Any:
    """An outgoing value made safe; tuples become the lists that the library wants for structs."""
    if isinstance(value, str):
        safe = value.replace("\0", "") if "\0" in value else value
        return safe if safe.isascii() else safe.encode("utf-8", "replace").decode()
    if isinstance(value, Variant):
        return Variant(value.signature, clean(value.value))
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return value


def plain(value: Any) -> Any:
    """A received value without its Variants; structs are lists, whatever the library makes."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def error_from(message: Any) -> AgentError:
    """Our error for an error reply."""
    words = str(message.body[0]) if message.signature.startswith("s") else ""
    if message.error_name in _ABSENT or message.error_name.startswith(_ERROR + "Spawn."):
        return BusUnavailable(words or message.error_name)
    if message.error_name in _LATE:
        return DeadlineExceeded(words or message.error_name)
    return BusRefusal(message.error_name, words)


def call_from(message: Any) -> Call:
    flags = int(message.flags.value)
    return Call(
        sender=message.sender or "",
        path=message.path,
        interface=message.interface or "",
        member=message.member,
        signature=message.signature,
        body=message.body,
        interactive=bool(flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION.value),
    )


def signal_from(message: Any) -> Signal:
    return Signal(
        message.sender or "", message.path, message.interface, message.member, message.body
    )


def take_fds(message: Any) -> list[Any]:
    """The body with descriptors in place of their indexes; what it does not name is closed.

    The library receives descriptors inheritable: they are made private to this process.
    """
    body, kept = list(message.body), set()
    for place, kind in enumerate(message.signature_tree.types):
        if kind.signature == "h":
            body[place] = fd = message.unix_fds[body[place]]
            os.set_inheritable(fd, False)
            kept.add(fd)
    close_fds(message, kept)
    return body


def give_fds(signature: str, body: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """A body to send, with indexes in place of its top-level descriptors, and these."""
    given, fds = list(body), []
    for place, kind in enumerate(_signature.SignatureTree(signature).types):
        if kind.signature == "h":
            fds.append(given[place])
            given[place] = len(fds) - 1
    return given, fds


def close_fds(message: Any, kept: set[int] | frozenset[int] = frozenset()) -> None:
    """Close the descriptors that came with a message which nobody wanted."""
    for fd in message.unix_fds or ():
        if fd not in kept:
            os.close(fd)
