"""A service that is recreated again and again for one and the same spec (spec 20 §12)."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from agent import DEADLINE, Rig, rig, service, target
from test_planner import LOCKED, text, there, wanted, world
from test_planner import target as desired
from worlds import spec

from balena_agent.core import damping
from balena_agent.core.intent import Apply, Command, RestartService
from balena_agent.core.looks import Touch
from balena_agent.core.steps import CreateContainer, RemoveContainer, StopContainer
from balena_agent.runtime.damper import Damper

WEB = wanted("web")
KEY = WEB.key


def recreated(damper: Damper, times: int, every: float = 1.0, made: object = WEB) -> None:
    for turn in range(times):
        damper.begun(StopContainer("1", "web", "x", final=True))
        damper.begun(RemoveContainer("1", "web", "x"))
        damper.created(made, turn * every)  # type: ignore[arg-type]


def test_more_than_three_recreations_in_ten_minutes_are_too_many() -> None:
    damper = Damper()
    recreated(damper, damping.LIMIT)
    assert damper.damped == {}
    recreated(damper, 1)
    assert damper.damped == {KEY: WEB.spec.digest()}


def test_few_or_slow_ones_are_not() -> None:
    damper = Damper()
    recreated(damper, 20, every=damping.WINDOW_SECONDS / damping.LIMIT)
    assert damper.damped == {}


def test_what_others_have_removed_does_not_count() -> None:
    damper = Damper()
    for now in range(9):
        damper.created(WEB, now)
    assert damper.damped == {}


def test_another_spec_begins_anew() -> None:
    damper = Damper()
    for turn in range(9):
        recreated(damper, 1, made=replace(WEB, spec=spec("i1:latest", turn, [], [], "")))
    assert damper.damped == {}


def test_another_spec_ends_the_damping_for_good() -> None:
    damper = Damper()
    recreated(damper, damping.LIMIT + 1)
    recreated(damper, 1, made=replace(WEB, spec=spec("i1:latest", 7, [], [], "")))
    assert damper.damped == {}


@pytest.mark.parametrize("app", ["", "1"])
def test_a_command_forgives(app: str) -> None:
    damper = Damper()
    recreated(damper, 4)
    damper.forgive("another")
    assert damper.damped
    damper.forgive(app)
    recreated(damper, damping.LIMIT)
    assert damper.damped == {}


def test_a_service_that_left_its_target_is_forgotten() -> None:
    damper = Damper()
    recreated(damper, 4)
    damper.keep_only(frozenset())
    assert damper.damped == {}


def test_the_container_of_a_damped_service_is_kept_and_the_fields_are_named() -> None:
    old = there(WEB, spec=spec("i1:latest", 0, ["1_default"], [], ""))
    damped = replace(LOCKED, damped={KEY: WEB.spec.digest()})
    lines = text(desired(WEB), world(old), damped)
    assert lines == [
        "release-locks 1: nothing left to do",
        "wait service 1/web: kept as it is: recreated more than 3 times within 10 minutes"
        " and still not as wanted: Cmd",
    ]
    other = replace(LOCKED, damped={KEY: "another"})
    assert text(desired(WEB), world(old), other)[0].startswith("stop web: Cmd")


def test_dependents_of_a_damped_service_are_started() -> None:
    db = wanted("db", spec=spec("i1:latest", 0, ["1_default"], [], ""))
    old = there(WEB, spec=spec("i1:latest", 0, ["1_default"], [], ""))
    damped = replace(LOCKED, damped={KEY: WEB.spec.digest()})
    assert "start db: created, not started yet" in text(
        desired(WEB, db), world(old, there(db, state="created")), damped
    )


def never_equal(agent: Rig) -> None:
    """From now on every container comes out in another spelling, and what it was asked to be gets
    lost: the loop that the damper is for."""

    def lose(*_: object) -> dict[str, object]:
        return {}

    agent.reconciler._world.intend = lose  # type: ignore[method-assign]
    make = agent.engine._do

    def spoilt(step):  # type: ignore[no-untyped-def]
        make(step)
        if isinstance(step, CreateContainer):
            with agent.engine._lock:
                known = agent.engine._observed.containers
                odd = {
                    k: replace(c, spec=replace(c.spec, fields={**c.spec.fields, "User": "odd"}))
                    for k, c in known.items()
                }
                agent.engine._observed = replace(agent.engine._observed, containers=odd)

    agent.engine._do = spoilt  # type: ignore[method-assign]


def is_kept(agent: Rig) -> None:
    """The container is kept, runs, and stays however often it is looked at."""
    agent.until(lambda s: damping.notices(s.plan) and not s.running and not s.plan.steps, "kept")
    before = agent.ids()
    for _ in range(5):
        version = agent.published.current.version
        agent.reconciler.wake(Touch(everything=True))
        agent.clock.advance(70)
        agent.published.newer_than(version, 0.1)
    assert agent.ids() == before and agent.containers() == {"one": "running"}


@pytest.mark.parametrize("command", [Apply(), RestartService(("1", "one"))])
def test_an_endless_loop_ends_and_a_command_tries_again(
    command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with rig() as agent:
        never_equal(agent)
        agent.post(target(service("one")))
        is_kept(agent)
        made = [s for s in agent.engine.performed if isinstance(s, CreateContainer)]
        assert len(made) == damping.LIMIT + 2
        told = [r.getMessage() for r in caplog.records if "kept as it is" in r.getMessage()]
        assert len(told) == 1 and told[0].endswith(": User")
        agent.reconciler.submit(command).result(DEADLINE)
        is_kept(agent)
        again = [s for s in agent.engine.performed if isinstance(s, CreateContainer)]
        assert len(again) > len(made)
