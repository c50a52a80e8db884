"""What the planner returns: steps to do now, and waits that say why nothing more can be done."""

from __future__ import annotations

from dataclasses import dataclass

from .steps import Step
from .traits import describe


@dataclass(frozen=True, slots=True)
class Wait:
    """Something is not done yet. `subject` says what, `reason` why, `until` when it is looked at
    again by itself (wall time; 0 = when what is waited for happens). `patience`: seconds after
    which the log tells of it, once; None for what is in the ordinary course of things."""

    subject: str
    reason: str
    until: float = 0.0
    patience: float | None = None

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps are independent of each other. No steps and no waits: settled.

    `wanted` are the identities of everything the plan wants done, also of steps that are under way
    or in back-off: a running download that is not in it is cancelled. `settled_apps` are the apps
    (uuids) for which nothing is left to do. `remembered` are the identities of steps that are not
    wanted now but whose failures, if there are any, still count (Draft.failure).
    """

    steps: tuple[Step, ...] = ()
    waits: tuple[Wait, ...] = ()
    wanted: frozenset[str] = frozenset()
    settled_apps: frozenset[str] = frozenset()
    remembered: frozenset[str] = frozenset()

    def __str__(self) -> str:
        lines = [describe(step) for step in self.steps]
        lines += [f"wait {wait}" for wait in self.waits]
        return "\n".join(lines)
