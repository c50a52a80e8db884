"""Waits that last: the log tells of each once, after the patience that the planner gives it.

Theory: most waits are in the ordinary course of things and nobody wants to read about them. Some
are, for a while; after that a person should know. The planner has no clock, so it only says which
and how long; here is remembered since when.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ..core.plan import Wait

_log = logging.getLogger(__name__)


class LongWaits:
    """Used by one thread."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._told: set[str] = set()

    def tell(self, waits: Iterable[Wait], now: float) -> None:
        """Log what has lasted too long by `now` (monotonic), and forget what is over."""
        lasting = {wait.subject: wait for wait in waits if wait.patience is not None}
        self._since = {name: self._since.get(name, now) for name in lasting}
        self._told &= lasting.keys()
        for name, wait in lasting.items():
            if name not in self._told and now - self._since[name] >= (wait.patience or 0.0):
                self._told.add(name)
                _log.warning("%s", wait)
