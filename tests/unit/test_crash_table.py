"""The crash table: the agent dies at every step, and the next one comes to rest in the target.

The list of steps is the type `Step` itself, so a new step without a scenario fails here. A scenario
is a settled device and something that makes the agent plan the step. The agent then dies at it:

    before      the step does not reach the engine (or the host)
    after       it has been done, but the agent never learns of it
    half-way    a state between its engine calls, where it has several

Death closes every door at once: nothing reaches engine, host or store any more. The next agent
finds the world as it was then, lock files included, and the store either whole or without its
newest note, if that was not synced to disk (store.py tells promises from notes).

What must come of it is not written down per scenario but compared with a run without a death: the
same end, whatever was right at the moment of death untouched, nothing left over. An agent that
starts once more does nothing at all.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pytest
from agent import Rig, observed, remembered, rig, service, target
from fakes.engine import FakeEngine
from fakes.machine import FakeHost, FakeStore

from balena_agent.core import steps as vocabulary
from balena_agent.core.body import joins
from balena_agent.core.boot import Board
from balena_agent.core.effects import effect
from balena_agent.core.errors import EngineUnavailable, RefusedByHost, Unavailable
from balena_agent.core.hostconfig import BootFile, HostConfig, after
from balena_agent.core.intent import (
    CleanupVolumes,
    Command,
    ConfigureNetwork,
    Power,
    PurgeApp,
    RestartApp,
    RestartService,
    StartService,
    StopService,
)
from balena_agent.core.looks import Touch
from balena_agent.core.names import (
    REQUIRES_REBOOT,
    SUPERVISOR_API,
    SUPERVISOR_NETWORK,
    retired_name,
)
from balena_agent.core.networkconfig import NetworkChange
from balena_agent.core.observed import (
    Container,
    HostState,
    Image,
    Network,
    Observed,
    Obtained,
    Volume,
)
from balena_agent.core.origins import Origin
from balena_agent.core.spec import Endpoint, NetworkSpec, VolumeSpec
from balena_agent.core.steps import (
    AwaitHandover,
    ChangeConfig,
    ConnectNetwork,
    CreateContainer,
    CreateNetwork,
    CreateVolume,
    DisconnectNetwork,
    DumpConfig,
    EngineStep,
    EnsureExtraFirmware,
    EnsureSupervisorNetwork,
    Fetch,
    HostStep,
    ReinstateContainer,
    ReleaseLocks,
    RemoveContainer,
    RemoveImage,
    RemoveNetwork,
    RemoveVolume,
    RenameContainer,
    RequestPowerOff,
    RequestReboot,
    RequireReboot,
    RetireContainer,
    SetBootConfig,
    SetFirmwareVolume,
    SetNetworkConfig,
    StartContainer,
    Step,
    StopContainer,
    SwitchFeature,
    TakeLocks,
    UpdateContainer,
)
from balena_agent.core.ticket import Ticket
from balena_agent.runtime.policy import Policy

SYNCED = ("save_target", "save_stopped", "save_commit", "save_stopped_by_agent")
NOTES = (
    "save_specs", "save_tolerated", "save_origins", "forget_containers", "own_images",
    "disown_image", "save_fetch_failures", "forget_fetch_failures",
)  # fmt: skip

BOOT = HostState("boot")
Json = dict[str, Any]
LockFiles = frozenset[tuple[int, str]]


# ---- a life, and how it ends ---------------------------------------------------------------------


@dataclass
class Fate:
    """When an agent dies: at the first step of class `at`; without one it lives on. `half` is what
    is left of the step, None where it is done or not begun at all."""

    at: type | None = None
    done: bool = False
    half: Callable[[Step, Observed], Observed] | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def strikes(self, step: Step) -> bool:
        return not self.over.is_set() and self.at is type(step)


class MortalEngine(FakeEngine):
    def __init__(self, world: Observed, fate: Fate, first_id: int) -> None:
        super().__init__(world)
        self._fate = fate
        self._numbers = itertools.count(first_id)

    def ping(self) -> None:
        if self._fate.over.is_set():
            raise EngineUnavailable("the agent is dead")

    def perform(self, step: EngineStep, ticket: Ticket) -> None:
        with self._lock:
            struck = self._fate.strikes(step)
            if struck and self._fate.half:
                self._observed = self._fate.half(step, self._observed)
            elif not struck or self._fate.done:
                super().perform(step, ticket)
            if struck:
                self._fate.over.set()
            self.ping()


class MortalHost(FakeHost):
    """A reboot that the device itself needs takes place: then the agent's life ends as well, lock
    files and the word that a reboot is required are gone, and `rebooted` says so."""

    def __init__(self, files: LockFiles, settings: HostConfig, fate: Fate, boot: HostState) -> None:
        super().__init__(files, settings)
        self.boot = boot
        self.rebooted = False
        self._fate = fate
        self.performed: list[HostStep] = []
        self._gate = threading.Lock()

    def perform(self, step: HostStep, ticket: Ticket) -> None:
        with self._gate:
            self._live()
            struck = self._fate.strikes(step)
            if struck and isinstance(step, ChangeConfig | SetBootConfig) and self._fate.half:
                done = after(step, self.settings)
                if self._fate.half is scheduled:
                    self.settings = replace(self.settings, reboot=done.reboot)
                else:
                    self.settings = replace(done, attempts=self.settings.attempts)
            elif struck and self._fate.half:
                services = step.services if isinstance(step, TakeLocks) else ("one", "two")
                self.files = {(1, services[0])}
            elif not struck or self._fate.done:
                super().perform(step, ticket)
                self.performed.append(step)
                if isinstance(step, RequestReboot) and self.boot.reboot_required:
                    self._boots()
            if struck:
                self._fate.over.set()
            self._live()

    def _boots(self) -> None:
        self.boot = replace(self.boot, boot_id=self.boot.boot_id + "+1", reboot_required=False)
        self.files = set()
        self.rebooted = True
        self._fate.over.set()

    def _live(self) -> None:
        if self._fate.over.is_set():
            raise RefusedByHost("the agent is dead")


class MortalStore(FakeStore):
    """`writes` counts; `older` is the store without its newest note, None where that is synced."""

    def __init__(self, known: FakeStore, fate: Fate) -> None:
        super().__init__()
        copy_into(self, known)
        self._fate = fate
        self.writes = 0
        self.older: FakeStore | None = None
        for name in (*SYNCED, *NOTES):
            setattr(self, name, self._counted(getattr(self, name), name in SYNCED))

    def _counted(self, write: Callable[..., None], synced: bool) -> Callable[..., None]:
        def counted(*values: object) -> None:
            before = copy_into(FakeStore(), self)
            write(*values)
            self.writes += 1
            self.older = None if synced else before

        return counted

    def _check(self) -> None:
        if self._fate.over.is_set():
            raise Unavailable("the agent is dead")


def copy_into(copy: FakeStore, known: FakeStore) -> FakeStore:
    copy.targets, copy.stopped = dict(known.targets), dict(known.stopped)
    copy.commits, copy.specs = dict(known.commits), dict(known.specs)
    copy.origins = dict(known.origins)
    copy.stopped_by_agent, copy.images = dict(known.stopped_by_agent), set(known.images)
    copy.tolerated, copy.keys = dict(known.tolerated), dict(known.keys)
    copy.fetch_failures = dict(known.fetch_failures)
    return copy


@dataclass(frozen=True)
class Remains:
    """What an agent leaves behind when it ends, well or not."""

    world: Observed
    store: FakeStore
    files: LockFiles = frozenset()
    settings: HostConfig = field(default_factory=HostConfig)
    older: FakeStore | None = None
    """The store as a power cut may leave it, where that is another one."""
    worked: tuple[Step, ...] = ()
    writes: int = 0
    boot: HostState = BOOT


_lives = itertools.count(1)


def live(
    found: Remains,
    policy: Policy,
    then: Callable[[Rig], None],
    fate: Fate | None = None,
) -> Remains:
    """One life of the agent on what was left by the one before. `then` sees to its end. A reboot
    in it is followed by the life after it, unless that is the `fate` which was asked for."""
    end = fate
    fate = fate or Fate()
    engine = MortalEngine(found.world, fate, next(_lives) * 1000)
    host = MortalHost(found.files, found.settings, fate, found.boot)
    store = MortalStore(found.store, fate)
    with rig(
        memory=remembered(store), policy=policy, engine=engine, host=host, store=store
    ) as agent:
        then(agent)
    worked = (*engine.performed, *host.performed)
    kept = copy_into(FakeStore(), store)
    left = Remains(
        engine.observed, kept, frozenset(host.files), host.settings, store.older, worked,
        store.writes, host.boot,
    )  # fmt: skip
    return live(left, policy, settle) if host.rebooted and end is None else left


# ---- scenarios -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A device settled in `first` (None: a new one) and then `earlier`; then `second`, a command or
    somebody who has `meddled` with the device while no agent ran, and the agent plans the step
    `at`. `world` is what is there before everything; `meanwhile` tells what happens to the settled
    device while no agent runs."""

    name: str
    at: type
    first: Json | None = None
    second: Json | None = None
    command: Command | None = None
    earlier: Command | Json | None = None
    meddled: Callable[[Observed], Observed] | None = None
    policy: Policy = field(default_factory=Policy)
    world: Observed = field(default_factory=lambda: observed("busybox"))
    halves: Mapping[str, Callable[[Any, Observed], Observed]] = field(default_factory=dict)
    meanwhile: Callable[[Observed], Observed] | None = None
    boot: HostState = BOOT
    settings: HostConfig = field(default_factory=HostConfig)

    def __str__(self) -> str:
        return f"{self.at.__name__}: {self.name}"


def app(*services: Json, volumes: Json | None = None, networks: Json | None = None) -> Json:
    document = target(*services)
    document["local"]["apps"]["1"].update(volumes=volumes or {}, networks=networks or {})
    return document


def configured(**variables: str) -> Json:
    document = target(service("one"))
    document["local"]["config"] = variables
    return document


NOTHING = {"local": {"apps": {}}}
ONE = target(service("one"))
TWO = target(service("one"), service("two", 2, depends_on=["one"]))
OTHER = target(service("one", environment={"A": "b"}), service("two", 2, depends_on=["one"]))
RELEASE = target(service("one"), service("two", 2, depends_on=["one"]), commit="c2")
STOPPED = target(service("one", running=False), service("two", 2))
VOLUME = app(service("one", volumes=["data:/data"]), volumes={"data": {}})
NETWORKS = app(service("one", networks=["back", "front"]), networks={"back": {}, "front": {}})
FEWER = app(service("one", networks=["back"]), networks={"back": {}, "front": {}})
SHARED = target(service("one"), service("two", 2, network_mode="service:one"))
SHARED_OTHER = target(
    service("one", environment={"A": "b"}), service("two", 2, network_mode="service:one")
)
HANDS = {"io.balena.update.strategy": "hand-over"}
HANDED = target(service("one", labels=HANDS), service("two", 2, depends_on=["one"]))
HANDED_OTHER = target(
    service("one", labels=HANDS, environment={"A": "b"}), service("two", 2, depends_on=["one"])
)
HANDED_RELEASE = target(
    service("one", labels=HANDS, environment={"A": "b"}),
    service("two", 2, depends_on=["one"]),
    commit="c2",
)
API = target(service("one", labels={SUPERVISOR_API: "1"}))
REBOOTING = target(service("one"), service("two", 2, labels={REQUIRES_REBOOT: "1"}))
FIRMWARE = target(service("one", labels={"io.balena.features.extra-firmware": "1"}))
AFTER_ONE = {"one": {"condition": "service_started", "restart": True}}
LOOSE = target(service("one"), service("two", 2, depends_on=AFTER_ONE))
LOOSE_OTHER = target(
    service("one", environment={"A": "b"}), service("two", 2, depends_on=AFTER_ONE)
)
KEPT = app(
    service("one", volumes=["data:/data"]),
    service("two", 2, depends_on=["one"]),
    volumes={"data": {}},
)
HANDED_KEPT = app(service("one", labels=HANDS, volumes=["data:/data"]), volumes={"data": {}})
KEY = ("1", "one")
WRONG_API_NETWORK = replace(
    observed("busybox"),
    networks={"w": Network("w", SUPERVISOR_NETWORK, "", 0, SUPERVISOR_NETWORK, NetworkSpec())},
)
OF_ANOTHER_APP = replace(
    observed("busybox"),
    volumes={"7_data": Volume("7_data", 7, "f1ee", "data", VolumeSpec())},
)


def untagged(step: Fetch, world: Observed) -> Observed:
    """All of the image is here, its name is not yet."""
    done = effect(step, world)
    return replace(done, images={k: Image(k) if k not in world.images else i
                                 for k, i in done.images.items()})  # fmt: skip


def not_joined(step: CreateContainer, world: Observed) -> Observed:
    """Created in its main network; the others were to follow."""
    spec, further = step.service.spec, joins(step.service.spec)
    assert further
    main = replace(spec, endpoints=tuple(end for end in spec.endpoints if end not in further))
    half = replace(step, service=replace(step.service, spec=main))
    return effect(half, world, "half-made")


def removed(step: StopContainer, world: Observed) -> Observed:
    """The last rung of the ladder: what cannot be stopped is removed by force."""
    left = {k: c for k, c in world.containers.items() if k != step.container_id}
    return replace(world, containers=left)


def dead(step: RemoveContainer, world: Observed) -> Observed:
    """The engine was interrupted as well: the container is neither here nor gone."""
    known = world.containers[step.container_id]
    return replace(world, containers={**world.containers, known.id: replace(known, state="dead")})


def all_retired(world: Observed) -> Observed:
    """An agent was killed in a hand-over, and the next one gets the old target again."""
    for known in world.containers.values():
        assert known.name
        step = RetireContainer(known.app_uuid, known.service, known.id, known.name)
        world = effect(step, world)
    return world


def retired_and_ended(world: Observed) -> Observed:
    """The same after a power cut: the engine has not started what has no restart policy."""
    ended = {k: replace(c, state="exited") for k, c in all_retired(world).containers.items()}
    return replace(world, containers=ended)


def renamed(step: RetireContainer, world: Observed) -> Observed:
    """The name is another one, the restart policy is not gone yet."""
    half = replace(world.containers[step.container_id], raw_name=retired_name(step.name))
    return replace(world, containers={**world.containers, half.id: half})


def with_policy(step: ReinstateContainer, world: Observed) -> Observed:
    """The restart policy is back, the name is not yet."""
    known = world.containers[step.container_id]
    fields = {**known.spec.fields, "HostConfig.RestartPolicy": dict(step.policy)}
    half = replace(known, spec=replace(known.spec, fields=fields))
    return replace(world, containers={**world.containers, half.id: half})


def some_files(step: Step, world: Observed) -> Observed:
    return world  # the host makes the lock files


def without_api_network(step: EnsureSupervisorNetwork, world: Observed) -> Observed:
    return replace(world, networks={k: n for k, n in world.networks.items() if k != "w"})


def one_of(world: Observed, name: str = "one") -> Container:
    return next(c for c in world.containers.values() if c.service == name)


def changed(world: Observed, container: Container) -> Observed:
    return replace(world, containers={**world.containers, container.id: container})


def taken_out(world: Observed) -> Observed:
    return effect(DisconnectNetwork("1", "one", one_of(world).id, "1_front"), world)


def put_in(world: Observed) -> Observed:
    return effect(ConnectNetwork("1", "one", one_of(world).id, Endpoint("1_front")), world)


def updated(world: Observed) -> Observed:
    policy = {"HostConfig.RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}}
    return effect(UpdateContainer("1", "one", one_of(world).id, policy), world)


def started_again(world: Observed) -> Observed:
    return changed(world, replace(one_of(world), started_at="777777"))


def with_stray(world: Observed) -> Observed:
    """A tag has moved on: what was fetched under it before is of no use any more."""
    stray = Image("sha256:stray", obtained=frozenset({Obtained("old:latest", 1, "one")}))
    return replace(world, images={**world.images, stray.id: stray})


def scheduled(step: Step, world: Observed) -> Observed:
    return world  # the reboot is noted, the file not written yet


def unnoted(step: Step, world: Observed) -> Observed:
    return world  # the file is written, but not that it was


CONFIG = HostConfig(profile="balenaos", boot_id="b1", config={}, dump="")
SWITCHED = HostConfig(boot_id="b1", switches={"discoverability": "on", "journal": "own"})
HIDDEN = configured(HOST_DISCOVERABILITY="false")
BOARD = replace(
    CONFIG, board=Board("raspberrypi4-64"), boot={"config.txt": BootFile("# mine\ngpu_mem=16\n")}
)
LOGGING = configured(SUPERVISOR_PERSISTENT_LOGGING="1", SUPERVISOR_POLL_INTERVAL="60000")
MEMORY = configured(RESIN_HOST_CONFIG_gpu_mem="64", HOST_CONFIG_dtparam="audio=on,spi=on")

HALF_WAY: Mapping[type, Mapping[str, Callable[[Any, Observed], Observed]]] = {
    TakeLocks: {"some": some_files},
    ReleaseLocks: {"some": some_files},
    StopContainer: {"removed": removed},
    RemoveContainer: {"dead": dead},
}

SCENARIOS = (
    Scenario("a new service", Fetch, ONE, target(service("one", image="big")),
             halves={"untagged": untagged}),
    Scenario("a new app", Fetch, None, target(service("one", image="big"), service("two", 2)),
             halves={"untagged": untagged}),
    Scenario("the old release's image", RemoveImage, target(service("one", image="old")), ONE,
             policy=Policy(keep_images=False), world=observed("busybox", "old")),
    Scenario("an image that lost its name", RemoveImage, None, ONE,
             policy=Policy(keep_images=False), world=with_stray(observed("busybox"))),
    Scenario("the default network", CreateNetwork, None, ONE),
    Scenario("two more networks", CreateNetwork, ONE, NETWORKS),
    Scenario("no longer in the target", RemoveNetwork, NETWORKS, ONE),
    Scenario("another configuration", RemoveNetwork, NETWORKS,
             app(service("one", networks=["back", "front"]),
                 networks={"back": {"internal": True}, "front": {}})),
    Scenario("a new volume", CreateVolume, ONE, VOLUME),
    Scenario("the app is removed", RemoveVolume, None, NOTHING,
             policy=Policy(keep_volumes=False), world=OF_ANOTHER_APP),
    Scenario("another configuration", RemoveVolume, VOLUME,
             app(service("one", volumes=["data:/data"]), volumes={"data": {"labels": {"a": "b"}}})),
    Scenario("the first user", EnsureSupervisorNetwork, None, API),
    Scenario("a wrong one", EnsureSupervisorNetwork, None, API, world=WRONG_API_NETWORK,
             halves={"removed": without_api_network}),
    Scenario("a new app", CreateContainer, None, TWO),
    Scenario("a new service", CreateContainer, ONE, TWO),
    Scenario("another configuration", CreateContainer, TWO, OTHER),
    Scenario("several networks", CreateContainer, ONE, NETWORKS, halves={"not joined": not_joined}),
    Scenario("another's namespace", CreateContainer, ONE, SHARED),
    Scenario("restart", CreateContainer, TWO, command=RestartService(KEY)),
    Scenario("a new app", StartContainer, None, TWO),
    Scenario("by command", StartContainer, TWO, earlier=StopService(KEY),
             command=StartService(KEY)),
    Scenario("the target says so", StartContainer, STOPPED, TWO),
    Scenario("the target says so again", StartContainer, TWO, TWO, earlier=STOPPED),
    Scenario("a new release after a stop", StartContainer, TWO, RELEASE, earlier=StopService(KEY)),
    Scenario("another configuration", StopContainer, TWO, OTHER, halves={"removed": removed}),
    Scenario("no longer in the target", StopContainer, TWO, ONE, halves={"removed": removed}),
    Scenario("a network changes", StopContainer, ONE, NETWORKS, halves={"removed": removed}),
    Scenario("the target says stopped", StopContainer, TWO, STOPPED),
    Scenario("by command", StopContainer, TWO, command=StopService(KEY)),
    Scenario("restart", StopContainer, TWO, command=RestartService(KEY),
             halves={"removed": removed}),
    Scenario("another configuration", RemoveContainer, TWO, OTHER, halves={"dead": dead}),
    Scenario("others share its namespace", RemoveContainer, SHARED, SHARED_OTHER,
             halves={"dead": dead}),
    Scenario("no longer in the target", RemoveContainer, TWO, ONE, halves={"dead": dead}),
    Scenario("everything goes", RemoveContainer, TWO, NOTHING, halves={"dead": dead}),
    Scenario("restart", RemoveContainer, TWO, command=RestartService(KEY), halves={"dead": dead}),
    Scenario("a new release", RenameContainer, TWO, RELEASE),
    Scenario("another configuration", RetireContainer, HANDED, HANDED_OTHER,
             halves={"renamed": renamed}),
    Scenario("a new release", RetireContainer, HANDED, HANDED_RELEASE, halves={"renamed": renamed}),
    Scenario("hand-over", CreateContainer, HANDED, HANDED_OTHER),
    Scenario("hand-over to a new release", CreateContainer, HANDED, HANDED_RELEASE),
    Scenario("hand-over", StartContainer, HANDED, HANDED_OTHER),
    Scenario("another configuration", AwaitHandover, HANDED, HANDED_OTHER),
    Scenario("a new release", AwaitHandover, HANDED, HANDED_RELEASE),
    Scenario("hand-over", StopContainer, HANDED, HANDED_OTHER, halves={"removed": removed}),
    Scenario("hand-over", RemoveContainer, HANDED, HANDED_OTHER, halves={"dead": dead}),
    Scenario("back to the old target", ReinstateContainer, HANDED, HANDED, meanwhile=all_retired,
             halves={"with policy": with_policy}),
    Scenario("the old target after a power cut", ReinstateContainer, HANDED, HANDED,
             meanwhile=retired_and_ended, halves={"with policy": with_policy}),
    Scenario("the old target after a power cut", StartContainer, HANDED, HANDED,
             meanwhile=retired_and_ended),
    Scenario("taken out by hand", ConnectNetwork, NETWORKS, meddled=taken_out),
    Scenario("put in by hand", DisconnectNetwork, FEWER, meddled=put_in),
    Scenario("the target names it no more", DisconnectNetwork, NETWORKS, FEWER),
    Scenario("changed by hand", UpdateContainer, ONE, meddled=updated),
    Scenario("the owner of its network started again", StopContainer, SHARED,
             meddled=started_again),
    Scenario("the owner of its network started again", StartContainer, SHARED,
             meddled=started_again),
    Scenario("another configuration", TakeLocks, TWO, OTHER, halves={"some": some_files}),
    Scenario("everything goes", TakeLocks, TWO, NOTHING, halves={"some": some_files}),
    Scenario("reboot", TakeLocks, TWO, command=Power(), halves={"some": some_files}),
    Scenario("another configuration", ReleaseLocks, TWO, OTHER, halves={"some": some_files}),
    Scenario("everything goes", ReleaseLocks, TWO, NOTHING, halves={"some": some_files}),
    Scenario("by command", RequestReboot, TWO, command=Power()),
    Scenario("a label", RequireReboot, ONE, REBOOTING),
    Scenario("a label", CreateContainer, ONE, REBOOTING),
    Scenario("a label", RequestReboot, ONE, REBOOTING),
    Scenario("a label", StartContainer, ONE, REBOOTING),
    Scenario("a label", EnsureExtraFirmware, None, FIRMWARE),
    Scenario("a label", SetFirmwareVolume, None, FIRMWARE, boot=replace(BOOT, firmware_volume="")),
    Scenario("restart after it", StopContainer, LOOSE, LOOSE_OTHER, halves={"removed": removed}),
    Scenario("restart after it", RemoveContainer, LOOSE, LOOSE_OTHER, halves={"dead": dead}),
    Scenario("restart after it", CreateContainer, LOOSE, LOOSE_OTHER),
    Scenario("restart after it", StartContainer, LOOSE, LOOSE_OTHER),
    Scenario("by command", RequestPowerOff, TWO, command=Power(off=True)),
    Scenario("two variables", ChangeConfig, ONE, LOGGING, settings=CONFIG,
             halves={"scheduled": scheduled, "unnoted": unnoted}),
    Scenario("back to the defaults", ChangeConfig, LOGGING, ONE, settings=CONFIG,
             halves={"scheduled": scheduled, "unnoted": unnoted}),
    Scenario("config.txt", SetBootConfig, ONE, MEMORY, settings=BOARD,
             halves={"scheduled": scheduled, "unnoted": unnoted}),
    Scenario("other variables", DumpConfig, ONE, LOGGING, settings=CONFIG),
    Scenario("off", SwitchFeature, ONE, HIDDEN, settings=SWITCHED),
    Scenario("on again", SwitchFeature, HIDDEN, ONE, settings=SWITCHED),
    Scenario("the journal", SwitchFeature, ONE, LOGGING, settings=SWITCHED),
    Scenario("by command", SetNetworkConfig, TWO, command=ConfigureNetwork(NetworkChange("kiosk"))),
    *(
        Scenario(name, at, KEPT, command=command, halves=HALF_WAY.get(at, {}))
        for name, command in (("the whole app", RestartApp(1)), ("purge", PurgeApp(1)))
        for at in (
            TakeLocks, StopContainer, RemoveContainer, CreateContainer, StartContainer, ReleaseLocks
        )
    ),
    Scenario("purge", RemoveVolume, KEPT, command=PurgeApp(1)),
    Scenario("purge", CreateVolume, KEPT, command=PurgeApp(1)),
    Scenario("purge under a lock", RemoveVolume, KEPT, command=PurgeApp(1, force=True)),
    Scenario("purge of what hands over", RemoveVolume, HANDED_KEPT, command=PurgeApp(1)),
    Scenario("purge of what hands over", StopContainer, HANDED_KEPT, command=PurgeApp(1)),
)  # fmt: skip

DEATHS = [
    pytest.param(scenario, moment, id=f"{scenario.at.__name__}-{scenario.name}-{moment}")
    for scenario in SCENARIOS
    for moment in ("before", "after", *scenario.halves)
]


def settle(agent: Rig) -> None:
    """To rest, or to a reboot."""
    host = agent.host
    agent.until(
        lambda s: (
            (s.settled and not s.update_pending) or (isinstance(host, MortalHost) and host.rebooted)
        ),
        "settled",
    )


def answered(agent: Rig, answer: Future[str]) -> None:
    agent.until(lambda s: answer.done(), "answered")
    answer.result()


@functools.cache
def device(scenario_index: int) -> Remains:
    """The device before the scenario begins."""
    scenario = SCENARIOS[scenario_index]

    def come_to_rest(agent: Rig) -> None:
        if scenario.first is not None:
            agent.post(scenario.first)
            agent.settled()
        if isinstance(scenario.earlier, dict):
            agent.post(scenario.earlier)
        elif scenario.earlier:
            answered(agent, agent.reconciler.submit(scenario.earlier))
        agent.settled()

    new = Remains(scenario.world, FakeStore(), settings=scenario.settings, boot=scenario.boot)
    found = live(new, scenario.policy, come_to_rest)
    for change in filter(None, (scenario.meanwhile, scenario.meddled)):
        found = replace(found, world=change(found.world))
    return found


def begin(scenario: Scenario, agent: Rig) -> Future[str] | None:
    if scenario.second is not None:
        agent.post(scenario.second)
    elif not scenario.meddled:
        agent.settled()
    return agent.reconciler.submit(scenario.command) if scenario.command else None


@functools.cache
def undisturbed(scenario_index: int) -> Remains:
    """How the scenario ends when nobody dies."""
    scenario = SCENARIOS[scenario_index]

    def to_the_end(agent: Rig) -> None:
        answer = begin(scenario, agent)
        if answer:
            answered(agent, answer)
        if not isinstance(scenario.command, Power):
            settle(agent)

    return live(device(scenario_index), scenario.policy, to_the_end)


# ---- what is looked at ---------------------------------------------------------------------------


def view(world: Observed) -> dict[str, list[str]]:
    """Everything about a world but its ids."""
    return {
        "containers": sorted(
            f"{c.raw_name} {c.state} {portrait(c, world)}" for c in world.containers.values()
        ),
        "networks": sorted(f"{n.engine_name} {n.spec}" for n in world.networks.values()),
        "volumes": sorted(f"{v.engine_name} {v.spec}" for v in world.volumes.values()),
        "images": sorted(f"{i.id} {sorted(i.tags)}" for i in world.images.values()),
    }


def portrait(container: Container, world: Observed) -> str:
    """Service and spec, in which other containers go by their services."""
    text = f"{container.key} {container.spec.to_json()}"
    for other in world.containers.values():
        text = text.replace(other.id, other.service)
    return text


def known(store: FakeStore) -> tuple[Json, Json, set[str]]:
    """The notes that do not name containers."""
    return dict(store.stopped), dict(store.commits), store.images


def right(world: Observed, end: Observed, origins: Mapping[str, Origin]) -> set[str]:
    """Ids of what is in `world` as it shall be in the end: nobody has a reason to touch it."""
    services = {portrait(c, end) for c in end.containers.values()}
    networks = {(n.engine_name, str(n.spec)) for n in end.networks.values()}
    alive = [c for c in world.containers.values() if c.state != "dead"]
    kept = {c.id for c in alive if portrait(c, world) in services}
    wrong = world.containers.keys() - kept
    kept -= {c.id for c in alive if any(other in c.spec.to_json() for other in wrong)}
    kept -= {key for key, known in origins.items() if not set(known.parents.values()) <= kept}
    return kept | {
        n.id for n in world.networks.values() if (n.engine_name, str(n.spec)) in networks
    }


# ---- the tests -----------------------------------------------------------------------------------


def test_every_step_has_a_scenario() -> None:
    assert {scenario.at for scenario in SCENARIOS} == set(get_args(vocabulary.Step))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_without_a_death_everything_runs_that_shall(scenario: Scenario) -> None:
    """What the deaths are compared with must itself be right."""
    given = (scenario.second, scenario.earlier, scenario.first)
    document = next(d for d in given if isinstance(d, dict))
    services = [s for a in document["local"]["apps"].values() for s in a["services"].values()]
    shall = {s["serviceName"]: "running" if s["running"] else "exited" for s in services}
    if isinstance(scenario.command, StopService):
        shall["one"] = "exited"
    found = undisturbed(SCENARIOS.index(scenario)).world.containers.values()
    assert {c.service: c.state for c in found} == shall
    assert len(found) == len(shall)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.meddled], ids=str)
def test_what_somebody_meddled_with_is_put_right_in_place(scenario: Scenario) -> None:
    number = SCENARIOS.index(scenario)
    before, after = device(number), undisturbed(number)
    assert after.world.containers.keys() == before.world.containers.keys()
    assert after.world != before.world and after.worked


@pytest.mark.parametrize(("scenario", "moment"), DEATHS)
def test_death_at_a_step(scenario: Scenario, moment: str) -> None:
    left, end = died(scenario, moment)
    for store in [left.store, *([left.older] if left.older else [])]:
        revived(replace(left, store=store), scenario.policy, end)


def died(scenario: Scenario, moment: str) -> tuple[Remains, Remains]:
    """What is left by a death, and the end without one."""
    number = SCENARIOS.index(scenario)
    fate = Fate(scenario.at, moment == "after", scenario.halves.get(moment))

    def die(agent: Rig) -> None:
        begin(scenario, agent)
        agent.until(lambda s: fate.over.is_set(), f"{scenario.at.__name__} planned")

    return live(device(number), scenario.policy, die, fate), undisturbed(number)


def revived(left: Remains, policy: Policy, end: Remains) -> Remains:
    """The next agent comes to the same end; the one after it has nothing to do."""
    then = live(left, policy, settle)
    assert (view(then.world), known(then.store)) == (view(end.world), known(end.store))
    assert right(left.world, end.world, left.store.origins) <= {
        *then.world.containers,
        *then.world.networks,
    }
    assert (
        then.store.specs.keys() | then.store.stopped_by_agent.keys() <= then.world.containers.keys()
    )
    assert then.store.origins.keys() <= then.world.containers.keys()
    assert then.files == frozenset()
    assert then.boot.firmware_volume == end.boot.firmware_volume
    assert not then.boot.reboot_required
    assert replace(then.settings, attempts={}) == replace(end.settings, attempts={})
    again = live(then, policy, settle)
    assert (again.worked, again.writes, again.world) == ((), 0, then.world)
    return then


# ---- deaths that need more than a scenario -------------------------------------------------------


def named(name: str, at: type) -> Scenario:
    return next(s for s in SCENARIOS if (s.name, s.at) == (name, at))


@pytest.mark.parametrize("name", ["another configuration", "restart"])
def test_a_stop_that_outlives_the_agent(name: str) -> None:
    """The engine goes on stopping, and is done when the next agent has long looked."""
    left, end = died(named(name, StopContainer), "before")
    (stopping,) = left.store.stopped_by_agent

    def stop_late(agent: Rig) -> None:
        agent.until(lambda s: s.looked)
        agent.engine.change(lambda seen: exited(seen, stopping), Touch())
        agent.reconciler.wake(Touch(containers=frozenset({stopping})))
        agent.until(lambda s: view(agent.engine.observed) == view(end.world), "as it shall be")
        agent.settled()

    assert view(live(left, Policy(), stop_late).world) == view(end.world)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_purge_that_a_death_has_ended_is_not_begun_again(done: bool) -> None:
    """The data that a new container has written since is nobody's to remove."""
    moment = "after" if done else "before"
    left, end = died(named("purge", StartContainer), moment)
    then = revived(left, Policy(), end)
    assert not any(isinstance(step, RemoveVolume) for step in then.worked)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_clean_up_that_a_death_has_ended_is_forgotten(done: bool) -> None:
    found = device(next(i for i, s in enumerate(SCENARIOS) if s.first is KEPT))
    waste = {name: Volume(name, 1, "1", name[2:], VolumeSpec()) for name in ("1_a", "1_b")}
    found = replace(found, world=replace(found.world, volumes={**found.world.volumes, **waste}))
    fate = Fate(RemoveVolume, done)

    def die(agent: Rig) -> None:
        agent.settled()
        agent.reconciler.submit(CleanupVolumes())
        agent.until(lambda s: fate.over.is_set(), "a volume is removed")

    left = live(found, Policy(), die, fate)
    then = live(left, Policy(), settle)
    assert (then.worked, then.world) == ((), left.world)
    assert left.world.containers == found.world.containers
    assert len(left.world.volumes) == len(found.world.volumes) - done


def exited(world: Observed, container_id: str) -> Observed:
    known = world.containers.get(container_id)
    if known is None or not known.running:
        return world
    gone = {known.id: replace(known, state="exited")}
    return replace(world, containers={**world.containers, **gone})


def test_an_engine_that_changes_a_field_costs_one_more_creation_and_no_loop() -> None:
    """What was asked for was not noted, and inspect shows something else: the container, never
    started, is made once more; then it is known."""
    left, end = died(named("a new service", CreateContainer), "after")
    (made,) = (c for c in left.world.containers.values() if c.service == "two")
    assert made.id not in left.store.specs
    odd = with_field(made, "Hostname", "odd")
    world = replace(left.world, containers={**left.world.containers, made.id: odd})
    then = revived(replace(left, world=world), Policy(), end)
    assert made.id not in then.world.containers
    assert sum(isinstance(step, CreateContainer) for step in then.worked) == 1


def test_what_was_asked_for_is_remembered_whatever_the_engine_made_of_it() -> None:
    found = device(next(i for i, s in enumerate(SCENARIOS) if s.first is TWO))
    odd = {k: with_field(c, "Hostname", "odd") for k, c in found.world.containers.items()}
    again = live(replace(found, world=replace(found.world, containers=odd)), Policy(), settle)
    assert again.worked == ()


def with_field(container: Container, name: str, value: str) -> Container:
    fields = {**container.spec.fields, name: value}
    return replace(container, spec=replace(container.spec, fields=fields))


def test_a_user_who_takes_a_lock_between_two_lives_keeps_it() -> None:
    left, end = died(named("another configuration", TakeLocks), "some")
    engine, host = FakeEngine(left.world), FakeHost(left.files)
    host.user_locks[1] = "two"
    with rig(memory=remembered(left.store), engine=engine, host=host) as agent:
        agent.until(lambda s: s.failures, "the lock is in the way")
        assert host.files == set()
        assert agent.engine.observed == left.world
        host.user_locks.clear()
        agent.settled()
        assert view(agent.engine.observed) == view(end.world)


def test_locks_left_by_a_run_are_released_though_there_is_no_target() -> None:
    host = FakeHost(frozenset({(1, "one")}))
    with rig(host=host) as agent:
        agent.until(lambda s: s.looked and not host.files, "released")


def test_images_of_the_stored_target_are_ours_though_it_was_not_noted() -> None:
    """Killed between keeping the target and noting its images."""
    store = FakeStore()
    with rig(store=store) as agent:
        agent.post(ONE)
    store.images.clear()
    with rig(store=store, memory=remembered(store)) as agent:
        agent.settled()
    assert store.images == {"busybox:latest"}
