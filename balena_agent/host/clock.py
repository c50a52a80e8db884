"""Whether the machine's clock can be trusted, as timedated has it (spec 30 §16).

Theory: the agent sets no clock and measures no interval with it. The one thing it has to know is
why a certificate is "not yet valid": with a clock that was never set, waiting helps, and is no
failure. The kernel's flag behind NTPSynchronized is set by every program that keeps the time.
"""

from __future__ import annotations

from ..core.errors import AgentError
from .bus import Bus

SERVICE = "org.freedesktop.timedate1"
PATH = "/org/freedesktop/timedate1"
_LIMIT = 5.0


class Clock:
    """Calls from any thread but the bus thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def synchronised(self) -> bool | None:
        """Whether the time was set from outside; None where nobody can tell. Never raises."""
        try:
            found = self._bus.get_property(SERVICE, PATH, SERVICE, "NTPSynchronized", _LIMIT)
        except AgentError:
            return None
        return bool(found)
