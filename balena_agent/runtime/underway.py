"""The steps under way: begun, making progress, given up, ended.

Theory: a step in flight is part of the situation that the next plan is made for. So there is one
list of them, kept by the reconciler's thread alone, while the executor's workers do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from ..core.observed import Observed
from ..core.snapshot import Running
from ..core.steps import AwaitHandover, CreateContainer, Fetch, Step
from ..core.traits import identity, subject, touched
from . import telling
from .executor import Executor


class UnderWay:
    """Used by one thread."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._running: dict[str, Running] = {}
        self._cancelling: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._running)

    def __contains__(self, name: str) -> bool:
        return name in self._running

    def begin(self, step: Step, now: float) -> None:
        telling.begun(step)
        self._running[identity(step)] = Running(step, since=now)
        self._executor.start(step)

    def progress(self, step: Step, percent: float) -> None:
        known = self._running.get(identity(step))
        if known:
            # A download that begins again, as a whole after a delta say, does not go back.
            self._running[identity(step)] = replace(known, percent=max(known.percent, percent))

    def ended(self, step: Step) -> None:
        self._running.pop(identity(step), None)
        self._cancelling.discard(identity(step))

    def give_up_unwanted(self, wanted: Collection[str]) -> None:
        """Drop downloads that no plan wants any more (balena-supervisor#1956), and waits."""
        for name, running in self._running.items():
            unwanted = isinstance(running.step, (Fetch, AwaitHandover)) and name not in wanted
            if unwanted and name not in self._cancelling:
                self._cancelling.add(name)
                self._executor.cancel(name)

    def steps(self) -> dict[str, Step]:
        return {name: running.step for name, running in self._running.items()}

    def subjects(self) -> frozenset[str]:
        """What is being changed at this moment; a wait changes nothing."""
        steps = self.steps().values()
        return frozenset(subject(s) for s in steps if not isinstance(s, AwaitHandover))

    def in_hand(self, observed: Observed) -> Callable[[str], bool]:
        """Whether a step under way will look at a container when it ends. One that is new to us
        may be the one that a step is making. A wait takes too long to be waited for."""
        steps = [step for step in self.steps().values() if not isinstance(step, AwaitHandover)]
        own = {key for step in steps for key in touched(step).containers}
        making = any(isinstance(step, CreateContainer) for step in steps)
        return lambda key: key in own or (making and key not in observed.containers)

    def shown(self) -> Mapping[str, Running]:
        """For the snapshot: a copy that never changes."""
        return dict(self._running)
