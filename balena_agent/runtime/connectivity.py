"""Tells people that the device has no way to its cloud: in the journal, and with the LED.

Theory: core/connectivity.py decides, from a snapshot; here only the change of its answer counts, so
nothing has to be remembered but the last one. It lives in the thread that publishes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..core.connectivity import OK, WAITING, trouble
from ..core.snapshot import Snapshot

_log = logging.getLogger(__name__)


class Connectivity:
    """`seen` is a subscriber of `Published`. `warn` shows, or no longer shows, the LED's pattern;
    it must not wait."""

    def __init__(self, warn: Callable[[bool], None]) -> None:
        self._warn = warn
        self._trouble = ""

    def seen(self, snapshot: Snapshot) -> None:
        before, self._trouble = self._trouble, trouble(snapshot)
        if bool(before) == bool(self._trouble):
            return
        self._warn(bool(self._trouble))
        # No warning, since those are told once a minute at most: each change has happened anew.
        _log.info(f"{WAITING} ({self._trouble})" if self._trouble else OK)
