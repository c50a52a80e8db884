"""The rules for the services of one app: which containers go, which come, which are started.

Theory: a service may have no container, one, or several (an interrupted replacement). One is
chosen as `current`; every other one goes. Then, in this order: not in the target -> goes; differs
from its spec -> goes, once every image of the release is here; missing -> fetched, created; right
-> named, started or stopped. A container goes in two steps, stop and remove, and needs the app's
update locks. What cannot be done yet leaves a wait that names what it is waiting for.

An exited container is left alone: the engine's restart policy owns it. Only a container that a
user asked to start, or that the agent itself stopped, is started again (spec 20 §13.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .body import differences, parents
from .desired import Dependency, DesiredApp, DesiredService
from .names import STRATEGY, SUPERVISOR_NETWORK
from .observed import Container
from .situation import Draft
from .steps import (
    CreateContainer,
    EnsureSupervisorNetwork,
    Fetch,
    RemoveContainer,
    RenameContainer,
    StartContainer,
    StopContainer,
)

DELETE_FIRST = "delete-then-download"
EARLY = ("kill-then-download", DELETE_FIRST)
"""Strategies that stop the old container before the new image is fetched."""

_SHOWN_DIFFERENCES = 3
_PROXY_FAILED = "cannot assign requested address"


@dataclass(frozen=True, slots=True)
class Ground:
    """What the services of one app stand on.

    `usable` are the engine names of networks and volumes that are there and as wanted; `replaced`
    maps those that must go to the reason, which drives their users out first. `leftovers` are
    images that nobody needs any more and that are about to be removed.
    """

    app: DesiredApp
    containers: Mapping[str, tuple[Container, ...]]
    usable: frozenset[str]
    replaced: Mapping[str, str]
    leftovers: tuple[str, ...] = ()

    @property
    def declared(self) -> frozenset[str]:
        """Networks and volumes that the plan itself provides; the engine has or makes others."""
        networks = (network.engine_name for network in self.app.networks)
        volumes = (volume.engine_name for volume in self.app.volumes)
        return frozenset((*networks, *volumes, SUPERVISOR_NETWORK))

    def missing_images(self) -> list[str]:
        return [s.name for s in self.app.services if not s.image_present]


def plan_services(draft: Draft, ground: Ground) -> None:
    """All rules for all services of an app."""
    wanted = {service.name: service for service in ground.app.services}
    missing = ground.missing_images()
    current = {
        name: chosen
        for name, service in wanted.items()
        if (chosen := _current(service, ground.containers.get(name, ()), ground))
    }
    for name in sorted({*wanted, *ground.containers}):
        known = ground.containers.get(name, ())
        service = wanted.get(name)
        for container in known:
            if container is not current.get(name):
                early = _strategy(service, container) in EARLY
                _go(draft, container, _why_extra(container, service), [] if early else missing)
        if service:
            _one(draft, ground, service, current, missing, bool(known))


def _current(
    service: DesiredService, known: Iterable[Container], ground: Ground
) -> Container | None:
    """The container that stands for the service: alive, right if possible, newest, running."""
    alive = [c for c in known if c.state not in ("dead", "removing")]
    if len(alive) < 2:
        return alive[0] if alive else None

    def rank(container: Container) -> tuple[bool, bool, str, str]:
        right = not _differences(service, container, ground)
        return right, container.running, container.created_at, container.id

    return max(alive, key=rank)


def _strategy(service: DesiredService | None, container: Container) -> str:
    """The update strategy: the target's, or for a service that is to go the container's own."""
    if service:
        return service.strategy
    labels = container.effective_spec.fields.get("Labels") or {}
    return str(labels.get(STRATEGY, ""))


def _why_extra(container: Container, service: DesiredService | None) -> str:
    if container.state in ("dead", "removing"):
        return f"container is {container.state}"
    return "second container of the service" if service else "service is not in the target"


def _one(
    draft: Draft,
    ground: Ground,
    service: DesiredService,
    current: Mapping[str, Container],
    missing: list[str],
    any_known: bool,
) -> None:
    """The rules for one wanted service."""
    container = current.get(service.name)
    if _should_run(draft, service) and (container is None or container.state == "created"):
        draft.down = True
    if not service.image_present:
        _without_image(draft, ground, service, container, any_known)
        return
    draft.let_end(_fetch(service))
    if container is None:
        if not any_known:
            _create(draft, ground, service, current, missing)
        return
    reason = _why_replace(draft, ground, service, container, current)
    if reason:
        _go(draft, container, reason, [] if service.strategy in EARLY else missing)
        return
    _settle(draft, ground, service, container, current, missing)


def _fetch(service: DesiredService) -> Fetch:
    cause = "image is missing"
    return Fetch(service.image, service.app_uuid, service.app_id, service.name, cause)


def _without_image(
    draft: Draft,
    ground: Ground,
    service: DesiredService,
    container: Container | None,
    any_known: bool,
) -> None:
    """The image is to be fetched: first, or after the old container, or its image too, has made
    room for it (spec 20 §15)."""
    if container and service.strategy in EARLY:
        _go(draft, container, f"makes room first: strategy {service.strategy}", [])
    elif service.strategy in EARLY and any_known:
        return  # what is left of the old ones goes first
    elif service.strategy == DELETE_FIRST and ground.leftovers:
        images = ", ".join(ground.leftovers)
        draft.wait_service(service.name, f"waits for the removal of image {images}")
    else:
        draft.emit(_fetch(service))
        if container and container.running and _user_stopped(draft, service):
            _stop(draft, service, container)


def _differences(service: DesiredService, container: Container, ground: Ground) -> str:
    """The differing fields in words, or "" when the container is as wanted."""
    ids = {
        name: ground.containers[name][0].id
        for name in parents(service.spec)
        if name in ground.containers
    }
    parent_id = ids.get(service.spec.parent)
    found = differences(service.spec, container.effective_spec, parent_id, ids)
    shown = [str(difference) for difference in found[:_SHOWN_DIFFERENCES]]
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return "; ".join(shown) + more


def _why_replace(
    draft: Draft,
    ground: Ground,
    service: DesiredService,
    container: Container,
    current: Mapping[str, Container],
) -> str:
    if container.id in draft.situation.intent.recreate:
        return "restart was asked for"
    for used in (*container.spec.networks, *sorted(container.spec.volumes)):
        if used in ground.replaced:
            return f"uses {used}, which has to go: {ground.replaced[used]}"
    return _differences(service, container, ground)


def _go(draft: Draft, container: Container, cause: str, missing: list[str]) -> None:
    """Stop, then remove; never before every image of the new release is here (spec 20 §15)."""
    if missing and container.running:
        names = ", ".join(missing)
        draft.wait_service(container.service, f"keeps running until the image of {names} is here")
        return
    where = (container.app_uuid, container.service, container.id)
    if container.running:
        grace = container.stop_timeout
        draft.emit(StopContainer(*where, grace, final=True, cause=cause), needs_lock=True)
    else:
        draft.emit(RemoveContainer(*where, cause), needs_lock=container.state != "dead")


def take_down(draft: Draft, container: Container, cause: str) -> None:
    """One container goes, whatever is wanted of its service (renewal.py)."""
    _go(draft, container, cause, [])


def _create(
    draft: Draft,
    ground: Ground,
    service: DesiredService,
    current: Mapping[str, Container],
    missing: list[str],
) -> None:
    """Create, when all that a container needs for its creation is there."""
    if missing:
        draft.wait_service(service.name, "waits for the image of " + ", ".join(missing))
        return
    if SUPERVISOR_NETWORK in service.spec.networks and SUPERVISOR_NETWORK not in ground.usable:
        draft.emit(EnsureSupervisorNetwork(f"service {service.name} uses it"))
    used = (*service.spec.networks, *sorted(service.spec.volumes))
    absent = [name for name in used if name in ground.declared and name not in ground.usable]
    absent += [
        f"container of service {parent}"
        for parent in sorted(parents(service.spec))
        if parent not in current
    ]
    if absent:
        draft.wait_service(service.name, "waits for " + ", ".join(absent))
        return
    draft.emit(CreateContainer(service, "no container yet"), needs_lock=True)


def _settle(
    draft: Draft,
    ground: Ground,
    service: DesiredService,
    container: Container,
    current: Mapping[str, Container],
    missing: list[str],
) -> None:
    """The container is right: see to its name and to whether it runs. Until every image of the
    release is here only what users ask for is done (spec 20 §13.6)."""
    if container.name != service.container_name:
        if not missing:
            _rename(draft, service, container)
            return
        names = ", ".join(missing)
        draft.wait_service(service.name, f"joins its release when the image of {names} is here")
    if _should_run(draft, service):
        if _startable(draft, service, container):
            _start(draft, service, container, current, ground)
    elif container.running and (service.running or not missing):
        _stop(draft, service, container)


def _stop(draft: Draft, service: DesiredService, container: Container) -> None:
    cause = "stopped by request" if service.running else "target says stopped"
    where = (container.app_uuid, container.service, container.id)
    draft.emit(StopContainer(*where, container.stop_timeout, cause=cause), needs_lock=True)


def _rename(draft: Draft, service: DesiredService, container: Container) -> None:
    old, new = container.raw_name or container.name, service.container_name
    where = (container.app_uuid, container.service, container.id)
    step = RenameContainer(*where, new, f"named {old}, release says {new}")
    draft.emit(step, needs_lock=True)


def _should_run(draft: Draft, service: DesiredService) -> bool:
    return service.running and not _user_stopped(draft, service)


def _user_stopped(draft: Draft, service: DesiredService) -> bool:
    """Whether a user stopped this very release of the service."""
    commit = draft.situation.intent.stopped.get(service.key)
    return commit is not None and commit == service.container_name.commit


def _startable(draft: Draft, service: DesiredService, container: Container) -> bool:
    if container.state == "created":
        return True
    if container.state != "exited":
        return False
    situation = draft.situation
    return (
        service.key in situation.intent.start
        or container.id in situation.stopped_by_agent
        or _PROXY_FAILED in container.error.lower()
    )


def _start(
    draft: Draft,
    service: DesiredService,
    container: Container,
    current: Mapping[str, Container],
    ground: Ground,
) -> None:
    wanted = {other.name: other for other in ground.app.services}
    unmet = [
        reason
        for dependency in service.depends_on
        if (reason := _unmet(draft, dependency, wanted, current, ground))
    ]
    if unmet:
        draft.wait_service(service.name, "waits for " + ", ".join(unmet))
        return
    cause = "created, not started yet" if container.state == "created" else "was stopped"
    draft.emit(StartContainer(container.app_uuid, container.service, container.id, cause))


def _unmet(
    draft: Draft,
    dependency: Dependency,
    wanted: Mapping[str, DesiredService],
    current: Mapping[str, Container],
    ground: Ground,
) -> str:
    """Why a dependency is not met yet, or "". One that is not to run cannot be waited for."""
    other = wanted.get(dependency.service)
    if other is None or not _should_run(draft, other):
        return ""
    container = current.get(other.name)
    if container is None or container.state == "created" or _differences(other, container, ground):
        return f"{other.name} to be started"
    if dependency.condition == "healthy" and container.health not in ("", "none", "healthy"):
        return f"{other.name} to be healthy (is {container.health})"
    if dependency.condition == "completed":
        done = container.state == "exited" and container.exit_code == 0
        return "" if done else f"{other.name} to complete (is {container.state})"
    return ""
