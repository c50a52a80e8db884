"""Asking the reconciler, and waiting for its answer without losing the server.

Theory: a command is met when it is met, which may take minutes, and all that time its request holds
one of the few worker threads. So only so many requests may be held at once; the rest of the workers
always stays free for reads, for `/ping` and thus for the watchdog's proof. One place more is kept
for what is urgent: a reboot is what people ask for when everything else is stuck. When all places
are taken, those of clients that have left go to others; what they asked for stands. Not before:
some say with the end of their half that their request is whole, and wait. (Streams hold no worker:
they have a thread of their own, see streams.py.)

Invariant: after `close` nobody waits any more, and nobody begins to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..core.errors import Cancelled, DeadlineExceeded, Unavailable
from ..core.intent import Command
from ..runtime.ports import Submit

Left = Callable[[], bool]
"""Whether the client has gone; quick."""

_HAND_ON = 1.0
"""Seconds in which a place that is given up becomes free."""


def stays() -> bool:
    """A client that never goes: nobody knows better."""
    return False


@dataclass(eq=False, slots=True)
class _Held:
    """A request that waits."""

    left: Left
    woken: threading.Event = field(default_factory=threading.Event)
    given_up: bool = False


class Patience:
    """`slots` requests may be held at once, and an urgent one."""

    def __init__(self, submit: Submit, slots: int = 8) -> None:
        self._submit = submit
        self._free = threading.BoundedSemaphore(slots)
        self._reserve = threading.BoundedSemaphore(1)
        self._lock = threading.Lock()
        self._waiting: set[_Held] = set()
        self._closed = False

    @contextmanager
    def slot(self, urgent: bool = False) -> Iterator[None]:
        """Hold one slot, or raise Unavailable when there is none."""
        places = (self._free, self._reserve) if urgent else (self._free,)
        taken = next((place for place in places if place.acquire(blocking=False)), None)
        if taken is None and self._give_up_deserted():
            taken = next((place for place in places if place.acquire(timeout=_HAND_ON)), None)
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
        with self.slot(urgent), self._held(left) as held:
            future = self._submit(command)
            future.add_done_callback(lambda _: held.woken.set())
            held.woken.wait(limit)
            if not future.done():
                self._still_wanted(held)
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

    @contextmanager
    def _held(self, left: Left) -> Iterator[_Held]:
        held = _Held(left)
        with self._lock:
            if self._closed:
                raise Cancelled("The agent is stopping")
            self._waiting.add(held)
        try:
            yield held
        finally:
            with self._lock:
                self._waiting.discard(held)

    def _still_wanted(self, held: _Held) -> None:
        if self._closed:
            raise Cancelled("The agent is stopping")
        if held.given_up:
            raise Cancelled("The client has left; what it asked for stands")

    def _give_up_deserted(self) -> bool:
        """Wake those who wait for a client that has left; whether there were any."""
        with self._lock:
            deserted = [held for held in self._waiting if held.left()]
            for held in deserted:
                held.given_up = True
                held.woken.set()
        return bool(deserted)

    def close(self) -> None:
        """Wake everybody who waits; they answer that the agent is stopping."""
        with self._lock:
            self._closed = True
            for held in self._waiting:
                held.woken.set()
