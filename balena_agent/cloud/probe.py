"""Whether the cloud's address answers, for those who ask about the device's health (spec 10 §8.2).

Theory: the peer knocks every ten seconds, day and night. Here nobody knocks unless somebody asks,
and then at most every ten seconds, or every two while nobody answers: a connection is opened and
closed again. Who asks waits for a moment only; what is not known by then counts as not connected.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

FRESH_SECONDS = 10.0
RETRY_SECONDS = 2.0
PATIENCE = 2.0
_CONNECT = 8.0
_PORTS = {"http": 80, "https": 443}

Knock = Callable[[str], bool]


class _Attempt:
    """One knock. `found` counts when `ended` is set."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.began = time.monotonic()
        self.ended = threading.Event()
        self.found = False

    def is_fresh(self) -> bool:
        """Whether it is under way, or what it has found is still worth something."""
        worth = FRESH_SECONDS if self.found else RETRY_SECONDS
        return not self.ended.is_set() or time.monotonic() - self.began < worth


class Probe:
    """Any thread may ask. `knock` says whether an endpoint (a URL) answers, in its own time."""

    def __init__(self, knock: Knock | None = None) -> None:
        self._knock = knock or answers
        self._lock = threading.Lock()
        self._last: _Attempt | None = None

    def connected(self, endpoint: str) -> bool:
        """As of an attempt that began at most `FRESH_SECONDS` ago."""
        with self._lock:
            last = self._last
            if last is None or last.endpoint != endpoint or not last.is_fresh():
                last = self._last = self._begin(endpoint)
        return last.ended.wait(PATIENCE) and last.found

    def _begin(self, endpoint: str) -> _Attempt:
        attempt = _Attempt(endpoint)
        threading.Thread(target=self._try, args=(attempt,), name="probe", daemon=True).start()
        return attempt

    def _try(self, attempt: _Attempt) -> None:
        try:
            attempt.found = self._knock(attempt.endpoint)
        finally:
            attempt.ended.set()


def answers(endpoint: str, lookup: Callable[[str], str] = str) -> bool:
    """Whether a connection to an endpoint's host and port can be opened."""
    with suppress(OSError, ValueError):
        parts = urlsplit(endpoint)
        port = parts.port or _PORTS.get(parts.scheme, 0)
        with socket.create_connection((lookup(parts.hostname or ""), port), _CONNECT):
            return True
    return False
