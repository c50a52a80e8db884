"""The strategy hand-over: its plans as text, and whole hand-overs on the fakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from agent import Rig, rig, service
from agent import target as document
from test_planner import LOCKED, NETWORK, target, text, there, wanted, world
from worlds import spec

from balena_agent.core.body import container_from_inspect
from balena_agent.core.desired import Dependency
from balena_agent.core.effects import NO_RESTART
from balena_agent.core.errors import Cancelled, EngineFailed
from balena_agent.core.intent import Intent, Power, RestartService, StartService, StopService
from balena_agent.core.looks import Touch
from balena_agent.core.names import parse_container_name, parse_volume_name, retired_name
from balena_agent.core.observed import Container, ImageConfig, Observed
from balena_agent.core.planner import plan
from balena_agent.core.situation import Backoff
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.spec import NetworkSpec
from balena_agent.core.steps import (
    AwaitHandover,
    ReinstateContainer,
    RemoveContainer,
    RetireContainer,
    StopContainer,
)
from balena_agent.core.traits import identity, limit

WEB = wanted("web", strategy="hand-over", handover_timeout=3.0)
OTHER = spec("i1:latest", 0, ["1_default"], [], "")
AWAIT = "await-handover service 1/web"


def old(state: str = "running", **more: Any) -> Container:
    return there(WEB, state, id="old", spec=OTHER, intended=OTHER, created_at="1", **more)


def retired(state: str = "running", **more: Any) -> Container:
    return old(state, raw_name=retired_name(WEB.container_name), **more)


def new(state: str = "running", **more: Any) -> Container:
    return there(WEB, state, id="new", created_at="2", **more)


BESIDE = replace(LOCKED, handovers=frozenset({"new"}))


# ---- the plan at every stage ---------------------------------------------------------------------


def test_the_old_one_retires_first_under_the_locks() -> None:
    (line,) = text(target(WEB), world(old()))
    assert line.startswith("retire web: Cmd")
    (step,) = plan(target(WEB), world(old()), LOCKED).steps
    assert isinstance(step, RetireContainer) and step.name == WEB.container_name
    (first,) = text(target(WEB), world(old()), replace(LOCKED, locked=frozenset()))
    assert first.startswith("take-locks 1: retire service 1/web")


def test_then_the_new_one_is_created_started_and_waited_for() -> None:
    assert text(target(WEB), world(retired())) == ["create web: takes over from the old one"]
    assert text(target(WEB), world(retired(), new("created"))) == [
        "start web: created, not started yet"
    ]
    assert text(target(WEB), world(retired(), new()), BESIDE) == [
        "await-handover web: the new container runs beside the old one"
    ]
    (step,) = plan(target(WEB), world(retired(), new()), BESIDE).steps
    assert step == AwaitHandover("1", 1, "web", "old", "new", 3.0)
    assert limit(step) > 3.0


def test_while_it_is_waited_for_nothing_else_is_done_and_the_locks_are_kept() -> None:
    step = AwaitHandover("1", 1, "web", "old", "new", 3.0)
    waiting = replace(BESIDE, running={identity(step): step})
    found = plan(target(WEB), world(retired(), new()), waiting)
    assert (found.steps, found.waits) == ((), ())
    assert AWAIT in found.wanted


def test_when_the_wait_is_over_the_old_one_goes() -> None:
    assert text(target(WEB), world(retired(), new())) == ["stop web: has handed over"]
    assert text(target(WEB), world(retired("exited"), new())) == [
        "remove web: second container of the service"
    ]


def test_S36_an_interrupted_hand_over_keeps_the_newest() -> None:
    (step,) = plan(target(WEB), world(old(), new()), LOCKED).steps
    assert isinstance(step, StopContainer) and step.container_id == "old"


def test_S36_the_old_one_runs_until_the_new_one_does() -> None:
    """Interrupted before the start: the old one is not stopped for one that does not run."""
    lines = text(target(WEB), world(retired(), new("created")))
    assert lines == ["start web: created, not started yet"]
    (line,) = text(target(WEB), world(old(), new("created")))
    assert line.startswith("retire web")


def test_an_old_one_that_ended_meanwhile_is_not_waited_for() -> None:
    found = plan(target(WEB), world(retired("exited"), new()), BESIDE)
    assert AWAIT not in found.wanted
    (step,) = found.steps
    assert isinstance(step, RemoveContainer) and step.container_id == "old"


@pytest.mark.parametrize(
    ("failing", "cause"),
    [
        (new("exited", exit_code=3), "remove web: the new container ended with code 3"),
        (new("restarting", exit_code=1), "stop web: the new container ended with code 1"),
        (new(health="unhealthy"), "stop web: the new container is unhealthy"),
    ],
)
def test_a_new_one_that_ends_or_is_ill_is_rolled_back(failing: Container, cause: str) -> None:
    found = plan(target(WEB), world(retired(), failing), BESIDE)
    (step,) = found.steps
    assert getattr(step, "container_id", "") == "new"
    assert str(found) == cause
    assert AWAIT not in found.wanted and AWAIT in found.remembered


def test_one_that_has_failed_goes_also_when_the_engine_has_started_it_again() -> None:
    told = "the new container ended with code 4"
    failed = replace(LOCKED, failed_handovers={"new": told})
    (step,) = plan(target(WEB), world(retired(), new()), failed).steps
    assert isinstance(step, StopContainer) and step.container_id == "new"
    assert step.cause == told
    assert text(target(WEB), world(new()), failed)[0].startswith("release-locks"), "the only one"


def test_after_a_failure_the_old_one_is_reinstated_and_the_reason_is_seen() -> None:
    failed = replace(LOCKED, backoff={AWAIT: Backoff(9.0, "the new container ended", 2)})
    wait = "wait service 1/web: the new container ended (attempt 2 failed)"
    (reinstate, told) = text(target(WEB), world(retired()), failed)
    assert (reinstate.split(":")[0], told) == ("reinstate web", wait)
    assert text(target(WEB), world(old()), failed) == [
        "release-locks 1: nothing left to do",
        wait,
    ]
    assert AWAIT in plan(target(WEB), world(old()), failed).remembered
    assert text(target(WEB), world(old()))[0].startswith("retire web")


def test_reinstating_gives_back_what_was_asked_for() -> None:
    asked = replace(OTHER, fields={**OTHER.fields, "HostConfig.RestartPolicy": {"Name": "no"}})
    failed = replace(LOCKED, backoff={AWAIT: Backoff(9.0, "ended", 1)})
    for intended, name in ((asked, "no"), (OTHER, "always"), (None, "always")):
        seen = world(replace(retired(), intended=intended))
        (step,) = plan(target(WEB), seen, failed).steps
        assert isinstance(step, ReinstateContainer)
        assert (step.name, step.policy["Name"]) == (WEB.container_name, name)


def test_a_start_that_fails_is_a_failed_hand_over_too() -> None:
    failed = replace(LOCKED, backoff={"start service 1/web": Backoff(9.0, "no such device", 1)})
    lines = text(target(WEB), world(retired(), new("created")), failed)
    assert lines[0] == "remove web: the new container cannot be started: no such device"


# ---- no hand-over --------------------------------------------------------------------------------


def test_images_first() -> None:
    absent = replace(WEB, image="new:latest", image_present=False)
    fetch = "fetch new:latest for web: image is missing"
    assert text(target(absent), world(old()))[0] == fetch
    lines = text(target(absent), world(retired()))
    assert [line.split(":")[0] for line in lines[:2]] == ["fetch new", "reinstate web"]
    db = wanted("db", image="new:latest", image_present=False)
    lines = text(target(WEB, db), world(old(), there(db)))
    assert "wait service 1/web: keeps running until the image of db is here" in lines
    assert not any(line.startswith(("retire", "stop")) for line in lines)


def test_a_new_one_that_could_not_be_started_is_not_made() -> None:
    db = wanted("db")
    web = replace(WEB, depends_on=(Dependency("db"),))
    lines = text(target(db, web), world(there(db, "created"), old()))
    assert "wait service 1/web: waits for db to be started" in lines
    back = replace(WEB, spec=spec("i1:latest", 1, ["1_default", "1_back"], [], ""))
    more = (NETWORK, replace(NETWORK, name="back", engine_name="1_back"))
    lines = text(target(back, networks=more), world(old()))
    assert "wait service 1/web: waits for 1_back" in lines
    assert not any(line.startswith(("retire", "stop")) for line in lines)


def ports(of: Container | Any, port: str) -> Any:
    fields = {**of.spec.fields, "HostConfig.PortBindings": {"80/tcp": [{"HostPort": port}]}}
    return replace(of, spec=replace(of.spec, fields=fields))


def test_a_port_that_both_publish_is_freed_first() -> None:
    web, mine = ports(WEB, "80"), replace(ports(old(), "80"), intended=None)
    assert text(target(web), world(mine))[0].startswith("stop web: ")
    for other in ("81", "0", ""):
        free = replace(mine, spec=ports(mine, other).spec)
        assert text(target(web), world(free))[0].startswith("retire web")


def test_a_port_of_which_only_the_engine_knows_is_freed_when_the_start_has_failed() -> None:
    """And the start follows: no endless loop (spec 20 §15.3)."""
    web = ports(WEB, "80")
    holder = replace(ports(retired(), "80-81"), intended=None)
    fresh = replace(new("created"), spec=web.spec)
    assert text(target(web), world(holder, fresh)) == ["start web: created, not started yet"]
    words = "Bind for 0.0.0.0:80 failed: port is already allocated"
    failed = replace(LOCKED, backoff={"start service 1/web": Backoff(9.0, words, 1)})
    assert text(target(web), world(holder, fresh), failed) == [
        "stop web: the new container needs its port"
    ]
    free = replace(holder, state="exited")
    assert text(target(web), world(free, fresh), failed)[0].startswith("remove web")
    assert text(target(web), world(fresh)) == ["start web: created, not started yet"]


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        ({"networks": (replace(NETWORK, spec=NetworkSpec(internal=True)),)}, old()),
        ({}, old("restarting")),
        ({}, old("paused")),
    ],
)
def test_without_somebody_to_hand_over_it_is_stopped_first(
    how: dict[str, Any], seen: Container
) -> None:
    assert text(target(WEB, **how), world(seen))[0].startswith("stop web: ")


def test_who_has_others_in_its_namespace_is_stopped_first() -> None:
    side = wanted("side", spec=spec("i1:latest", 1, [], [], "web"))
    lines = text(target(WEB, side), world(there(side), old()))
    assert any(line.startswith("stop web: ") for line in lines)
    assert not any(line.startswith("retire") for line in lines)


def test_a_service_that_shall_not_run_or_is_to_be_restarted_is_stopped_first() -> None:
    stopped = replace(LOCKED, intent=Intent(stopped={("1", "web"): "c1"}))
    assert text(target(WEB), world(old()), stopped)[0].startswith("stop web: ")
    again = replace(LOCKED, intent=Intent(recreate=frozenset({"old", "new"})))
    assert text(target(WEB), world(old()), again) == ["stop web: restart was asked for"]
    steps = plan(target(WEB), world(retired(), new()), replace(again, handovers=BESIDE.handovers))
    assert [type(step) for step in steps.steps] == [StopContainer]


def test_a_service_that_leaves_the_target_goes_in_the_usual_way() -> None:
    assert text(target(), world(retired())) == ["stop web: service is not in the target"]


def test_a_new_target_in_the_middle_goes_on_from_the_one_that_is_proven() -> None:
    third = replace(WEB, spec=spec("i1:latest", 5, ["1_default"], [], ""))
    (step,) = plan(target(third), world(retired(), new()), BESIDE).steps
    assert isinstance(step, StopContainer) and step.container_id == "new"
    (step,) = plan(target(third), world(retired(), new()), LOCKED).steps
    assert isinstance(step, StopContainer) and step.container_id == "old"


def test_back_to_the_old_target_in_the_middle() -> None:
    back = replace(WEB, spec=OTHER)
    (step,) = plan(target(back), world(retired(), new()), BESIDE).steps
    assert isinstance(step, StopContainer) and step.container_id == "new"
    assert text(target(back), world(retired())) == ["reinstate web: it is right as it is"]
    assert text(target(back), world(retired("exited"))) == ["start web: was stopped"]


def test_reboot_and_shutdown_do_not_wait_for_a_hand_over() -> None:
    step = AwaitHandover("1", 1, "web", "old", "new", 60.0)
    seen = world(retired(), new())
    for how in ({"intent": Intent(power=Power())}, {"stopping": True}):
        busy = replace(BESIDE, running={identity(step): step}, **how)  # type: ignore[arg-type]
        assert AWAIT not in plan(target(WEB), seen, busy).wanted


# ---- names ---------------------------------------------------------------------------------------


def test_a_retired_container_stays_one_of_its_service() -> None:
    plain = parse_container_name("web_1_2_c3")
    assert plain and parse_container_name("/old_web_1_2_c3") == plain
    labels = {
        "io.balena.supervised": "1", "io.balena.app-id": "1", "io.balena.service-id": "1",
    }  # fmt: skip
    for name, service_name, is_retired in (
        ("web_1_2_c3", "web", False),
        ("old_web_1_2_c3", "web", True),
        ("old_web_1_2_c3", "old_web", False),
        ("old_old_web_1_2_c3", "old_web", True),
        ("old_a_4_5_123", "a_4", True),
    ):
        marks = {**labels, "io.balena.service-name": service_name}
        raw = {"Id": "x", "Name": f"/{name}", "Config": {"Labels": marks}}
        seen = container_from_inspect(raw, ImageConfig())
        assert seen and seen.name
        assert (seen.service, seen.name.service) == (service_name, service_name)
        assert (seen.retired, seen.raw_name) == (is_retired, name)


@pytest.mark.parametrize("name", ["web_" + "1" * 5000 + "_2", "web_1_" + "2" * 5000 + "_c3"])
def test_a_name_with_endless_digits_is_nobodys(name: str) -> None:
    assert parse_container_name(name) is None


def test_a_volume_with_endless_digits_is_nobodys() -> None:
    assert parse_volume_name("1" * 5000 + "_data") is None


# ---- whole hand-overs ----------------------------------------------------------------------------

LABELS = {"io.balena.update.strategy": "hand-over"}
FIRST = document(service("web", labels=LABELS))
SECOND = document(service("web", labels=LABELS, environment={"A": "b"}))
THIRD = document(service("web", labels=LABELS, environment={"A": "c"}))


def verbs(steps: list[Any]) -> list[str]:
    return [identity(step).partition(" ")[0] for step in steps]


def running(agent: Rig) -> list[str]:
    found = agent.engine.observed.containers.values()
    return sorted(c.raw_name for c in found if c.state == "running")


def side_by_side(agent: Rig) -> Snapshot:
    """Update to the second target, up to the wait."""
    agent.host.patient = True
    agent.post(FIRST)
    agent.settled()
    agent.post(SECOND)
    return agent.until(lambda s: AWAIT in s.running, "the wait has begun")


def the(agent: Rig, name: str) -> Container:
    return next(c for c in agent.engine.observed.containers.values() if c.raw_name == name)


def change(agent: Rig, name: str, **how: Any) -> None:
    """Something happens to a container, and the engine tells it."""
    known = the(agent, name)

    def changed(seen: Observed) -> Observed:
        return replace(seen, containers={**seen.containers, known.id: replace(known, **how)})

    agent.engine.change(changed, Touch())
    agent.reconciler.wake(Touch(containers=frozenset({known.id})))


def test_S35_the_signal_of_the_new_one_ends_the_wait() -> None:
    with rig() as agent:
        side_by_side(agent)
        assert running(agent) == ["old_web_1_1_c1", "web_1_1_c1"]
        assert agent.host.held_locks() == {1}
        assert the(agent, "old_web_1_1_c1").spec.fields["HostConfig.RestartPolicy"] == NO_RESTART
        agent.host.signal("web")
        agent.settled()
        assert running(agent) == ["web_1_1_c1"]
        assert verbs(agent.engine.performed[-5:]) == ["retire", "create", "start", "stop", "remove"]
        assert agent.host.held_locks() == frozenset()


def failed(agent: Rig) -> Callable[[Snapshot], object]:
    return lambda s: AWAIT in s.failures and running(agent) == ["web_1_1_c1"] and not s.running


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"state": "exited", "exit_code": 3}, "the new container ended with code 3"),
        ({"health": "unhealthy"}, "the new container is unhealthy"),
    ],
)
def test_a_failed_hand_over_leaves_the_old_one_as_it_was(how: dict[str, Any], reason: str) -> None:
    with rig() as agent:
        side_by_side(agent)
        before = the(agent, "old_web_1_1_c1")
        change(agent, "web_1_1_c1", **how)
        seen = agent.until(failed(agent), "rolled back")
        after = the(agent, "web_1_1_c1")
        assert after.id == before.id
        assert after.spec.fields["HostConfig.RestartPolicy"]["Name"] == "always"
        assert len(agent.engine.observed.containers) == 1
        assert seen.failures[AWAIT].error == reason
        assert seen.update_failed and reason in seen.last_error
        waits = agent.until(lambda s: s.plan.waits, "the wait is told").plan.waits
        assert any(reason in wait.reason and wait.until > 0 for wait in waits)
        again = agent.until(lambda s: AWAIT in s.running, "tried again after the pause")
        assert again.failures[AWAIT].count == 1
        change(agent, "web_1_1_c1", **how)
        assert agent.until(failed(agent), "failed again").failures[AWAIT].count == 2
        agent.post(THIRD)  # a new target is tried at once
        agent.until(lambda s: AWAIT in s.running and not s.failures, "the next one")
        agent.host.signal("web")
        agent.settled()
        (only,) = agent.engine.observed.containers.values()
        assert only.spec.fields["Env"]["A"] == "c"


def test_a_failed_one_that_runs_again_before_it_is_stopped_does_not_take_over() -> None:
    """The engine starts it again, by its restart policy, while the agent is still about to act."""
    with rig() as agent:
        perform = agent.host.perform

        def given_up(step: Any, ticket: Any) -> None:
            try:
                perform(step, ticket)
            except Cancelled:
                change(agent, "web_1_1_c1", state="running", exit_code=0)
                raise

        agent.host.perform = given_up  # type: ignore[method-assign]
        side_by_side(agent)
        before, late = the(agent, "old_web_1_1_c1"), the(agent, "web_1_1_c1")
        change(agent, "web_1_1_c1", state="restarting", exit_code=4)
        agent.until(failed(agent), "rolled back")
        assert the(agent, "web_1_1_c1").id == before.id
        (stopped,) = [s for s in agent.engine.performed if isinstance(s, StopContainer)]
        assert stopped.container_id == late.id


def test_a_new_one_that_ends_before_the_wait_has_begun_counts_as_a_failure_too() -> None:
    with rig() as agent:
        agent.post(FIRST)
        agent.settled()
        agent.host.patient = True
        perform = agent.engine.perform

        def crash(step: Any, ticket: Any) -> None:
            perform(step, ticket)
            if identity(step).startswith("start"):
                change(agent, "web_1_1_c1", state="exited", exit_code=9)

        agent.engine.perform = crash  # type: ignore[method-assign]
        agent.post(SECOND)
        seen = agent.until(failed(agent), "rolled back")
        assert "code 9" in seen.failures[AWAIT].error


def test_a_creation_that_fails_leaves_the_old_one_as_it_was() -> None:
    with rig() as agent:
        agent.post(FIRST)
        agent.settled()
        before = the(agent, "web_1_1_c1")
        agent.engine.fail("create service 1/web", EngineFailed("no space left on device"))
        agent.post(SECOND)

        def called_off(seen: Snapshot) -> bool:
            reinstated = "reinstate" in verbs(agent.engine.performed)
            return reinstated and not seen.running and "create service 1/web" in seen.failures

        agent.until(called_off, "called off")
        assert the(agent, "web_1_1_c1") == before
        agent.settled()
        assert the(agent, "web_1_1_c1").id != before.id


@pytest.mark.parametrize("command", [Power(), Power(off=True)])
def test_a_reboot_gives_the_wait_up(command: Power) -> None:
    with rig() as agent:
        side_by_side(agent)
        assert agent.reconciler.submit(command).result(5) == "accepted by the host"
        assert len(agent.host.requests) == 1
        assert running(agent) == ["old_web_1_1_c1", "web_1_1_c1"]


def test_a_shutdown_gives_the_wait_up() -> None:
    with rig() as agent:
        side_by_side(agent)
        agent.reconciler.stop_services().result(5)
        assert running(agent) == []


def test_a_new_target_gives_the_wait_up_and_goes_on_from_the_old_one() -> None:
    with rig() as agent:
        side_by_side(agent)
        first = the(agent, "old_web_1_1_c1").id
        agent.post(THIRD)
        env = "Env"

        def third_beside_first(seen: Snapshot) -> bool:
            there_now = agent.engine.observed.containers.values()
            return (
                AWAIT in seen.running
                and {c.id for c in there_now if c.retired} == {first}
                and any(c.spec.fields[env].get("A") == "c" for c in there_now)
            )

        agent.until(third_beside_first, "the third beside the first")
        agent.host.signal("web")
        assert not agent.settled().failures


@pytest.mark.parametrize("command", [StopService(("1", "web")), RestartService(("1", "web"))])
def test_commands_in_the_middle(command: Any) -> None:
    with rig() as agent:
        side_by_side(agent)
        before = set(agent.engine.observed.containers)
        agent.reconciler.submit(command).result(5)
        agent.settled()
        (only,) = agent.engine.observed.containers.values()
        assert only.spec.fields["Env"]["A"] == "b"
        assert (only.state, only.id in before) == (
            ("exited", True) if isinstance(command, StopService) else ("running", False)
        )


def test_a_start_by_command_is_met_though_the_wait_lasts() -> None:
    with rig() as agent:
        side_by_side(agent)
        assert agent.reconciler.submit(StartService(("1", "web"))).result(5) == "started"
        assert AWAIT in agent.published.current.running


def test_many_hand_overs_at_once_do_not_hold_up_anything_else() -> None:
    """A wait has a thread of its own: more of them than there are workers."""
    names = [f"s{n}" for n in range(20)]

    def all_of(value: str) -> dict[str, Any]:
        made = [
            service(name, n, labels=LABELS, environment={"A": value})
            for n, name in enumerate(names, 1)
        ]
        return document(*made)

    with rig() as agent:
        agent.host.patient = True
        agent.post(all_of("a"))
        agent.settled()
        agent.post(all_of("b"))
        agent.until(lambda s: len(s.running) == len(names), "all of them wait")
        agent.post(all_of("a"))
        assert not agent.settled().failures


def foreign(seen: Observed, name: str) -> Observed:
    """Somebody else's container has the name."""
    other = replace(there(WEB), id="foreign", app_uuid="", app_id=0, name=None, raw_name=name)
    return replace(seen, containers={**seen.containers, other.id: other})


def test_where_somebody_else_has_the_name_for_the_old_one_it_is_stopped_first() -> None:
    with rig() as agent:
        agent.post(FIRST)
        agent.settled()
        agent.engine.change(lambda seen: foreign(seen, "old_web_1_1_c1"), Touch(everything=True))
        told: list[str] = []
        agent.published.subscribe(lambda s: told.append(s.last_error))
        agent.post(SECOND)
        agent.settled()
        assert verbs(agent.engine.performed[-4:]) == ["stop", "remove", "create", "start"]
        assert running(agent) == ["old_web_1_1_c1", "web_1_1_c1"]
        assert the(agent, "web_1_1_c1").spec.fields["Env"]["A"] == "b"
        assert any('"/old_web_1_1_c1" is already in use' in line for line in told)
        assert agent.published.current.failures == {}, "nothing of it is kept"


def test_without_a_name_for_the_old_one_it_goes_before_the_new_one_is_started() -> None:
    """Interrupted after the creation; and a user's lock meanwhile forgets nothing of it."""
    refused = Backoff(9.0, 'The container name "/old_web_1_1_c1" is already in use', due=True)
    found = replace(LOCKED, backoff={"retire service 1/web": refused})
    (line,) = text(target(WEB), world(old(), new("created")), found)[:1]
    assert line.startswith("stop web: it cannot hand over: The container name")
    for locked in (LOCKED.locked, frozenset[int]()):
        kept = plan(target(WEB), world(old()), replace(found, locked=locked)).remembered
        assert "retire service 1/web" in kept
