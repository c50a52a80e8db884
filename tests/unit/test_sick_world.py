"""A sick world is not a sick agent: a store that is full or damaged, an engine that dies of a step,
a clock that is set back. Whatever happens the plan goes on, at a calm pace, and says why it waits.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from agent import DEADLINE, Rig, observed, rig, service, target
from fakes.engine import FakeEngine
from fakes.machine import FakeHost, FakeStore, ManualClock
from test_drift import shared
from test_handover import WEB, retired
from test_planner import LOCKED, text, wanted, world
from test_planner import target as desired

from balena_agent.core.describe import describe, plan_state
from balena_agent.core.errors import EngineFailed, EngineUnavailable, Unavailable
from balena_agent.core.intent import (
    Apply,
    Intent,
    RestartService,
    SetTarget,
    StartService,
    StopService,
)
from balena_agent.core.looks import Patch, Touch
from balena_agent.core.observed import HostFacts
from balena_agent.core.scopes import EVERYTHING, Scope
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.sources import KeptTarget
from balena_agent.core.steps import StartContainer, StopContainer
from balena_agent.core.target import read_local
from balena_agent.runtime.executor import Crew, Outcome
from balena_agent.runtime.mailbox import Given
from balena_agent.runtime.policy import Memory, Policy
from balena_agent.runtime.reconciler import Reconciler
from balena_agent.runtime.state import Published
from balena_agent.watchdog import Watchdog

FULL = Unavailable("the state cannot be kept: no space left")

# ---- a store that cannot be written --------------------------------------------------------------


class Filling(FakeStore):
    """There is room for one more target, then the disk is full."""

    last = False

    def save_target(self, source: str, raw: str) -> None:
        super().save_target(source, raw)
        if self.last:
            self.full = FULL


def test_a_disk_that_is_full_when_a_stop_is_over_does_not_hold_up_the_new_release() -> None:
    store = Filling()
    with rig(store=store) as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE)
        agent.settled()
        store.last = True
        agent.post(target(service("one", environment={"A": "b"}), commit="c2"))
        agent.settled()
        assert agent.containers() == {"one": "running"}
        assert store.stopped, "the store could not take it yet"
        assert FULL.message in agent.published.current.notices
        store.full = None
        agent.until(lambda s: not store.stopped, "what is owed to the store is made good")
        agent.until(lambda s: not s.notices)


def test_a_stop_that_is_taken_back_on_a_full_disk_is_answered_once() -> None:
    store = FakeStore()
    with rig(store=store) as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.host.user_locks[1] = "one"

        def fill(snapshot: Snapshot) -> None:
            store.full = FULL if snapshot.intent.stopped else store.full

        agent.published.subscribe(fill)
        answer = agent.reconciler.submit(StopService(("1", "one")))
        agent.until(lambda s: answer.done(), "the caller is told")
        assert answer.exception() is not None
        agent.until(lambda s: not s.intent.stopped)
        assert agent.containers() == {"one": "running"}


# ---- an engine that dies of a step ---------------------------------------------------------------


def test_a_step_that_the_engine_dies_of_is_not_repeated_hot() -> None:
    engine = FakeEngine(observed("busybox"))
    with rig(engine=engine) as agent:
        engine.fail("start service 1/one", EngineUnavailable("connection reset"), times=3)
        agent.post(target(service("one")))
        failed = agent.until(lambda s: any(f.count == 3 for f in s.failures.values()))
        (failure,) = failed.failures.values()
        assert isinstance(failure.step, StartContainer)
        assert failure.retry_at - agent.clock.wall() > 2.0
        agent.until(lambda s: any("connection reset" in w.reason for w in s.plan.waits))
        agent.settled()


def test_who_shares_the_network_of_one_that_a_user_stopped_waits_and_comes_with_it() -> None:
    """The engine lets nobody into the network of a container that does not run. Tried again and
    again, the start would be minutes in back-off when the other one runs at last."""
    guest = service("two", 2, network_mode="service:one")
    with rig() as agent:
        agent.post(target(service("one"), guest))
        agent.settled()
        agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE)
        agent.settled()
        agent.post(target(service("one"), {**guest, "environment": {"A": "b"}}))
        waiting = agent.until(lambda s: s.plan.waits and not s.running and not s.plan.steps)
        assert [str(wait) for wait in waiting.plan.waits] == [
            "service 1/two: waits for one to run, whose namespace it shares"
        ]
        assert not waiting.failures and agent.containers() == {"one": "exited", "two": "created"}
        agent.reconciler.submit(StartService(("1", "one"))).result(DEADLINE)
        agent.settled()
        assert agent.containers() == {"one": "running", "two": "running"}


def test_an_old_container_that_the_engine_ended_in_its_hand_over_runs_until_the_image_is_here() -> (
    None
):
    """It was retired, the engine was started anew, and the image of yet another release is missing:
    of this service, or of another one."""
    start = "start web: its hand-over cannot go on now"
    absent = replace(WEB, image="i9:latest", image_present=False)
    assert start in text(desired(absent), world(retired("exited")), LOCKED)
    other = wanted("db", image="i9:latest", image_present=False)
    lines = text(desired(WEB, other), world(retired("exited")), LOCKED)
    assert start in lines and not any(line.startswith("remove ") for line in lines)
    user = replace(LOCKED, intent=Intent(stopped={WEB.key: WEB.container_name.commit}))
    assert start not in text(desired(absent), world(retired("exited")), user)


def test_while_the_engine_is_away_the_plan_says_that_it_waits_for_it() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.engine.down = True
        agent.reconciler.wake(Touch(everything=True))
        shown = agent.until(lambda s: s.engine_error)
        state = plan_state(shown, EVERYTHING)
        assert state["waits"] == [
            {"subject": "engine", "reason": shown.engine_error, "until": None}
        ]
        assert plan_state(shown, Scope(app_id=1))["waits"] == state["waits"]
        assert state["settled"] is False


# ---- a clock that was set back -------------------------------------------------------------------


def test_who_was_started_by_us_beside_its_owner_is_not_restarted_for_a_clock_set_back() -> None:
    both, seen = shared("2030-01-01T00:00:00Z", "2026-01-01T00:00:00Z")
    assert text(both, seen, LOCKED) == ["stop two: network of one was recreated"]
    runs = {"id-two": ("2026-01-01T00:00:00Z", "2030-01-01T00:00:00Z")}
    assert not any(line.startswith("stop") for line in text(both, seen, with_runs(runs)))
    runs = {"id-two": ("2026-01-01T00:00:00Z", "2029-01-01T00:00:00Z")}
    assert text(both, seen, with_runs(runs)) == ["stop two: network of one was recreated"]


def with_runs(runs: dict[str, tuple[str, str]]) -> Any:
    return replace(LOCKED, joined=runs)


def test_a_clock_set_back_costs_one_restart_and_no_endless_loop() -> None:
    with rig() as agent:
        agent.post(target(service("one", 1), service("two", 2, network_mode="service:one")))
        agent.settled()
        before = len(agent.engine.performed)
        ids = agent.ids()
        agent.engine.change(
            lambda seen: replace(
                seen,
                containers={
                    **seen.containers,
                    ids["one"]: replace(
                        seen.containers[ids["one"]], started_at="2030-01-01T00:00:00Z"
                    ),
                },
            ),
            Touch(containers=frozenset({ids["one"]})),
        )
        agent.reconciler.wake(Touch(containers=frozenset({ids["one"]})))
        stops(agent, before, 1)
        agent.settled()
        for _ in range(20):
            agent.clock.advance(5.0)
            agent.reconciler.submit(Apply()).result(DEADLINE)
            agent.settled()
        assert len(stopped(agent, before)) == 1


def stopped(agent: Rig, since: int) -> list[StopContainer]:
    return [step for step in agent.engine.performed[since:] if isinstance(step, StopContainer)]


def stops(agent: Rig, since: int, number: int) -> None:
    agent.until(lambda s: len(stopped(agent, since)) >= number, "it was stopped")


# ---- a defect of ours ----------------------------------------------------------------------------


def test_a_defect_in_one_message_does_not_lose_the_others() -> None:
    published = Published(Snapshot(facts=HostFacts(device_uuid="d0d0")))
    reconciler = Reconciler(
        FakeEngine(), FakeHost(), FakeStore(), ManualClock(), Watchdog(lambda state: None),
        published, lambda app, name: "key", Memory(), Policy(),
    )  # fmt: skip
    document = target(service("one"))
    answer: Future[str] = Future()
    given = Given(SetTarget("local", "{}", read_local(document)), answer)
    broken: Any = Outcome(None, None, Patch(), 1)  # type: ignore[arg-type]
    assert reconciler.turn([broken, given], Touch())
    assert published.current.target is not None
    reconciler.close(5.0)


def test_a_job_does_not_wait_for_another_though_a_thread_could_be_started() -> None:
    """A worker has taken a job from the queue and is interrupted before it has said so."""
    crew, interrupted, go_on, second = Crew("crew", 2), *(threading.Event() for _ in range(3))
    taken = crew._jobs

    class Slow:
        def get(self, **limit: Any) -> Any:
            job = taken.get(**limit)
            if not interrupted.is_set():
                interrupted.set()
                go_on.wait(DEADLINE)
            return job

        def __getattr__(self, name: str) -> Any:
            return getattr(taken, name)

    crew._jobs = Slow()  # type: ignore[assignment]
    ended: list[bool] = []
    done = threading.Event()

    def first() -> None:
        ended.append(second.wait(8.0))
        done.set()

    crew.submit(first)
    assert interrupted.wait(DEADLINE)
    crew.submit(second.set)
    go_on.set()
    assert done.wait(DEADLINE) and ended == [True]
    crew.close()


# ---- what cannot be mended is told ---------------------------------------------------------------


def test_a_dead_container_that_the_engine_cannot_remove_is_told_everywhere() -> None:
    reason = "driver failed to remove root filesystem: device or resource busy"
    with rig() as agent:
        agent.post(target(service("one"), service("two", 2)))
        agent.settled()
        dead = agent.ids()["one"]
        agent.engine.fail("remove service 1/one", EngineFailed(reason, 500), times=10**6)
        agent.engine.change(
            lambda seen: replace(
                seen,
                containers={
                    **seen.containers,
                    dead: replace(seen.containers[dead], state="dead"),
                },
            ),
            Touch(),
        )
        agent.reconciler.wake(Touch(containers=frozenset({dead})))
        shown = agent.until(lambda s: any(f.count == 3 for f in s.failures.values()))
        told = describe(shown, "1")
        (row,) = [s for app in told["apps"] for s in app["services"] if s["name"] == "one"]
        assert row["waiting"] == f"{reason} (attempt 3 failed)" and row["status"] == "Dead"
        assert [wait["subject"] for wait in told["waits"]] == ["service 1/one"]
        assert told["waits"][0]["until"] > agent.clock.wall()
        assert [failure["error"] for failure in told["failures"]] == [reason]
        assert reason in told["lastError"] and reason in told["status"]
        assert agent.containers()["two"] == "running"


def test_a_stored_target_that_does_not_read_is_told_in_a_notice() -> None:
    memory = Memory(targets={"https://cloud": KeptTarget("{", None)})
    with rig(memory=memory) as agent:
        shown = agent.until(lambda s: s.looked and s.notices)
        assert "source https://cloud cannot be used" in shown.notices[0]


# ---- what was said once does not hold for ever ---------------------------------------------------


def test_a_forced_target_that_is_replaced_before_it_settles_leaves_no_force() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.engine.fail("fetch", EngineFailed("no such image", 404), times=10**6)
        agent.post(target(service("one"), service("two", 2, image="nowhere")), force=True)
        agent.until(lambda s: any(f.count == 2 for f in s.failures.values()))
        agent.host.user_locks[1] = "one"
        agent.post(target(service("one", environment={"A": "b"})))
        shown = agent.until(lambda s: any(f.locked for f in s.failures.values()), "the lock holds")
        assert shown.intent.force == frozenset() and 1 in agent.host.user_locks


def test_the_force_of_one_app_ends_with_it_though_another_never_settles() -> None:
    two = {
        **target(service("one"))["local"]["apps"],
        **target(service("b", 2, image="nowhere"), app=2)["local"]["apps"],
    }
    with rig() as agent:
        agent.engine.fail("fetch", EngineFailed("no such image", 404), times=10**6)
        agent.post({"local": {"name": "dev", "config": {}, "apps": two}})
        agent.until(lambda s: any(f.count == 2 for f in s.failures.values()))
        agent.until(lambda s: agent.containers() == {"one": "running"})
        command = RestartService(("1", "one"), force=True)
        assert agent.reconciler.submit(command).result(DEADLINE) == "restarted"
        agent.until(lambda s: not s.intent.force, "nothing is forced any more")
