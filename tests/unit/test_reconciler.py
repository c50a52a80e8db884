"""The single writer on fakes: targets, commands, failures, locks, the engine going and coming."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from agent import DEADLINE, Rig, image, observed, rig, service, target
from fakes.engine import FakeEngine

from balena_agent.core.effects import effect
from balena_agent.core.errors import (
    DeadlineExceeded,
    EngineFailed,
    EngineUnavailable,
    Locked,
    RefusedByHost,
    Unavailable,
)
from balena_agent.core.intent import (
    Apply,
    ConfigureNetwork,
    Intent,
    Power,
    RestartService,
    SetTarget,
    StartService,
    StopService,
)
from balena_agent.core.looks import Touch
from balena_agent.core.networkconfig import NetworkChange
from balena_agent.core.observed import Observed
from balena_agent.core.snapshot import NOT_ASKED, Snapshot
from balena_agent.core.spec import ContainerSpec
from balena_agent.core.steps import (
    CreateContainer,
    Fetch,
    RequestReboot,
    SetNetworkConfig,
    StartContainer,
    StopContainer,
)
from balena_agent.core.target import read_local
from balena_agent.runtime.policy import Memory, Policy


def test_S01_two_services_are_created_and_started_and_their_network_made() -> None:
    with rig() as agent:
        agent.post(target(service("one", 11), service("two", 12)))
        agent.settled()
        assert agent.containers() == {"one": "running", "two": "running"}
        names = {str(c.name) for c in agent.engine.observed.containers.values()}
        assert names == {"one_11_1_c1", "two_12_1_c1"}
        assert [n.engine_name for n in agent.engine.observed.networks.values()] == ["1_default"]
        assert agent.store.commits == {"1": "c1"}
        assert agent.host.held_locks() == frozenset()


def test_S02_the_same_target_again_does_nothing() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        done = len(agent.engine.performed)
        agent.post(target(service("one")))
        agent.settled()
        assert len(agent.engine.performed) == done


def test_S03_a_new_release_with_equal_services_only_renames() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        before = agent.ids()
        agent.post(target(service("one"), commit="c2"))
        agent.settled()
        assert agent.ids() == before
        assert {str(c.name) for c in agent.engine.observed.containers.values()} == {"one_1_1_c2"}


def test_S04_only_the_changed_service_is_replaced_and_the_cause_is_told() -> None:
    causes: list[str] = []
    with rig() as agent:
        agent.post(target(service("one", 1), service("two", 2)))
        agent.settled()
        before = agent.ids()
        agent.published.subscribe(
            lambda s: causes.extend(r.step.cause for r in s.running.values() if r.step)
        )
        agent.post(target(service("one", 1, environment={"A": "b"}), service("two", 2)))
        agent.settled()
        assert agent.ids()["two"] == before["two"]
        assert agent.ids()["one"] != before["one"]
        assert any("Env" in cause for cause in causes)


def test_S05_S06_a_service_and_then_everything_leaves_the_target() -> None:
    with rig() as agent:
        agent.post(target(service("one", 1), service("two", 2)))
        agent.settled()
        agent.post(target(service("one", 1)))
        agent.settled()
        assert agent.containers() == {"one": "running"}
        agent.post({"local": {"apps": {}}})
        agent.settled()
        assert agent.containers() == {}
        assert agent.engine.observed.networks == {}
        assert agent.engine.observed.image("busybox") is not None


def test_S07_S08_running_false_creates_without_starting_and_stops_without_removing() -> None:
    with rig() as agent:
        agent.post(target(service("one", running=False)))
        agent.settled()
        assert agent.containers() == {"one": "created"}
        agent.post(target(service("one")))
        agent.settled()
        agent.post(target(service("one", running=False)))
        agent.settled()
        assert agent.containers() == {"one": "exited"}


def test_S10_a_container_that_vanishes_is_made_again_without_being_asked() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        (container,) = agent.engine.observed.containers
        agent.engine.change(
            lambda seen: Observed({}, seen.networks, seen.volumes, seen.images), Touch()
        )
        agent.reconciler.wake(Touch(containers=frozenset({container})))
        agent.until(lambda s: container not in s.observed.containers)
        agent.settled()
        assert agent.containers() == {"one": "running"}


def test_S11_S12_a_users_lock_holds_everything_up_until_it_is_gone() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        before = agent.ids()
        agent.host.user_locks[1] = "one"
        agent.post(target(service("one", environment={"A": "b"})))
        seen = agent.until(lambda s: s.update_failed)
        waits = [str(wait) for wait in seen.plan.waits]
        assert any("Lockfile exists for { appId: 1, service: one }" in wait for wait in waits)
        assert agent.ids() == before
        del agent.host.user_locks[1]
        seen = agent.settled()
        assert agent.ids() != before
        assert not seen.update_failed


def test_S13_force_overrides_the_users_lock() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.host.user_locks[1] = "one"
        agent.post(target(service("one", environment={"A": "b"})), force=True)
        agent.settled()
        assert agent.host.user_locks == {}
        assert agent.published.current.intent.force == frozenset()


def test_S19_the_target_itself_may_override_locks() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.host.user_locks[1] = "one"
        document = target(service("one", environment={"A": "b"}))
        document["local"]["config"] = {"BALENA_SUPERVISOR_OVERRIDE_LOCK": "true"}
        agent.post(document)
        agent.settled()
        assert agent.host.user_locks == {}


def test_a_service_can_be_stopped_but_not_restarted_while_its_new_image_is_missing() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.engine.missing_images.add("absent:latest")
        agent.post(target(service("one", image="absent")))
        agent.until(lambda s: s.failures)
        with pytest.raises(Unavailable, match="image of service one is not here"):
            agent.reconciler.submit(RestartService(("1", "one"))).result(DEADLINE)
        assert agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE) == "stopped"
        assert agent.containers() == {"one": "exited"}


def test_S29_a_service_that_has_exited_counts_as_started_for_its_dependents() -> None:
    with rig() as agent:
        agent.post(target(service("a", 1), service("b", 2, depends_on=["a"])))
        agent.settled()
        order = [s.service for s in agent.engine.performed if isinstance(s, StartContainer)]
        assert order == ["a", "b"]


def test_S57_two_targets_in_a_row_end_in_the_second() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.post(target(service("two", 2), commit="c2"))
        agent.settled()
        assert agent.containers() == {"two": "running"}


def test_a_missing_image_is_fetched_and_its_failure_touches_nothing_else() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.engine.missing_images.add("absent:latest")
        two = {"local": {"apps": {
            **target(service("one"))["local"]["apps"],
            **target(service("bad", 5, "absent"), app=2)["local"]["apps"],
            **target(service("other", 6), app=3)["local"]["apps"],
        }}}  # fmt: skip
        agent.post(two)
        seen = agent.until(lambda s: s.failures and "other" in agent.containers())
        agent.until(lambda s: agent.containers().get("other") == "running")
        assert agent.containers()["one"] == "running"
        assert "bad" not in agent.containers()
        assert "absent" in next(iter(seen.failures.values())).error


def test_a_download_that_no_plan_wants_is_cancelled() -> None:
    """One that a worker has begun: one that waits for a worker just ends (test_runtime_parts)."""
    with rig() as agent:
        cancelled, begun = threading.Event(), threading.Event()

        def slow(step, ticket):  # type: ignore[no-untyped-def]
            if isinstance(step, Fetch):
                ticket.on_cancel(cancelled.set)
                begun.set()
                assert cancelled.wait(DEADLINE)

        agent.engine.before = slow
        agent.post(target(service("one", image="big")))
        assert begun.wait(DEADLINE)
        agent.post({"local": {"apps": {}}})
        agent.settled()
        assert cancelled.is_set()


def test_an_update_with_cancel_begins_its_downloads_anew() -> None:
    cancelled, begun = threading.Event(), threading.Event()

    def slow(step, ticket):  # type: ignore[no-untyped-def]
        if isinstance(step, Fetch) and not begun.is_set():
            ticket.on_cancel(cancelled.set)
            begun.set()
            assert cancelled.wait(DEADLINE)

    with rig(observed()) as agent:
        agent.engine.before = slow
        agent.post(target(service("main")))
        assert begun.wait(DEADLINE)
        agent.reconciler.submit(Apply()).result(DEADLINE)
        assert not cancelled.is_set()
        agent.reconciler.submit(Apply(cancel=True)).result(DEADLINE)
        agent.settled()
        assert cancelled.is_set()
        assert agent.containers() == {"main": "running"}


def test_a_rotated_key_reaches_its_service_with_the_next_update() -> None:
    """Not at once: the service itself may have asked, and would not live to see the answer."""
    keys = {"main": "old"}
    label = {"io.balena.features.supervisor-api": "1"}
    with rig(keys=lambda app, name: keys[name]) as here:
        here.post(target(service("main", labels=label)))
        here.settled()
        before = here.ids()
        keys["main"] = "new"
        here.reconciler.wake(Touch(everything=True))
        here.settled()
        assert here.ids() == before
        here.reconciler.submit(Apply()).result(DEADLINE)
        here.until(lambda _: here.ids() != before, "the container is made anew")
        here.settled()
        (container,) = here.engine.observed.containers.values()
        assert container.spec.fields["Env"]["BALENA_SUPERVISOR_API_KEY"] == "new"


def test_a_failing_step_backs_off_and_does_not_hold_up_other_services() -> None:
    with rig() as agent:
        agent.engine.fail("start service 1/bad", EngineFailed("port is already allocated", 500), 3)
        agent.post(target(service("bad", 1), service("good", 2)))
        agent.until(lambda s: agent.containers().get("good") == "running")
        seen = agent.until(lambda s: any(f.count == 2 for f in s.failures.values()))
        assert "port is already allocated" in seen.last_error
        agent.settled()
        assert agent.containers() == {"bad": "running", "good": "running"}


def test_stop_start_and_restart_by_command() -> None:
    with rig() as agent:
        agent.post(target(service("one"), service("two", 2)))
        agent.settled()
        before = agent.ids()
        submit = agent.reconciler.submit
        assert submit(StopService(("1", "one"))).result(DEADLINE) == "stopped"
        assert agent.containers()["one"] == "exited"
        assert agent.store.stopped == {("1", "one"): "c1"}
        assert submit(StartService(("1", "one"))).result(DEADLINE) == "started"
        assert agent.ids() == before
        assert submit(RestartService(("1", "one"))).result(DEADLINE) == "restarted"
        assert agent.ids()["two"] == before["two"]
        assert agent.ids()["one"] != before["one"]
        agent.settled()


def test_a_stopped_service_stays_stopped_when_it_is_recreated_until_a_new_commit() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE)
        agent.post(target(service("one", environment={"A": "b"})))
        agent.settled()
        assert agent.containers() == {"one": "created"}
        agent.post(target(service("one", environment={"A": "b"}), commit="c2"))
        agent.settled()
        assert agent.containers() == {"one": "running"}


def test_a_stopped_service_runs_again_with_a_new_commit_that_changes_nothing_else() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        before = agent.ids()
        agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE)
        agent.post(target(service("one"), commit="c2"))
        agent.settled()
        assert agent.ids() == before
        assert agent.containers() == {"one": "running"}


def test_running_false_and_true_again_stops_and_starts_the_same_container() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        before = agent.ids()
        agent.post(target(service("one", running=False)))
        agent.settled()
        assert agent.containers() == {"one": "exited"}
        agent.post(target(service("one")))
        agent.settled()
        assert agent.ids() == before
        assert agent.containers() == {"one": "running"}
        assert agent.store.stopped_by_agent == {}


def test_a_command_is_read_with_the_target_that_came_in_the_same_turn() -> None:
    """The commit that a stop is for is the new target's: else the stop would be forgotten."""
    with rig() as agent:
        agent.until(lambda s: s.looked)
        busy, go_on = threading.Event(), threading.Event()
        save = agent.store.save_target

        def slowly(source: str, raw: str) -> None:
            save(source, raw)
            busy.set()
            assert go_on.wait(DEADLINE)

        agent.store.save_target = slowly  # type: ignore[method-assign]
        for document in (target(service("one")), target(service("one"), service("two", 2))):
            agent.reconciler.submit(SetTarget("local", json.dumps(document), read_local(document)))
            assert busy.wait(DEADLINE)
        stop = agent.reconciler.submit(StopService(("1", "two")))
        go_on.set()
        assert stop.result(DEADLINE) == "stopped"
        agent.settled()
        assert agent.containers() == {"one": "running", "two": "created"}


def test_a_service_that_left_the_target_comes_back_running() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE)
        agent.post({"local": {"apps": {}}})
        agent.settled()
        assert agent.store.stopped == {}
        agent.post(target(service("one")))
        agent.settled()
        assert agent.containers() == {"one": "running"}


def test_a_locked_stop_is_refused_and_not_done_later() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.host.user_locks[1] = "one"
        answer = agent.reconciler.submit(StopService(("1", "one")))
        with pytest.raises(Locked, match="Lockfile exists"):
            answer.result(DEADLINE)
        agent.host.user_locks.clear()
        agent.settled()
        assert agent.containers() == {"one": "running"}


def test_a_failed_start_command_gives_the_engines_words() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE)
        agent.engine.fail("start service 1/one", EngineFailed("no such device", 500))
        with pytest.raises(EngineFailed, match="no such device"):
            agent.reconciler.submit(StartService(("1", "one"))).result(DEADLINE)


def test_reboot_takes_all_locks_first_and_reports_acceptance() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        answer = agent.reconciler.submit(Power(who="test"))
        assert answer.result(DEADLINE) == "accepted by the host"
        assert isinstance(agent.host.requests[0], RequestReboot)
        assert agent.host.held_locks() == {1}


def test_a_refused_reboot_leaves_an_agent_that_goes_on() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.host.refusal = RefusedByHost("Blocked by backup: running")
        with pytest.raises(RefusedByHost, match="Blocked by backup"):
            agent.reconciler.submit(Power()).result(DEADLINE)
        agent.post(target(service("one"), service("two", 2)))
        agent.settled()
        assert agent.containers() == {"one": "running", "two": "running"}


def test_a_reboot_under_a_users_lock_is_refused_unless_forced() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.host.user_locks[1] = "one"
        with pytest.raises(Locked):
            agent.reconciler.submit(Power()).result(DEADLINE)
        assert agent.reconciler.submit(Power(force=True)).result(DEADLINE)


def test_a_forced_reboot_needs_no_engine() -> None:
    engine = FakeEngine()
    engine.down = True
    with rig(engine=engine) as agent:
        agent.until(lambda s: s.engine_error not in ("", NOT_ASKED))
        with pytest.raises(EngineUnavailable):
            agent.reconciler.submit(Power()).result(DEADLINE)
        assert agent.reconciler.submit(Power(force=True)).result(DEADLINE)


def test_an_accepted_reboot_that_never_comes_expires() -> None:
    with rig() as agent:
        agent.reconciler.submit(Power()).result(DEADLINE)
        agent.clock.advance(91)
        agent.until(lambda s: s.intent.power is None)
        assert "none came" in agent.published.current.last_error


def test_the_host_is_configured_under_all_locks_which_are_given_back() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        held = []
        perform = agent.host.perform

        def watched(step, ticket):  # type: ignore[no-untyped-def]
            held.append((type(step), agent.host.held_locks()))
            perform(step, ticket)

        agent.host.perform = watched  # type: ignore[method-assign]
        change = NetworkChange("kiosk")
        assert agent.reconciler.submit(ConfigureNetwork(change)).result(DEADLINE) == "done"
        assert agent.host.requests == [SetNetworkConfig(change)]
        assert (SetNetworkConfig, frozenset({1})) in held
        agent.settled()
        assert agent.host.held_locks() == frozenset()
        assert agent.published.current.intent.network is None


def test_H36_a_users_lock_keeps_the_host_as_it_is_unless_forced() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.host.user_locks[1] = "one"
        change = NetworkChange("kiosk")
        with pytest.raises(Locked):
            agent.reconciler.submit(ConfigureNetwork(change)).result(DEADLINE)
        assert agent.host.requests == []
        assert agent.reconciler.submit(ConfigureNetwork(change, force=True)).result(DEADLINE)
        assert agent.host.requests == [SetNetworkConfig(change)]


def test_a_host_that_refuses_a_setting_is_told_and_the_agent_goes_on() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.host.refusal = RefusedByHost("redsocks.service is failed")
        with pytest.raises(RefusedByHost, match="redsocks"):
            agent.reconciler.submit(ConfigureNetwork(NetworkChange("kiosk"))).result(DEADLINE)
        agent.host.refusal = None
        agent.until(lambda s: s.intent.network is None and s.settled)
        assert agent.host.requests == [], "not tried again by itself"
        assert agent.host.held_locks() == frozenset()


def test_engine_down_is_a_state_and_work_goes_on_when_it_is_back() -> None:
    engine = FakeEngine(observed("busybox"))
    engine.down = True
    with rig(engine=engine) as agent:
        seen = agent.until(lambda s: s.engine_error and s.engine_error != "not asked yet")
        assert not seen.engine_up
        agent.post(target(service("one")))
        with pytest.raises(EngineUnavailable):
            agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE)
        engine.down = False
        agent.settled()
        assert agent.containers() == {"one": "running"}


def test_the_engine_goes_away_in_the_middle_of_work() -> None:
    with rig() as agent:

        def break_down(step, ticket):  # type: ignore[no-untyped-def]
            if isinstance(step, CreateContainer):
                agent.engine.before = lambda step, ticket: None
                agent.engine.down = True
                raise EngineUnavailable("connection refused")

        agent.engine.before = break_down
        agent.post(target(service("one")))
        agent.until(lambda s: agent.engine.down and not s.engine_up)
        agent.engine.down = False
        agent.settled()
        assert agent.containers() == {"one": "running"}


def test_after_a_restart_nothing_that_is_right_is_touched() -> None:
    with rig() as first:
        first.post(target(service("one")))
        snapshot = first.settled()
        world, specs = first.engine.observed, dict(first.store.specs)
    memory = Memory(snapshot.target, "local", snapshot.raw_target, specs=specs)
    with rig(world, memory) as second:
        second.settled()
        assert second.engine.performed == []


def test_a_container_that_the_agent_stopped_half_way_is_started_again() -> None:
    """Killed between stop and remove, and then the target went back (balena-supervisor#2257)."""
    with rig() as first:
        first.post(target(service("one")))
        snapshot = first.settled()
        world, specs = first.engine.observed, dict(first.store.specs)
        (container,) = world.containers
    stopped = FakeEngine(world)
    stopped.perform(StopContainer("1", "one", container), _NoTicket())
    memory = Memory(snapshot.target, "local", "", {}, specs, {container: ""})
    with rig(memory=memory, engine=stopped) as second:
        second.settled()
        assert second.ids() == {"one": container}
        assert second.containers() == {"one": "running"}


def test_what_the_engine_silently_changes_is_no_difference() -> None:
    """The intent of a container is compared, not what the engine made of it (spec 21 §10.2)."""
    with rig() as agent:
        agent.post(target(service("one", mem_limit="64m")))
        agent.settled()
        before = agent.ids()

        def forget_limit(seen: Observed) -> Observed:
            changed = {
                key: replace(c, spec=_without(c.spec, "HostConfig.Memory"))
                for key, c in seen.containers.items()
            }
            return replace(seen, containers=changed)

        agent.engine.change(forget_limit, Touch(everything=True))
        agent.post(target(service("one", mem_limit="64m")))
        agent.settled()
        assert agent.ids() == before


def test_host_shutdown_stops_dependents_before_what_they_need() -> None:
    with rig() as agent:
        agent.post(target(service("db", 1), service("web", 2, depends_on=["db"])))
        agent.settled()
        agent.engine.performed.clear()
        agent.reconciler.stop_services().result(DEADLINE)
        stops = [s.service for s in agent.engine.performed if isinstance(s, StopContainer)]
        assert stops == ["web", "db"]
        assert agent.store.stopped_by_agent.keys() == set(agent.ids().values())


def test_unused_images_are_removed_only_where_that_is_wanted_and_only_ours() -> None:
    world = observed("busybox", "old", "foreign")
    with rig(world, policy=Policy(keep_images=False)) as agent:
        agent.post(target(service("one", image="old")))
        agent.settled()
        agent.post(target(service("one", image="busybox")))
        agent.settled()
        agent.until(lambda s: s.observed.image("old") is None)
        assert agent.engine.observed.image("foreign") is not None
        assert agent.store.images == {"busybox:latest"}


def test_a_rebuilt_image_behind_the_same_name_replaces_the_container() -> None:
    """What `balena push` does on every change (spec 11 §4)."""
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        before = agent.ids()
        newer = image("busybox", "sha256:newer")
        agent.engine.change(
            lambda seen: Observed(seen.containers, seen.networks, seen.volumes, {newer.id: newer}),
            Touch(),
        )
        agent.post(target(service("one")))
        agent.settled()
        assert agent.ids() != before


def test_a_target_that_cannot_be_stored_is_refused_and_not_applied() -> None:
    with rig() as agent:
        agent.store.full = Unavailable("no space left on device")
        with pytest.raises(Unavailable, match="no space left"):
            agent.post(target(service("one")))
        assert agent.published.current.target is None


def test_notes_that_cannot_be_written_do_not_stop_the_work() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.post(target(service("one"), service("two", 2)))
        agent.store.full = Unavailable("no space left on device")
        agent.until(lambda s: agent.containers().get("two") == "running")


def test_a_defect_in_an_adapter_is_reported_and_retried_not_fatal() -> None:
    with rig() as agent:
        seen_once: list[object] = []

        def crash(step, ticket):  # type: ignore[no-untyped-def]
            if isinstance(step, CreateContainer) and not seen_once:
                seen_once.append(step)
                raise ZeroDivisionError("planted")

        agent.engine.before = crash
        agent.post(target(service("one")))
        agent.settled()
        assert seen_once
        assert agent.containers() == {"one": "running"}


class _NoTicket:
    cancelled = False

    def on_cancel(self, action: object) -> None: ...

    def progress(self, percent: float) -> None: ...


def _without(spec: ContainerSpec, name: str) -> ContainerSpec:
    return replace(spec, fields={k: v for k, v in spec.fields.items() if k != name})


def test_a_shutdown_that_is_called_off_gives_the_services_back() -> None:
    with rig() as agent:
        agent.post(target(service("one"), service("two", 2, running=False)))
        agent.settled()
        before = agent.ids()
        assert agent.reconciler.stop_services().result(DEADLINE) == "all services are stopped"
        assert agent.containers() == {"one": "exited", "two": "created"}
        agent.reconciler.carry_on()
        agent.until(lambda s: not s.stopping and s.settled)
        assert agent.containers() == {"one": "running", "two": "created"}
        assert agent.ids() == before


def ends_by_itself(agent: Rig, name: str) -> None:
    """The container of a service ends, and the engine tells it."""
    ended: list[bool] = []  # it may be started again at once: every snapshot is looked at

    def seen(snapshot: Snapshot) -> None:
        ended.extend(c.state == "exited" for c in snapshot.observed.containers.values())

    agent.published.subscribe(seen)
    agent.engine.change(
        lambda seen: replace(
            seen,
            containers={
                key: replace(c, state="exited") if c.service == name else c
                for key, c in seen.containers.items()
            },
        ),
        Touch(),
    )
    agent.reconciler.wake(Touch(containers=frozenset({agent.ids()[name]})))
    agent.until(lambda s: any(ended))


def test_what_the_engine_would_not_stop_and_later_ends_by_itself_stays_so() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.engine.fail("stop service 1/one", EngineFailed("permission denied", 500))
        with pytest.raises(EngineFailed):
            agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE)
        agent.settled()
        assert agent.store.stopped_by_agent == {}
        ends_by_itself(agent, "one")
        agent.settled()
        assert agent.containers() == {"one": "exited"}


def test_a_stop_that_ran_out_of_time_may_still_come_and_is_put_right() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.engine.fail("stop service 1/one", DeadlineExceeded("no end in sight"))
        with pytest.raises(DeadlineExceeded):
            agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE)
        ends_by_itself(agent, "one")
        agent.until(lambda s: agent.containers() == {"one": "running"})


def test_a_restart_between_look_and_stop_does_not_lose_the_mark() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()

        def restarted(step, ticket):  # type: ignore[no-untyped-def]
            if isinstance(step, StopContainer):
                agent.engine.before = lambda step, ticket: None
                agent.engine.change(
                    lambda seen: effect(StartContainer("1", "one", step.container_id), seen),
                    Touch(),
                )

        agent.engine.before = restarted
        agent.post(target(service("one", running=False)))
        agent.settled()
        assert agent.containers() == {"one": "exited"}
        agent.post(target(service("one")))
        agent.settled()
        assert agent.containers() == {"one": "running"}


@pytest.mark.parametrize("command", [RestartService, StartService])
def test_a_command_that_is_refused_leaves_the_users_stop_in_force(command: Any) -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.reconciler.submit(StopService(("1", "one"))).result(DEADLINE)
        before = agent.ids()
        agent.host.user_locks[1] = "one"
        agent.engine.fail("start service 1/one", EngineFailed("no such device", 500))
        with pytest.raises((Locked, EngineFailed)):
            agent.reconciler.submit(command(("1", "one"))).result(DEADLINE)
        agent.host.user_locks.clear()
        seen = agent.settled()
        assert seen.intent.stopped == agent.store.stopped == {("1", "one"): "c1"}
        assert (agent.ids(), agent.containers()) == (before, {"one": "exited"})


def test_several_commands_that_are_refused_are_all_taken_back() -> None:
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        before = agent.ids()
        agent.host.user_locks[1] = "one"
        given = [StopService(("1", "one")), RestartService(("1", "one"))]
        answers = [agent.reconciler.submit(command) for command in given]
        for answer in answers:
            with pytest.raises(Locked):
                answer.result(DEADLINE)
        agent.host.user_locks.clear()
        seen = agent.settled()
        assert (seen.intent, agent.store.stopped) == (Intent(), {})
        assert (agent.ids(), agent.containers()) == (before, {"one": "running"})
