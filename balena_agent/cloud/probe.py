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


class Probe:
    """Any thread may ask. `knock` says whether an endpoint (a URL) answers, in its own time."""

    def __init__(self, knock: Knock | None = None) -> None:
        self._knock = knock or answers
        self._lock = threading.Lock()
        self._endpoint = ""
        self._asked = float("-inf")
        self._ended = threading.Event()
        self._found = False

    def connected(self, endpoint: str) -> bool:
        """As of an attempt that began at most `FRESH_SECONDS` ago."""
        with self._lock:
            worth = FRESH_SECONDS if self._found else RETRY_SECONDS
            old = time.monotonic() - self._asked >= worth
            if endpoint != self._endpoint or (old and self._ended.is_set()):
                self._begin(endpoint)
            ended = self._ended
        ended.wait(PATIENCE)
        with self._lock:
            return ended is self._ended and ended.is_set() and self._found

    def _begin(self, endpoint: str) -> None:
        self._endpoint, self._asked = endpoint, time.monotonic()
        self._ended, self._found = threading.Event(), False
        arguments = (endpoint, self._ended)
        threading.Thread(target=self._try, args=arguments, name="probe", daemon=True).start()

    def _try(self, endpoint: str, ended: threading.Event) -> None:
        found = self._knock(endpoint)
        with self._lock:
            if ended is self._ended:
                self._found = found
            ended.set()


def answers(endpoint: str, lookup: Callable[[str], str] = str) -> bool:
    """Whether a connection to an endpoint's host and port can be opened."""
    with suppress(OSError, ValueError):
        parts = urlsplit(endpoint)
        port = parts.port or _PORTS.get(parts.scheme, 0)
        with socket.create_connection((lookup(parts.hostname or ""), port), _CONNECT):
            return True
    return False
