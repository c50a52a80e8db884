"""The engine's contract: the same suite over the model in memory and over a real engine.

After each verb, `observe()` equals `effect(before)`; doing it again changes nothing and fails
never; any sequence of partial looks ends equal to a full look. So the fake that the planner's and
the reconciler's tests stand on cannot drift from reality. Downloads: test_engine_images.py.
"""

from __future__ import annotations

import itertools
import os
import random
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from engine_likeness import unlike
from engine_worlds import RealWorld, Slip, World, eventually, needs_engine, watching
from fakes.engine import FakeEngine, refusal

from balena_agent.core import supervisor
from balena_agent.core.errors import Broken, Cancelled, EngineFailed, EngineUnavailable
from balena_agent.core.looks import Touch, apply_patch
from balena_agent.core.names import EXTRA_FIRMWARE, SUPERVISOR_NETWORK, lock_directory
from balena_agent.core.networks import supervisor_network_body
from balena_agent.core.observed import NO_APP, Container, Observed
from balena_agent.core.spec import Endpoint
from balena_agent.core.steps import (
    ConnectNetwork,
    CreateContainer,
    CreateNetwork,
    CreateVolume,
    DisconnectNetwork,
    EnsureExtraFirmware,
    EnsureSupervisorNetwork,
    Fetch,
    RemoveContainer,
    RemoveImage,
    RemoveNetwork,
    RemoveVolume,
    RenameContainer,
    StartContainer,
    StopContainer,
    UpdateContainer,
)
from balena_agent.core.traits import touched
from balena_agent.engine.adapter import DockerEngine
from balena_agent.engine.client import path
from balena_agent.runtime.ports import Engine

pytest_plugins = ["engine_fixtures"]


def as_port(engine: FakeEngine | DockerEngine) -> Engine:
    """Both satisfy the runtime's port: for the type checker."""
    return engine


# ---- each verb: as the model says, and twice -----------------------------------------------------


def test_networks(world: World) -> None:
    networks = {
        "plain": {},
        "rich": {
            "driver_opts": {"com.docker.network.bridge.enable_icc": "true"},
            "ipam": {"config": [{"subnet": "10.97.1.0/24", "gateway": "10.97.1.1"}]},
            "internal": True,
            "labels": {"colour": "red"},
        },
    }
    for wanted in world.app({}, networks).networks:
        world.checked(CreateNetwork(world.uuid, world.app_id, wanted))
    for network in list(world.engine.observe().networks.values()):
        if network.app == world.uuid:
            world.checked(RemoveNetwork(world.uuid, network.engine_name, network.id))


def test_a_network_with_another_configuration_is_in_the_way(world: World) -> None:
    old = world.app({}, {"lan": {}}).networks[0]
    new = world.app({}, {"lan": {"labels": {"a": "b"}}}).networks[0]
    world.do(CreateNetwork(world.uuid, world.app_id, old))
    with pytest.raises(EngineFailed, match="Trying to create network with name: "):
        world.do(CreateNetwork(world.uuid, world.app_id, new))


def test_volumes(world: World) -> None:
    tmpfs = {"driver_opts": {"type": "tmpfs", "device": "tmpfs"}, "labels": {"colour": "red"}}
    for volume in world.app({}, {}, {"data": {}, "rich": tmpfs}).volumes:
        world.checked(CreateVolume(world.uuid, world.app_id, volume))
        world.checked(RemoveVolume(world.uuid, volume.engine_name))


def test_a_volume_with_another_configuration_is_in_the_way(world: World) -> None:
    old = world.app({}, {}, {"data": {}}).volumes[0]
    new = world.app({}, {}, {"data": {"labels": {"a": "b"}}}).volumes[0]
    world.do(CreateVolume(world.uuid, world.app_id, old))
    with pytest.raises(EngineFailed, match="Trying to create volume with name: "):
        world.do(CreateVolume(world.uuid, world.app_id, new))


def test_the_supervisor_network(world: World) -> None:
    world.checked(EnsureSupervisorNetwork())
    names = [n.engine_name for n in world.engine.observe().networks.values()]
    assert names.count(SUPERVISOR_NETWORK) == 1


WRONG_NETWORKS: tuple[dict[str, Any], ...] = (
    {},
    {"Options": {"com.docker.network.bridge.name": SUPERVISOR_NETWORK}},
    {"IPAM": supervisor_network_body()["IPAM"]},
    {**supervisor_network_body(), "IPAM": {"Config": [{"Subnet": "10.114.104.0/25",
                                                       "Gateway": "10.114.104.2"}]}},
    {**supervisor_network_body(), "IPAM": {"Config": [{"Subnet": "10.114.104.0/24"}]}},
)  # fmt: skip


@needs_engine
@pytest.mark.parametrize("body", WRONG_NETWORKS, ids=str)
def test_a_wrong_supervisor_network_is_seen_as_wrong_and_replaced(
    real: RealWorld, body: dict[str, Any]
) -> None:
    if real.had_supervisor_network:
        pytest.skip("the engine has a supervisor network that is not this test's")
    assert supervisor.fault(real.engine.observe()) == "network is missing"
    real.client.request("POST", "/networks/create", body={**body, "Name": SUPERVISOR_NETWORK})
    assert "->" in supervisor.fault(real.engine.observe())
    real.checked(EnsureSupervisorNetwork())
    assert supervisor.fault(real.engine.observe()) == ""


@needs_engine
def test_a_wrong_supervisor_network_stays_while_somebody_runs_on_it(real: RealWorld) -> None:
    if real.had_supervisor_network:
        pytest.skip("the engine has a supervisor network that is not this test's")
    real.client.request("POST", "/networks/create", body={"Name": SUPERVISOR_NETWORK})
    web = real.running()
    body = {"Container": web.id}
    real.client.request("POST", path("networks", SUPERVISOR_NETWORK, "connect"), body=body)
    there = real.engine.observe()
    step = EnsureSupervisorNetwork()
    assert refusal(step, there) is not None
    with pytest.raises(EngineFailed, match="active endpoints"):
        real.do(step)
    real.vanish(web.id)
    real.checked(step)


def test_the_volume_of_extra_firmware(world: World) -> None:
    """It is the device's: one that was there before is not ours to remove."""
    mine = EXTRA_FIRMWARE not in world.engine.observe().volumes
    world.checked(EnsureExtraFirmware())
    found = world.engine.observe().volumes[EXTRA_FIRMWARE]
    assert (found.app_id, found.name) == (NO_APP, EXTRA_FIRMWARE)
    if mine:
        world.checked(RemoveVolume(world.uuid, EXTRA_FIRMWARE))
    assert (EXTRA_FIRMWARE in world.engine.observe().volumes) != mine


def test_the_life_of_a_container(world: World) -> None:
    app = world.app(
        {"web": {"volumes": ["data:/data"], "networks": ["front", "back"], "tty": False}},
        {"front": {}, "back": {}},
        {"data": {}},
    )
    world.installed(replace(app, services=()))
    world.checked(CreateContainer(app.services[0]))
    web = world.container("web")
    where = (world.uuid, "web", web.id)
    world.checked(StartContainer(*where))
    world.checked(StopContainer(*where, grace=1))
    world.checked(StartContainer(*where))
    assert web.name
    world.checked(RenameContainer(*where, replace(web.name, release_id=2)))
    world.checked(StopContainer(*where, grace=1, final=True))
    world.checked(RemoveContainer(*where))
    world.checked(StopContainer(*where, grace=1, final=True))


def test_a_running_container_is_not_removed(world: World) -> None:
    web = world.running()
    with pytest.raises(EngineFailed) as caught:
        world.do(RemoveContainer(world.uuid, "web", web.id))
    assert caught.value.status == 409
    assert world.container("web").state == "running"


def test_what_is_in_use_is_not_removed(world: World) -> None:
    app = world.app({"web": {"volumes": ["data:/data"]}}, {}, {"data": {}})
    world.installed(app)
    world.do(world.step_start())
    network = next(n for n in world.engine.observe().networks.values() if n.app == world.uuid)
    before = world.engine.observe()
    for step, status in (
        (RemoveVolume(world.uuid, app.volumes[0].engine_name), 409),
        (RemoveImage(world.image), 409),
        (RemoveNetwork(world.uuid, network.engine_name, network.id), 403),
    ):
        with pytest.raises(EngineFailed) as caught:
            world.do(step)
        assert caught.value.status == status
    assert world.engine.observe() == before


def test_a_container_that_is_gone(world: World) -> None:
    where = (world.uuid, "web", "0" * 64)
    for step in (StartContainer(*where), RenameContainer(*where, world.service().container_name)):
        with pytest.raises(EngineFailed) as caught:
            world.do(step)
        assert caught.value.status == 404
    world.checked(StopContainer(*where, final=True))
    world.checked(RemoveContainer(*where))


# ---- putting right what is there -----------------------------------------------------------------


def at_work(world: World, state: str) -> Container:
    """A container that is a member of `front` only, though there is `back` too."""
    app = world.app({"web": {"networks": ["front"]}}, {"front": {}, "back": {}})
    world.installed(app)
    if state != "created":
        world.do(world.step_start())
    if state == "exited":
        world.do(StopContainer(world.uuid, "web", world.container("web").id, 0))
    return world.container("web")


@pytest.mark.parametrize("state", ["created", "running", "exited"])
@pytest.mark.parametrize("name", ["front", "back"])
def test_networks_are_joined_and_left(world: World, state: str, name: str) -> None:
    """`front` is the main one: it is left first, and joined again."""
    web = at_work(world, state)
    where, network = (world.uuid, "web", web.id), f"{world.uuid}_{name}"
    if name == "front":
        world.checked(DisconnectNetwork(*where, network))
    world.checked(ConnectNetwork(*where, Endpoint(network, ("alias", "web"))))
    (found,) = (e for e in world.container("web").spec.endpoints if e.network == network)
    assert found.aliases == ("alias", "web")
    if state != "running":
        world.do(world.step_start())
        assert network in world.container("web").spec.networks
    world.checked(DisconnectNetwork(*where, network))
    assert world.container("web").state == "running"


def test_a_network_that_is_missing_cannot_be_joined_but_left(world: World) -> None:
    for state in ("created", "running"):
        web = at_work(world, state) if state == "created" else world.container("web")
        nowhere = Endpoint(f"{world.uuid}_nowhere")
        with pytest.raises(EngineFailed) as caught:
            world.do(ConnectNetwork(world.uuid, "web", web.id, nowhere))
        assert caught.value.status == 404
        world.checked(DisconnectNetwork(world.uuid, "web", web.id, nowhere.network))
        if state == "created":
            world.do(world.step_start())


POLICY = "HostConfig.RestartPolicy"


@pytest.mark.parametrize("state", ["created", "running", "exited"])
def test_fields_are_changed_back(world: World, state: str) -> None:
    web = at_work(world, state)
    for name, count in (("no", 0), ("on-failure", 3), ("always", 0)):
        fields = {POLICY: {"Name": name, "MaximumRetryCount": count}}
        world.checked(UpdateContainer(world.uuid, "web", web.id, fields))
        assert world.container("web").spec.fields[POLICY] == fields[POLICY]


def test_what_is_gone_is_not_repaired_but_needs_not_be_disconnected(world: World) -> None:
    at_work(world, "created")
    where, network = (world.uuid, "web", "0" * 64), f"{world.uuid}_back"
    fields = {POLICY: {"Name": "no", "MaximumRetryCount": 0}}
    for step in (ConnectNetwork(*where, Endpoint(network)), UpdateContainer(*where, fields)):
        with pytest.raises(EngineFailed) as caught:
            world.do(step)
        assert caught.value.status == 404
    world.checked(DisconnectNetwork(*where, network))


@needs_engine
def test_an_update_that_the_engine_takes_in_part_has_failed(real: RealWorld) -> None:
    """It says yes to a limit that it drops, or that it takes for "leave it"."""
    web = real.running()
    lacking = real.engine.observe().unsupported
    fields = {"HostConfig.Memory": 67108864} if "HostConfig.Memory" in lacking else {}
    if not fields:
        real.do(UpdateContainer(real.uuid, "web", web.id, {"HostConfig.CpuShares": 512}))
        fields = {"HostConfig.CpuShares": 0}
    with pytest.raises(EngineFailed, match="leaves"):
        real.do(UpdateContainer(real.uuid, "web", web.id, fields))


@needs_engine
def test_the_engine_says_what_it_lacks(real: RealWorld) -> None:
    info = real.client.get("/info")
    lacking = real.engine.observe().unsupported
    assert ("HostConfig.Memory" in lacking) is not info["MemoryLimit"]
    assert ("HostConfig.NanoCpus" in lacking) is not info["CpuCfsQuota"]


# ---- creating: all or nothing --------------------------------------------------------------------


def test_a_missing_second_network_leaves_nothing_behind(world: World) -> None:
    app = world.app({"web": {"networks": ["a_main", "b_missing"]}}, {"a_main": {}, "b_missing": {}})
    main = next(n for n in app.networks if n.name == "a_main")
    world.do(CreateNetwork(world.uuid, world.app_id, main))
    with pytest.raises(EngineFailed) as caught:
        world.do(CreateContainer(app.services[0]))
    assert caught.value.status == 404
    assert world.containers() == []


@needs_engine
def test_a_network_that_cannot_be_joined_leaves_nothing_behind(real: RealWorld) -> None:
    app = real.app({"web": {}})
    real.installed(replace(app, services=()))
    service = app.services[0]
    impossible = (*service.spec.endpoints, Endpoint("host", ipv4="10.97.1.2"))
    with pytest.raises(EngineFailed):
        real.do(CreateContainer(replace(service, spec=replace(service.spec, endpoints=impossible))))
    assert real.containers() == []


def test_a_network_that_is_missing_at_the_start(world: World) -> None:
    app = world.app({"web": {}})
    world.do(CreateContainer(app.services[0]))  # the main network matters only when it starts
    with pytest.raises(EngineFailed) as caught:
        world.do(world.step_start())
    assert caught.value.status == 404
    assert world.container("web").state == "created"
    world.installed(replace(app, services=()))
    world.checked(world.step_start())


def test_a_missing_image(world: World) -> None:
    app = world.app({"web": {}})
    world.installed(replace(app, services=()))
    service = app.services[0]
    missing = replace(service, spec=replace(service.spec, image="sha256:" + "0" * 64))
    with pytest.raises(EngineFailed) as caught:
        world.do(CreateContainer(missing))
    assert caught.value.status == 404
    assert world.containers() == []


def test_a_name_that_somebody_else_has_is_an_error(world: World) -> None:
    app = world.app({"web": {}})
    world.installed(replace(app, services=()))
    world.intrude(str(app.services[0].container_name))
    for _ in range(2):
        with pytest.raises(EngineFailed) as caught:
            world.do(CreateContainer(app.services[0]))
        assert caught.value.status == 409
    assert world.containers() == []


def test_an_older_self_under_the_name_makes_way(world: World) -> None:
    app = world.app({"web": {}})
    world.installed(app)
    old = world.container("web")
    world.do(StartContainer(world.uuid, "web", old.id))
    world.do(CreateContainer(app.services[0]))
    assert world.container("web").id != old.id
    assert world.container("web").state == "created"


def test_a_name_that_another_container_has_is_not_given_away(world: World) -> None:
    app = world.app({"web": {}, "db": {}})
    world.installed(app)
    taken = world.container("db").name
    assert taken
    with pytest.raises(EngineFailed) as caught:
        world.do(RenameContainer(world.uuid, "web", world.container("web").id, taken))
    assert caught.value.status == 409


def test_a_service_in_the_network_of_another(world: World) -> None:
    app = world.app({"owner": {}, "guest": {"network_mode": "service:owner"}})
    services = {service.name: service for service in app.services}
    world.installed(replace(app, services=()))
    with pytest.raises(EngineFailed, match="owner"):
        world.do(CreateContainer(services["guest"]))
    world.do(CreateContainer(services["owner"]))
    world.do(world.step_start("owner"))
    world.checked(CreateContainer(services["guest"]))
    assert world.container("guest").spec.parent == world.container("owner").id
    world.checked(world.step_start("guest"))


@needs_engine
def test_the_lock_directory_is_there_and_open_to_all(real: RealWorld) -> None:
    real.running()
    mode = os.stat(lock_directory(real.app_id, "web")).st_mode
    assert stat.S_ISDIR(mode) and stat.S_IMODE(mode) == 0o1777


@needs_engine
def test_a_program_that_is_not_there_fails_at_the_start(real: RealWorld) -> None:
    with pytest.raises(EngineFailed, match="no such file"):
        real.running(command=["/nothing"])
    assert real.container("web").state == "created"


# ---- stopping ------------------------------------------------------------------------------------


@needs_engine
@pytest.mark.parametrize("final", [False, True])
def test_a_container_that_ignores_the_signal_is_stopped(real: RealWorld, final: bool) -> None:
    web = real.running()  # a first process without a handler never sees the signal
    began = time.monotonic()
    real.do(StopContainer(real.uuid, "web", web.id, grace=1, final=final))
    assert 0.9 < time.monotonic() - began < 9
    assert real.container("web").state == "exited"
    assert real.container("web").exit_code == 137


@needs_engine
@pytest.mark.parametrize("final", [False, True])
def test_a_restart_looping_container_is_stopped_and_stays_so(real: RealWorld, final: bool) -> None:
    web = real.running(command=["/bin/busybox", "false"], restart="always")
    restarts = path_of(real, web.id, "RestartCount")
    eventually(lambda: restarts() >= 2)
    real.do(StopContainer(real.uuid, "web", web.id, grace=1, final=final))
    count = restarts()
    assert real.container("web").state == "exited"
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert (real.container("web").state, restarts()) == ("exited", count)
    real.do(RemoveContainer(real.uuid, "web", web.id))
    assert real.containers() == []


def path_of(real: RealWorld, container_id: str, key: str) -> Callable[[], Any]:
    return lambda: real.client.get(f"/containers/{container_id}/json")[key]


# ---- looking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_partial_looks_end_equal_to_a_full_look(world: World, seed: int) -> None:
    choose = random.Random(seed)
    app = world.app(
        {name: {"networks": ["one", "two"]} for name in ("a", "b", "c")},
        {"one": {}, "two": {}, "three": {}},
        {"v": {}, "w": {}},
    )
    seen = world.engine.observe()
    for turn in range(25):
        touch = _random_turn(world, app, choose, turn)
        seen = apply_patch(seen, world.engine.look(touch))
    assert unlike(seen, world.twin.observe()) == []


def _random_turn(world: World, app: Any, choose: random.Random, turn: int) -> Touch:
    """A step that may fail, or a change behind our back; what has to be looked at afterwards."""
    now = world.twin.observe()
    mine = [c for c in now.containers.values() if c.app_uuid == world.uuid]
    if mine and turn % 7 == 6:
        return world.vanish(choose.choice(mine).id)
    step = choose.choice(_possible(world, app, now, choose))
    try:
        world.do(step)
    except EngineFailed:
        pass
    return touched(step)


def _possible(world: World, app: Any, now: Observed, choose: random.Random) -> list[Any]:
    where = (world.uuid, world.app_id)
    steps: list[Any] = [CreateContainer(choose.choice(app.services)) for _ in range(3)]
    steps += [CreateNetwork(*where, network) for network in app.networks]
    steps += [CreateVolume(*where, volume) for volume in app.volumes]
    for container in now.containers.values():
        if container.app_uuid == world.uuid and container.name:
            about = (world.uuid, container.service, container.id)
            other = replace(container.name, release_id=choose.randrange(1, 4))
            steps += [StartContainer(*about), StopContainer(*about, 0, final=choose.random() < 0.5)]
            steps += [RemoveContainer(*about), RenameContainer(*about, other)]
            network = f"{world.uuid}_{choose.choice(('one', 'two', 'three'))}"
            steps += [DisconnectNetwork(*about, network)]
            steps += [ConnectNetwork(*about, Endpoint(network))]
    for network in now.networks.values():
        if network.app == world.uuid:
            steps.append(RemoveNetwork(world.uuid, network.engine_name, network.id))
    for volume in now.volumes.values():
        if volume.app_id == world.app_id:
            steps.append(RemoveVolume(world.uuid, volume.engine_name))
    return steps


def test_a_look_at_images(world: World) -> None:
    seen = world.engine.observe()
    assert seen.image(world.image)
    world.do(RemoveImage(world.image))
    seen = apply_patch(seen, world.engine.look(touched(RemoveImage(world.image))))
    assert seen.image(world.image) is None
    assert unlike(seen, world.twin.observe()) == []


def test_a_look_at_what_never_was(world: World) -> None:
    seen = world.engine.observe()
    nothing = frozenset({"0" * 64, "nobody"})
    patch = world.engine.look(Touch(nothing, nothing, nothing, nothing))
    assert apply_patch(seen, patch) == seen


def test_everything_is_no_partial_look(world: World) -> None:
    with pytest.raises(Broken):
        world.engine.look(Touch(everything=True))


@needs_engine
def test_foreign_containers_are_not_seen(real: RealWorld) -> None:
    real.intrude(f"foreign-{real.token}")
    assert real.containers() == []
    listed = real.client.get("/containers/json", {"all": "1"})
    foreign = next(c["Id"] for c in listed if c["Names"] == [f"/foreign-{real.token}"])
    assert real.engine.look(Touch(containers=frozenset({foreign}))).containers == {foreign: None}


def test_a_cancelled_step_does_not_begin(world: World) -> None:
    slip = Slip(cancelled=True)
    with pytest.raises(Cancelled):
        world.engine.perform(CreateContainer(world.service()), slip)
    assert world.containers() == []


def test_eight_workers_on_one_adapter(world: World) -> None:
    app = world.app({f"s{number}": {} for number in range(8)})
    world.installed(replace(app, services=()))
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda s: world.do(CreateContainer(s)), app.services))
        list(workers.map(lambda s: world.do(world.step_start(s.name)), app.services))
        assert {c.state for c in world.containers()} == {"running"}
        stops = [StopContainer(world.uuid, c.service, c.id, 0, True) for c in world.containers()]
        list(workers.map(world.do, stops))
        removals = [RemoveContainer(world.uuid, c.service, c.id) for c in world.containers()]
        list(workers.map(world.do, removals))
    assert world.containers() == []


# ---- an engine that is away, and events ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["fake", "real"])
def test_an_engine_that_is_down_is_noticed_at_once(kind: str) -> None:
    fake = FakeEngine()
    fake.down = True
    engine = fake if kind == "fake" else DockerEngine("/nowhere/engine.sock", lambda service: None)
    began = time.monotonic()
    for call in (
        engine.observe,
        lambda: engine.look(Touch(containers=frozenset({"x"}))),
        lambda: engine.perform(RemoveVolume("u", "1_data"), Slip()),
        lambda: engine.perform(Fetch("x", "u", 1, "web"), Slip()),
    ):
        with pytest.raises(EngineUnavailable):
            call()
    assert time.monotonic() - began < 4.5


def test_events_wake(world: World) -> None:
    with watching(world) as seen:
        app = world.app({"web": {}}, {}, {"data": {}})
        world.installed(app)
        web = world.container("web").id
        world.do(world.step_start())
        world.do(StopContainer(world.uuid, "web", web, 0, True))
        world.do(RemoveContainer(world.uuid, "web", web))
        world.do(RemoveVolume(world.uuid, app.volumes[0].engine_name))
        world.do(RemoveImage(world.image))
        eventually(lambda: any(touch.images for touch in seen))
        for kind in ("containers", "networks", "volumes", "images"):
            assert any(getattr(touch, kind) for touch in seen), kind
        assert web in set(itertools.chain(*(touch.containers for touch in seen)))
        assert not any(touch.everything for touch in seen)


@needs_engine
def test_looking_where_events_point_ends_equal_to_a_full_look(real: RealWorld) -> None:
    """Another program works on the engine; we only hear of it."""
    app = real.app({"a": {}, "b": {}}, {"extra": {}}, {"v": {}})
    state = real.engine.observe()
    other = RealWorldTwin(real)
    with watching(real) as seen:
        other.work(app)
        eventually(lambda: any(touch.volumes for touch in seen[-3:]))
        for touch in list(seen):
            state = apply_patch(state, real.engine.look(touch))
    assert unlike(state, real.twin.observe()) == []


class RealWorldTwin:
    """Works through the second adapter; its last act concerns a volume."""

    def __init__(self, real: RealWorld) -> None:
        self._real = real

    def work(self, app: Any) -> None:
        real, perform = self._real, self._real.twin.perform
        for network in app.networks:
            perform(CreateNetwork(real.uuid, real.app_id, network), Slip())
        for service in app.services:
            perform(CreateContainer(service), Slip())
            container = real.container(service.name)
            perform(StartContainer(real.uuid, service.name, container.id), Slip())
        perform(StopContainer(real.uuid, "b", real.container("b").id, 0, True), Slip())
        perform(RemoveContainer(real.uuid, "b", real.container("b").id), Slip())
        for volume in app.volumes:
            perform(CreateVolume(real.uuid, real.app_id, volume), Slip())
