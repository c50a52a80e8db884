"""The rules for the services of one app: which containers go, which come, which are started.

Theory: a service may have no container, one, or several (an interrupted replacement). One is
chosen as `current`; every other one goes. Then, in this order: not in the target -> goes; differs
from its spec -> goes, once every image of the release is here; missing -> fetched, created; right
-> repaired in place where it has drifted (drift.py), named, started or stopped. A container goes in
two steps, stop and remove, and needs the app's update locks. What cannot be done yet leaves a wait
that names what it is waiting for.

An exited container is left alone: the engine's restart policy owns it. Only a container that a
user asked to start, or that the agent itself stopped, is started again (spec 20 §13.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from . import damping, handover, supervisor
from .body import parents
from .desired import DesiredService
from .drift import beyond_repair, outlived, repair
from .ground import Ground, differing, in_words, unlike
from .handover import Chosen
from .names import STRATEGY, SUPERVISOR_NETWORK
from .observed import Container
from .origins import renewed_parent
from .reboots import awaits_boot, plan_requirement
from .running import all_unmet, restart, should_run, start, startable, stop, user_stopped
from .situation import Draft
from .steps import (
    CreateContainer,
    Fetch,
    RemoveContainer,
    RenameContainer,
    StartContainer,
    StopContainer,
)

DELETE_FIRST = "delete-then-download"
EARLY = ("kill-then-download", DELETE_FIRST)
"""Strategies that stop the old container before the new image is fetched."""


def plan_services(draft: Draft, ground: Ground) -> None:
    """All rules for all services of an app."""
    wanted = {service.name: service for service in ground.app.services}
    missing = ground.missing_images()
    chosen = {
        name: _choose(draft, service, ground.containers.get(name, ()), ground)
        for name, service in wanted.items()
    }
    current = {name: found.current for name, found in chosen.items() if found.current}
    for name in sorted({*wanted, *ground.containers}):
        known = ground.containers.get(name, ())
        if _held(draft, known):
            continue
        service, found = wanted.get(name), chosen.get(name, Chosen())
        for container in known:
            if container is not found.current and container is not found.old:
                needed = [] if _may_go(service, container, found) else missing
                _go(draft, container, _why_extra(container, service, found), needed)
        if service:
            if found.current and found.old:
                handover.beside(draft, service, found.current, found.old)
            _one(draft, ground, service, current, missing, bool(known))


def _held(draft: Draft, known: Iterable[Container]) -> bool:
    """Whether a service stays as it is, because nobody can say whether it is as wanted."""
    unread = next((c for c in known if c.unread and not c.leaving), None)
    if unread:
        reason = f"the engine cannot tell about its container: {unread.unread}"
        draft.wait_service(unread.service, reason)
    return unread is not None


def _choose(
    draft: Draft, service: DesiredService, known: Iterable[Container], ground: Ground
) -> Chosen:
    """The container that stands for the service: alive, right if possible, newest, running."""
    alive = [c for c in known if not c.leaving]
    if len(alive) < 2:
        return Chosen(alive[0] if alive else None)
    if should_run(draft, service) and handover.possible(service, ground.app):
        right = {c.id for c in alive if not unlike(service, c, ground)}
        leaving = {
            c.id
            for c in alive
            if _must_go(draft, ground, service, c) or _cut_off(ground, c) or _in_the_way(ground, c)
        }
        return handover.choose(draft, service, alive, right, leaving)

    def rank(container: Container) -> tuple[bool, bool, str, str]:
        right = not unlike(service, container, ground)
        return right, container.running, container.created_at, container.id

    return Chosen(max(alive, key=rank))


def _may_go(service: DesiredService | None, container: Container, found: Chosen) -> bool:
    """Whether one that is too many need not wait for the images of the release: it makes room for
    one, or another does its work."""
    replaced = service is not None and service.strategy == handover.HAND_OVER
    other = replaced and found.current is not None and handover.serving(found.current)
    return other or _strategy(service, container) in EARLY


def _strategy(service: DesiredService | None, container: Container) -> str:
    """The update strategy: the target's, or for a service that is to go the container's own."""
    if service:
        return service.strategy
    labels = container.effective_spec.fields.get("Labels") or {}
    return str(labels.get(STRATEGY, ""))


def _why_extra(container: Container, service: DesiredService | None, found: Chosen) -> str:
    if container.leaving:
        return f"container is {container.state}"
    if found.cause:
        return found.cause
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
    if should_run(draft, service) and (container is None or container.state == "created"):
        draft.down |= container is None or not awaits_boot(service, container, draft.situation)
    if not service.image_present:
        _without_image(draft, ground, service, container, any_known)
        return
    draft.let_end(_fetch(service))
    if container is None:
        if not any_known:
            _create(draft, ground, service, current, missing)
        return
    if cut_off := _cut_off(ground, container):
        _go(draft, container, cut_off, missing, needs_lock=False)
        return
    reason = _why_replace(draft, ground, service, container, current)
    if reason and _hands_over(draft, ground, service, container, current):
        _hand_over(draft, ground, service, container, reason, current, missing)
    elif reason:
        needed = [] if service.strategy in EARLY else missing
        if needed and _start_again(draft, service, container):
            return
        _go(draft, container, reason, needed)
        if needed:
            _call_off(draft, service, container)
    else:
        _settle(draft, ground, service, container, current, missing)


def _hands_over(
    draft: Draft,
    ground: Ground,
    service: DesiredService,
    old: Container,
    current: Mapping[str, Container],
) -> bool:
    """Whether the container is replaced by a hand-over, and not just stopped first. One that is
    restarted with what it depends on has nobody to hand over to: the new one is no different."""
    return (
        should_run(draft, service)
        and handover.possible(service, ground.app)
        and handover.serving(old)
        and not _must_go(draft, ground, service, old)
        and not _in_the_way(ground, old)
        and not handover.clash(draft, service, old)
        and not renewed_parent(service, old, current, draft.situation.origins)
    )


def _hand_over(
    draft: Draft,
    ground: Ground,
    service: DesiredService,
    old: Container,
    reason: str,
    current: Mapping[str, Container],
    missing: list[str],
) -> None:
    """The new container is made, under its name, while the old one runs; if it can be started."""
    if missing:
        names = ", ".join(missing)
        draft.wait_service(service.name, f"keeps running until the image of {names} is here")
    elif absent := _absent(ground, service, current):
        draft.wait_service(service.name, "waits for " + ", ".join(absent))
    elif unmet := all_unmet(draft, service, current, ground):
        draft.wait_service(service.name, "waits for " + ", ".join(unmet.values()))
    elif handover.attempt(draft, service):
        if old.retired:
            draft.emit(CreateContainer(service, "takes over from the old one"), needs_lock=True)
        else:
            handover.retire(draft, old, reason)
        return
    _call_off(draft, service, old)


def _call_off(draft: Draft, service: DesiredService, old: Container) -> None:
    """No hand-over for now: the old container is to be as before."""
    if not _start_again(draft, service, old):
        handover.call_off(draft, old)


def _start_again(draft: Draft, service: DesiredService, old: Container) -> bool:
    """Start an old container that ended in its hand-over, when the engine was started anew say: it
    is up to us, because its restart policy is gone until it is reinstated."""
    if not (old.retired and old.state == "exited" and should_run(draft, service)):
        return False
    where = (old.app_uuid, old.service, old.id)
    draft.emit(StartContainer(*where, "its hand-over cannot go on now"))
    return True


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
        if container:
            _call_off(draft, service, container)
        if container and container.running and user_stopped(draft, service):
            stop(draft, service, container)


def _why_replace(
    draft: Draft,
    ground: Ground,
    service: DesiredService,
    container: Container,
    current: Mapping[str, Container],
) -> str:
    if reason := _must_go(draft, ground, service, container):
        return reason
    if parent := renewed_parent(service, container, current, draft.situation.origins):
        return f"depends on {parent}, which was made anew"
    return _why_unequal(draft, ground, service, container)


def _must_go(draft: Draft, ground: Ground, service: DesiredService, container: Container) -> str:
    """Why the container has to go whatever it is like, or "". A network that only the container
    still names it can leave."""
    if container.id in draft.situation.intent.recreate:
        return "restart was asked for"
    networks = [name for name in container.spec.networks if name in service.spec.networks]
    for used in (*networks, *sorted(container.spec.volumes)):
        if used in ground.replaced:
            return f"uses {used}, which has to go: {ground.replaced[used]}"
    return ""


def _cut_off(ground: Ground, container: Container) -> str:
    """Why the container cannot reach the device's API and goes at once, locked or not; or ""."""
    uses_it = ground.api_fault and supervisor.uses(container)
    return f"uses {SUPERVISOR_NETWORK}: {ground.api_fault}" if uses_it else ""


def _in_the_way(ground: Ground, container: Container) -> bool:
    """Whether the container keeps a network or volume from going that has to. One that is replaced
    for other reasons must not stay for a hand-over then: others may be waiting for its end."""
    return any(
        used in ground.replaced for used in (*container.spec.networks, *container.spec.volumes)
    )


def _why_unequal(
    draft: Draft, ground: Ground, service: DesiredService, container: Container
) -> str:
    """In what the container is not as wanted and cannot be repaired, or "". One that was replaced
    for this too often already is kept."""
    found = differing(service, container, ground)
    lost = "" if container.retired else beyond_repair(draft, container, ground.ignored)
    if (found or lost) and damping.is_kept(service, found, ground.damped):
        draft.wait_service(service.name, damping.reason(found, lost))
        return ""
    return in_words(found) or lost


def _go(
    draft: Draft, container: Container, cause: str, missing: list[str], needs_lock: bool = True
) -> None:
    """Stop, then remove; never before every image of the new release is here (spec 20 §15)."""
    if missing and container.running:
        names = ", ".join(missing)
        draft.wait_service(container.service, f"keeps running until the image of {names} is here")
        return
    if container.state == "removing":  # asked again, the engine only says that it knows
        draft.wait_service(container.service, f"its container is being removed: {cause}")
        return
    where = (container.app_uuid, container.service, container.id)
    if container.running:
        grace = container.stop_timeout
        draft.emit(StopContainer(*where, grace, final=True, cause=cause), needs_lock)
    else:
        draft.emit(RemoveContainer(*where, cause), needs_lock and container.state != "dead")


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
    elif absent := _absent(ground, service, current):
        draft.wait_service(service.name, "waits for " + ", ".join(absent))
    else:
        draft.emit(CreateContainer(service, "no container yet"), needs_lock=True)


def _absent(ground: Ground, service: DesiredService, current: Mapping[str, Container]) -> list[str]:
    """What the service's container needs for its creation and is not there yet."""
    used = (*service.spec.networks, *sorted(service.spec.volumes))
    absent = [name for name in used if name in ground.declared and name not in ground.usable]
    return absent + [
        f"container of service {parent}"
        for parent in sorted(parents(service.spec))
        if parent not in current
    ]


def _settle(
    draft: Draft,
    ground: Ground,
    service: DesiredService,
    container: Container,
    current: Mapping[str, Container],
    missing: list[str],
) -> None:
    """The container is right: see to what has drifted, to its name and to whether it runs. Until
    every image of the release is here only what users ask for is done (spec 20 §13.6)."""
    if container.retired:
        if container.state == "exited" and should_run(draft, service):
            start(draft, service, container, current, ground)  # the engine may not do it
        else:
            name = container.name if missing else service.container_name
            handover.reinstate(draft, container, name, "it is right as it is")
        return

    def unusable(network: str) -> bool:
        absent = network in ground.declared and network not in ground.usable
        return absent or network in ground.replaced

    complete = repair(draft, service, container, not missing, unusable, ground.ignored)
    if container.name != service.container_name:
        if not missing:
            _rename(draft, service, container)
            return
        names = ", ".join(missing)
        draft.wait_service(service.name, f"joins its release when the image of {names} is here")
    if should_run(draft, service):
        if awaits_boot(service, container, draft.situation):
            plan_requirement(draft, service, container)
        elif outlived(container, current.get(service.spec.parent), draft.situation.joined):
            restart(draft, service, container)
        elif complete and startable(draft, service, container):
            start(draft, service, container, current, ground)
    elif container.running and (service.running or not missing):
        stop(draft, service, container)


def _rename(draft: Draft, service: DesiredService, container: Container) -> None:
    old, new = container.raw_name or container.name, service.container_name
    where = (container.app_uuid, container.service, container.id)
    step = RenameContainer(*where, new, f"named {old}, release says {new}")
    draft.emit(step, needs_lock=True)
