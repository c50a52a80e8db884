"""What a step under way can tell and hear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Ticket(Protocol):
    """What a step under way can tell and hear; made by the executor, given to the adapter."""

    @property
    def cancelled(self) -> bool: ...

    def on_cancel(self, action: Callable[[], None]) -> None:
        """Run `action` (from another thread) when the step is given up; at once if it is."""

    def progress(self, percent: float) -> None:
        """Real progress, 0 to 100; also proof of work for the watchdog and the time limit."""
