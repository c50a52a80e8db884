"""Reboots that the device itself needs: when they are asked for, and what is in their way."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from agent import Rig, remembered, rig, service, target
from fakes.machine import FakeHost
from test_planner import target as desired
from test_planner import text, there, wanted, world
from worlds import spec

from balena_agent.core.desired import Dependency, DesiredService
from balena_agent.core.errors import RefusedByHost
from balena_agent.core.intent import Power
from balena_agent.core.looks import Touch
from balena_agent.core.messages import sentences
from balena_agent.core.names import REQUIRES_REBOOT
from balena_agent.core.observed import HostState
from balena_agent.core.origins import Origin
from balena_agent.core.plan import Wait
from balena_agent.core.planner import plan
from balena_agent.core.reboots import HOST_UPDATE
from balena_agent.core.situation import Backoff, Situation
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.steps import RequestReboot, RequireReboot, StopContainer, TakeLocks
from balena_agent.core.traits import identity
from balena_agent.runtime.longwaits import LongWaits
from balena_agent.runtime.power import POWER_PATIENCE_SECONDS

REQUIRED = HostState("boot", reboot_required=True)
WEB, DB = wanted("web"), wanted("db")
TAKE = TakeLocks("1", 1, ("web",))


def rebooting(name: str = "web") -> DesiredService:
    made = spec("i1:latest", 1, ["1_default"], [], "")
    return wanted(
        name, spec=replace(made, fields={**made.fields, "Labels": {REQUIRES_REBOOT: "true"}})
    )


# ---- who waits for a boot ------------------------------------------------------------------------

NEW = there(rebooting(), "created", created_at="2026-01-02T03:04:06.7Z")


@pytest.mark.parametrize(
    ("host", "origins", "starts"),
    [
        (HostState("now"), {NEW.id: Origin("now")}, False),
        (HostState("now"), {NEW.id: Origin("before")}, True),
        (HostState("now", "2026-01-02T03:04:05"), {}, False),
        (HostState("now", "2026-01-02T03:04:06"), {}, True),
        (HostState("now", "2026-01-02T03:04:05"), {NEW.id: Origin("before")}, True),
        (HostState("", "2026-01-02T03:04:05"), {NEW.id: Origin("")}, False),
        (HostState("now"), {}, True),
    ],
)
def test_a_container_of_this_boot_is_not_started(
    host: HostState, origins: dict[str, Origin], starts: bool
) -> None:
    now = Situation(host=host, origins=origins)
    (line,) = text(desired(rebooting()), world(NEW), now)
    said = "start web: created" if starts else f"require-reboot web: label {REQUIRES_REBOOT}"
    assert line.startswith(said)


def test_without_the_label_or_once_it_ran_the_boot_does_not_matter() -> None:
    now = Situation(host=HostState("now"), origins={"id-web": Origin("now")})
    assert text(desired(WEB), world(there(WEB, "created")), now)[0].startswith("start web")
    ran = there(rebooting(), "exited")
    assert text(desired(rebooting()), world(ran), now) == []


def test_those_behind_it_wait_and_the_rest_goes_on() -> None:
    api = wanted("api", depends_on=(Dependency("web"),))
    now = Situation(host=HostState("now"), origins={NEW.id: Origin("now")})
    seen = world(NEW, there(api, "created"), there(DB, "created"))
    assert text(desired(rebooting(), api, DB), seen, now) == [
        "start db: created, not started yet",
        f"require-reboot web: label {REQUIRES_REBOOT}",
        "wait service 1/api: waits for web to be started",
    ]


def test_what_is_said_is_what_the_peer_says() -> None:
    said = 'Reboot has been scheduled to apply changes: {"serviceName":"web"}'
    assert sentences(RequireReboot("1", "web", "x")).done == said


# ---- the attempt ---------------------------------------------------------------------------------


def test_work_comes_first_then_all_locks_then_the_request() -> None:
    seen = world(there(WEB))
    assert text(desired(WEB, DB), seen, Situation(host=REQUIRED, locked=frozenset({1}))) == [
        "create db: no container yet",
        "wait reboot: is required; everything else is done before",
    ]
    taking = "wait reboot: is required; the update locks are taken for it"
    assert text(desired(WEB), seen, Situation(host=REQUIRED)) == [
        "take-locks 1: reboot: changes wait for it",
        taking,
    ]
    locked = Situation(host=REQUIRED, locked=frozenset({1}))
    assert text(desired(WEB), seen, locked) == ["reboot device: changes wait for it", taking]
    asking = replace(locked, running={identity(RequestReboot()): RequestReboot()})
    assert text(desired(WEB), seen, asking) == [taking]
    done = replace(locked, power_requested=True)
    assert text(desired(WEB), seen, done) == ["wait reboot: was accepted by the host"]


def test_work_under_way_is_waited_for() -> None:
    stop = StopContainer("9", "other", "c")
    now = Situation(host=REQUIRED, running={identity(stop): stop})
    assert text(desired(WEB), world(there(WEB)), now) == [
        "wait reboot: is required; everything else is done before"
    ]


def test_a_lock_in_the_way_calls_the_attempt_off_as_a_whole() -> None:
    backoff = {identity(TAKE): Backoff(9.0, "Lockfile exists", 2)}
    now = Situation(host=REQUIRED, locked=frozenset({1, 2}), backoff=backoff)
    found = plan(desired(WEB), world(there(WEB)), now)
    assert str(found).splitlines() == [
        "release-locks 1: nothing left to do",
        "release-locks 2: no such app",
        "wait reboot: Lockfile exists (attempt 2 failed)",
    ]
    assert {identity(TAKE), identity(RequestReboot())} <= found.wanted


def test_overridden_locks_are_overridden_but_not_the_host() -> None:
    now = Situation(host=REQUIRED, override_locks=True)
    (step,) = plan(desired(WEB), world(there(WEB)), now).steps
    assert isinstance(step, TakeLocks) and step.force
    now = replace(now, locked=frozenset({1}))
    (step,) = plan(desired(WEB), world(there(WEB)), now).steps
    assert isinstance(step, RequestReboot) and not step.force


def test_a_host_update_is_waited_for_without_locks() -> None:
    now = Situation(host=replace(REQUIRED, host_update=True))
    assert text(desired(WEB), world(there(WEB)), now) == [f"wait reboot: {HOST_UPDATE}"]
    assert text(desired(WEB), world(there(WEB)), replace(now, host=HostState("boot"))) == []


# ---- the whole runtime ---------------------------------------------------------------------------

TWO = target(service("one"), service("two", 2, labels={REQUIRES_REBOOT: "1"}))


def requests(agent: Rig) -> list[RequestReboot]:
    return [step for step in agent.host.requests if isinstance(step, RequestReboot)]


def require(agent: Rig) -> None:
    agent.host.boot = replace(agent.host.boot, reboot_required=True)
    agent.reconciler.wake(everything())


def everything() -> Touch:
    return Touch(everything=True)


def accepted(snapshot: Snapshot) -> bool:
    return "accepted by the host" in str(snapshot.plan)


def test_S55_it_is_asked_for_once() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        require(agent)
        agent.until(accepted, "the reboot")
        before = agent.clock.monotonic()
        agent.until(lambda s: agent.clock.monotonic() - before > POWER_PATIENCE_SECONDS / 20)
        assert len(requests(agent)) == 1
        assert agent.host.held_locks() == {1}


def test_one_that_was_accepted_but_never_came_is_asked_for_again_later() -> None:
    with rig() as agent:
        require(agent)
        agent.post(target(service("one")))
        agent.until(accepted, "the reboot")
        for _ in range(int(POWER_PATIENCE_SECONDS / 20) + 1):
            agent.clock.advance(20.0)
            agent.reconciler.wake(everything())
        agent.until(lambda s: "none came" in s.last_error, "the patience ends")
        agent.until(lambda s: len(requests(agent)) == 2, "asked again")


def test_S56_made_now_started_after_the_reboot() -> None:
    with rig() as agent:
        agent.post(TWO)
        agent.until(lambda s: requests(agent), "the reboot")
        assert agent.containers() == {"one": "running", "two": "created"}
        ids = agent.ids()
        assert agent.store.origins[ids["two"]].boot == "boot-1"
        engine, store = agent.engine, agent.store
    host = FakeHost()
    host.boot = HostState("boot-2")
    with rig(memory=remembered(store), engine=engine, store=store, host=host) as agent:
        agent.settled()
        assert agent.containers() == {"one": "running", "two": "running"}
        assert agent.ids() == ids
        assert requests(agent) == []


def test_a_users_lock_postpones_it_and_is_not_locked_out_itself() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.host.user_locks[1] = "one"
        require(agent)
        agent.until(lambda s: s.failures, "the lock is in the way")
        agent.until(lambda s: not agent.host.held_locks() and not s.running, "nothing is held")
        assert requests(agent) == []
        agent.host.user_locks.clear()
        agent.until(lambda s: requests(agent), "the reboot")


def test_a_refusal_of_the_host_gives_the_locks_back() -> None:
    with rig() as agent:
        agent.host.refusal = RefusedByHost("Blocked by updater: busy")
        agent.post(target(service("one")))
        agent.settled()
        require(agent)
        agent.until(lambda s: any("busy" in f.error for f in s.failures.values()), "refused")
        agent.until(lambda s: not agent.host.held_locks(), "the locks are given back")
        agent.host.refusal = None
        agent.until(lambda s: requests(agent), "the reboot")


def test_a_users_reboot_needs_no_breadcrumb() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.reconciler.submit(Power()).result(10)
        assert len(requests(agent)) == 1


# ---- what lasts ----------------------------------------------------------------------------------


def test_long_waits_are_told_once_and_anew_when_they_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    waits, lasting = LongWaits(), Wait("service 1/web", "waits for db", patience=600.0)
    plain = Wait("service 1/db", "waits for an image")
    waits.tell((lasting, plain), 0.0)
    waits.tell((replace(lasting, reason="waits for db (is starting)"), plain), 599.0)
    assert caplog.messages == []
    waits.tell((lasting, plain), 600.0)
    waits.tell((lasting, plain), 900.0)
    assert caplog.messages == ["service 1/web: waits for db"]
    waits.tell((), 901.0)
    waits.tell((lasting,), 902.0)
    waits.tell((lasting,), 1502.0)
    assert len(caplog.messages) == 2


def test_a_host_update_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    LongWaits().tell((Wait("reboot", HOST_UPDATE, patience=0.0),), 5.0)
    assert caplog.messages == [f"reboot: {HOST_UPDATE}"]


def test_only_a_wait_for_health_has_patience() -> None:
    slow = there(DB, health="starting")
    for condition, patience in (("healthy", 600.0), ("completed", None)):
        web = wanted("web", depends_on=(Dependency("db", condition),))
        found = plan(desired(web, DB), world(there(web, "created"), slow), Situation())
        assert [wait.patience for wait in found.waits] == [patience]
