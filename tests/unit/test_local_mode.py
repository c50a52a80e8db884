"""Local mode on a device of a cloud: what is noted when it begins, and what goes when it ends."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from agent import DEADLINE, Rig, observed, rig, service, target
from fakes.engine import FakeEngine
from fakes.machine import FakeHost, FakeStore

from balena_agent.core.borrowed import Left, Possessions, possessions_from_json
from balena_agent.core.describe import plan_state
from balena_agent.core.errors import EngineFailed, EngineUnavailable, Unavailable
from balena_agent.core.intent import SetTarget
from balena_agent.core.jsonread import Json
from balena_agent.core.looks import Touch
from balena_agent.core.observed import HostFacts, Image, Observed, Volume
from balena_agent.core.scopes import EVERYTHING
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.sources import KeptTarget, in_force
from balena_agent.core.spec import VolumeSpec
from balena_agent.core.steps import EngineStep, RemoveImage, RemoveVolume
from balena_agent.core.target import Target, read_local
from balena_agent.core.ticket import Ticket
from balena_agent.core.traits import identity
from balena_agent.runtime.borrowing import KEY
from balena_agent.runtime.policy import Memory, Policy

CLOUD = "https://api.example.org"
MANAGED = HostFacts(device_uuid="d0d0", api_endpoint=CLOUD)
ALONE = HostFacts(device_uuid="d0d0")
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


@pytest.mark.parametrize(("status", "failures", "tries"), [(500, 2, 3), (500, 99, 3), (409, 99, 1)])
def test_a_failure_that_passes_spares_nothing(status: int, failures: int, tries: int) -> None:
    """Only what is in use is spared at once."""
    tried: list[EngineStep] = []
    with rig(facts=MANAGED) as agent:
        borrowed(agent)
        agent.engine.fail("remove-volume", EngineFailed("no", status), failures)
        agent.engine.before = lambda step, _: tried.append(step)
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert ("5_scratch" in agent.engine.observed.volumes) is (failures > tries)
    assert sum(isinstance(step, RemoveVolume) for step in tried) == tries


MORE = app(1, "fleet", "data", "db")


def release(agent: Rig, document: dict[str, Any], config: Mapping[str, str]) -> None:
    """A release of the cloud, which need not come to its end."""
    made = replace(read_local(document), config=config)
    command = SetTarget(CLOUD, json.dumps([document, dict(config)]), made)
    assert agent.reconciler.submit(command).result(DEADLINE) == "accepted"
    agent.until(lambda s: s.looked and not (s.plan.steps or s.running))


def test_what_the_cloud_made_before_the_end_is_the_clouds() -> None:
    """A lock holds up the end, while one release makes a volume that the next does not name."""
    host = FakeHost()
    with rig(facts=MANAGED, host=host) as agent:
        borrowed(agent)
        host.user_locks[5] = "mine"
        release(agent, MORE, {})
        agent.until(lambda s: "1_db" in s.observed.volumes)
        release(agent, FLEET, {})
        assert "local" in agent.published.current.targets
        noted = possessions_from_json(agent.store.settings[KEY])
        assert noted is not None and noted.left == Left(frozenset({"5_scratch"}))
        assert "1_db" in agent.engine.observed.volumes
        host.user_locks.clear()
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert agent.engine.observed.volumes.keys() == {"1_data", "1_old", "1_db"}


def test_what_the_cloud_has_named_once_is_the_clouds() -> None:
    host = FakeHost()
    with rig(facts=MANAGED, host=host) as agent:
        borrowed(agent)
        host.user_locks[5] = "mine"
        both = {
            "local": {"apps": FLEET["local"]["apps"] | app(5, "mine", "scratch")["local"]["apps"]}
        }
        release(agent, both, {})
        release(agent, FLEET, {})
        host.user_locks.clear()
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert "5_scratch" in agent.engine.observed.volumes


def test_what_the_cloud_made_is_not_the_users_who_comes_back() -> None:
    host = FakeHost()
    with rig(facts=MANAGED, host=host) as agent:
        borrowed(agent)
        host.user_locks[5] = "mine"
        release(agent, MORE, {})
        agent.until(lambda s: "1_db" in s.observed.volumes)
        release(agent, FLEET, ON)
        agent.until(lambda s: s.source == "local")
        host.user_locks.clear()
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert agent.engine.observed.volumes.keys() == {"1_data", "1_old", "1_db"}


def test_nothing_of_the_cloud_goes_when_a_target_can_be_read_again() -> None:
    with rig(facts=MANAGED, memory=Memory(targets={"peer": KeptTarget("{", None)})) as agent:
        borrowed(agent)
        for document in (FLEET, MORE, FLEET):
            give(agent, CLOUD, document, {})
        assert agent.engine.observed.volumes.keys() == {"1_data", "1_old", "5_scratch", "1_db"}
        give(agent, "peer", FLEET, {})
        agent.until(lambda s: "local" not in s.targets, "local mode has ended")
        assert agent.engine.observed.volumes.keys() == {"1_data", "1_old", "1_db"}


def test_what_came_while_there_was_no_cloud_stays() -> None:
    """The device leaves in the middle of local mode, and joins again much later."""
    with rig(facts=MANAGED) as agent:
        borrowed(agent)
        agent.reconciler.new_facts(ALONE)
        agent.until(lambda s: not s.facts.managed)
        give(agent, "local", app(5, "mine", "scratch", "months"), {})
        assert agent.store.settings == {KEY: None}
        give(agent, "local", MINE, {})
        agent.reconciler.new_facts(MANAGED)
        agent.until(lambda s: s.facts.managed)
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        kept = {"1_data", "1_old", "5_scratch", "5_months"}
        assert agent.engine.observed.volumes.keys() == kept


def test_what_cannot_be_noted_does_not_go() -> None:
    """Else a later agent would decide it once more."""
    with rig(facts=MANAGED) as agent:
        borrowed(agent)
        store, write = agent.store, agent.store.set_setting
        full = threading.Event()

        def fail(key: str, value: Json) -> None:
            full.set()
            raise Unavailable("the disk is full")

        store.set_setting = fail  # type: ignore[method-assign]
        release(agent, FLEET, {})
        assert full.is_set() and "5_scratch" in agent.engine.observed.volumes
        store.set_setting = write  # type: ignore[method-assign]
        given_back(agent)
        assert "5_scratch" not in agent.engine.observed.volumes


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
    ended = replace(noted, left=Left(frozenset("w"), frozenset("j")))
    for each in (noted, ended, replace(noted, left=Left())):
        assert possessions_from_json(json.loads(json.dumps(each.to_json()))) == each
    odd = [{**noted.to_json(), "left": left} for left in (None, [], {}, {"volumes": []})]
    odd.append({**noted.to_json(), "volumes": {}})
    for raw in (None, 1, [], {}, *odd):
        assert possessions_from_json(raw) is None


# ---- images --------------------------------------------------------------------------------------

LEAN = Policy(keep_images=False)
HAND = app(5, "mine", "scratch")
HAND["local"]["apps"]["5"]["services"]["1"]["image"] = "hand"
HAND["local"]["apps"]["5"]["networks"] = {"lab": {}}

BEFORE = (
    Image("sha256:nameless"),
    Image("sha256:shelf", frozenset({"shelf:1"})),
    Image("sha256:spare", frozenset({"spare:latest"})),
)
CAME = (
    Image("sha256:layer"),
    Image("sha256:built", frozenset({"built:1", "built:2"})),
    Image("sha256:tried", digests=frozenset({"tried@sha256:" + "7" * 64})),
    Image("sha256:peer", frozenset({"balena/amd64-supervisor:v20"})),
)


def first_world() -> Observed:
    known = observed("busybox")
    return replace(known, images={**known.images, **{each.id: each for each in BEFORE}})


def appear(agent: Rig, *images: Image) -> None:
    """Somebody builds or pulls, past the agent."""
    news = {each.id: each for each in images}
    touch = Touch(images=frozenset(news))
    agent.engine.change(lambda world: replace(world, images={**world.images, **news}), touch)
    agent.reconciler.wake(touch)


def lent(agent: Rig, *images: Image, mine: dict[str, Any] = HAND) -> None:
    """A user has the device, and besides his app some images have come."""
    give(agent, CLOUD, FLEET, {})
    give(agent, CLOUD, FLEET, ON)
    give(agent, "local", mine, {})
    assert agent.containers() == {"mine": "running"}
    appear(agent, *images)
    agent.until(lambda s: {each.id for each in images} <= s.observed.images.keys())
    agent.settled()


def image_ids(agent: Rig) -> set[str]:
    return set(agent.engine.observed.images)


THERE = {"sha256:busybox", "sha256:nameless", "sha256:shelf", "sha256:spare"}


def test_images_that_came_with_local_mode_go_with_it(caplog: pytest.LogCaptureFixture) -> None:
    """With a name or without, fetched for the user's app or built by him; what was there stays. No
    step goes without a cause, and all that goes is told before the first of it does."""
    caplog.set_level(logging.INFO)
    told: list[str] = []
    plans: list[Any] = []

    def first(step: EngineStep, ticket: Ticket) -> None:
        if isinstance(step, RemoveImage | RemoveVolume) and not told:
            told.extend(record.getMessage() for record in caplog.records)

    with rig(first_world(), policy=LEAN, facts=MANAGED) as agent:
        lent(agent, *CAME)
        fetched = image_ids(agent) - THERE - {each.id for each in CAME}
        assert len(fetched) == 1
        agent.engine.before = first
        agent.published.subscribe(lambda s: plans.append(plan_state(s, EVERYTHING)))
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert image_ids(agent) == {*THERE, "sha256:peer"}
        assert agent.engine.observed.volumes.keys() == {"1_data"}
        assert {n.engine_name for n in agent.engine.observed.networks.values()} == {"1_default"}
        removed = {s.reference for s in agent.engine.performed if isinstance(s, RemoveImage)}
        assert agent.published.current.intent.images == frozenset()
    digest = "tried@sha256:" + "7" * 64
    assert removed == {"hand:latest", "sha256:layer", "built:1", "built:2", digest}
    names = ("volume 5_scratch", "image hand:latest", "image sha256:layer",
             "image built:1, built:2", f"image {digest}")  # fmt: skip
    for name in names:
        assert f"Local mode has ended: {name} goes, it came with it" in told
    steps = [step for each in plans for step in each["steps"]]
    assert steps and all(step["cause"] for step in steps)
    causes = {step["cause"] for step in steps if step["step"] == "remove-image"}
    assert causes <= {"no service uses it", "it came with local mode, which has ended"}


def test_while_a_user_has_the_device_no_image_goes() -> None:
    with rig(first_world(), policy=LEAN, facts=MANAGED) as agent:
        lent(agent, *CAME)
        give(agent, "local", app(5, "mine", "scratch"), {})
        assert not [s for s in agent.engine.performed if isinstance(s, RemoveImage)]


def test_an_image_that_the_user_named_but_did_not_bring_stays() -> None:
    mine = json.loads(json.dumps(HAND).replace('"hand"', '"spare"'))
    with rig(first_world(), policy=LEAN, facts=MANAGED) as agent:
        lent(agent, mine=mine)
        assert "spare:latest" not in agent.store.images
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert image_ids(agent) == THERE


def test_an_image_that_a_stranger_uses_stays_and_holds_up_nothing() -> None:
    with rig(first_world(), policy=LEAN, facts=MANAGED) as agent:
        lent(agent, *CAME)
        used = EngineFailed("conflict: unable to delete sha256:layer (cannot be forced)", 409)
        agent.engine.fail("remove-image image sha256:layer", used, 99)
        agent.engine.fail("remove-image image built:1", EngineFailed("input/output error", 500), 99)
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert image_ids(agent) == {*THERE, "sha256:peer", "sha256:layer", "sha256:built"}
        assert agent.published.current.settled


def test_an_image_without_a_name_is_tried_again_by_the_hour() -> None:
    with rig(first_world(), policy=LEAN, facts=MANAGED) as agent:
        lent(agent, *CAME)
        agent.engine.fail("remove-image image sha256:layer", EngineFailed("i/o error", 500), 2)
        give(agent, CLOUD, FLEET, {})
        for count in (1, 2):
            tried = {"remove-image image sha256:layer": count}
            seen = agent.until(
                lambda s, tried=tried: (
                    s.settled and {k: f.count for k, f in s.failures.items()} == tried
                )
            )
            assert "local" in seen.targets
            agent.clock.advance(3600.0)
        given_back(agent)
        assert image_ids(agent) == {*THERE, "sha256:peer"}


def test_an_image_that_a_target_of_the_cloud_names_stays() -> None:
    """Be it one that is not in force: the device may move back to that cloud."""
    other = KeptTarget("o", read_local(target(service("one", image="built:2"), app=9)))
    memory = Memory(targets={"https://old.example.org": other})
    with rig(first_world(), memory, LEAN, facts=MANAGED) as agent:
        lent(agent, *CAME)
        give(agent, CLOUD, FLEET, {})
        agent.until(lambda s: "local" not in s.targets, "local mode has ended")
        agent.settled()
        assert image_ids(agent) == {*THERE, "sha256:peer", "sha256:built"}
        assert agent.engine.observed.images["sha256:built"].tags == {"built:1", "built:2"}


def test_images_stay_where_the_administrator_keeps_them() -> None:
    with rig(first_world(), policy=Policy(keep_images=True), facts=MANAGED) as agent:
        lent(agent, *CAME)
        before = image_ids(agent)
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert image_ids(agent) == before


def test_nothing_goes_while_the_fleets_image_comes() -> None:
    """It may have no name yet; and the end waits, for there may be more to remove."""
    release = target(service("fleet", image="next"), commit="c2")
    with rig(first_world(), policy=LEAN, facts=MANAGED) as agent:
        lent(agent, *CAME)
        go_on, begun = threading.Event(), threading.Event()

        def slowly(step: EngineStep, ticket: Ticket) -> None:
            if identity(step).startswith("fetch"):
                appear(agent, Image("sha256:next:latest"))
                begun.set()
                go_on.wait(DEADLINE)

        agent.engine.before = slowly
        made = replace(read_local(release), config={})
        agent.reconciler.submit(SetTarget(CLOUD, "next", made)).result(DEADLINE)
        assert begun.wait(DEADLINE)
        agent.until(lambda s: "sha256:next:latest" in s.observed.images)
        seen = agent.until(lambda s: s.observed.volumes.keys() == {"1_data"}, "the volume goes")
        assert not seen.observed.containers
        assert "local" in seen.targets and seen.intent.images == frozenset()
        go_on.set()
        agent.until(lambda s: "local" not in s.targets, "local mode has ended")
        agent.settled()
        assert "sha256:built" not in image_ids(agent)
        assert agent.containers() == {"fleet": "running"}


def test_a_user_who_comes_back_before_the_end_finds_what_is_left() -> None:
    host = FakeHost()
    with rig(first_world(), policy=LEAN, facts=MANAGED, host=host) as agent:
        lent(agent, *CAME)
        host.user_locks[5] = "mine"  # so the end cannot come
        command = SetTarget(CLOUD, "off", replace(read_local(FLEET), config={}))
        agent.reconciler.submit(command).result(DEADLINE)
        agent.until(lambda s: "sha256:layer" not in s.observed.images, "the end has begun")
        assert agent.containers()["mine"] == "running"
        give(agent, CLOUD, FLEET, ON)
        intent = agent.published.current.intent
        assert (intent.images, intent.cleanup) == (frozenset(), frozenset())
        appear(agent, Image("sha256:again"))
        agent.until(lambda s: "sha256:again" in s.observed.images)
        agent.settled()
        assert agent.containers() == {"mine": "running"}
        assert "sha256:again" in image_ids(agent)
        assert "5_scratch" in agent.engine.observed.volumes
        host.user_locks.clear()
        give(agent, CLOUD, FLEET, {})
        given_back(agent)
        assert image_ids(agent) == {*THERE, "sha256:peer"}


def test_an_app_that_is_left_as_it_is_does_not_hold_up_the_end() -> None:
    """Its new release asks for what the device does not have; what its containers use stays."""
    demanding = json.loads(json.dumps(HAND))
    newer = demanding["local"]["apps"]["5"]
    needed = {"type": "sw.supervisor", "version": ">99"}
    contract = {"type": "sw.container", "slug": "x", "requires": [needed]}
    newer.update(commit="c2", volumes={})
    newer["services"]["1"].update(image="other", volumes=[], contract=contract)
    both = {**FLEET["local"]["apps"], **demanding["local"]["apps"]}
    with rig(first_world(), policy=LEAN, facts=MANAGED) as agent:
        lent(agent, *CAME)
        give(agent, CLOUD, {"local": {**FLEET["local"], "apps": both}}, {})
        agent.until(lambda s: "local" not in s.targets, "local mode has ended")
        agent.settled()
        assert any(each.problem for each in agent.published.current.desired.apps)
        assert agent.containers() == {"fleet": "running", "mine": "running"}
        assert "5_scratch" in agent.engine.observed.volumes
        assert image_ids(agent) - THERE == {"sha256:peer", "sha256:hand:latest"}


# ---- death ---------------------------------------------------------------------------------------


@dataclass
class Death:
    """It comes at the action of this number, before it or when it has been `done`."""

    number: int = 10_000
    done: bool = False
    seen: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def strikes(self) -> bool:
        self.seen += 1
        return self.seen == self.number


class MortalEngine(FakeEngine):
    """Every step is an action."""

    def __init__(self, world: Observed, death: Death) -> None:
        super().__init__(world)
        self._death = death

    def ping(self) -> None:
        if self._death.over.is_set():
            raise EngineUnavailable("the agent is dead")

    def perform(self, step: EngineStep, ticket: Ticket) -> None:
        with self._lock:
            self.ping()
            struck = self._death.strikes()
            if not struck or self._death.done:
                super().perform(step, ticket)
            if struck:
                self._death.over.set()
            self.ping()


class MortalStore(FakeStore):
    """Of what it writes the end of local mode is an action."""

    def __init__(self, known: FakeStore, death: Death) -> None:
        super().__init__()
        vars(self).update(vars(known))
        self.death = death

    def forget_target(self, source: str) -> None:
        self._last(lambda: super(MortalStore, self).forget_target(source))

    def set_setting(self, key: str, value: Json) -> None:
        self._last(lambda: super(MortalStore, self).set_setting(key, value))

    def _last(self, write: Any) -> None:
        struck = self.death.strikes()
        if not struck or self.death.done:
            write()
        if struck:
            self.death.over.set()
        self._check()

    def _check(self) -> None:
        if self.death.over.is_set():
            raise Unavailable("the agent is dead")


def read(raw: str) -> Target:
    document, config = json.loads(raw)
    return replace(read_local(document), config=config)


def remembered(store: FakeStore) -> Memory:
    """What an agent finds at its start."""
    targets = {source: KeptTarget(raw, read(raw)) for source, raw in store.targets.items()}
    chosen = in_force(targets, MANAGED)
    return Memory(
        chosen.target,
        chosen.source,
        chosen.raw,
        specs=dict(store.specs),
        stopped_by_agent=store.stopped_by_agent,
        owned_images=frozenset(store.images),
        commits=dict(store.commits),
        targets=targets,
        before_local_mode=possessions_from_json(store.settings.get(KEY)),
    )


def life(world: Observed, store: FakeStore, death: Death) -> tuple[Observed, FakeStore]:
    """An agent that starts on what there is, and lives until all is done or `death` comes."""
    engine, kept = MortalEngine(world, death), MortalStore(store, death)

    def done(snapshot: Snapshot) -> bool:
        ended = snapshot.settled and not snapshot.update_pending and "local" not in snapshot.targets
        return death.over.is_set() or ended

    with rig(
        memory=remembered(store), policy=LEAN, facts=MANAGED, engine=engine, store=kept
    ) as agent:
        agent.until(done, "local mode has ended")
    return engine.observed, kept


def summary(world: Observed) -> tuple[object, ...]:
    containers = {c.service: (c.state, c.raw_name) for c in world.containers.values()}
    networks = {n.engine_name for n in world.networks.values()}
    return containers, networks, set(world.volumes), set(world.images)


def test_the_end_of_local_mode_survives_a_death_at_each_of_its_actions() -> None:
    """Local mode has ended while no agent ran. The next one dies at its first action, before it or
    after, another at the second, and so on; the one after it brings the same end about."""
    with rig(first_world(), policy=LEAN, facts=MANAGED) as agent:
        lent(agent, *CAME)
        world, store = agent.engine.observed, agent.store
    store.targets[CLOUD] = json.dumps([FLEET, {}])

    def copy() -> FakeStore:
        made = FakeStore()
        vars(made).update(
            {k: v.copy() if hasattr(v, "copy") else v for k, v in vars(store).items()}
        )
        return made

    whole = Death()
    wanted, after = life(world, copy(), whole)
    assert set(wanted.images) == {*THERE, "sha256:peer"}
    assert set(wanted.volumes) == {"1_data"} and after.settings == {KEY: None}
    assert whole.seen > 8
    for number in range(1, whole.seen + 1):
        for done in (False, True):
            death = Death(number, done)
            broken, left = life(world, copy(), death)
            # What goes at once is noted at once: not every life has as many actions.
            assert death.over.is_set() or (number > 8 and death.seen < number)
            healed, last = life(broken, left, Death())
            assert summary(healed) == summary(wanted), f"death at {number}, {done}"
            assert last.settings == {KEY: None} and last.targets.keys() == {CLOUD}
            assert all(broken.images.get(key) == world.images[key] for key in THERE)


def test_without_a_note_no_image_goes_but_those_of_the_agent() -> None:
    with rig(first_world(), policy=LEAN, facts=MANAGED) as agent:
        lent(agent, *CAME)
        world, store = agent.engine.observed, agent.store
    store.settings, store.images = {}, set()
    store.targets[CLOUD] = json.dumps([FLEET, {}])
    with rig(world, remembered(store), LEAN, facts=MANAGED, store=store) as agent:
        agent.settled()
        assert image_ids(agent) == set(world.images)
