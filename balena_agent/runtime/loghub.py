"""Log lines to everybody who follows them, from one reader of the journal.

Theory: the reader exists only while somebody listens. It hands its lines to `LogHub.deliver`, which
puts them into one bounded queue per subscription; whoever is too slow loses the oldest lines of its
own queue, and reads how many. The journal itself is the large buffer in front of this: so a reader
that works off a backlog waits a moment for queues that are being emptied. A moment is bounded, and
a queue from which nobody takes is not waited for at all: the others never wait for it.

Invariants: every subscription gets the lines of a service in order, each once, or a count of those
it missed, in their place. The reader never waits longer than `PATIENCE` per queue and batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..core.logline import LogLine, lost

QUEUED_LINES = 8192
QUEUED_SIZE = 1024 * 1024
"""What a queue holds at most, in lines and in characters."""

PATIENCE = 0.05
_OVERHEAD = 100
"""What a line costs beyond its text."""


class Batch(NamedTuple):
    """Lines in the order of the journal. `cursor` stands behind the last one, "" where nobody could
    go on; `live` is False while the reader still works off what had been written before somebody
    asked."""

    lines: Sequence[LogLine]
    cursor: str = ""
    live: bool = True


Deliver = Callable[[Batch], None]


class Reader(Protocol):
    """A running reader; no line is delivered after `close`."""

    def close(self) -> None: ...


OpenReader = Callable[[Deliver], Reader]
"""Starts a reader at the journal's end. Returns when its place in the journal is fixed: what is
written from then on will be delivered. Raises Unavailable."""


class Subscription:
    """A bounded queue. `wake` is called, from any thread, when there is something to take."""

    def __init__(self, hub: LogHub, wake: Callable[[], None]) -> None:
        self._hub = hub
        self._wake = wake
        self._changed = threading.Condition()
        self._lines: deque[LogLine] = deque()
        self._size = 0
        self._lost = 0
        self._takes = 0
        self._idle = False

    def take(self, limit: int = QUEUED_LINES) -> list[LogLine]:
        """The next lines, at most `limit` and one that tells how many are missing before them."""
        with self._changed:
            count = min(limit, len(self._lines))
            taken = [self._lines.popleft() for _ in range(count)]
            self._size -= sum(map(_cost, taken))
            if self._lost and taken:
                taken.insert(0, lost(self._lost, taken[0].time))
                self._lost = 0
            self._takes += 1
            self._idle = False
            self._changed.notify_all()
        return taken

    def close(self) -> None:
        """No more lines; harmless when done twice."""
        self._hub.drop(self)
        with self._changed:
            self._lines.clear()
            self._size = 0
            self._changed.notify_all()

    def put(self, batch: Batch) -> None:
        """For the hub."""
        with self._changed:
            self._lines.extend(batch.lines)
            self._size += sum(map(_cost, batch.lines))
            while len(self._lines) > QUEUED_LINES or self._size > QUEUED_SIZE:
                self._size -= _cost(self._lines.popleft())
                self._lost += 1
        self._wake()

    def wait_for_room(self, seconds: float) -> None:
        """Wait until half of the queue is free, if somebody empties it at all."""
        with self._changed:
            before = self._takes
            if not self._idle and not self._changed.wait_for(self._has_room, seconds):
                self._idle = self._takes == before

    def _has_room(self) -> bool:
        return len(self._lines) <= QUEUED_LINES // 2 and self._size <= QUEUED_SIZE // 2


class LogHub:
    """`open_reader` is called with the first subscription, its reader closed with the last."""

    def __init__(self, open_reader: OpenReader) -> None:
        self._open = open_reader
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._reader: Reader | None = None

    def subscribe(self, wake: Callable[[], None]) -> Subscription:
        """Lines written from now on. Raises Unavailable."""
        subscription = Subscription(self, wake)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
            try:
                if self._reader is None:
                    self._reader = self._open(self.deliver)
            except Exception:
                self._subscriptions = _without(self._subscriptions, subscription)
                raise
        return subscription

    def drop(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = _without(self._subscriptions, subscription)
            reader, unused = self._reader, not self._subscriptions
            if reader is not None and unused:
                reader.close()
                self._reader = None

    def deliver(self, batch: Batch) -> None:
        """For the reader, in its thread."""
        listeners = self._subscriptions
        for subscription in listeners:
            subscription.put(batch)
        for subscription in listeners:
            subscription.wait_for_room(PATIENCE)


def _without(
    subscriptions: tuple[Subscription, ...], one: Subscription
) -> tuple[Subscription, ...]:
    return tuple(each for each in subscriptions if each is not one)


def _cost(line: LogLine) -> int:
    return len(line.text) + _OVERHEAD
