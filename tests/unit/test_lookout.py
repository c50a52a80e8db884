"""Which events get a look of their own, and which a step's own look has answered already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes.engine import FakeEngine
from fakes.machine import FakeHost, ManualClock

from balena_agent.core.desired import DesiredService
from balena_agent.core.looks import Patch, Touch
from balena_agent.core.names import ContainerName
from balena_agent.core.observed import Observed
from balena_agent.core.spec import ContainerSpec
from balena_agent.core.steps import CreateContainer, StartContainer
from balena_agent.runtime.executor import Executor
from balena_agent.runtime.lookout import Lookout
from balena_agent.runtime.underway import UnderWay
from balena_agent.watchdog import Watchdog


class Eyes(FakeEngine):
    """Remembers what it was asked to look at."""

    def __init__(self) -> None:
        super().__init__(Observed())
        self.looks: list[Touch] = []

    def look(self, touch: Touch) -> Patch:
        self.looks.append(touch)
        return Patch()


class AtOnce(Executor):
    """Jobs are done in the caller's thread; steps never end."""

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def start(self, step: Any) -> None:
        pass


@pytest.fixture
def eyes() -> Eyes:
    return Eyes()


@pytest.fixture
def executor(eyes: Eyes) -> Executor:
    return AtOnce(eyes, FakeHost(), Watchdog(lambda state: None), lambda message: None)


@pytest.fixture
def lookout(eyes: Eyes, executor: Executor) -> Lookout:
    clock = ManualClock()
    made = Lookout(eyes, executor, clock, lambda looked: None)
    made._due = clock.monotonic() + 60  # no full look
    return made


def nothing(_: str) -> bool:
    return False


def touch(*ids: str) -> Touch:
    return Touch(containers=frozenset(ids))


def test_an_event_about_what_a_step_has_in_hand_waits(lookout: Lookout, eyes: Eyes) -> None:
    lookout.ask(touch("a", "b"))
    lookout.start(True, lambda key: key == "a")
    assert eyes.looks == [touch("b")]
    lookout.start(True, nothing)
    assert eyes.looks == [touch("b"), touch("a")]


def test_a_look_that_began_after_the_event_answers_it(
    lookout: Lookout, eyes: Eyes, executor: Executor
) -> None:
    lookout.ask(touch("a"))
    lookout.seen(["a"], executor.next_look())
    lookout.start(True, nothing)
    assert eyes.looks == []


def test_a_look_that_began_before_the_event_does_not(
    lookout: Lookout, eyes: Eyes, executor: Executor
) -> None:
    began = executor.next_look()
    lookout.ask(touch("a"))
    lookout.seen(["a"], began)
    lookout.start(True, nothing)
    assert eyes.looks == [touch("a")]


def test_a_second_event_renews_the_question(
    lookout: Lookout, eyes: Eyes, executor: Executor
) -> None:
    lookout.ask(touch("a"))
    began = executor.next_look()
    lookout.ask(touch("a"))
    lookout.seen(["a"], began)
    lookout.start(True, nothing)
    assert eyes.looks == [touch("a")]


def test_nothing_is_looked_at_while_the_engine_is_away(lookout: Lookout, eyes: Eyes) -> None:
    lookout.ask(touch("a"))
    lookout.start(False, nothing)
    assert eyes.looks == []
    lookout.start(True, nothing)
    assert eyes.looks == [touch("a")]


def test_only_a_creation_makes_unknown_containers_wait(executor: Executor) -> None:
    under_way = UnderWay(executor)
    under_way.begin(StartContainer("u", "web", "c1"), 0.0)
    in_hand = under_way.in_hand(Observed())
    assert in_hand("c1") and not in_hand("c2")
    name = ContainerName("web", 1, 1, "c")
    spec = ContainerSpec("busybox")
    web = DesiredService("u", 1, "web", name, 1, "busybox", True, True, spec)
    under_way.begin(CreateContainer(web), 0.0)
    assert under_way.in_hand(Observed())("c2")
