"""Volumes of an app that leaves: they go only when a cloud has said so itself (spec 20 §13.5, S06).

The policy is the daemon's own. An app of a cloud has a uuid, one of a local user its id instead.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from agent import DEADLINE, Rig, observed, rig
from agent import service as local_service
from agent import target as local_target
from fakes.engine import FakeEngine

from balena_agent.core.errors import InvalidTarget
from balena_agent.core.intent import SetTarget
from balena_agent.core.observed import HostFacts, Volume
from balena_agent.core.sources import KeptTarget
from balena_agent.core.spec import VolumeSpec
from balena_agent.core.target import SUPERVISOR_APPS, read_local, read_v3
from balena_agent.runtime.policy import Memory, Policy

DEVICE = "d0d0"
CLOUD, OTHER = "https://api.example.org", "https://api.other.example"
MANAGED, ALONE = HostFacts(device_uuid=DEVICE, api_endpoint=CLOUD), HostFacts(device_uuid=DEVICE)
LOCAL_MODE = {"RESIN_SUPERVISOR_LOCAL_MODE": "1"}
FLEET, NEIGHBOUR = "f1ee", "bee5"

Json = dict[str, Any]


def app(number: int, **composition: Any) -> Json:
    service = {
        "id": number, "image_id": number, "image": "busybox", "environment": {}, "labels": {},
        "composition": {"volumes": ["data:/data"], **composition},
    }  # fmt: skip
    release = {"id": 1, "services": {f"s{number}": service}, "volumes": {"data": {}}}
    return {"id": number, "name": f"app{number}", "releases": {"c1": release}}


def document(config: dict[str, str] | None = None, **apps: Json) -> Json:
    return {DEVICE: {"name": "dev", "config": config or {}, "apps": apps}}


ONE, BOTH = document(bee5=app(2)), document(f1ee=app(1), bee5=app(2))
MINE = local_target(local_service("mine", volumes=["data:/data"]), app=5)


def give(agent: Rig, source: str, content: Json) -> None:
    made = read_v3(content, DEVICE) if DEVICE in content else read_local(content)
    command = SetTarget(source, json.dumps(content), made)
    assert agent.reconciler.submit(command).result(DEADLINE) == "accepted"
    agent.settled()


def volumes(agent: Rig) -> set[str]:
    return set(agent.engine.observed.volumes)


def both() -> FakeEngine:
    """An engine with what is there after a cloud has asked for both apps."""
    with rig(facts=MANAGED) as agent:
        give(agent, CLOUD, BOTH)
        assert volumes(agent) == {"1_data", "2_data"}
        engine = FakeEngine(agent.engine.observed)
    engine._numbers = itertools.count(100)
    return engine


def kept(content: Json) -> KeptTarget:
    made = read_v3(content, DEVICE) if DEVICE in content else read_local(content)
    return KeptTarget(json.dumps(content), made)


def test_S06_volumes_go_with_an_app_that_leaves_the_target_of_a_cloud() -> None:
    with rig(facts=MANAGED) as agent:
        give(agent, CLOUD, BOTH)
        give(agent, CLOUD, ONE)
        assert volumes(agent) == {"2_data"} and agent.containers() == {"s2": "running"}
        give(agent, CLOUD, document())
        assert volumes(agent) == set() and agent.containers() == {}


def test_S06_volumes_stay_where_there_is_no_cloud() -> None:
    with rig(facts=ALONE) as agent:
        agent.post(MINE)
        agent.settled()
        agent.post({"local": {"name": "dev", "config": {}, "apps": {}}})
        agent.settled()
        assert volumes(agent) == {"5_data"} and agent.containers() == {}


@pytest.mark.parametrize(
    "answer",
    [
        {}, {DEVICE: None}, {DEVICE: {}}, {DEVICE: {"name": "dev", "config": {}}},
        {DEVICE: {"name": "dev", "config": {}, "apps": None}},
        {DEVICE: {"name": "dev", "config": {}, "apps": []}},
        {DEVICE: {"name": "dev", "config": {}, "apps": {FLEET: None}}},
        {"0ther": {"name": "dev", "config": {}, "apps": {}}},
    ],
)  # fmt: skip
def test_an_empty_answer_of_a_cloud_is_no_target(answer: Json) -> None:
    with pytest.raises(InvalidTarget):
        read_v3(answer, DEVICE)


@pytest.mark.parametrize(
    "left",
    [
        app(1, ports=["nonsense"]),
        app(1, working_dir="relative"),
        {**app(1), "releases": {}},
        {**app(1), "releases": {"c2": {"id": 2}}},
        {**app(1), "is_host": True},
    ],
    ids=["a bad port", "a bad path", "no release", "an empty release", "the host's"],
)
def test_volumes_stay_with_an_app_that_is_rejected_or_has_nothing_to_run(left: Json) -> None:
    with rig(engine=both(), facts=MANAGED) as agent:
        give(agent, CLOUD, BOTH)
        give(agent, CLOUD, document(f1ee=left, bee5=app(2)))
        assert volumes(agent) == {"1_data", "2_data"}


@pytest.mark.parametrize("source", ["peer", "preload"])
def test_what_stands_in_for_a_cloud_takes_no_volumes_until_that_has_spoken(source: str) -> None:
    with rig(engine=both(), facts=MANAGED) as agent:
        give(agent, source, ONE)
        assert agent.containers() == {"s2": "running"}
        assert volumes(agent) == {"1_data", "2_data"}
        give(agent, CLOUD, ONE)
        assert volumes(agent) == {"2_data"}


@pytest.mark.parametrize(
    ("targets", "source"),
    [
        ({CLOUD: KeptTarget("{", None)}, "local"),
        ({OTHER: kept(BOTH)}, "local"),
        ({CLOUD: KeptTarget("{", None)}, ""),
        ({OTHER: kept(BOTH)}, ""),
    ],
    ids=["unreadable", "another cloud", "unreadable, no user", "another cloud, no user"],
)
def test_nobody_but_the_cloud_in_force_takes_volumes(
    targets: dict[str, KeptTarget], source: str
) -> None:
    """While a target cannot be read, or the device has moved to a cloud that is still silent."""
    user = kept(MINE)
    known = {**targets, source: user} if source else targets
    memory = Memory(user.target if source else None, source, user.raw if source else "", {},
                    targets=known)  # fmt: skip
    with rig(engine=both(), memory=memory, facts=MANAGED) as agent:
        agent.settled() if source else agent.until(lambda s: s.looked and not s.running)
        assert ("mine" in agent.containers()) is bool(source)
        assert {"1_data", "2_data"} <= volumes(agent)


def test_volumes_stay_while_a_user_has_the_device_and_when_he_gives_it_back() -> None:
    with rig(engine=both(), facts=MANAGED) as agent:
        give(agent, CLOUD, BOTH)
        give(agent, CLOUD, document(LOCAL_MODE, **BOTH[DEVICE]["apps"]))
        give(agent, "local", MINE)
        assert agent.containers() == {"mine": "running"}
        assert volumes(agent) == {"1_data", "2_data", "5_data"}
        give(agent, CLOUD, BOTH)
        agent.until(lambda s: "local" not in s.targets, "local mode has ended")
        agent.settled()
        assert volumes(agent) == {"1_data", "2_data"}


def test_a_device_that_leaves_its_cloud_and_comes_back_loses_nothing() -> None:
    with rig(engine=both(), facts=MANAGED) as agent:
        give(agent, CLOUD, BOTH)
        agent.reconciler.new_facts(ALONE)
        agent.until(lambda s: not s.facts.managed)
        give(agent, "local", MINE)
        assert agent.containers() == {"mine": "running"}
        agent.reconciler.new_facts(MANAGED)
        agent.until(lambda s: s.source == CLOUD and s.settled)
        agent.settled()
        assert volumes(agent) == {"1_data", "2_data", "5_data"}


def test_an_app_under_another_number_keeps_its_data() -> None:
    with rig(engine=both(), facts=MANAGED) as agent:
        give(agent, CLOUD, document(f1ee=app(11), bee5=app(2)))
        assert volumes(agent) == {"1_data", "2_data", "11_data"}


@pytest.mark.parametrize("uuid", sorted(SUPERVISOR_APPS)[:1])
def test_volumes_of_the_peers_own_app_are_not_ours(uuid: str) -> None:
    peers = Volume("9_data", 9, uuid, "data", VolumeSpec())
    world = replace(observed("busybox"), volumes={"9_data": peers})
    with rig(world, facts=MANAGED) as agent:
        give(agent, CLOUD, ONE)
        assert volumes(agent) == {"2_data", "9_data"}


def test_a_setting_that_keeps_volumes_is_heeded() -> None:
    with rig(engine=both(), facts=MANAGED, policy=Policy(keep_volumes=True)) as agent:
        give(agent, CLOUD, ONE)
        assert volumes(agent) == {"1_data", "2_data"}
