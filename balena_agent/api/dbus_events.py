"""What happened between two snapshots, as the Manager's signals.

Theory: the reconciler publishes values, not events. A signal is the difference of two of them, so
the code that caused it cannot forget it. Whoever missed a signal reads the properties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..core.snapshot import Failure, Snapshot
from ..core.steps import Step
from ..core.traits import service_of, verb
from .dbus_tree import commit_wanted

Event = tuple[str, Sequence[Any]]
"""Signal name and arguments."""


def events(old: Snapshot, new: Snapshot) -> Iterator[Event]:
    """The signals, in the order of their meaning: an update starts before its steps."""
    yield from _update_started(old, new)
    yield from _power(old, new)
    yield from _steps_started(old, new)
    yield from _steps_failed(old, new)
    yield from _update_finished(old, new)


def _update_started(old: Snapshot, new: Snapshot) -> Iterator[Event]:
    begins = new.update_pending and not old.update_pending
    other = new.update_pending and commit_wanted(old) != commit_wanted(new)
    if begins or other:
        yield "UpdateStarted", [commit_wanted(new)]


def _update_finished(old: Snapshot, new: Snapshot) -> Iterator[Event]:
    if old.update_pending and not new.update_pending:
        yield "UpdateFinished", [commit_wanted(new), True, ""]
    elif new.update_failed and not old.update_failed:
        yield "UpdateFinished", [commit_wanted(new), False, new.last_error]


def _steps_started(old: Snapshot, new: Snapshot) -> Iterator[Event]:
    for identity, entry in new.running.items():
        before = old.running.get(identity)
        if before is None or before.since != entry.since:
            yield "StepStarted", [*_about(entry.step), entry.step.cause]


def _steps_failed(old: Snapshot, new: Snapshot) -> Iterator[Event]:
    """A held update lock is no failure but a wait, and is shown as one."""
    for identity, failure in new.failures.items():
        if not failure.locked and _is_new(old.failures.get(identity), failure):
            yield "StepFailed", [*_about(failure.step), failure.error]


def _is_new(before: Failure | None, now: Failure) -> bool:
    return before is None or (before.count, before.retry_at) != (now.count, now.retry_at)


def _about(step: Step) -> tuple[str, str, str]:
    app, service = service_of(step)
    return app, service, verb(step)


def _power(old: Snapshot, new: Snapshot) -> Iterator[Event]:
    asked = new.intent.power is not None
    if asked != (old.intent.power is not None):
        yield "PrepareForReboot", [asked]
