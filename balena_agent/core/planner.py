"""The planner: desired state, observed world and situation -> steps and waits. Pure.

Theory: every call looks at everything afresh; nothing is remembered between calls. A plan holds
only steps that are independent of each other and may be done now, in any order, any subset of
them succeeding. It is executed, the world is observed again, and the next plan follows. That it
always comes to rest is proved by tests/unit/test_convergence.py, for random worlds and failures.

Order of rules (spec 20 §13): what takes the device as a whole, such as a requested reboot, in a
plan of its own (exclusive.py); then per app networks and volumes that must go, services, networks
and volumes that must come, locks; what belongs to no app; images that nobody uses; last, when
nothing else is left to do, a reboot that changes wait for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from . import images, supervisor
from .desired import Desired, DesiredApp
from .exclusive import plan_host_change, plan_power, plan_shutdown
from .firmware import plan_firmware
from .ground import Ground
from .names import SUPERVISOR_NETWORK
from .networks import network_differences, volume_differences
from .observed import NO_APP, Container, Network, Observed, Volume
from .plan import Plan
from .reboots import Owner, accepted, with_reboot
from .renewal import plan_renewal
from .services import plan_services
from .situation import Draft, Situation, joined
from .steps import (
    CreateContainer,
    CreateNetwork,
    CreateVolume,
    Fetch,
    ReleaseLocks,
    RemoveNetwork,
    RemoveVolume,
)
from .target import SUPERVISOR_APPS
from .traits import service_of, subject


@dataclass(slots=True)
class _Belongings:
    """What one app has in the world."""

    app_id: int = -1
    containers: dict[str, list[Container]] = field(default_factory=dict)
    networks: list[Network] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Around:
    """What an app's plan must know of the world beyond the app: engine names that some container
    uses, networks that all apps share, images that are about to go, what is wrong with the network
    of our API, fields that the engine drops, and all volumes there are."""

    users: frozenset[str]
    shared: frozenset[str]
    leftovers: tuple[str, ...]
    api_fault: str
    ignored: frozenset[str]
    volumes: frozenset[str]


def plan(desired: Desired, observed: Observed, situation: Situation) -> Plan:
    """What to do now, and what is waited for."""
    situation = _without_leaving_locks(situation)
    world = _by_app(desired, observed)
    if situation.stopping:
        return plan_shutdown(desired, observed, situation)
    busy = {subject(step) for step in situation.running.values()}
    if situation.intent.power:
        return plan_power(_owners(world), situation, busy)
    if situation.power_requested:
        return accepted()
    if situation.intent.network:
        return plan_host_change(_owners(world), situation, busy)
    if not desired.asked:
        return _plan_unasked(situation, busy)
    users = _users(observed, situation)
    bases = images.Bases(observed) if situation.deltas else None
    unneeded = images.unneeded(desired, observed, situation, bases)
    drafts: list[Draft] = []
    settled: set[str] = set()
    apps = {app.uuid: app for app in desired.apps}
    api_fault = supervisor.fault(observed)
    shared = frozenset() if api_fault else frozenset({SUPERVISOR_NETWORK})
    volumes = frozenset(observed.volumes)
    around = _Around(users, shared, unneeded.awaited, api_fault, observed.unsupported, volumes)
    for uuid in sorted({*apps, *world}):
        mine = world.get(uuid) or _Belongings()
        app = apps.get(uuid) or DesiredApp(uuid, mine.app_id, name="", commit="")
        draft = Draft(situation, busy, app.uuid, app.app_id)
        _plan_app(draft, app, mine, around, uuid in apps)
        images.with_sources(draft, app, bases)
        drafts.append(draft)
        if draft.idle and not app.problem:
            settled.add(uuid)
    device = Draft(situation, busy)
    for step in situation.host_steps:
        device.emit(step)
    _orphan_locks(device, {draft.app_id for draft in drafts})
    _let_locks_go(device)
    supervisor.plan_network(device, desired, observed, api_fault)
    plan_firmware(device, desired, observed)
    images.tidy(device, unneeded)
    images.limit_downloads(drafts, observed, situation)
    for name in sorted(situation.intent.cleanup):
        device.emit(RemoveVolume("", name, "nobody needs it"))
    found = joined([*drafts, device], frozenset(settled))
    return with_reboot(found, _owners(world), situation)


def plan_apart(situation: Situation) -> Plan:
    """What can be done while the engine is not known: nothing but what is the host's alone."""
    device = Draft(situation, {subject(step) for step in situation.running.values()})
    if not (situation.stopping or situation.intent.power):
        for step in situation.host_steps:
            device.emit(step)
    return device.plan()


def _owners(world: Mapping[str, _Belongings]) -> list[Owner]:
    """The apps whose update locks a reboot needs."""
    return [
        Owner(uuid, mine.app_id, tuple(sorted(mine.containers)))
        for uuid, mine in sorted(world.items())
        if mine.containers
    ]


def _by_app(desired: Desired, observed: Observed) -> dict[str, _Belongings]:
    """Everything of ours, sorted to the apps it belongs to: by uuid, else by app id, so that a
    device may move between backends that number or name apps differently (spec 20 §10)."""
    known = {app.uuid for app in desired.apps}
    by_id = {app.app_id: app.uuid for app in desired.apps}
    world: dict[str, _Belongings] = {}

    def owner(uuid: str, app_id: int) -> str:
        return uuid if uuid in known else by_id.get(app_id, uuid or str(app_id))

    def of(uuid: str, app_id: int) -> _Belongings:
        return world.setdefault(owner(uuid, app_id), _Belongings(app_id))

    for container in observed.containers.values():
        if container.name is not None:
            uuid = owner(container.app_uuid, container.app_id)
            if uuid != container.app_uuid:
                container = replace(container, app_uuid=uuid)
            mine = of(uuid, container.app_id)
            mine.containers.setdefault(container.service, []).append(container)
    for network in observed.networks.values():
        if network.engine_name != SUPERVISOR_NETWORK:
            of(network.app, network.app_id).networks.append(network)
    for volume in observed.volumes.values():
        if volume.app_id == NO_APP:
            continue
        uuid = by_id.get(volume.app_id, volume.app_uuid or str(volume.app_id))
        world.setdefault(uuid, _Belongings(volume.app_id)).volumes.append(volume)
    return world


def _users(observed: Observed, situation: Situation) -> frozenset[str]:
    """Engine names of networks and volumes that a container uses, or one in the making will."""
    specs = [container.spec for container in observed.containers.values()]
    specs += [
        step.service.spec
        for step in situation.running.values()
        if isinstance(step, CreateContainer)
    ]
    return frozenset(name for spec in specs for name in (*spec.networks, *spec.volumes))


def _plan_app(
    draft: Draft,
    app: DesiredApp,
    mine: _Belongings,
    around: _Around,
    in_target: bool,
) -> None:
    if app.problem:
        _release_locks(draft, app)
        return  # rejected: nothing of it is touched, and there is nothing to wait for
    if begun := draft.situation.intent.renewals.get(app.app_id):
        known = [container for each in mine.containers.values() for container in each]
        names = [service.name for service in app.services]
        plan_renewal(draft, begun, known, names, around.volumes)
        return
    replaced = _replaced_networks(app, mine)
    replaced |= _replaced_volumes(
        app, mine, removed=not in_target and not draft.situation.keep_volumes
    )
    present = {n.engine_name for n in mine.networks} | {v.engine_name for v in mine.volumes}
    containers = {name: tuple(known) for name, known in mine.containers.items()}
    ground = Ground(
        app,
        containers,
        frozenset(present - replaced.keys() - _going(draft.situation)) | around.shared,
        replaced,
        around.leftovers,
        around.api_fault,
        around.ignored,
        draft.situation.damped,
    )
    plan_services(draft, ground)
    _plan_parts(draft, app, mine, replaced, present, around.users)
    services = {service.name for service in app.services} | containers.keys()
    draft.take_locks(tuple(sorted(services)))
    _release_locks(draft, app)


_UNDER_LOCK = ("create", "start", "stop", "remove", "rename", "retire", "reinstate",
               "await-handover", "disconnect")  # fmt: skip
"""What is done, or follows on something that was done, under the update locks."""


def _going(situation: Situation) -> set[str]:
    """Networks and volumes whose removal is under way, be it that nobody wants it any more."""
    return {
        step.engine_name
        for step in situation.running.values()
        if isinstance(step, (RemoveNetwork, RemoveVolume))
    }


def _release_locks(draft: Draft, app: DesiredApp) -> None:
    """Give the locks back when nothing of the app is left that needs them. They are kept while a
    service is down half-way through a replacement: users must not be let in there (spec 20 §17)."""
    if not draft.locked or draft.down:
        return
    under_way = any(
        service_of(step)[0] == app.uuid
        for step in draft.situation.running.values()
        if not isinstance(step, Fetch)
    )
    if not under_way and not draft.wants(*_UNDER_LOCK):
        draft.emit(ReleaseLocks(app.uuid, app.app_id, "nothing left to do"))


def _without_leaving_locks(situation: Situation) -> Situation:
    """Locks that are just given back are as good as gone: nothing may be begun under them."""
    leaving = {s.app_id for s in situation.running.values() if isinstance(s, ReleaseLocks)}
    return replace(situation, locked=situation.locked - leaving) if leaving else situation


def _let_locks_go(draft: Draft) -> None:
    for step in draft.situation.running.values():
        if isinstance(step, ReleaseLocks):
            draft.let_end(step)


def _orphan_locks(draft: Draft, known: set[int]) -> None:
    """Locks of apps that have gone altogether, or of which nothing is known."""
    for app_id in sorted(draft.situation.locked - known):
        draft.emit(ReleaseLocks("", app_id, "no such app"))


def _replaced_networks(app: DesiredApp, mine: _Belongings) -> dict[str, str]:
    wanted = {network.engine_name: network for network in app.networks}
    reasons: dict[str, str] = {}
    seen: set[str] = set()
    for network in sorted(mine.networks, key=lambda n: n.id):
        name = network.engine_name
        if name not in wanted:
            reasons[name] = "network is not in the target"
        elif name in seen:
            reasons[name] = "there are two networks of this name"
        elif found := network_differences(wanted[name].spec, network.spec):
            reasons[name] = "; ".join(str(difference) for difference in found[:3])
        seen.add(name)
    return reasons


def _replaced_volumes(app: DesiredApp, mine: _Belongings, removed: bool) -> dict[str, str]:
    """Volumes that differ must go. Those that the target no longer names keep their data, until
    their app is removed as a whole (spec 20 §13.3). What a local user's target has made goes by the
    rules of local mode (borrowed.py), and what the peer has of its own is not ours to remove."""
    wanted = {volume.engine_name: volume for volume in app.volumes}
    reasons: dict[str, str] = {}
    for volume in mine.volumes:
        name = volume.engine_name
        if name in wanted:
            if found := volume_differences(wanted[name].spec, volume.spec):
                reasons[name] = "; ".join(str(difference) for difference in found[:3])
        elif removed and not _is_not_the_clouds(volume):
            reasons[name] = "app is not in the target"
    return reasons


def _is_not_the_clouds(volume: Volume) -> bool:
    """Whether no target of a cloud can have made it. An app of a local user's target has its id for
    a uuid (spec 20 §3.2)."""
    return volume.app_uuid == str(volume.app_id) or volume.app_uuid in SUPERVISOR_APPS


def _plan_parts(
    draft: Draft,
    app: DesiredApp,
    mine: _Belongings,
    replaced: Mapping[str, str],
    present: set[str],
    users: frozenset[str],
) -> None:
    """Networks and volumes: those that must go, when nobody uses them any more, then new ones."""
    for network in mine.networks:
        name = network.engine_name
        if name in replaced:
            cause = replaced[name]
            _remove_unused(draft, RemoveNetwork(app.uuid, name, network.id, cause), users)
    for volume in mine.volumes:
        name = volume.engine_name
        if name in replaced:
            _remove_unused(draft, RemoveVolume(app.uuid, name, replaced[name]), users)
    for wanted in app.networks:
        if wanted.engine_name not in present:
            draft.emit(CreateNetwork(app.uuid, app.app_id, wanted, "no such network yet"))
    for wanted_volume in app.volumes:
        if wanted_volume.engine_name not in present:
            draft.emit(CreateVolume(app.uuid, app.app_id, wanted_volume, "no such volume yet"))


def _remove_unused(draft: Draft, step: RemoveNetwork | RemoveVolume, users: frozenset[str]) -> None:
    if step.engine_name in users:
        draft.wait(f"removal of {step.engine_name}", "a container still uses it")
    else:
        draft.emit(step)


def _plan_unasked(situation: Situation, busy: set[str]) -> Plan:
    """No target: whose the world is will be told, until then all stays as it is. Locks are not of
    the world: a run before us, or a reboot that never came, may have left us with some."""
    device = Draft(situation, busy)
    _orphan_locks(device, set())
    return device.plan()
