"""Who may have a worker: only requests whose head is here, and nobody who takes too long.

Theory: Cheroot gives a worker to every connection as soon as it is there, and the worker then reads
at the client's pace. A dozen silent clients would be enough to shut out everybody else. So a
connection waits in the selector, which costs no thread, until the whole head of its request can be
read at once: the kernel is asked to wake us only for more than what is here already (SO_RCVLOWAT).
Bodies are read and answers sent by workers, where only the pause between two bytes is limited: a
client that is too slow in all is shut out here, sooner when others wait for its worker.

Invariant: used by the acceptor's thread alone, but for `Slow`.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

HEARING_LIMIT = 30.0
"""Seconds in which a client must have sent its whole request, or taken its whole answer."""

PRESSED_LIMIT = 1.0
"""The same while no worker is free, for clients that stall; less, the more requests wait."""

_SHORTEST_PAUSE = 0.02

WAITING_CONNECTIONS = 256
"""Connections that wait for a whole head; with more, the oldest is closed."""

_LINE = re.compile(rb"[!-~]+ [!-~]+ HTTP/\d\.\d\r")


def is_whole(head: bytes, limit: int) -> bool:
    """Whether a worker can deal with these first bytes of a request without waiting: the head is
    complete, or it is too long or no HTTP, which is answered at once."""
    if not head or len(head) >= limit or b"\r\n\r\n" in head:
        return True
    line, end, _ = head.partition(b"\n")
    return bool(end) and _LINE.fullmatch(line) is None


class Heads:
    """Looks at what has come in on a connection. `limit`: the largest head in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def ready(self, conn: Any) -> bool:
        """Whether the connection may have a worker. If not, it wakes up with more than this."""
        wire: socket.socket = conn.socket
        try:
            head = self._peek(wire)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the worker finds out
        # Woken without anything new: the client has ended what it never finished.
        whole = is_whole(head, self._limit) or 0 < len(head) <= conn.head_seen
        if not whole and not conn.head_seen:
            # The client has begun: from now on the time of a request runs, not that of a pause.
            conn.last_used = time.time()
        if not whole or conn.head_seen:
            _wake_from(wire, 1 if whole else len(head) + 1)
        conn.head_seen = 0 if whole else len(head)
        return whole

    def _peek(self, wire: socket.socket) -> bytes:
        patience = wire.gettimeout()
        wire.settimeout(0)
        try:
            return wire.recv(self._limit, socket.MSG_PEEK)
        finally:
            wire.settimeout(patience)


def _wake_from(wire: socket.socket, count: int) -> None:
    with contextlib.suppress(OSError):
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)


def shut_oldest(waiting: list[Any]) -> None:
    """Make the connection that has waited longest come to its end, in the usual way."""
    oldest = min(waiting, key=lambda conn: conn.last_used)
    with contextlib.suppress(OSError):
        oldest.socket.shutdown(socket.SHUT_RDWR)


class Slow:
    """Connections whose request is being read or whose answer is being sent by a worker, and since
    when (monotonic)."""

    def __init__(self, crowd: Callable[[], float | None]) -> None:
        """`crowd` tells how many requests wait for each worker, None while one is free."""
        self.heard_since: dict[Any, float] = {}
        self._crowd = crowd
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False

    def close(self) -> None:
        """Look no more: the server ends."""
        with self._lock:
            self._closed, timer = True, self._timer
        if timer is not None:
            timer.cancel()
            timer.join(1.0)

    def relieve(self) -> None:
        """Shut out who is too slow, now, and in a moment again if all workers are taken. However
        many clients stall, the next one has his turn after about `PRESSED_LIMIT`."""
        limit = self._limit(self._crowd())
        now = time.monotonic()
        for conn, since in list(self.heard_since.items()):
            taken = now - since
            if taken > HEARING_LIMIT or (taken > limit and conn.stalls()):
                with contextlib.suppress(OSError):
                    conn.socket.shutdown(socket.SHUT_RDWR)
        self.watch()

    def watch(self) -> None:
        """Look again in a moment, if all workers are taken. Called, too, by whoever may be the last
        to take one: who waits then makes no noise that would wake us."""
        crowd = self._crowd()
        if crowd is None:
            return
        with self._lock:
            if self._timer is None and not self._closed:
                pause = max(_SHORTEST_PAUSE, self._limit(crowd) / 2)
                self._timer = threading.Timer(pause, self._again)
                self._timer.name, self._timer.daemon = "http-relief", True
                self._timer.start()

    def _again(self) -> None:
        self._timer = None
        self.relieve()

    @staticmethod
    def _limit(crowd: float | None) -> float:
        return HEARING_LIMIT if crowd is None else PRESSED_LIMIT / (1 + crowd)
