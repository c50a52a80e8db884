"""The hand-overs under way: new containers that start or run beside the old ones.

Theory: the planner sees two containers and cannot know whether the new one was started a moment ago
or by an agent that is long gone. So what this agent has started beside an older container is noted
here, until its wait has ended; and when it has failed, why, until it is gone. The notes are not
kept on disk: the next agent finds an interrupted hand-over, and the newest container stays (spec 20
§15.3).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..core.handover import begins, failures, fault, lasting
from ..core.observed import Observed
from ..core.steps import AwaitHandover, StartContainer, Step


class Handovers:
    """Used by one thread. `waiting` are ids of new containers, `failed` says why others could not
    take over."""

    def __init__(self) -> None:
        self.waiting: frozenset[str] = frozenset()
        self.failed: Mapping[str, str] = {}

    def begin(self, step: Step, observed: Observed) -> None:
        """A step is about to begin."""
        if isinstance(step, StartContainer) and begins(step, observed):
            self.waiting |= {step.container_id}

    def ended(self, step: AwaitHandover, observed: Observed) -> None:
        """A wait has come to its end; a container that is found dead by then has failed."""
        new = observed.containers.get(step.new_id)
        if new is None or not fault(new):
            self.waiting -= {step.new_id}

    def failures(
        self, observed: Observed, stopped_by_agent: Collection[str]
    ) -> tuple[tuple[AwaitHandover, str], ...]:
        """Those that have failed since the last time, each with its reason; they are over."""
        self.waiting = lasting(self.waiting, observed)
        found = tuple(failures(self.waiting, observed, stopped_by_agent))
        self.waiting -= {step.new_id for step, _ in found}
        known = {**self.failed, **{step.new_id: reason for step, reason in found}}
        self.failed = {new_id: known[new_id] for new_id in lasting(known, observed)}
        return found
