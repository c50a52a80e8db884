"""The convergence proof's machinery: random targets, random worlds, and a world that misbehaves.

One case is a random target and a random world. In every tick the planner is asked; every step it
gives is started. Steps under way end after a random number of ticks, in random order, and a part
of them fails and goes into back-off. Users hold update locks for a while. The agent itself dies at
a few random ticks: of the steps under way some have had their effect, some half of it, some none,
and all that is not durable is forgotten. Some cases begin with another target, which is replaced
in the middle of the work. New containers that are started beside old ones may end at once or turn
out ill (they get well when they are alone), or cannot be started for want of a port. Somebody has
meddled with containers that are right otherwise: their networks, their restart policy (which some
never take back), the start of the owner of a network. Some apps are restarted or purged in the
middle of it all, and some of these commands are taken back. The case must come to rest (no step,
no wait, nothing under way) in the state that the target asks for, within a bound.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from worlds import container_of, spec

from balena_agent.core.body import resolved
from balena_agent.core.canonical import DEFAULTS, canonical
from balena_agent.core.desired import (
    Dependency,
    Desired,
    DesiredApp,
    DesiredNetwork,
    DesiredService,
    DesiredVolume,
)
from balena_agent.core.drift import outlived
from balena_agent.core.effects import NO_RESTART, effect
from balena_agent.core.handover import begins, failures, fault, lasting
from balena_agent.core.intent import Intent, PurgeApp, Renewal, RestartApp
from balena_agent.core.names import REQUIRES_REBOOT, SUPERVISOR_NETWORK, ContainerName, retired_name
from balena_agent.core.networks import SUPERVISOR_SPEC
from balena_agent.core.observed import Container, HostState, Image, Network, Observed, Volume
from balena_agent.core.origins import Origin, to_note
from balena_agent.core.plan import Plan
from balena_agent.core.planner import plan
from balena_agent.core.renewal import PURGED, app_of, joined, renewal
from balena_agent.core.services import EARLY
from balena_agent.core.situation import Backoff, Situation
from balena_agent.core.spec import Endpoint, NetworkSpec, VolumeSpec
from balena_agent.core.steps import (
    AwaitHandover,
    CreateContainer,
    Fetch,
    ReinstateContainer,
    ReleaseLocks,
    RemoveContainer,
    RemoveVolume,
    RequestReboot,
    RequireReboot,
    RetireContainer,
    StartContainer,
    Step,
    StopContainer,
    TakeLocks,
    UpdateContainer,
)
from balena_agent.core.supervisor import fault as api_fault
from balena_agent.core.traits import identity
from balena_agent.runtime.orders import pruned_of_apps

Planner = Callable[[Desired, Observed, Situation], Plan]

SERVICES = "abcd"
IMAGES = ("i1:latest", "r.x/i2:latest", "r.x/i3:latest", "r.x/i4:latest")
STRATEGIES = ("download-then-kill", "download-then-kill", *EARLY, "hand-over", "hand-over")
POLICY = "HostConfig.RestartPolicy"
MAX_TICKS = 400
API_NETWORKS: tuple[dict[str, NetworkSpec], ...] = (
    {},
    {"right": SUPERVISOR_SPEC},
    {"wrong": replace(SUPERVISOR_SPEC, ipam_config=())},
    {"wrong": replace(SUPERVISOR_SPEC, driver_opts={}), "right": SUPERVISOR_SPEC},
)
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
    stubborn: frozenset[str] = frozenset()
    deaths: frozenset[int] = frozenset()
    change: tuple[int, Desired] | None = None
    stopped: set[str] = field(default_factory=set)
    handovers: frozenset[str] = frozenset()
    failed_handovers: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    ill: set[str] = field(default_factory=set)
    running: dict[str, tuple[Step, int]] = field(default_factory=dict)
    backoff: dict[str, int] = field(default_factory=dict)
    serial: int = 0
    host: HostState = field(default_factory=lambda: HostState(boot_id="boot 0"))
    boots: int = 0
    origins: dict[str, Origin] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    """In which boot a container was made, in truth: notes may be lost."""
    wrong: str = ""
    compiled: tuple[Desired, Mapping[str, Image], Desired] | None = None
    """What the compiler keeps: a target, the images, and what came of them."""
    orders: list[tuple[int, RestartApp | PurgeApp]] = field(default_factory=list)
    """Commands about whole apps that are still to come, with their ticks."""
    taken_back: int = -1
    """The tick at which every command is taken back."""
    due: dict[int, Renewal] = field(default_factory=dict)
    """What has been promised to go, by app id, unless somebody died or took it back."""
    purges: Counter[str] = field(default_factory=Counter)
    purged: Counter[str] = field(default_factory=Counter)
    """How often a volume was to be purged, and how often it was."""
    emptied: set[str] = field(default_factory=set)
    """Volumes that have gone since they were to be purged, for that reason or another."""
    unjoined: frozenset[str] = frozenset()
    """Containers that were on a network of our API that is not there, or not right."""


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
    unjoined = [c.id for c in world.containers.values() if SUPERVISOR_NETWORK in c.spec.networks]
    case = Case(
        Desired(apps), world, locked, user_locks, intent, rng.random() < 0.5,
        frozenset(IMAGES), rng, frozenset(c for c in world.containers if rng.random() < 0.2),
        frozenset(rng.randrange(1, 25) for _ in range(rng.randrange(4))),
        unjoined=frozenset(unjoined if api_fault(world) else ()),
    )  # fmt: skip
    if rng.random() < 0.3:
        _begin_with_another_target(case)
    _with_orders(case, random.Random(-1 - seed))
    return case


def _with_orders(case: Case, rng: random.Random) -> None:
    """Its own dice: cases without orders are what they were."""
    if rng.random() < 0.3:
        kinds = [rng.choice((RestartApp, PurgeApp)) for _ in range(rng.randrange(1, 4))]
        orders = [(rng.randrange(30), kind(rng.choice((1, 2)), False)) for kind in kinds]
        case.orders = sorted(orders, key=lambda order: order[0])
        case.taken_back = rng.randrange(40) if rng.random() < 0.3 else -1
    if rng.random() < 0.2:
        came = frozenset(i for i in sorted(case.world.images) if rng.random() < 0.5)
        case.intent = replace(case.intent, images=came)


def handing_over(seed: int) -> Case:
    """A device on which every service runs, is to be replaced, and hands over; nothing else goes
    on that would end a service: no reboots, and nobody who restarts with another."""
    rng = random.Random(seed)
    case = random_case(seed)
    apps = tuple(replace(_app(rng, number), networks=(), volumes=()) for number in (1, 2))
    world: dict[str, Container] = {}

    def handed(service: DesiredService) -> DesiredService:
        old = container_of(
            service.container_name, spec(rng.choice(IMAGES), 2, [], [], ""), service.app_id,
            id=f"o{len(world)}", service_id=service.service_id, created_at="t",
        )  # fmt: skip
        world[old.id] = old
        wanted = spec(service.image, rng.randrange(2), [], [], "")
        needs = tuple(replace(needed, restart=False) for needed in service.depends_on)
        return replace(service, running=True, strategy="hand-over", spec=wanted, depends_on=needs)

    case.desired = Desired(
        tuple(replace(app, services=tuple(handed(s) for s in app.services)) for app in apps)
    )
    images = {c.spec.image: c.spec.image.removeprefix("sha256:") for c in world.values()}
    known = {key: Image(key, frozenset({name})) for key, name in images.items()}
    case.world = Observed(world, {}, {}, {**case.world.images, **known})
    case.intent, case.change, case.orders = Intent(), None, []
    case.host, case.unjoined, case.origins = HostState(boot_id="boot 0"), frozenset(), {}
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
    port = rng.choice(("", "", "", "80", "80-81"))
    needs = [s.name for s in earlier if rng.random() < 0.3]
    parent = rng.choice(needs) if needs and rng.random() < 0.2 else ""
    mine = [f"{uuid}_{n}" for n in nets if rng.random() < 0.6]
    mine += [SUPERVISOR_NETWORK] if rng.random() < 0.3 else []
    used = [f"{number}_{v}" for v in vols if rng.random() < 0.6]
    conditions = [
        Dependency(n, rng.choice(("started", "healthy")), rng.random() < 0.3) for n in needs
    ]
    made = spec(image, rng.randrange(2), mine, used, parent, port)
    if rng.random() < 0.15:
        made = replace(made, fields={**made.fields, "Labels": {REQUIRES_REBOOT: "1"}})
    return DesiredService(
        app_uuid=uuid,
        app_id=number,
        name=name,
        container_name=ContainerName(name, rng.randrange(1, 3), number, commit),
        service_id=ord(name),
        image=image,
        image_present=False,
        running=rng.random() < 0.85,
        spec=made,
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
    api = rng.choice(API_NETWORKS)
    networks |= {key: _api_network(key, spec) for key, spec in api.items()}
    containers = {}
    for serial in range(rng.randrange(7)):
        made = _container(rng, serial, networks, volumes)
        if all(made.raw_name != other.raw_name for other in containers.values()):
            containers[made.id] = made
    return Observed(containers, networks, volumes, {})


def _api_network(key: str, spec: NetworkSpec) -> Network:
    return Network(key, SUPERVISOR_NETWORK, "", 0, SUPERVISOR_NETWORK, spec)


def _container(
    rng: random.Random, serial: int, networks: dict[str, Network], volumes: dict[str, Volume]
) -> Container:
    number, name = rng.choice((1, 2)), rng.choice(SERVICES + "z")
    mine = [n.engine_name for n in networks.values() if n.app_id == number]
    nets = [n for n in mine if rng.random() < 0.5]
    nets += [SUPERVISOR_NETWORK] if rng.random() < 0.3 else []
    vols = [v for v in volumes if v.startswith(str(number)) and rng.random() < 0.5]
    label = ContainerName(name, rng.randrange(1, 3), number, f"c{rng.randrange(2)}")
    state = rng.choice(("created", "running", "running", "exited", "dead", "restarting"))
    port = rng.choice(("", "", "80", "80-81"))
    made = container_of(
        label, spec(rng.choice(IMAGES), rng.randrange(2), nets, vols, "", port), number, state,
        id=f"w{serial}", service_id=ord(name), created_at=f"t{serial}", started_at=f"{serial:06}",
    )  # fmt: skip
    return _retired(rng, made) if rng.random() < 0.2 else made


def _met(rng: random.Random, made: Container) -> Container:
    """A right container as it is met: half-way through a hand-over, meddled with, or untouched."""
    chance = rng.random()
    if chance < 0.15:
        return _retired(rng, made)
    return _meddled(rng, made) if chance < 0.6 else made


def _retired(rng: random.Random, container: Container) -> Container:
    """As a hand-over that was cut off has left it: maybe nobody knows what it was like before."""
    known = container.intended or container.spec
    assert container.name
    return replace(
        container,
        raw_name=retired_name(container.name),
        spec=replace(container.spec, fields={**container.spec.fields, POLICY: dict(NO_RESTART)}),
        intended=known if rng.random() < 0.8 else None,
    )


def _with_right_ones(rng: random.Random, apps: tuple[DesiredApp, ...], world: Observed) -> Observed:
    """Some services have what they want already, or all but the name, or what somebody made of it
    since."""
    right: dict[str, Container] = {}
    names = {known.raw_name for known in world.containers.values()}
    for service in (s for app in apps for s in app.services):
        ids = {c.service: c.id for c in right.values() if c.app_uuid == service.app_uuid}
        if service.spec.parent not in ("", *ids):
            continue
        name = replace(service.container_name, commit=rng.choice(("c0", "c1")))
        if rng.random() < (0.8 if service.spec.parent else 0.3) and str(name) not in names:
            state = rng.choice(("created", "running", "running", "exited"))
            made = container_of(
                name, resolved(service.spec, ids), service.app_id, state,
                id=f"r{len(right)}", service_id=service.service_id,
                created_at=rng.choice(("t", "u")), started_at=f"{rng.randrange(9):06}",
            )  # fmt: skip
            right[made.id] = _met(rng, made)
    return replace(world, containers={**world.containers, **right})


POLICY = "HostConfig.RestartPolicy"


def _meddled(rng: random.Random, made: Container) -> Container:
    """A container that the agent has noted and that is not as it was made."""
    ends = [end for end in made.spec.endpoints if rng.random() < 0.7]
    if not made.spec.parent and rng.random() < 0.3:
        known = {end.network for end in ends}
        more = (f"{made.app_uuid}_old", "supervisor0", "theirs")
        ends += [Endpoint(name) for name in more if name not in known]
    fields = dict(made.spec.fields)
    if rng.random() < 0.4:
        fields[POLICY] = {"Name": "no", "MaximumRetryCount": 0}
    tolerated = {POLICY: fields[POLICY]} if POLICY in fields and rng.random() < 0.3 else {}
    live = replace(made.spec, fields=fields, endpoints=tuple(ends))
    return replace(made, spec=live, intended=made.spec, tolerated=tolerated)


def compiled(case: Case) -> Desired:
    """The target as the compiler would give it for the images that are present now."""
    known = case.compiled
    if known and known[0] is case.desired and known[1] is case.world.images:
        return known[2]

    def with_image(service: DesiredService) -> DesiredService:
        return replace(service, image_present=case.world.image(service.image) is not None)

    apps = case.desired.apps
    found = Desired(tuple(replace(a, services=tuple(map(with_image, a.services))) for a in apps))
    case.compiled = (case.desired, case.world.images, found)
    return found


def situation(case: Case, tick: int) -> Situation:
    return Situation(
        running={name: step for name, (step, _) in case.running.items()},
        backoff={
            name: Backoff(until, case.errors.get(name, "failed"), due=until <= tick)
            for name, until in case.backoff.items()
        },
        intent=case.intent,
        locked=frozenset(case.locked),
        owned_images=case.owned,
        stopped_by_agent=dict.fromkeys(case.stopped, ""),
        handovers=case.handovers,
        failed_handovers=case.failed_handovers,
        keep_images=case.keep,
        keep_volumes=case.keep,
        host=case.host,
        origins=case.origins,
        deltas=not case.keep,
    )


def run(case: Case, planner: Planner = plan) -> str:
    """Run one case to its end; "" when it came to rest as wanted, else what went wrong."""
    for tick in range(MAX_TICKS):
        if case.wrong:
            return case.wrong
        if case.change and case.change[0] == tick:
            case.desired, case.change = case.change[1], None
            case.backoff.clear()
        case.intent = replace(
            case.intent, recreate=case.intent.recreate & case.world.containers.keys()
        )
        _judge(case, tick)
        desired = compiled(case)
        _obey(case, desired, tick)
        case.origins |= to_note(desired, case.world, case.origins)
        found = planner(desired, case.world, situation(case, tick))
        kept = found.wanted | found.remembered
        case.backoff = {name: until for name, until in case.backoff.items() if name in kept}
        if problem := _clash(found, case):
            return problem
        _cancel(case, found)
        for step in found.steps:
            case.running[identity(step)] = (step, tick + case.rng.randrange(3))
            _note(case, step)
        if not (found.steps or case.running or case.change or case.orders):
            if not found.waits:
                return _wrong_at_rest(case)
            _start_owners(case, found)
        if tick in case.deaths:
            _dies(case)
        _time_passes(case, tick)
    return f"still busy after {MAX_TICKS} ticks:\n{found}\nrunning {sorted(case.running)}"


def _start_owners(case: Case, found: Plan) -> None:
    """Where nothing is left but to wait for an owner of namespaces that does not run, because the
    target, a user or its own end says so, or its program fails again and again, a user has it run:
    nobody else would."""
    if not any("whose namespace it shares" in wait.reason for wait in found.waits):
        return
    owners = {(s.app_uuid, s.spec.parent) for a in case.desired.apps for s in a.services}
    apps = tuple(
        replace(
            app,
            services=tuple(
                replace(s, running=True) if s.key in owners else s for s in app.services
            ),
        )
        for app in case.desired.apps
    )
    case.desired = replace(case.desired, apps=apps)
    stopped = {key: c for key, c in case.intent.stopped.items() if key not in owners}
    case.intent = replace(case.intent, stopped=stopped, start=case.intent.start | owners)
    well = {
        container.id: replace(container, state="running")  # its program fails no more
        for container in case.world.containers.values()
        if container.state == "restarting" and container.key in owners
    }
    case.world = replace(case.world, containers={**case.world.containers, **well})


def _obey(case: Case, desired: Desired, tick: int) -> None:
    """What the runtime does with commands about apps (runtime/app_orders.py): one that comes while
    its app could not come back is refused."""
    while case.orders and case.orders[0][0] <= tick:
        _, command = case.orders.pop(0)
        app = app_of(desired, command.app_id)
        if app and all(service.image_present for service in app.services):
            begun = renewal(command, case.world, app)
            renewals = {app.app_id: joined(case.intent, app.app_id, begun)}
            case.intent = replace(case.intent, renewals={**case.intent.renewals, **renewals})
            case.due[app.app_id] = begun
            case.purges.update(begun.volumes)
            case.emptied -= begun.volumes
    if tick == case.taken_back:
        case.intent = replace(case.intent, renewals={})
        case.due.clear()
    case.intent = pruned_of_apps(case.intent, case.world, desired)


def _check_purge(case: Case, step: RemoveVolume) -> None:
    """Data goes under the locks, when nobody uses it, and once."""
    case.emptied.add(step.engine_name)
    if step.cause != PURGED:
        return
    case.purged[step.engine_name] += step.engine_name in case.world.volumes
    with_services = {app.app_id for app in case.desired.apps if app.services}
    if (with_services - case.locked) & {int(step.engine_name[0])}:
        case.wrong = f"{step.engine_name} is purged without the locks"
    if any(step.engine_name in c.spec.volumes for c in case.world.containers.values()):
        case.wrong = f"{step.engine_name} is purged under a container"
    if case.purged[step.engine_name] > case.purges[step.engine_name]:
        case.wrong = f"{step.engine_name} is purged twice"


def _judge(case: Case, tick: int) -> None:
    """What the runtime does before every plan (runtime/handovers.py)."""
    ill = set(lasting(case.ill, case.world))
    if ill != case.ill:
        case.ill = ill
        case.world = replace(case.world, containers=_healthy(case))
    case.handovers = lasting(case.handovers, case.world)
    for step, reason in failures(case.handovers, case.world, case.stopped):
        case.handovers -= {step.new_id}
        case.failed_handovers[step.new_id] = reason
        case.backoff[identity(step)] = tick + 1 + case.rng.randrange(4)
        case.errors[identity(step)] = reason
    last = lasting(case.failed_handovers, case.world)
    case.failed_handovers = {new: case.failed_handovers[new] for new in last}


def _cancel(case: Case, found: Plan) -> None:
    for name, (step, _) in list(case.running.items()):
        if isinstance(step, AwaitHandover) and name not in found.wanted:
            del case.running[name]


def _note(case: Case, step: Step) -> None:
    """What the runtime notes when a step begins."""
    if isinstance(step, StopContainer):
        case.stopped.add(step.container_id)
    elif isinstance(step, StartContainer) and begins(step, case.world):
        case.handovers |= {step.container_id}
    elif isinstance(step, RetireContainer):
        known = case.world.containers.get(step.container_id)
        if known and known.intended is None:
            noted = {known.id: replace(known, intended=known.spec)}
            case.world = replace(case.world, containers={**case.world.containers, **noted})


def _clash(found: Plan, case: Case) -> str:
    names = [identity(step) for step in found.steps]
    if len(set(names)) < len(names):
        return f"a step twice in one plan: {names}"
    if any(isinstance(step, RequestReboot) for step in found.steps):
        busy = [name for name in case.running if not name.startswith(("reboot", "take-locks"))]
        if busy or not case.host.reboot_required or len(found.steps) > 1:
            return f"a reboot that is not required, or not last: {names}, under way {busy}"
        without = {c.app_id for c in case.world.containers.values()} - case.locked
        if without:
            return f"a reboot without the locks of {sorted(without)}"
    again = set(names) & case.running.keys()
    return f"planned though under way: {sorted(again)}" if again else ""


def _time_passes(case: Case, tick: int) -> None:
    case.user_locks = {app: until for app, until in case.user_locks.items() if until > tick}
    ended = [name for name, (_, due) in case.running.items() if due <= tick]
    case.rng.shuffle(ended)
    for name in ended:
        step, _ = case.running.pop(name, (None, 0))
        if step is None:
            continue  # a reboot has ended it
        if case.rng.random() < 0.2 or not _act(case, step):
            case.backoff[name] = tick + 1 + case.rng.randrange(4)
        else:
            case.errors.pop(name, None)
            case.backoff.pop(name, None)


def _dies(case: Case) -> None:
    """Only the target, stops by users and the notes of our own stops outlive the agent. The next
    one adopts the locks it finds, or removes them where a user has taken one meanwhile."""
    for step, _ in case.running.values():
        moment = case.rng.choice(MOMENTS)
        if moment == "half":
            _half(case, step)
        elif moment == "whole" and not isinstance(step, RequestReboot):
            known = dict(case.origins)
            _act(case, step)
            case.origins = known  # what only a living agent notes
    case.running.clear()
    case.backoff.clear()
    case.intent = Intent(stopped=case.intent.stopped)
    case.due.clear()
    case.locked -= case.user_locks.keys()
    case.handovers = frozenset()
    case.failed_handovers.clear()
    case.errors.clear()


def _half(case: Case, step: Step) -> None:
    """Some of the calls that a step consists of."""
    match step:
        case CreateContainer(service=service):
            main = replace(service.spec, endpoints=service.spec.endpoints[:1])
            _act(case, replace(step, service=replace(service, spec=main)))
        case StopContainer(final=True):  # the last rung: removed by force
            left = {k: c for k, c in case.world.containers.items() if k != step.container_id}
            case.world = replace(case.world, containers=left)
        case RetireContainer():
            _change(case, step.container_id, raw_name=retired_name(step.name))
        case ReinstateContainer():
            if known := case.world.containers.get(step.container_id):
                fields = {**known.spec.fields, POLICY: dict(step.policy)}
                _change(case, known.id, spec=replace(known.spec, fields=fields))
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


def _change(case: Case, container_id: str, **changes: object) -> None:
    if known := case.world.containers.get(container_id):
        changed = {known.id: replace(known, **changes)}  # type: ignore[arg-type]
        case.world = replace(case.world, containers={**case.world.containers, **changed})


def _act(case: Case, step: Step) -> bool:
    """Do a step in the model world; False when the world refuses it."""
    if isinstance(step, TakeLocks):
        if step.app_id in case.user_locks and not step.force:
            return False
        case.locked.add(step.app_id)
    elif isinstance(step, ReleaseLocks):
        case.locked.discard(step.app_id)
    elif isinstance(step, AwaitHandover):
        new = case.world.containers.get(step.new_id)
        if new is None or not fault(new):
            case.handovers -= {step.new_id}
    elif isinstance(step, StartContainer) and _port_taken(case, step):
        case.errors[identity(step)] = "Bind for 0.0.0.0:80 failed: port is already allocated"
        return False
    elif isinstance(step, RequireReboot):
        case.host = replace(case.host, reboot_required=True)
        _note_boot(case, step.container_id)
    elif isinstance(step, RequestReboot):
        _boots(case)
    elif isinstance(step, UpdateContainer) and step.container_id in case.stubborn:
        return False
    else:
        case.serial += 1
        if isinstance(step, StartContainer):
            _check_start(case, step.container_id)
        if isinstance(step, RemoveVolume):
            _check_purge(case, step)
        case.world = effect(step, case.world, f"m{case.serial}")  # type: ignore[arg-type]
        if isinstance(step, StartContainer):
            case.stopped.discard(step.container_id)
            _fares(case, step)
        if isinstance(step, CreateContainer) and f"m{case.serial}" in case.world.containers:
            case.made[f"m{case.serial}"] = case.host.boot_id
            if _requires_reboot(case.world.containers[f"m{case.serial}"]):
                _note_boot(case, f"m{case.serial}")
        case.world = replace(case.world, containers=_healthy(case))
    return True


def _port_taken(case: Case, step: StartContainer) -> bool:
    """Another self of the service publishes a port and has not ended."""
    known = case.world.containers
    ports = "HostConfig.PortBindings"
    new = known.get(step.container_id)
    return new is not None and any(
        other.key == new.key and other.running and other.id != new.id
        and other.spec.fields.get(ports) and new.spec.fields.get(ports)
        for other in known.values()
    )  # fmt: skip


def _fares(case: Case, step: StartContainer) -> None:
    """What becomes of a container that is started beside an old one."""
    chance = case.rng.random()
    if begins(step, case.world) and chance < 0.3:
        if chance < 0.15:
            _change(case, step.container_id, state="exited", exit_code=1)
        else:
            case.ill.add(step.container_id)


def _requires_reboot(container: Container) -> bool:
    return REQUIRES_REBOOT in (container.spec.fields.get("Labels") or {})


def _note_boot(case: Case, container_id: str) -> None:
    known = case.origins.get(container_id, Origin())
    case.origins[container_id] = replace(known, boot=case.host.boot_id)


def _boots(case: Case) -> None:
    """A reboot: files below /tmp are gone, the agent starts anew, the engine starts what ran."""
    case.boots += 1
    case.host = HostState(boot_id=f"boot {case.boots}")
    case.running.clear()
    case.backoff.clear()
    case.errors.clear()
    case.handovers = frozenset()
    case.failed_handovers.clear()
    case.locked.clear()
    case.user_locks.clear()
    case.intent = Intent(stopped=case.intent.stopped)
    case.due.clear()


def _check_start(case: Case, container_id: str) -> None:
    container = case.world.containers.get(container_id)
    here = case.made.get(container_id) == case.host.boot_id
    noted = case.origins.get(container_id, Origin()).boot
    fresh = container is not None and container.state == "created"
    if fresh and here and noted and container and _requires_reboot(container):
        case.wrong = f"{container_id} is started in the boot that it was made in"


def _healthy(case: Case) -> dict[str, Container]:
    return {
        key: replace(c, health="unhealthy" if key in case.ill else "healthy")
        if c.state == "running"
        else c
        for key, c in case.world.containers.items()
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
        if container.name != service.container_name or container.retired:
            return f"{key}: wrong name"
        policy = container.spec.fields.get(POLICY, DEFAULTS[POLICY])
        if policy not in (DEFAULTS[POLICY], container.tolerated.get(POLICY)):
            return f"{key}: has lost its restart policy"
        stopped = case.intent.stopped.get(key) == service.container_name.commit
        if container.running and (stopped or not service.running):
            return f"{key}: runs though it should not"
        if container.state == "created" and service.running and not stopped:
            return f"{key}: never started"
        left = container.state == "exited" and container.id in case.stopped
        if left and service.running and not stopped:
            return f"{key}: stopped by the agent and left so"
        if drift := _drifted(case, service, container, found):
            return f"{key}: {drift}"
    networks = {n.engine_name for app in case.desired.apps for n in app.networks}
    if any(SUPERVISOR_NETWORK in s.spec.networks for s in wanted.values()):
        if wrong := api_fault(case.world):
            return f"{SUPERVISOR_NETWORK}: {wrong}"
        if left_over := case.unjoined & case.world.containers.keys():
            return f"containers {sorted(left_over)} are not on {SUPERVISOR_NETWORK}"
    present = [n.engine_name for n in case.world.networks.values() if n.app]
    if sorted(present) != sorted(networks):
        return f"networks {sorted(present)} but wanted {sorted(networks)}"
    if case.host.reboot_required:
        return "a reboot is still required"
    for key, service in wanted.items():
        noted = case.origins.get(found[key].id, Origin()).parents
        for name in (each.service for each in service.depends_on if each.restart):
            parent = found[service.app_uuid, name]
            if parent.state != "created" and noted.get(name, parent.id) != parent.id:
                return f"{key}: not made anew after {name}"
    for app_id, begun in case.due.items():
        if left := begun.containers & case.world.containers.keys():
            return f"app {app_id}: {sorted(left)} are not made anew"
        if left := begun.volumes - case.emptied:
            return f"app {app_id}: {sorted(left)} are not purged"
    if case.locked:
        return f"locks of {sorted(case.locked)} are still held"
    return _wrong_leftovers(case)


def _drifted(
    case: Case,
    service: DesiredService,
    container: Container,
    found: dict[tuple[str, str], Container],
) -> str:
    networks = [n for n in container.spec.networks if n != "theirs"]
    if sorted(networks) != sorted(service.spec.networks):
        return f"in networks {networks} but wanted {service.spec.networks}"
    policy = canonical(POLICY, container.spec.fields.get(POLICY))
    if policy != canonical(POLICY, None) and not container.tolerated:
        return "wrong restart policy"
    owner = found.get((service.app_uuid, service.spec.parent))
    stopped = case.intent.stopped.get(service.key) == service.container_name.commit
    return "in a dead namespace" if outlived(container, owner) and not stopped else ""


def _wrong_leftovers(case: Case) -> str:
    volumes = {v.engine_name for app in case.desired.apps for v in app.volumes}
    if not volumes <= case.world.volumes.keys():
        return "a volume is missing"
    if case.keep:
        return ""
    wanted = {s.image for app in case.desired.apps for s in app.services}
    tags = {tag for image in case.world.images.values() for tag in image.tags}
    return "" if tags <= wanted else f"images {sorted(tags - wanted)} are left over"
