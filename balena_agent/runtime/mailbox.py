"""The reconciler's mailbox: messages in order, wake-ups merged.

Theory: commands, outcomes and progress are messages, and each of them counts. "Look again" is not
a message but a set: a storm of engine events costs one look (architecture B7).
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..core.intent import Command
from ..core.looks import Touch
from ..core.observed import HostFacts

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Given:
    """A command, and the future of the face that gave it."""

    command: Command
    answer: Future[str]


@dataclass(frozen=True, slots=True)
class StopServices:
    """The host goes down: stop every service in order, then answer."""

    answer: Future[str]


@dataclass(frozen=True, slots=True)
class NewFacts:
    """The host is not what it was (its name, say)."""

    facts: HostFacts


@dataclass(frozen=True, slots=True)
class Quit:
    """The reconciler ends after this message."""


class Mailbox(Generic[M]):
    def __init__(self) -> None:
        self._news = threading.Condition()
        self._messages: deque[M] = deque()
        self._touch = Touch()

    def post(self, message: M) -> None:
        with self._news:
            self._messages.append(message)
            self._news.notify()

    def wake(self, touch: Touch) -> None:
        with self._news:
            self._touch = self._touch | touch
            self._news.notify()

    def take(self, timeout: float) -> tuple[list[M], Touch]:
        """Everything that has come in; waits at most `timeout` seconds for the first news."""
        with self._news:
            self._news.wait_for(lambda: self._messages or self._touch, max(0.0, timeout))
            messages, touch = list(self._messages), self._touch
            self._messages.clear()
            self._touch = Touch()
        return messages, touch
