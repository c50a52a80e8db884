"""A reboot or power-off that the host has accepted, until it comes.

Theory: what logind accepts it does, but not always: somebody calls it off, or a job hangs. So the
acceptance holds for a while only, in which nothing else is planned (architecture B11.3).
"""

from __future__ import annotations

from .ports import Clock

POWER_PATIENCE_SECONDS = 90.0


class AcceptedPower:
    """Used by one thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = 0.0

    def __bool__(self) -> bool:
        """Whether one was accepted and may still come."""
        return bool(self._until)

    def begin(self) -> None:
        """The host has accepted one just now."""
        self._until = self._clock.monotonic() + POWER_PATIENCE_SECONDS

    def is_overdue(self) -> bool:
        """Whether none came; it is then over. True once."""
        overdue = bool(self._until) and self._clock.monotonic() > self._until
        if overdue:
            self._until = 0.0
        return overdue
