"""The published state: one reference that readers take without a lock, and a way to wait for news.

Invariant: only the reconciler publishes. A reader that took a snapshot keeps a consistent, merely
older one. Versions grow by one with each publication.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..core.snapshot import Snapshot

Subscriber = Callable[[Snapshot], None]


class Present:
    """The snapshot in the making, shared by the parts that the reconciler's thread runs. What is
    changed here is seen by nobody else before it is published."""

    def __init__(self, now: Snapshot) -> None:
        self.now = now

    def change(self, **changes: Any) -> None:
        """`changes` are fields of `Snapshot`."""
        self.now = replace(self.now, **changes)


class Published:
    """The current snapshot. Subscribers are called in the reconciler's thread: they must be quick
    and must not raise."""

    def __init__(self, first: Snapshot) -> None:
        self._current = first
        self._news = threading.Condition()
        self._subscribers: tuple[Subscriber, ...] = ()

    @property
    def current(self) -> Snapshot:
        return self._current

    def publish(self, snapshot: Snapshot) -> Snapshot:
        """Give the snapshot the next version, show it, and tell everybody."""
        current = replace(snapshot, version=self._current.version + 1)
        with self._news:
            self._current = current
            self._news.notify_all()
        for subscriber in self._subscribers:
            subscriber(current)
        return current

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers = (*self._subscribers, subscriber)

    def newer_than(self, version: int, timeout: float) -> Snapshot | None:
        """The first snapshot after `version`, or None when there is none within `timeout` s."""
        with self._news:
            self._news.wait_for(lambda: self._current.version > version, timeout)
            return self._current if self._current.version > version else None
