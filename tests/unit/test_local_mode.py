"""Local mode on a device of a cloud: what is noted when it begins, and what goes when it ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from agent import DEADLINE, Rig, rig, service, target
from fakes.machine import FakeStore

from balena_agent.core.borrowed import Possessions, possessions_from_json
from balena_agent.core.errors import EngineFailed
from balena_agent.core.intent import SetTarget
from balena_agent.core.looks import Touch
from balena_agent.core.observed import HostFacts, Volume
from balena_agent.core.sources import KeptTarget
from balena_agent.core.spec import VolumeSpec
from balena_agent.core.steps import RemoveVolume, identity
from balena_agent.core.target import read_local
from balena_agent.runtime.borrowing import KEY
from balena_agent.runtime.policy import Memory

CLOUD = "https://api.example.org"
MANAGED = HostFacts(device_uuid="d0d0", api_endpoint=CLOUD)
ON = {"RESIN_SUPERVISOR_LOCAL_MODE": "1"}


def app(number: int, name: str, *volumes: str) -> dict[str, Any]:
    mounts = [f"{volume}:/{volume}" for volume in volumes]
    document = target(service(name, volumes=mounts), app=number)
    document["local"]["apps"][str(number)]["volumes"] = {volume: {} for volume in volumes}
    return document


FLEET, MINE = app(1, "fleet", "data"), app(5, "mine", "scratch")


def give(agent: Rig, source: str, document: dict[str, Any], config: Mapping[str, str]) -> None:
    made = replace(read_local(document), config=config)
    command = SetTarget(source, json.dumps([document, dict(config)]), made)
    assert agent.reconciler.submit(command).result(DEADLINE) == "accepted"
    agent.settled()


def borrowed(agent: Rig) -> None:
    """The fleet has run, with a volume of an earlier release; now a user has the device."""
    give(agent, CLOUD, FLEET, {})
    old = Volume("1_old", 1, "1", "old", VolumeSpec())
    agent.engine.change(
        lambda world: replace(world, volumes={**world.volumes, "1_old": old}),
        Touch(volumes=frozenset({"1_old"})),
    )
    agent.until(lambda s: "1_old" in s.observed.volumes)
    give(agent, CLOUD, FLEET, ON)
    give(agent, "local", MINE, {})
    assert agent.containers() == {"mine": "running"}
    assert agent.engine.observed.volumes.keys() == {"1_data", "1_old", "5_scratch"}


def given_back(agent: Rig) -> None:
    agent.until(lambda s: "local" not in s.targets, "local mode has ended")
    agent.settled()
    assert agent.containers() == {"fleet": "running"}
    assert agent.store.targets.keys() == {CLOUD}
    assert agent.store.settings == {KEY: None}


def test_what_there_was_is_noted_before_anything_changes() -> None:
    with rig(facts=MANAGED) as agent:
        give(agent, CLOUD, FLEET, {})
        before = agent.engine.observed
        borrowed(agent)
        noted = possessions_from_json(agent.store.settings[KEY])
        assert noted is not None
        assert noted.containers == set(before.containers)
        assert noted.volumes == {"1_data", "1_old"}
        assert noted.images == set(before.images) and noted.networks == set(before.networks)


def test_what_came_with_local_mode_goes_with_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with rig(facts=MANAGED) as agent:
        borrowed(agent)
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert agent.engine.observed.volumes.keys() == {"1_data", "1_old"}
        removed = [identity(s) for s in agent.engine.performed if isinstance(s, RemoveVolume)]
        assert removed == ["remove-volume volume 5_scratch"]
    lines = [record.getMessage() for record in caplog.records]
    assert "Local mode has ended: volume 5_scratch goes, it came with it" in lines


def test_what_cannot_go_does_not_hold_up_the_end() -> None:
    with rig(facts=MANAGED) as agent:
        borrowed(agent)
        agent.engine.fail("remove-volume", EngineFailed("input/output error", 500), 99)
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert "5_scratch" in agent.engine.observed.volumes


def test_a_volume_that_the_cloud_declares_stays() -> None:
    with rig(facts=MANAGED) as agent:
        borrowed(agent)
        both = app(5, "mine", "scratch")["local"]["apps"] | FLEET["local"]["apps"]
        give(agent, CLOUD, {"local": {**FLEET["local"], "apps": both}}, {})
        agent.until(lambda s: "local" not in s.targets)
        assert "5_scratch" in agent.engine.observed.volumes


@pytest.mark.parametrize("gone", [False, True], ids=["nothing has gone", "all has gone"])
@pytest.mark.parametrize("note", [True, False], ids=["with a note", "without a note"])
def test_local_mode_that_ended_while_no_agent_ran(note: bool, gone: bool) -> None:
    """Nobody knows how far the agent before this one had come."""
    with rig(facts=MANAGED) as agent:
        borrowed(agent)
        world, store = agent.engine.observed, agent.store
    if gone:
        volumes = {k: v for k, v in world.volumes.items() if k != "5_scratch"}
        world = replace(world, volumes=volumes, containers={})
    fleet = replace(read_local(FLEET), config={})
    targets = {CLOUD: KeptTarget("f", fleet), "local": KeptTarget("m", read_local(MINE))}
    before = possessions_from_json(store.settings[KEY]) if note else None
    memory = Memory(fleet, CLOUD, "f", targets=targets, before_local_mode=before)
    store.targets = {CLOUD: "f", "local": "m"}
    with rig(world, memory, facts=MANAGED, store=store) as agent:
        if note:
            given_back(agent)
        agent.settled()
        assert ("5_scratch" in agent.engine.observed.volumes) is not (note or gone)


def test_a_lasting_app_of_the_user_does_not_hold_up_the_end() -> None:
    """It stays while its target does; its data is no litter then."""
    with rig(facts=MANAGED) as agent:
        borrowed(agent)
        made = read_local(app(6, "block", "blocks"))
        lasting = {uuid: replace(each, app_class="block") for uuid, each in made.apps.items()}
        command = SetTarget("local", "{}", replace(made, apps=lasting))
        agent.reconciler.submit(command).result(DEADLINE)
        agent.settled()
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert agent.engine.observed.volumes.keys() == {"1_data", "1_old", "6_blocks"}


def test_nothing_goes_while_only_the_user_has_spoken() -> None:
    """The device has moved to another cloud, which is still silent."""
    with rig(facts=MANAGED) as agent:
        borrowed(agent)
        world, store = agent.engine.observed, agent.store
    spare = Volume("5_spare", 5, "5", "spare", VolumeSpec())
    world = replace(world, volumes={**world.volumes, "5_spare": spare})
    old = KeptTarget("f", read_local(FLEET))
    targets = {"https://old.example.org": old, "local": KeptTarget("m", read_local(MINE))}
    before = possessions_from_json(store.settings[KEY])
    memory = Memory(read_local(MINE), "local", "m", targets=targets, before_local_mode=before)
    with rig(world, memory, facts=MANAGED, store=store) as agent:
        agent.settled()
        assert agent.engine.performed == []
        assert agent.engine.observed.volumes == world.volumes


def test_nothing_goes_while_a_target_cannot_be_read() -> None:
    with rig(facts=MANAGED, memory=Memory(targets={"peer": KeptTarget("{", None)})) as agent:
        borrowed(agent)
        give(agent, CLOUD, FLEET, {})
        assert "5_scratch" in agent.engine.observed.volumes
        assert "local" in agent.published.current.targets


def test_a_device_without_a_cloud_notes_nothing() -> None:
    store = FakeStore()
    with rig(store=store) as agent:
        agent.post(MINE)
        agent.settled()
    assert store.settings == {}


def test_notes_that_cannot_be_read_are_none() -> None:
    noted = Possessions(frozenset("c"), frozenset("n"), frozenset("v"), frozenset("i"))
    assert possessions_from_json(json.loads(json.dumps(noted.to_json()))) == noted
    for raw in (None, 1, [], {}, {"containers": [], "networks": [], "volumes": {}, "images": []}):
        assert possessions_from_json(raw) is None
