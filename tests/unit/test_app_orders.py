"""Restart and purge of whole apps, and the clean-up of volumes, on the fakes."""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from agent import Rig, observed, remembered, rig, service, target
from fakes.engine import FakeEngine
from fakes.machine import FakeStore

from balena_agent.core.errors import (
    AgentError,
    EngineFailed,
    EngineUnavailable,
    Locked,
    NoSuchApp,
    RefusedByHost,
    Unavailable,
)
from balena_agent.core.intent import (
    CleanupVolumes,
    Command,
    Intent,
    PurgeApp,
    RestartApp,
    RestartService,
    StopService,
)
from balena_agent.core.looks import Touch
from balena_agent.core.names import EXTRA_FIRMWARE, REQUIRES_REBOOT
from balena_agent.core.observed import NO_APP, Observed, Volume
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.sources import KeptTarget
from balena_agent.core.spec import VolumeSpec
from balena_agent.core.steps import CreateContainer, CreateVolume, RemoveVolume, StopContainer
from balena_agent.core.target import read_local
from balena_agent.core.traits import identity, verb
from balena_agent.runtime.policy import Memory

HANDS = {"io.balena.update.strategy": "hand-over"}


def app(*services: dict[str, Any], number: int = 1, **volumes: dict[str, Any]) -> dict[str, Any]:
    document = target(*services, app=number)
    document["local"]["apps"][str(number)]["volumes"] = volumes
    return document


def both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    apps = first["local"]["apps"] | second["local"]["apps"]
    return {"local": {**first["local"], "apps": apps}}


DATA = app(service("one", volumes=["data:/data"]), service("two", 2, depends_on=["one"]), data={})
OTHER = app(service("three", 3, volumes=["data:/data"]), number=2, data={})


def ask(agent: Rig, command: Command) -> str:
    return end(agent, agent.reconciler.submit(command))


def end(agent: Rig, answer: Future[str]) -> str:
    agent.until(lambda s: answer.done(), "answered")
    return answer.result(0)


def refused(agent: Rig, command: Command, error: type[AgentError], words: str) -> None:
    with pytest.raises(error, match=words):
        ask(agent, command)


def done(agent: Rig, *kinds: type) -> list[str]:
    return [identity(step) for step in agent.engine.performed if isinstance(step, kinds)]


def volume(name: str, number: int = 1) -> Volume:
    return Volume(name, number, str(number), name.partition("_")[2], VolumeSpec())


def put(agent: Rig, *volumes: Volume) -> None:
    """Volumes turn up in the engine."""
    more = {each.engine_name: each for each in volumes}
    names = frozenset(more)
    agent.engine.change(
        lambda world: replace(world, volumes={**world.volumes, **more}), Touch(volumes=names)
    )
    agent.until(lambda s: names <= s.observed.volumes.keys(), "volumes seen")


def settled_with(agent: Rig, document: dict[str, Any]) -> dict[str, str]:
    """The device at rest in a target; container ids by service."""
    agent.post(document)
    agent.settled()
    agent.engine.performed.clear()
    return agent.ids()


# ---- restart and purge ---------------------------------------------------------------------------


def test_S28_restart_makes_all_containers_of_the_app_new_and_keeps_its_volumes() -> None:
    with rig() as agent:
        before = settled_with(agent, both(DATA, OTHER))
        assert ask(agent, RestartApp(1)) == "restarted"
        agent.settled()
        after = agent.ids()
        assert before["three"] == after["three"]
        assert not set(after.values()) & {before["one"], before["two"]}
        assert set(agent.containers().values()) == {"running"}
        assert done(agent, RemoveVolume, CreateVolume) == []
        assert agent.host.files == set()


def test_S27_purge_makes_volumes_and_containers_new() -> None:
    with rig() as agent:
        before = settled_with(agent, both(DATA, OTHER))
        assert ask(agent, PurgeApp(1)) == "purged"
        agent.settled()
        after = agent.ids()
        assert before["three"] == after["three"]
        assert not set(after.values()) & {before["one"], before["two"]}
        assert done(agent, RemoveVolume) == ["remove-volume volume 1_data"]
        assert done(agent, CreateVolume) == ["create-volume volume 1_data"]
        verbs = [verb(step) for step in agent.engine.performed]
        each = ["stop", "remove", "create", "start"]
        assert sorted(verbs) == sorted([*each, *each, "remove-volume", "create-volume"])
        removed = verbs.index("remove-volume")
        assert "create" not in verbs[:removed] and "remove" not in verbs[removed:]


def test_a_purge_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with rig() as agent:
        settled_with(agent, DATA)
        ask(agent, PurgeApp(1))
        agent.settled()
        agent.host.user_locks[1] = "one"
        refused(agent, PurgeApp(1), Locked, "Lockfile")
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("Purging data for app 1") == 2
    assert lines.count("Purged data") == 1
    assert any(line.startswith("Error purging data: Lockfile exists") for line in lines)


def test_a_purge_takes_a_volume_that_the_target_does_not_name_any_more() -> None:
    with rig() as agent:
        settled_with(agent, DATA)
        put(agent, volume("1_old"))
        ask(agent, PurgeApp(1))
        agent.settled()
        assert agent.engine.observed.volumes.keys() == {"1_data"}


def test_a_purge_leaves_a_volume_that_another_app_uses() -> None:
    """Volumes go by name and app id, uses by mounts: what an app holds is not another's to end."""
    with rig() as agent:
        settled_with(agent, both(DATA, OTHER))
        (three,) = (c for c in agent.engine.observed.containers.values() if c.service == "three")
        fields = {**three.spec.fields, "HostConfig.Binds": ["1_data:/theirs"]}
        odd = replace(three, spec=replace(three.spec, fields=fields))

        def mount(world: Observed) -> Observed:
            return replace(world, containers={**world.containers, odd.id: odd})

        agent.engine.change(mount, Touch(containers=frozenset({odd.id})))
        agent.reconciler.wake(Touch(containers=frozenset({odd.id})))
        agent.until(lambda s: s.observed.containers[odd.id].spec == odd.spec)
        assert ask(agent, PurgeApp(1)) == "purged"
        assert done(agent, RemoveVolume) == []


def test_a_purge_takes_the_extra_firmware_of_an_app_that_uses_it() -> None:
    label = {"io.balena.features.extra-firmware": "1"}
    for labels, expected in ((label, [f"remove-volume volume {EXTRA_FIRMWARE}"]), ({}, [])):
        with rig() as agent:
            settled_with(agent, app(service("one", labels=labels)))
            if not labels:
                put(agent, Volume(EXTRA_FIRMWARE, NO_APP, "", EXTRA_FIRMWARE, VolumeSpec()))
            ask(agent, PurgeApp(1))
            agent.settled()
            assert done(agent, RemoveVolume) == expected
            assert EXTRA_FIRMWARE in agent.engine.observed.volumes


@pytest.mark.parametrize("command", [RestartApp(1), PurgeApp(1)], ids=["restart", "purge"])
def test_a_locked_app_is_left_as_it_is_also_later(command: Command) -> None:
    with rig() as agent:
        before = settled_with(agent, DATA)
        agent.host.user_locks[1] = "one"
        refused(agent, command, Locked, "Lockfile exists for { appId: 1, service: one }")
        assert agent.published.current.intent == Intent()
        agent.host.user_locks.clear()
        agent.settled()
        assert (agent.ids(), agent.engine.performed) == (before, [])


@pytest.mark.parametrize("lock", [False, True])
@pytest.mark.parametrize("command", [RestartApp(1), PurgeApp(1), RestartService(("1", "one"))])
def test_whoever_is_answered_reads_a_state_that_says_so(command: Command, lock: bool) -> None:
    with rig() as agent:
        before = settled_with(agent, DATA)
        if lock:
            agent.host.user_locks[1] = "one"
        read: list[Snapshot] = []
        answer = agent.reconciler.submit(command)
        answer.add_done_callback(lambda _: read.append(agent.published.current))
        agent.until(lambda s: answer.done(), "answered")
        agent.until(lambda s: read, "read")
        (seen,) = read
        ids = {c.service: c.id for c in seen.observed.containers.values()}
        assert (ids["one"] == before["one"]) is lock is bool(answer.exception())
        assert (seen.intent.renewals, seen.intent.recreate) == ({}, frozenset())


@pytest.mark.parametrize("command", [RestartApp(1, True), PurgeApp(1, True)])
def test_force_goes_past_the_lock(command: Command) -> None:
    with rig() as agent:
        before = settled_with(agent, DATA)
        agent.host.user_locks[1] = "one"
        ask(agent, command)
        snapshot = agent.settled()
        assert not set(agent.ids().values()) & set(before.values())
        assert agent.host.user_locks == {} and snapshot.intent == Intent()


def test_a_failed_step_is_told_and_the_app_comes_back_with_its_data() -> None:
    with rig() as agent:
        settled_with(agent, DATA)
        agent.engine.fail("remove-volume", EngineFailed("device or resource busy", 500), 1)
        refused(agent, PurgeApp(1), EngineFailed, "busy")
        agent.settled()
        assert agent.containers() == {"one": "running", "two": "running"}
        assert done(agent, RemoveVolume) == []


def test_a_container_that_does_not_start_is_told() -> None:
    with rig() as agent:
        settled_with(agent, DATA)
        agent.engine.fail("start service 1/one", EngineFailed("no such runtime", 500), 1)
        refused(agent, RestartApp(1), EngineFailed, "no such runtime")
        agent.settled()
        assert set(agent.containers().values()) == {"running"}


def test_without_the_engine_nothing_is_promised() -> None:
    with rig() as agent:
        settled_with(agent, DATA)
        agent.engine.down = True
        agent.reconciler.wake(Touch(everything=True))
        agent.until(lambda s: s.engine_error)
        for command in (RestartApp(1), PurgeApp(1), CleanupVolumes()):
            refused(agent, command, EngineUnavailable, "does not answer")
        agent.engine.down = False
        agent.settled()
        assert agent.engine.performed == []


def test_an_engine_that_goes_away_in_the_middle_ends_the_order() -> None:
    with rig() as agent:
        settled_with(agent, DATA)

        def leave(step: object, ticket: object) -> None:
            agent.engine.down = agent.engine.down or isinstance(step, RemoveVolume)

        agent.engine.before = leave
        refused(agent, PurgeApp(1), EngineUnavailable, "answer")
        agent.engine.before = lambda step, ticket: None
        agent.engine.down = False
        agent.settled()
        assert set(agent.containers().values()) == {"running"}
        assert done(agent, RemoveVolume) == []


def test_an_app_that_is_not_there_cannot_be_restarted() -> None:
    with rig() as agent:
        settled_with(agent, DATA)
        words = "Application with ID 77 is not in the current state"
        refused(agent, RestartApp(77), NoSuchApp, words)
        refused(agent, PurgeApp(77), NoSuchApp, words)


def test_what_belongs_to_no_app_is_not_purged_as_one() -> None:
    """Numbers that are no app's stand for such things in the world as it is seen."""
    with rig() as agent:
        littered(agent)
        put(agent, volume("0_old", 0))
        before = agent.engine.observed.volumes.keys()
        for number in (0, NO_APP):
            words = f"Application with ID {number} is not in the current state"
            refused(agent, PurgeApp(number), NoSuchApp, words)
            refused(agent, RestartApp(number), NoSuchApp, words)
        agent.settled()
        assert agent.engine.observed.volumes.keys() == before


def test_an_app_without_services_is_there_with_its_volume() -> None:
    with rig() as agent:
        settled_with(agent, app(data={}))
        assert ask(agent, RestartApp(1)) == "restarted"
        assert ask(agent, PurgeApp(1)) == "purged"
        assert done(agent, RemoveVolume) == ["remove-volume volume 1_data"]
        agent.settled()
        assert done(agent, RemoveVolume, CreateVolume) == [
            "remove-volume volume 1_data", "create-volume volume 1_data",
        ]  # fmt: skip


def test_a_purge_of_an_app_without_services_can_fail_too() -> None:
    with rig() as agent:
        settled_with(agent, app(data={}))
        agent.engine.fail("remove-volume", EngineFailed("device or resource busy", 500), 1)
        refused(agent, PurgeApp(1), EngineFailed, "busy")


def test_an_app_that_could_not_come_back_is_not_taken_down() -> None:
    with rig() as agent:
        before = settled_with(agent, DATA)
        agent.engine.missing_images.add("gone:latest")
        agent.post(app(service("one", image="gone"), service("two", 2)))
        agent.until(lambda s: s.failures)
        refused(agent, RestartApp(1), Unavailable, "image of service one is not here yet")
        refused(agent, PurgeApp(1), Unavailable, "image of service one is not here yet")
        assert agent.ids() == before


def test_a_rejected_app_is_not_taken_down() -> None:
    with rig() as agent:
        before = settled_with(agent, DATA)
        agent.post(app(service("one", ports=["what"])))
        agent.until(lambda s: any(app.problem for app in s.desired.apps))
        for command in (RestartApp(1), PurgeApp(1)):
            refused(agent, command, Unavailable, "is rejected")
        assert agent.ids() == before


def test_without_a_target_nothing_is_taken_down() -> None:
    """Nobody could say what to bring back."""
    with rig() as first:
        settled_with(first, DATA)
        world = first.engine.observed
    with rig(world) as agent:
        agent.until(lambda s: s.looked)
        refused(agent, PurgeApp(1), Unavailable, "No target")
        assert agent.engine.performed == []


def test_containers_that_hand_over_are_simply_replaced() -> None:
    with rig() as agent:
        before = settled_with(agent, app(service("one", labels=HANDS)))
        ask(agent, RestartApp(1))
        agent.settled()
        assert agent.ids()["one"] != before["one"]
        assert [verb(step) for step in agent.engine.performed] == [
            "stop", "remove", "create", "start",
        ]  # fmt: skip


def test_a_restart_in_the_middle_of_a_hand_over_takes_both() -> None:
    with rig() as agent:
        agent.host.patient = True
        settled_with(agent, app(service("one", labels=HANDS)))
        agent.post(app(service("one", labels=HANDS, environment={"A": "b"})))
        agent.until(lambda s: any(n.startswith("await-handover") for n in s.running))
        two = set(agent.engine.observed.containers)
        assert len(two) == 2
        assert ask(agent, RestartApp(1)) == "restarted"
        agent.settled()
        assert len(agent.engine.observed.containers) == 1
        assert not two & agent.engine.observed.containers.keys()


def test_a_restart_starts_what_a_user_has_stopped() -> None:
    with rig() as agent:
        settled_with(agent, DATA)
        ask(agent, StopService(("1", "two")))
        ask(agent, RestartApp(1))
        agent.settled()
        assert agent.containers() == {"one": "running", "two": "running"}
        assert agent.store.stopped == {}


def test_a_refused_restart_leaves_stopped_what_a_user_has_stopped() -> None:
    with rig() as agent:
        before = settled_with(agent, DATA)
        ask(agent, StopService(("1", "two")))
        agent.host.user_locks[1] = "one"
        refused(agent, RestartApp(1), Locked, "Lockfile")
        agent.host.user_locks.clear()
        agent.settled()
        assert agent.containers() == {"one": "running", "two": "exited"}
        assert (agent.ids(), agent.store.stopped) == (before, {("1", "two"): "c1"})


def test_a_service_that_waits_for_a_reboot_counts_as_back() -> None:
    with rig() as agent:
        settled_with(agent, app(service("one"), service("two", 2)))
        agent.host.refusal = RefusedByHost("not now")
        labels = {REQUIRES_REBOOT: "1"}
        agent.post(app(service("one"), service("two", 2, labels=labels)))
        agent.until(lambda s: agent.containers().get("two") == "created")
        agent.host.user_locks.clear()
        assert ask(agent, RestartApp(1)) == "restarted"


def test_a_restart_does_not_end_the_purge_before_it() -> None:
    """Both are done when everything is: the second neither stops nor repeats the first."""
    with rig() as agent:
        before = settled_with(agent, DATA)
        second: list[Future[str]] = []

        def meanwhile(step: object, ticket: object) -> None:
            if isinstance(step, StopContainer) and not second:
                second.append(agent.reconciler.submit(RestartApp(1)))

        agent.engine.before = meanwhile
        assert ask(agent, PurgeApp(1)) == "purged"
        assert end(agent, second[0]) == "restarted"
        agent.settled()
        assert done(agent, RemoveVolume) == ["remove-volume volume 1_data"]
        assert len(done(agent, CreateContainer)) == 2
        assert not set(before.values()) & set(agent.ids().values())


def test_nothing_is_purged_twice() -> None:
    """Neither by what follows on the purge, nor by an agent that starts after it."""
    with rig() as agent:
        settled_with(agent, DATA)
        ask(agent, PurgeApp(1))
        for touch in (Touch(everything=True), Touch(volumes=frozenset({"1_data"}))):
            agent.reconciler.wake(touch)
        agent.post(DATA)
        agent.settled()
        assert len(done(agent, RemoveVolume)) == 1
        store, world = agent.store, agent.engine.observed
    with rig(world, remembered(store), store=store) as agent:
        agent.settled()
        assert agent.engine.performed == []


def test_a_target_that_comes_meanwhile_is_what_comes_back() -> None:
    with rig() as agent:
        settled_with(agent, DATA)
        newer = app(service("one", environment={"A": "b"}, volumes=["data:/data"]), data={})
        posted: list[bool] = []

        def meanwhile(step: object, ticket: object) -> None:
            if isinstance(step, StopContainer) and not posted:
                posted.append(True)
                agent.reconciler.submit(command(newer))

        agent.engine.before = meanwhile
        assert ask(agent, PurgeApp(1)) == "purged"
        agent.settled()
        assert agent.containers() == {"one": "running"}
        assert len(done(agent, RemoveVolume)) == 1


def command(document: dict[str, Any]) -> Any:
    from balena_agent.core.intent import SetTarget

    return SetTarget("local", json.dumps(document), read_local(document))


# ---- clean-up ------------------------------------------------------------------------------------

NAMELESS = "0123456789abcdef" * 4


def littered(agent: Rig) -> None:
    """A device at rest, and volumes that nobody needs."""
    settled_with(agent, both(DATA, OTHER))
    nameless = Volume(NAMELESS, NO_APP, "", NAMELESS, VolumeSpec())
    firmware = Volume(EXTRA_FIRMWARE, NO_APP, "", EXTRA_FIRMWARE, VolumeSpec())
    put(agent, volume("1_old"), volume("2_old", 2), volume("9_left", 9), nameless, firmware)


def test_clean_up_takes_what_nobody_needs_and_nothing_else() -> None:
    with rig() as agent:
        littered(agent)
        assert ask(agent, CleanupVolumes()) == "\n".join([NAMELESS, "1_old", "2_old", "9_left"])
        assert agent.engine.observed.volumes.keys() == {"1_data", "2_data", EXTRA_FIRMWARE}
        agent.settled()
        assert agent.published.current.intent == Intent()
        assert ask(agent, CleanupVolumes()) == ""


def test_clean_up_for_one_app_leaves_the_others() -> None:
    with rig() as agent:
        littered(agent)
        assert ask(agent, CleanupVolumes(1)) == "1_old"
        assert {"2_old", "9_left", NAMELESS} <= agent.engine.observed.volumes.keys()


def test_clean_up_spares_what_a_foreign_container_uses() -> None:
    """We do not see it; the engine refuses."""
    with rig() as agent:
        littered(agent)
        agent.engine.fail("remove-volume volume 9_left", EngineFailed("volume is in use", 409), 99)
        assert ask(agent, CleanupVolumes()) == "\n".join([NAMELESS, "1_old", "2_old"])
        assert "9_left" in agent.engine.observed.volumes
        agent.settled()


def test_a_clean_up_that_fails_is_told_and_not_done_later() -> None:
    with rig() as agent:
        littered(agent)
        agent.engine.fail("remove-volume volume 9_left", EngineFailed("input/output error", 500), 1)
        refused(agent, CleanupVolumes(), EngineFailed, "input/output")
        agent.settled()
        assert agent.published.current.intent == Intent()
        assert "9_left" in agent.engine.observed.volumes


def test_clean_up_spares_what_the_target_of_another_source_declares() -> None:
    other = app(service("x", 7), number=9, left={})
    kept = KeptTarget(json.dumps(other), read_local(other))
    with rig(memory=Memory(targets={"https://api": kept})) as agent:
        littered(agent)
        ask(agent, CleanupVolumes())
        assert "9_left" in agent.engine.observed.volumes
        assert "1_old" not in agent.engine.observed.volumes


def test_nothing_is_unneeded_while_a_target_cannot_be_read() -> None:
    with rig(memory=Memory(targets={"https://api": KeptTarget("{", None)})) as agent:
        littered(agent)
        assert ask(agent, CleanupVolumes()) == ""
        assert done(agent, RemoveVolume) == []


def test_nothing_is_unneeded_without_a_target() -> None:
    world = replace(observed("busybox"), volumes={"1_old": volume("1_old")})
    with rig(engine=FakeEngine(world), store=FakeStore()) as agent:
        agent.until(lambda s: s.looked)
        assert ask(agent, CleanupVolumes()) == ""
        assert agent.engine.observed.volumes.keys() == {"1_old"}


def test_a_volume_that_finds_a_user_meanwhile_stays() -> None:
    with rig() as agent:
        littered(agent)
        answers: list[Future[str]] = []
        newer = both(app(service("one", volumes=["old:/old"]), old={}), OTHER)

        def meanwhile(step: object, ticket: object) -> None:
            if isinstance(step, RemoveVolume) and not answers:
                answers.append(agent.reconciler.submit(command(newer)))

        agent.engine.before = meanwhile
        agent.engine.fail("remove-volume volume 1_old", EngineFailed("later", 409), 1)
        ask(agent, CleanupVolumes())
        agent.settled()
        assert "1_old" in agent.engine.observed.volumes


def test_what_is_removed_is_told_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with rig() as agent:
        littered(agent)
        ask(agent, CleanupVolumes(9))
    causes = [getattr(r, "fields", {}).get("CAUSE") for r in caplog.records]
    assert "nobody needs it" in causes
