"""org.freedesktop.login1: reboot, power off, and the delay before somebody else's shutdown.

Theory: root's own reboot is not held up by block inhibitors, so we look at them ourselves: unless
forced, another program's block of a shutdown is a refusal that names its holder. So is logind's own
word that the host cannot do it; when forced it is asked all the same, and what it then says is the
answer. A reboot that is under way already is what was asked for.
Without logind (containers, small systems) systemd itself is asked.

What is sent to a bus that hangs is not lost: it waits there. So nothing is asked of logind before
it has answered, when forced too: else a device that has said no would go down minutes later. Once
it has, a request without an answer counts as made; whether the host goes down is seen later.

Our delay inhibitor gives us a moment to finish before anybody's shutdown; closing its
descriptor ends it (spec 30 §7, §19.2).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.errors import AgentError, BusUnavailable, DeadlineExceeded, RefusedByHost
from .bus import Bus
from .wire import BusRefusal, Match, Signal

SERVICE = "org.freedesktop.login1"
PATH = "/org/freedesktop/login1"
MANAGER = SERVICE + ".Manager"
IN_PROGRESS = SERVICE + ".OperationInProgress"

_log = logging.getLogger(__name__)

_SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
_SYSTEMD_MANAGER = "org.freedesktop.systemd1.Manager"
_IMPOSSIBLE = {
    "no": "logind does not allow it",
    "na": "logind says that this host is not able to",
}
"""What logind's words mean for root. All others are no obstacle: `yes`, `challenge` (nobody asks
root), and of later versions those about inhibitors, which are looked at by themselves."""
_NAMES = {"Reboot": "reboot", "PowerOff": "power off"}
_GLANCE = 2.0


class BlockedByHost(RefusedByHost):
    """Another program blocks the shutdown; force overrides it, as with an update lock."""

    http_status: ClassVar[int] = 423


@dataclass(frozen=True, slots=True)
class Inhibitor:
    """One line of `systemd-inhibit --list`."""

    what: str
    who: str
    why: str
    mode: str
    uid: int
    pid: int


class DelayLock:
    """Our right to a moment before a shutdown; ends with `release`, or with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the shutdown go on. A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Logind:
    """Every call blocks at most for its time limit: BusUnavailable, DeadlineExceeded."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def reboot(self, force: bool = False) -> None:
        """Ask for a reboot; returns when it is accepted. BlockedByHost, RefusedByHost."""
        self._shut_down("Reboot", force)

    def power_off(self, force: bool = False) -> None:
        """Ask for a power-off; returns when it is accepted. BlockedByHost, RefusedByHost."""
        self._shut_down("PowerOff", force)

    def obstacles(self) -> tuple[str, ...]:
        """What the host could not do now if it was asked to, with logind's reason, for people.
        Takes a few seconds at most; empty where nobody tells."""
        found: list[str] = []
        with contextlib.suppress(AgentError):
            found += filter(None, (self._obstacle(member, _GLANCE) for member in _NAMES))
        return tuple(found)

    def preparing_for_shutdown(self) -> bool:
        """Whether a shutdown is under way."""
        return bool(self._bus.get_property(SERVICE, PATH, MANAGER, "PreparingForShutdown", 5.0))

    def inhibitors(self) -> tuple[Inhibitor, ...]:
        """Everything that holds up a shutdown, a sleep or a key, ours included."""
        return tuple(Inhibitor(*line) for line in self._call("ListInhibitors")[0])

    def blockers(self) -> tuple[Inhibitor, ...]:
        """Others' inhibitors that forbid a shutdown; none where there is no logind."""
        with contextlib.suppress(BusUnavailable):
            return tuple(
                found
                for found in self.inhibitors()
                if found.mode == "block"
                and "shutdown" in found.what.split(":")
                and found.pid != os.getpid()
            )
        return ()

    def delay_shutdown(self, why: str) -> DelayLock:
        """Have every shutdown wait (5 s by default) until the lock is released. RefusedByHost."""
        body = ("shutdown", "balena-agent", why, "delay")
        return DelayLock(self._call("Inhibit", "ssss", body, with_fds=True)[0])

    def on_shutdown(self, callback: Callable[[bool], None]) -> None:
        """Tell of every shutdown by anybody: True when it begins, False when it is called off.

        The callback runs in the bus thread and must not wait for the bus.
        """
        match = Match(sender=SERVICE, path=PATH, interface=MANAGER, member="PrepareForShutdown")

        def told(signal: Signal) -> None:
            callback(bool(signal.body[0]))

        self._bus.subscribe(match, told)

    def _shut_down(self, member: str, force: bool) -> None:
        blockers: tuple[Inhibitor, ...] = ()
        with contextlib.suppress(*((BusRefusal,) if force else ())):
            blockers = self.blockers()
        if blockers and not force:
            raise BlockedByHost(f"Blocked by {blockers[0].who}: {blockers[0].why}")
        if not force:
            self._refuse_the_impossible(member)
        try:
            self._ask(member)
        except DeadlineExceeded as error:
            _log.warning("%s was asked for, without an answer: %s", member, error)

    def _refuse_the_impossible(self, member: str) -> None:
        with contextlib.suppress(BusUnavailable, BusRefusal):  # no word is no refusal
            if obstacle := self._obstacle(member):
                raise RefusedByHost(obstacle)

    def _obstacle(self, member: str, timeout: float = 25.0) -> str:
        """Why the host cannot do this, or ""."""
        (word,) = self._call(f"Can{member}", timeout=timeout)
        reason = _IMPOSSIBLE.get(str(word), "")
        return f"The host cannot {_NAMES[member]}: {reason}" if reason else ""

    def _ask(self, member: str) -> None:
        try:
            self._call(member, "b", (False,))
        except BusUnavailable:
            self._bus.call(*_SYSTEMD, _SYSTEMD_MANAGER, member)
        except BusRefusal as refusal:
            if refusal.error_name != IN_PROGRESS:
                raise

    def _call(
        self,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] = (),
        with_fds: bool = False,
        timeout: float = 25.0,
    ) -> list[Any]:
        return self._bus.call(
            SERVICE, PATH, MANAGER, member, signature, body, timeout=timeout, with_fds=with_fds
        )
