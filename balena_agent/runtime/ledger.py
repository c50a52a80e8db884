"""Failures and back-off, per step identity.

Theory: a failing step holds up nothing but itself. Its first retry comes after one second, then
two, four, and so on up to the cap, with a little jitter so that many devices or services do not
march in step (spec 20 §12). A success, or a new target, forgives everything.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ..core.errors import AgentError, Locked
from ..core.situation import Backoff
from ..core.snapshot import Failure
from ..core.steps import Step, identity, subject

BASE_SECONDS = 0.5
CAP_SECONDS = 900.0
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    failure: Failure
    error: AgentError


def delay(count: int, cap: float = CAP_SECONDS) -> float:
    """Seconds to the next try after `count` failures in a row, without jitter."""
    return float(min(BASE_SECONDS * 2 ** min(count, 32), cap))


class Ledger:
    """Used by one thread. `chance` returns numbers in [0, 1)."""

    def __init__(self, chance: random.Random | None = None, cap: float = CAP_SECONDS) -> None:
        self._entries: dict[str, Entry] = {}
        self._chance = chance or random.Random()
        self._cap = cap

    def fail(self, step: Step, error: AgentError, now: float) -> Failure:
        name = identity(step)
        known = self._entries.get(name)
        count = known.failure.count + 1 if known else 1
        pause = delay(count, self._cap) * (1 + JITTER * (2 * self._chance.random() - 1))
        failure = Failure(step, count, error.message, now + pause, isinstance(error, Locked))
        self._entries[name] = Entry(failure, error)
        return failure

    def succeed(self, step: Step) -> None:
        self._entries.pop(identity(step), None)

    def forgive(self) -> None:
        self._entries.clear()

    def forgive_subjects(self, subjects: Collection[str]) -> None:
        """Try everything about these at once; a command was given about them."""
        self._keep(lambda entry: subject(entry.failure.step) not in subjects)

    def prune(self, wanted: Collection[str]) -> None:
        """Forget failures of steps that nobody wants any more."""
        self._entries = {k: e for k, e in self._entries.items() if k in wanted}

    def errors_about(self, subjects: Collection[str]) -> list[AgentError]:
        return [
            entry.error
            for entry in self._entries.values()
            if subject(entry.failure.step) in subjects
        ]

    def lock_errors(self) -> list[AgentError]:
        """Why update locks could not be taken, of whatever app."""
        return [entry.error for entry in self._entries.values() if entry.failure.locked]

    def failures(self) -> dict[str, Failure]:
        return {name: entry.failure for name, entry in self._entries.items()}

    def pauses(self, now: float) -> dict[str, Backoff]:
        """Steps that are not due yet."""
        return {
            name: Backoff(e.failure.retry_at, e.failure.error, e.failure.count)
            for name, e in self._entries.items()
            if e.failure.retry_at > now
        }

    def next_due(self, now: float) -> float | None:
        """Seconds until the next step is due, or None."""
        waits = [e.failure.retry_at - now for e in self._entries.values()]
        ahead = [wait for wait in waits if wait > 0]
        return min(ahead) if ahead else None

    def _keep(self, rule: Callable[[Entry], bool]) -> None:
        self._entries = {name: entry for name, entry in self._entries.items() if rule(entry)}
