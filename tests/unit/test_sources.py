"""Targets of several sources: which one is in force, and what of the others stays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from agent import DEADLINE, Rig, observed, rig, service, target

from balena_agent.core.intent import SetTarget
from balena_agent.core.observed import HostFacts
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.sources import KeptTarget, in_force, says_local
from balena_agent.core.status import local_mode
from balena_agent.core.target import SUPERVISOR_APPS, App, Target, read_local
from balena_agent.runtime.policy import Memory, Policy

CLOUD = "https://api.example.org"
MANAGED = HostFacts(device_uuid="d0d0", api_endpoint=CLOUD)
ALONE = HostFacts(device_uuid="d0d0")
ON = {"RESIN_SUPERVISOR_LOCAL_MODE": "1"}


def kept(*apps: App, config: Mapping[str, str] | None = None, name: str = "") -> KeptTarget:
    made = Target(name or None, config or {}, {app.uuid: app for app in apps})
    return KeptTarget(f"raw {name}", made)


MINE, FLEET = App("5", 5, "mine"), App("f1ee", 1, "fleet")
BLOCK = App("b10c", 2, "block", app_class="block")
SYSTEM = App("5e5", 3, "system", app_class="app", is_host=True)


def test_without_a_cloud_the_users_target_is_in_force() -> None:
    targets = {"local": kept(MINE), "peer": kept(FLEET), "preload": kept(FLEET), CLOUD: kept()}
    assert in_force(targets, ALONE).source == "local"
    assert in_force({name: targets[name] for name in ("peer", "preload")}, ALONE).source == "peer"
    assert in_force({"preload": targets["preload"]}, ALONE).source == "preload"
    assert in_force({CLOUD: targets[CLOUD]}, ALONE).source == ""
    assert in_force({}, ALONE) == in_force({"local": KeptTarget("{", None)}, ALONE)


def test_with_a_cloud_its_target_is_in_force_unless_it_asks_for_local_mode() -> None:
    targets = {"local": kept(MINE), "peer": kept(config=ON), CLOUD: kept(FLEET)}
    assert (in_force(targets, MANAGED).source, says_local(targets, MANAGED)) == (CLOUD, False)
    targets[CLOUD] = kept(FLEET, config=ON)
    found = in_force(targets, MANAGED)
    assert (found.source, found.raw, says_local(targets, MANAGED)) == ("local", "raw ", True)
    assert found.target is not None and found.target.apps == {"5": MINE}
    assert in_force({CLOUD: targets[CLOUD]}, MANAGED).source == CLOUD


def test_until_the_cloud_has_spoken_the_peers_target_stands_for_it() -> None:
    targets = {"local": kept(MINE), "peer": kept(FLEET)}
    assert in_force(targets, MANAGED).source == "peer"
    targets["peer"] = kept(FLEET, config=ON)
    assert in_force(targets, MANAGED).source == "local"
    assert in_force({"local": kept(MINE)}, MANAGED).source == "local"


@pytest.mark.parametrize("config", [{}, ON])
def test_apps_that_are_no_fleet_stay_whoever_is_in_force(config: dict[str, str]) -> None:
    local = kept(MINE, replace(BLOCK, uuid="9", app_id=9))
    targets = {"local": local, CLOUD: kept(FLEET, BLOCK, SYSTEM, config=config)}
    found = in_force(targets, MANAGED).target
    assert found is not None
    assert found.apps.keys() == {"b10c", "5e5", "9"} | ({"5"} if config else {"f1ee"})
    assert found.config == ({} if config else config)


def test_an_app_of_the_target_in_force_goes_before_its_namesake() -> None:
    same_id = App("2", 2, "mine")
    targets = {"local": kept(same_id), CLOUD: kept(BLOCK, config=ON)}
    found = in_force(targets, MANAGED).target
    assert found is not None and found.apps == {"2": same_id}


def test_a_local_target_cannot_end_the_local_mode_that_it_lives_in() -> None:
    targets = {"local": kept(MINE), CLOUD: kept(FLEET, config=ON)}
    chosen = in_force(targets, MANAGED)
    now = Snapshot(facts=MANAGED, targets=targets, target=chosen.target, source=chosen.source)
    assert local_mode(now)
    assert not local_mode(replace(now, targets={CLOUD: kept(FLEET)}, target=kept(FLEET).target))


def give(agent: Rig, source: str, document: dict[str, Any], config: Mapping[str, str]) -> None:
    made = replace(read_local(document), config=config)
    command = SetTarget(source, json.dumps([document, dict(config)]), made)
    assert agent.reconciler.submit(command).result(DEADLINE) == "accepted"
    agent.settled()


def test_a_device_goes_into_local_mode_and_back() -> None:
    fleet, mine = target(service("fleet"), app=1), target(service("mine"), app=5)
    with rig(facts=MANAGED) as agent:
        give(agent, CLOUD, fleet, {})
        assert agent.containers() == {"fleet": "running"}
        give(agent, CLOUD, fleet, ON)
        assert agent.containers() == {"fleet": "running"}
        give(agent, "local", mine, {})
        assert agent.containers() == {"mine": "running"}
        assert agent.published.current.targets.keys() == {CLOUD, "local"}
        give(agent, CLOUD, fleet, {})
        assert agent.containers() == {"fleet": "running"}
        agent.until(lambda s: s.targets.keys() == {CLOUD}, "the user's target is forgotten")
        assert agent.store.targets.keys() == {CLOUD}


def test_images_of_the_cloud_stay_while_a_user_has_the_device() -> None:
    fleet, mine = target(service("fleet", image="theirs")), target(service("mine"), app=5)
    with rig(
        observed("busybox", "theirs"), facts=MANAGED, policy=Policy(keep_images=False)
    ) as agent:
        give(agent, CLOUD, fleet, {})
        give(agent, CLOUD, fleet, ON)
        give(agent, "local", mine, {})
        assert agent.containers() == {"mine": "running"}
        assert agent.engine.observed.image("theirs") is not None
        give(agent, CLOUD, target(service("other")), {})
        assert agent.engine.observed.image("theirs") is None


def test_the_image_of_the_peer_stays_though_the_cloud_names_it() -> None:
    """The cloud's target has an app for it, of which nothing is run: no reason to tidy it away."""
    peer = sorted(SUPERVISOR_APPS)[0]
    raw = target(service("main", image="peer"), app=8)["local"]["apps"]
    apps = read_local({"local": {"apps": raw}}).apps
    theirs = replace(apps["8"], uuid=peer, app_class="app")
    fleet = read_local(target(service("fleet")))
    made = replace(fleet, apps={**fleet.apps, peer: theirs})
    policy = Policy(keep_images=False)
    with rig(observed("busybox", "peer"), facts=MANAGED, policy=policy) as agent:
        agent.reconciler.submit(SetTarget(CLOUD, "{}", made)).result(DEADLINE)
        agent.settled()
        assert agent.engine.observed.image("peer") is not None
        assert "peer:latest" not in agent.store.images


def test_the_device_is_named_by_the_target_in_force() -> None:
    named = target(service("one"))
    named["local"]["name"] = "workbench"
    with rig(facts=MANAGED) as agent:
        give(agent, CLOUD, target(service("one")), {})
        give(agent, "local", named, {})
        assert agent.published.current.facts.device_name == "dev"


def test_a_target_that_could_not_be_read_is_replaced_by_the_same_one_that_can() -> None:
    document = target(service("one"))
    unreadable = KeptTarget(json.dumps(document), None)
    with rig(memory=Memory(targets={"local": unreadable})) as agent:
        agent.post(document)
        agent.settled()
        assert agent.containers() == {"one": "running"}


@pytest.mark.parametrize("prefix", ["", "RESIN_", "BALENA_"])
def test_local_mode_counts_however_the_variable_is_spelled(prefix: str) -> None:
    lent = KeptTarget("", Target(None, {f"{prefix}SUPERVISOR_LOCAL_MODE": "1"}, {}))
    mine = KeptTarget("", Target("mine", {}, {}))
    facts = HostFacts(api_endpoint="https://cloud.test")
    assert in_force({"preload": lent, "local": mine}, facts).source == "local"


def test_what_the_peer_left_never_comes_back_when_a_cloud_has_spoken() -> None:
    targets = {"peer": kept(FLEET), "preload": kept(FLEET), CLOUD: kept(FLEET)}
    moved = replace(MANAGED, api_endpoint="https://api.other.example")
    for facts in (moved, ALONE):
        assert in_force(targets, facts).source == ""
        assert in_force({**targets, "local": kept(MINE)}, facts).source == "local"
    unreadable = {**targets, CLOUD: KeptTarget("{", None)}
    assert in_force(unreadable, MANAGED).source == ""


def test_a_device_that_leaves_its_cloud_is_its_users_and_comes_back_to_the_cloud() -> None:
    fleet, mine = target(service("fleet"), app=1), target(service("mine"), app=5)
    with rig(facts=MANAGED) as agent:
        give(agent, CLOUD, fleet, {})
        before = agent.ids()
        agent.reconciler.new_facts(ALONE)
        seen = agent.until(lambda s: not s.facts.managed and s.looked and not s.running)
        assert (seen.target, seen.source, agent.ids()) == (None, "", before)
        give(agent, "local", mine, {})
        assert agent.containers() == {"mine": "running"}
        agent.reconciler.new_facts(MANAGED)
        agent.until(lambda s: s.source == CLOUD and s.settled)
        agent.until(lambda s: agent.containers() == {"fleet": "running"})


def test_a_device_that_is_moved_to_another_cloud_stays_as_it_is_until_that_one_speaks() -> None:
    other = "https://api.other.example"
    with rig(facts=MANAGED) as agent:
        give(agent, CLOUD, target(service("fleet")), {})
        before = agent.ids()
        agent.reconciler.new_facts(replace(MANAGED, api_endpoint=other))
        seen = agent.until(lambda s: s.facts.api_endpoint == other and s.looked and not s.running)
        assert (seen.target, agent.ids()) == (None, before)
        give(agent, other, target(service("fleet"), service("more", 2)), {})
        assert agent.containers() == {"fleet": "running", "more": "running"}
        assert agent.ids()["fleet"] == before["fleet"]


def test_a_local_target_from_before_the_cloud_never_comes_back() -> None:
    """Neither with another cloud that is silent, nor when the cloud's target does not read."""
    fleet, mine = target(service("fleet"), app=1), target(service("mine"), app=5)
    with rig() as agent:
        give(agent, "local", mine, {})
        agent.reconciler.new_facts(MANAGED)
        seen = agent.until(lambda s: s.facts.managed and s.settled)
        assert (seen.source, agent.containers()) == ("local", {"mine": "running"})
        give(agent, CLOUD, fleet, {})
        agent.until(lambda s: s.targets.keys() == {CLOUD}, "the user's target is forgotten")
        assert agent.store.targets.keys() == {CLOUD}
        agent.settled()
        other = "https://api.other.example"
        agent.reconciler.new_facts(replace(MANAGED, api_endpoint=other))
        seen = agent.until(lambda s: s.facts.api_endpoint == other and s.looked and not s.running)
        assert (seen.target, agent.containers()) == (None, {"fleet": "running"})


def test_a_local_target_stays_while_the_cloud_lends_the_device() -> None:
    with rig() as agent:
        give(agent, "local", target(service("mine"), app=5), {})
        agent.reconciler.new_facts(MANAGED)
        give(agent, CLOUD, target(service("fleet"), app=1), ON)
        assert agent.containers() == {"mine": "running"}
        assert agent.store.targets.keys() == {CLOUD, "local"}


def test_whether_images_are_kept_follows_the_cloud_that_there_is() -> None:
    """One release after the other: the old image goes where there is a cloud, unless told."""
    names = ("one", "two", "three", "four")
    assert [Policy(keep_images=k).keeps_images(True) for k in (None, True, False)] == [0, 1, 0]
    assert [Policy(keep_images=k).keeps_images(False) for k in (None, True, False)] == [1, 1, 0]
    with rig(observed(*names), policy=Policy(keep_images=None)) as agent:

        def has(name: str) -> bool:
            return agent.engine.observed.image(name) is not None

        give(agent, "local", target(service("web", image="one")), {})
        give(agent, "local", target(service("web", image="two")), {})
        assert has("one")
        agent.reconciler.new_facts(MANAGED)
        give(agent, CLOUD, target(service("web", image="three")), {})
        assert not has("one") and not has("two")
        agent.reconciler.new_facts(ALONE)
        agent.until(lambda s: not s.facts.managed)
        give(agent, "local", target(service("web", image="four")), {})
        assert has("three")


def test_other_facts_do_not_touch_the_target_nor_its_back_off() -> None:
    with rig(facts=MANAGED) as agent:
        agent.engine.missing_images.add("absent:latest")
        made = read_local(target(service("one", image="absent")))
        agent.reconciler.submit(SetTarget(CLOUD, "{}", made)).result(DEADLINE)
        agent.until(lambda s: any(f.count == 2 for f in s.failures.values()))
        agent.reconciler.new_facts(replace(MANAGED, hostname="kiosk"))
        seen = agent.until(lambda s: s.facts.hostname == "kiosk")
        assert [f.count for f in seen.failures.values()] == [2]
