"""NetworkManager: whether there is a way to the Internet, and word of every change.

Theory: NetworkManager knows more than we could find out (portals, roaming, metered links) and says
so by signals; addresses are read from the kernel in any case (network.py), so a host without
NetworkManager lacks only the connectivity, and hears of changes by looking now and then. Nothing
is changed here but inside a checkpoint, which NetworkManager takes back by itself when we do not
come back to confirm it (spec 30 §11, §19.4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ..core.errors import AgentError
from .bus import Bus
from .wire import PROPERTIES, Match, Signal

SERVICE = "org.freedesktop.NetworkManager"
PATH = "/org/freedesktop/NetworkManager"
WORDS = ("unknown", "none", "portal", "limited", "full")
UNKNOWN, FULL = WORDS[0], WORDS[4]

_LISTS_OF_DEVICES = frozenset({"Devices", "AllDevices", "ActiveConnections"})
_LIMIT = 5.0
_ROLLBACK_SECONDS = 120
_DROP_WHAT_IS_NEW = 0x02 | 0x04
"""Going back removes new connections too, and disconnects new devices."""


def chatter(signal: Signal) -> bool:
    """Whether this tells only that devices come and go, as those of containers do all the time. A
    device that matters is heard of when it gets an address or changes the state of the network."""
    if signal.member in ("DeviceAdded", "DeviceRemoved"):
        return True
    if signal.member != "PropertiesChanged":
        return False
    # Changed and dropped ones; older versions have a signal of their own with the changed alone.
    names = {name for part in signal.body if not isinstance(part, str) for name in part}
    return not names - _LISTS_OF_DEVICES


class NetworkManager:
    """Calls from any thread but the bus thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def connectivity(self) -> str:
        """One of `WORDS`. `unknown` without NetworkManager, and where it does not check: then its
        word would only mean that there is a default route."""
        try:
            if not self._bus.get_property(
                SERVICE, PATH, SERVICE, "ConnectivityCheckEnabled", _LIMIT
            ):
                return UNKNOWN
            found = self._bus.get_property(SERVICE, PATH, SERVICE, "Connectivity", _LIMIT)
        except AgentError:
            return UNKNOWN
        return WORDS[found] if isinstance(found, int) and found < len(WORDS) else UNKNOWN

    def check(self) -> str:
        """Probe now, and say what was found; as `connectivity`."""
        with contextlib.suppress(AgentError):
            self._bus.call(SERVICE, PATH, SERVICE, "CheckConnectivity", timeout=20.0)
        return self.connectivity()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Tell of every change of state and addresses. The callback runs in the bus thread and
        must not wait for the bus. BusUnavailable."""

        def told(signal: Signal) -> None:
            if not chatter(signal):
                callback()

        self._bus.subscribe(Match(sender=SERVICE, path=PATH, interface=SERVICE), told)
        for kind in ("", ".IP4Config", ".IP6Config"):
            match = Match(sender=SERVICE, interface=PROPERTIES, arg0=SERVICE + kind)
            self._bus.subscribe(match, told)

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Changes inside the block are undone when it fails, or when we do not live to its end."""
        body: tuple[list[str], int, int] = ([], _ROLLBACK_SECONDS, _DROP_WHAT_IS_NEW)
        (made,) = self._bus.call(
            SERVICE, PATH, SERVICE, "CheckpointCreate", "aouu", body, timeout=25.0
        )
        try:
            yield
        except BaseException:
            with contextlib.suppress(AgentError):
                self._end("CheckpointRollback", made)
            raise
        self._end("CheckpointDestroy", made)

    def _end(self, member: str, checkpoint: str) -> None:
        self._bus.call(SERVICE, PATH, SERVICE, member, "o", (checkpoint,), timeout=25.0)
