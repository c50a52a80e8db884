"""Failures and back-off, per step identity.

Theory: a failing step holds up nothing but itself. Its first retry comes after one second, then
two, four, and so on up to the cap, with a little jitter so that many devices or services do not
march in step (spec 20 §12). A success, or a new target, forgives everything.

What waits for somebody else's work has not failed: it is put off without being counted. Failed
tidying of images is left in peace for an hour (core/images.py), and a part of the host that cannot
be switched for minutes: no app waits for either (spec 30 §10). Downloads cost others something, so
their back-off goes on where a run of the agent before this one left it (`resume`).

A step that was done and is wanted again at once was done in vain: the engine says yes and nothing
comes of it. That counts as a failure too, so that no plan, however wrong, runs hot.

Times are wall time, for people to read, and a wall clock may be set: a device without a battery
learns the time from the network. No pause ever grows by that: what is due later than its pause from
now is due when that pause is over. A clock that leaps ahead only makes a retry come early.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from ..core.errors import AgentError, Locked, StillProcessing, Unavailable
from ..core.images import MUTED_SECONDS, FetchFailure, mute
from ..core.situation import Backoff
from ..core.snapshot import Failure
from ..core.steps import Step, SwitchFeature
from ..core.switches import RETRY_CAP_SECONDS, RETRY_SECONDS
from ..core.traits import identity, subject

BASE_SECONDS = 0.5
CAP_SECONDS = 900.0
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    """`pause`: seconds from the failure to its retry. `in_vain`: the step itself succeeded."""

    failure: Failure
    error: AgentError
    pause: float
    in_vain: bool = False


def delay(count: int, cap: float = CAP_SECONDS, base: float = BASE_SECONDS) -> float:
    """Seconds to the next try after `count` failures in a row, without jitter."""
    return float(min(base * 2 ** min(count, 32), cap))


def pace(step: Step, count: int, cap: float = CAP_SECONDS) -> float:
    """`delay` for this step; `cap` is that of most steps."""
    if isinstance(step, SwitchFeature):
        return delay(count, RETRY_CAP_SECONDS, RETRY_SECONDS / 2)
    return delay(count, cap)


class Ledger:
    """Used by one thread. `chance` returns numbers in [0, 1)."""

    def __init__(self, chance: random.Random | None = None, cap: float = CAP_SECONDS) -> None:
        self._entries: dict[str, Entry] = {}
        self._done: dict[str, tuple[Step, int]] = {}
        self._chance = chance or random.Random()
        self._cap = cap

    def fail(self, step: Step, error: AgentError, now: float) -> Failure:
        count = self._count(step) + 1
        pause = pace(step, count, self._cap) * (1 + JITTER * (2 * self._chance.random() - 1))
        tidying = mute(step, error)
        muted = tidying or isinstance(step, SwitchFeature)
        until = now + (MUTED_SECONDS if tidying else pause)
        locked = isinstance(error, Locked)
        return self._enter(Failure(step, count, error.message, until, locked, muted), error, now)

    def postpone(self, step: Step, error: StillProcessing, now: float) -> Failure:
        """Somebody else is at work on it: due again after a pause, and not counted."""
        until = now + error.pause
        return self._enter(Failure(step, self._count(step), error.message, until), error, now)

    def resume(self, step: Step, known: FetchFailure, now: float) -> None:
        """A step failed in a run before this one. The clock may have been set since: the pause is
        never longer than the count asks for."""
        pause = delay(known.count, self._cap)
        until = min(known.at + pause, now + pause)
        self._enter(Failure(step, known.count, known.error, until), Unavailable(known.error), now)

    def _count(self, step: Step) -> int:
        known = self._entries.get(identity(step))
        return known.failure.count if known else 0

    def _enter(self, failure: Failure, error: AgentError, now: float) -> Failure:
        self._entries[identity(failure.step)] = Entry(failure, error, failure.retry_at - now)
        return failure

    def keep_time(self, now: float) -> None:
        """The clock may have been set back since a failure: no pause grows by that."""
        for name, entry in self._entries.items():
            if entry.failure.retry_at > (latest := now + entry.pause):
                failure = replace(entry.failure, retry_at=latest)
                self._entries[name] = replace(entry, failure=failure)

    def succeed(self, step: Step) -> None:
        known = self._entries.pop(identity(step), None)
        count = known.failure.count if known and known.in_vain else 0
        self._done[identity(step)] = step, count

    def in_vain(self, step: Step, now: float) -> tuple[Failure, AgentError] | None:
        """The failure of a step that is to begin and has just been done, since `turn_over`."""
        done, count = self._done.get(identity(step), (None, 0))
        if done != step:
            return None
        error = Unavailable("it was done, and nothing has changed")
        until = now + delay(count + 1, self._cap)
        failure = self._enter(Failure(step, count + 1, error.message, until), error, now)
        self._entries[identity(step)] = replace(self._entries[identity(step)], in_vain=True)
        return failure, error

    def turn_over(self) -> None:
        """What is wanted from now on may have reasons of its own."""
        self._done = {}

    def forgive(self) -> None:
        self._entries.clear()

    def forgive_subjects(self, subjects: Collection[str]) -> None:
        """Try everything about these at once; a command was given about them."""
        self._keep(lambda entry: subject(entry.failure.step) not in subjects)

    def prune(self, wanted: Collection[str]) -> None:
        """Forget failures of steps that nobody wants any more."""
        self._entries = {k: e for k, e in self._entries.items() if k in wanted}

    def about(self, subjects: Collection[str]) -> list[Entry]:
        return [e for e in self._entries.values() if subject(e.failure.step) in subjects]

    def errors_about(self, subjects: Collection[str]) -> list[AgentError]:
        return [entry.error for entry in self.about(subjects)]

    def lock_errors(self) -> list[AgentError]:
        """Why update locks could not be taken, of whatever app."""
        return [entry.error for entry in self._entries.values() if entry.failure.locked]

    def failures(self) -> dict[str, Failure]:
        return {name: entry.failure for name, entry in self._entries.items()}

    def due(self, now: float) -> list[str]:
        """The failed steps that may be tried again."""
        return [name for name, e in self._entries.items() if e.failure.retry_at <= now]

    def backoff(self, now: float) -> dict[str, Backoff]:
        """For the planner: all failures, and whether their steps are due again."""
        known = {name: entry.failure for name, entry in self._entries.items()}
        return {
            name: Backoff(f.retry_at, f.error, f.count, f.muted, due=f.retry_at <= now)
            for name, f in known.items()
        }

    def next_due(self, now: float) -> float | None:
        """Seconds until the next step is due, or None."""
        waits = [e.failure.retry_at - now for e in self._entries.values()]
        ahead = [wait for wait in waits if wait > 0]
        return min(ahead) if ahead else None

    def _keep(self, rule: Callable[[Entry], bool]) -> None:
        self._entries = {name: entry for name, entry in self._entries.items() if rule(entry)}
