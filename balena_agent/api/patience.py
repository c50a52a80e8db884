"""Asking the reconciler, and waiting for its answer without losing the server.

Theory: a command is met when it is met, which may take minutes, and all that time its request holds
one of the few worker threads. So only so many requests may be held at once; the rest of the workers
always stays free for reads, for `/ping` and thus for the watchdog's proof. One place more is kept
for what is urgent: a reboot is what people ask for when everything else is stuck. A client that has
left gives its place back; what it asked for stands. (Streams hold no worker: they have a thread of
their own, see streams.py.)

Invariant: after `close` nobody waits any more, and nobody begins to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager

from ..core.errors import Cancelled, DeadlineExceeded, Unavailable
from ..core.intent import Command

Submit = Callable[[Command], "Future[str]"]
"""The reconciler's door: the future is done when the command is met, or raises an AgentError."""

Left = Callable[[], bool]
"""Whether the client has gone; quick."""

LOOK_SECONDS = 1.0
"""How often that is asked."""


def stays() -> bool:
    """A client that never goes: nobody knows better."""
    return False


class Patience:
    """`slots` requests may be held at once, and an urgent one."""

    def __init__(self, submit: Submit, slots: int = 8) -> None:
        self._submit = submit
        self._free = threading.BoundedSemaphore(slots)
        self._reserve = threading.BoundedSemaphore(1)
        self._lock = threading.Lock()
        self._waiting: set[threading.Event] = set()
        self._closed = False

    @contextmanager
    def slot(self, urgent: bool = False) -> Iterator[None]:
        """Hold one slot, or raise Unavailable at once when there is none."""
        places = (self._free, self._reserve) if urgent else (self._free,)
        taken = next((place for place in places if place.acquire(blocking=False)), None)
        if taken is None:
            raise Unavailable("Too many requests are being worked on, try again in a moment")
        try:
            yield
        finally:
            taken.release()

    def ask(self, command: Command, limit: float, left: Left = stays, urgent: bool = False) -> bool:
        """Give a command and wait until it is met: True. False when `limit` seconds were not
        enough; the command stands all the same. Raises the command's AgentError, Unavailable
        without a free slot (nothing was asked then), Cancelled when the server stops or the client
        has left."""
        with self.slot(urgent):
            future = self._submit(command)
            if not self._wait(future, limit, left):
                return False
        try:
            future.result()
        except CancelledError as error:
            raise Cancelled("The request was given up") from error
        return True

    def met(self, command: Command, limit: float, left: Left = stays, urgent: bool = False) -> None:
        """As `ask`; DeadlineExceeded where that says False."""
        if not self.ask(command, limit, left, urgent):
            raise DeadlineExceeded(f"Not done after {limit:g} seconds, still being worked on")

    def _wait(self, future: Future[str], limit: float, left: Left) -> bool:
        done, until = threading.Event(), time.monotonic() + limit
        with self._lock:
            if self._closed:
                raise Cancelled("The agent is stopping")
            self._waiting.add(done)
        future.add_done_callback(lambda _: done.set())
        try:
            while (rest := until - time.monotonic()) > 0 and not done.wait(min(rest, LOOK_SECONDS)):
                if left():
                    raise Cancelled("The client has left; what it asked for stands")
        finally:
            with self._lock:
                self._waiting.discard(done)
        if self._closed and not future.done():
            raise Cancelled("The agent is stopping")
        return future.done()

    def close(self) -> None:
        """Wake everybody who waits; they answer that the agent is stopping."""
        with self._lock:
            self._closed = True
            for done in self._waiting:
                done.set()
