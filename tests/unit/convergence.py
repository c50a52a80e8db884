"""The convergence proof's machinery: random targets, random worlds, and a world that misbehaves.

One case is a random target and a random world. In every tick the planner is asked; every step it
gives is started. Steps under way end after a random number of ticks, in random order, and a part
of them fails and goes into back-off. Users hold update locks for a while. The agent itself dies at
a few random ticks: of the steps under way some have had their effect, some half of it, some none,
and all that is not durable is forgotten. Some cases begin with another target, which is replaced
in the middle of the work. The case must come to rest (no step, no wait, nothing under way) in the
state that the target asks for, within a bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from balena_agent.core.desired import (
    Dependency,
    Desired,
    DesiredApp,
    DesiredNetwork,
    DesiredService,
    DesiredVolume,
)
from balena_agent.core.effects import effect
from balena_agent.core.intent import Intent
from balena_agent.core.names import ContainerName
from balena_agent.core.observed import Container, Image, Network, Observed, Volume
from balena_agent.core.plan import Plan
from balena_agent.core.planner import plan
from balena_agent.core.services import EARLY
from balena_agent.core.situation import Backoff, Situation
from balena_agent.core.spec import ContainerSpec, Endpoint, NetworkSpec, VolumeSpec
from balena_agent.core.steps import (
    CreateContainer,
    Fetch,
    ReleaseLocks,
    RemoveContainer,
    StartContainer,
    Step,
    StopContainer,
    TakeLocks,
    identity,
)

Planner = Callable[[Desired, Observed, Situation], Plan]

SERVICES = "abcd"
IMAGES = ("i1:latest", "r.x/i2:latest", "r.x/i3:latest", "r.x/i4:latest")
STRATEGIES = ("download-then-kill", "download-then-kill", *EARLY)
MAX_TICKS = 120
MOMENTS = ("none", "half", "whole")
"""How far a step under way has got when the agent dies."""


@dataclass(slots=True)
class Case:
    """One random case; `world` changes while it runs."""

    desired: Desired
    world: Observed
    locked: set[int]
    user_locks: dict[int, int]
    intent: Intent
    keep: bool
    owned: frozenset[str]
    rng: random.Random
    deaths: frozenset[int] = frozenset()
    change: tuple[int, Desired] | None = None
    stopped: set[str] = field(default_factory=set)
    running: dict[str, tuple[Step, int]] = field(default_factory=dict)
    backoff: dict[str, int] = field(default_factory=dict)
    serial: int = 0


def spec(image: str, config: int, nets: list[str], vols: list[str], parent: str) -> ContainerSpec:
    mode = f"service:{parent}" if parent else (nets[0] if nets else "none")
    fields = {
        "Cmd": [f"run{config}"],
        "HostConfig.Binds": sorted(f"{name}:/{name}" for name in vols),
        "HostConfig.NetworkMode": mode,
    }
    ends = () if parent else tuple(Endpoint(name) for name in nets)
    return ContainerSpec(f"sha256:{image}", fields, ends)


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    apps = tuple(_app(rng, number) for number in (1, 2) if rng.random() < 0.75)
    world = _with_right_ones(rng, apps, _world(rng))
    images = {i for i in IMAGES if rng.random() < 0.5}
    known = {f"sha256:{i}": Image(f"sha256:{i}", frozenset({i})) for i in sorted(images)}
    for container in world.containers.values():
        name = container.spec.image.removeprefix("sha256:")
        known.setdefault(container.spec.image, Image(container.spec.image, frozenset({name})))
    world = replace(world, images=known)
    stopped = {
        s.key: s.container_name.commit for app in apps for s in app.services if rng.random() < 0.1
    }
    recreate = frozenset(c for c in world.containers if rng.random() < 0.1)
    locked = {n for n in (1, 2) if rng.random() < 0.2}
    user_locks = {n: rng.randrange(1, 20) for n in (1, 2) if n not in locked and rng.random() < 0.2}
    intent = Intent(stopped=stopped, recreate=recreate)
    case = Case(
        Desired(apps), world, locked, user_locks, intent, rng.random() < 0.5,
        frozenset(IMAGES), rng, frozenset(rng.randrange(1, 25) for _ in range(rng.randrange(4))),
    )  # fmt: skip
    if rng.random() < 0.3:
        _begin_with_another_target(case)
    return case


def _begin_with_another_target(case: Case) -> None:
    tick = case.rng.randrange(1, 8)
    case.change = (tick, case.desired)
    case.desired = Desired(tuple(_app(case.rng, number) for number in (1, 2)))
    if case.rng.random() < 0.5:
        case.deaths |= {tick}


def _app(rng: random.Random, number: int) -> DesiredApp:
    uuid, commit = str(number), f"c{rng.randrange(2)}"
    nets = [n for n in ("default", "back") if rng.random() < 0.7]
    vols = [v for v in ("data",) if rng.random() < 0.5]
    networks = tuple(
        DesiredNetwork(n, f"{uuid}_{n}", NetworkSpec(internal=rng.random() < 0.3)) for n in nets
    )
    volumes = tuple(
        DesiredVolume(v, f"{number}_{v}", VolumeSpec(labels={"v": str(rng.randrange(2))}))
        for v in vols
    )
    services: list[DesiredService] = []
    for name in SERVICES:
        if rng.random() < 0.6:
            services.append(_service(rng, uuid, number, name, commit, nets, vols, services))
    return DesiredApp(uuid, number, f"app{number}", commit, "fleet", tuple(services),
                      networks, volumes)  # fmt: skip


def _service(
    rng: random.Random,
    uuid: str,
    number: int,
    name: str,
    commit: str,
    nets: list[str],
    vols: list[str],
    earlier: list[DesiredService],
) -> DesiredService:
    image = rng.choice(IMAGES)
    needs = [s.name for s in earlier if rng.random() < 0.3]
    parent = rng.choice(needs) if needs and rng.random() < 0.2 else ""
    mine = [f"{uuid}_{n}" for n in nets if rng.random() < 0.6]
    used = [f"{number}_{v}" for v in vols if rng.random() < 0.6]
    conditions = [Dependency(n, rng.choice(("started", "healthy"))) for n in needs]
    return DesiredService(
        app_uuid=uuid,
        app_id=number,
        name=name,
        container_name=ContainerName(name, rng.randrange(1, 3), number, commit),
        service_id=ord(name),
        image=image,
        image_present=False,
        running=rng.random() < 0.85,
        spec=spec(image, rng.randrange(2), mine, used, parent),
        depends_on=tuple(conditions),
        strategy=rng.choice(STRATEGIES),
    )


def _world(rng: random.Random) -> Observed:
    networks, volumes = {}, {}
    for number in (1, 2):
        for name in ("default", "back", "old"):
            if rng.random() < 0.4:
                key = f"n{number}{name}"
                networks[key] = Network(
                    key, f"{number}_{name}", str(number), number, name,
                    NetworkSpec(internal=rng.random() < 0.3),
                )  # fmt: skip
        if rng.random() < 0.4:
            volumes[f"{number}_data"] = Volume(
                f"{number}_data", number, str(number), "data",
                VolumeSpec(labels={"v": str(rng.randrange(2))}),
            )  # fmt: skip
    containers = {}
    for serial in range(rng.randrange(7)):
        made = _container(rng, serial, networks, volumes)
        if all(made.raw_name != other.raw_name for other in containers.values()):
            containers[made.id] = made
    return Observed(containers, networks, volumes, {})


def _container(
    rng: random.Random, serial: int, networks: dict[str, Network], volumes: dict[str, Volume]
) -> Container:
    number, name = rng.choice((1, 2)), rng.choice(SERVICES + "z")
    mine = [n.engine_name for n in networks.values() if n.app_id == number]
    nets = [n for n in mine if rng.random() < 0.5]
    vols = [v for v in volumes if v.startswith(str(number)) and rng.random() < 0.5]
    label = ContainerName(name, rng.randrange(1, 3), number, f"c{rng.randrange(2)}")
    state = rng.choice(("created", "running", "running", "exited", "dead", "restarting"))
    return Container(
        id=f"w{serial}", app_uuid=str(number), app_id=number, service=name, service_id=ord(name),
        name=label, state=state, spec=spec(rng.choice(IMAGES), rng.randrange(2), nets, vols, ""),
        created_at=f"t{serial}", raw_name=str(label),
    )  # fmt: skip


def _with_right_ones(rng: random.Random, apps: tuple[DesiredApp, ...], world: Observed) -> Observed:
    """Some services have what they want already, or all but the name."""
    right: dict[str, Container] = {}
    names = {known.raw_name for known in world.containers.values()}
    for service in (s for app in apps for s in app.services if not s.spec.parent):
        name = replace(service.container_name, commit=rng.choice(("c0", "c1")))
        if rng.random() < 0.3 and str(name) not in names:
            made = Container(
                f"r{len(right)}", service.app_uuid, service.app_id, service.name,
                service.service_id, name, rng.choice(("created", "running", "running", "exited")),
                service.spec, created_at=rng.choice(("t", "u")), raw_name=str(name),
            )  # fmt: skip
            right[made.id] = made
    return replace(world, containers={**world.containers, **right})


def compiled(case: Case) -> Desired:
    """The target as the compiler would give it for the images that are present now."""

    def with_image(service: DesiredService) -> DesiredService:
        return replace(service, image_present=case.world.image(service.image) is not None)

    return Desired(
        tuple(
            replace(app, services=tuple(with_image(s) for s in app.services))
            for app in case.desired.apps
        )
    )


def situation(case: Case, tick: int) -> Situation:
    return Situation(
        running={name: step for name, (step, _) in case.running.items()},
        backoff={n: Backoff(t, "failed") for n, t in case.backoff.items() if t > tick},
        intent=case.intent,
        locked=frozenset(case.locked),
        owned_images=case.owned,
        stopped_by_agent=frozenset(case.stopped),
        keep_images=case.keep,
        keep_volumes=case.keep,
        deltas=not case.keep,
    )


def run(case: Case, planner: Planner = plan) -> str:
    """Run one case to its end; "" when it came to rest as wanted, else what went wrong."""
    for tick in range(MAX_TICKS):
        if case.change and case.change[0] == tick:
            case.desired, case.change = case.change[1], None
            case.backoff.clear()
        case.intent = replace(
            case.intent, recreate=case.intent.recreate & case.world.containers.keys()
        )
        found = planner(compiled(case), case.world, situation(case, tick))
        if problem := _clash(found, case):
            return problem
        for step in found.steps:
            case.running[identity(step)] = (step, tick + case.rng.randrange(3))
            if isinstance(step, StopContainer):
                case.stopped.add(step.container_id)
        if not (found.steps or found.waits or case.running or case.change):
            return _wrong_at_rest(case)
        if tick in case.deaths:
            _dies(case)
        _time_passes(case, tick)
    return f"still busy after {MAX_TICKS} ticks:\n{found}\nrunning {sorted(case.running)}"


def _clash(found: Plan, case: Case) -> str:
    names = [identity(step) for step in found.steps]
    if len(set(names)) < len(names):
        return f"a step twice in one plan: {names}"
    again = set(names) & case.running.keys()
    return f"planned though under way: {sorted(again)}" if again else ""


def _time_passes(case: Case, tick: int) -> None:
    case.user_locks = {app: until for app, until in case.user_locks.items() if until > tick}
    ended = [name for name, (_, due) in case.running.items() if due <= tick]
    case.rng.shuffle(ended)
    for name in ended:
        step, _ = case.running.pop(name)
        if case.rng.random() < 0.2 or not _act(case, step):
            case.backoff[name] = tick + 1 + case.rng.randrange(4)


def _dies(case: Case) -> None:
    """Only the target, stops by users and the notes of our own stops outlive the agent. The next
    one adopts the locks it finds, or removes them where a user has taken one meanwhile."""
    for step, _ in case.running.values():
        moment = case.rng.choice(MOMENTS)
        if moment == "half":
            _half(case, step)
        elif moment == "whole":
            _act(case, step)
    case.running.clear()
    case.backoff.clear()
    case.intent = Intent(stopped=case.intent.stopped)
    case.locked -= case.user_locks.keys()


def _half(case: Case, step: Step) -> None:
    """Some of the calls that a step consists of."""
    match step:
        case CreateContainer(service=service):
            main = replace(service.spec, endpoints=service.spec.endpoints[:1])
            _act(case, replace(step, service=replace(service, spec=main)))
        case StopContainer(final=True):  # the last rung: removed by force
            left = {k: c for k, c in case.world.containers.items() if k != step.container_id}
            case.world = replace(case.world, containers=left)
        case RemoveContainer():
            known = case.world.containers.get(step.container_id)
            if known:
                dead = {known.id: replace(known, state="dead")}
                case.world = replace(case.world, containers={**case.world.containers, **dead})
        case Fetch():  # all of it is here, but for its name
            nameless = Image(f"sha256:{step.reference}")
            case.world = replace(case.world, images={nameless.id: nameless, **case.world.images})
        case _:
            pass


def _act(case: Case, step: Step) -> bool:
    """Do a step in the model world; False when the world refuses it."""
    if isinstance(step, TakeLocks):
        if step.app_id in case.user_locks and not step.force:
            return False
        case.locked.add(step.app_id)
    elif isinstance(step, ReleaseLocks):
        case.locked.discard(step.app_id)
    else:
        case.serial += 1
        case.world = effect(step, case.world, f"m{case.serial}")  # type: ignore[arg-type]
        case.world = replace(case.world, containers=_healthy(case.world))
        if isinstance(step, StartContainer):
            case.stopped.discard(step.container_id)
    return True


def _healthy(world: Observed) -> dict[str, Container]:
    return {
        key: replace(c, health="healthy") if c.state == "running" else c
        for key, c in world.containers.items()
    }


def _wrong_at_rest(case: Case) -> str:
    """What differs from the target though the planner says that all is done."""
    wanted = {s.key: s for app in case.desired.apps for s in app.services}
    found = {c.key: c for c in case.world.containers.values()}
    if len(found) != len(case.world.containers):
        return "two containers of one service"
    if wanted.keys() != found.keys():
        return f"containers {sorted(found)} but wanted {sorted(wanted)}"
    for key, service in wanted.items():
        container = found[key]
        if container.spec.fields["Cmd"] != service.spec.fields["Cmd"]:
            return f"{key}: wrong configuration"
        if container.spec.image != service.spec.image:
            return f"{key}: wrong image"
        if container.name != service.container_name:
            return f"{key}: wrong name"
        stopped = case.intent.stopped.get(key) == service.container_name.commit
        if container.running and (stopped or not service.running):
            return f"{key}: runs though it should not"
        if container.state == "created" and service.running and not stopped:
            return f"{key}: never started"
        left = container.state == "exited" and container.id in case.stopped
        if left and service.running and not stopped:
            return f"{key}: stopped by the agent and left so"
    networks = {n.engine_name for app in case.desired.apps for n in app.networks}
    present = [n.engine_name for n in case.world.networks.values()]
    if sorted(present) != sorted(networks):
        return f"networks {sorted(present)} but wanted {sorted(networks)}"
    if case.locked:
        return f"locks of {sorted(case.locked)} are still held"
    return _wrong_leftovers(case)


def _wrong_leftovers(case: Case) -> str:
    volumes = {v.engine_name for app in case.desired.apps for v in app.volumes}
    if not volumes <= case.world.volumes.keys():
        return "a volume is missing"
    if case.keep:
        return ""
    wanted = {s.image for app in case.desired.apps for s in app.services}
    tags = {tag for image in case.world.images.values() for tag in image.tags}
    return "" if tags <= wanted else f"images {sorted(tags - wanted)} are left over"
