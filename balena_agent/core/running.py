"""Whether and when a container that is right runs: started, stopped, waiting for others.

Theory: an exited container is left alone, the engine's restart policy owns it; only one that a
user asked to start, or that the agent itself stopped, is started again (spec 20 §13.4). A start
waits for what the service depends on, and says for whom.
"""

from __future__ import annotations

from collections.abc import Mapping

from .body import parents
from .desired import Dependency, DesiredService
from .ground import Ground, unlike
from .observed import Container
from .situation import Draft
from .steps import StartContainer, StopContainer

HEALTH_PATIENCE = 600.0
"""Seconds that a service waits for another's health before the log tells of it (spec 20 §16)."""

_PROXY_FAILED = "cannot assign requested address"


def stop(draft: Draft, service: DesiredService, container: Container) -> None:
    cause = "stopped by request" if service.running else "target says stopped"
    where = (container.app_uuid, container.service, container.id)
    draft.emit(StopContainer(*where, container.stop_timeout, cause=cause), needs_lock=True)


def restart(draft: Draft, service: DesiredService, container: Container) -> None:
    """Stopped here, it is started again like whatever else the agent has stopped."""
    cause = f"network of {service.spec.parent} was recreated"
    where = (container.app_uuid, container.service, container.id)
    step = StopContainer(*where, container.stop_timeout, again=True, cause=cause)
    draft.emit(step, needs_lock=True)


def should_run(draft: Draft, service: DesiredService) -> bool:
    return service.running and not user_stopped(draft, service)


def user_stopped(draft: Draft, service: DesiredService) -> bool:
    """Whether a user stopped this very release of the service."""
    commit = draft.situation.intent.stopped.get(service.key)
    return commit is not None and commit == service.container_name.commit


def startable(draft: Draft, service: DesiredService, container: Container) -> bool:
    if container.state == "created":
        return True
    if container.state != "exited":
        return False
    situation = draft.situation
    return (
        service.key in situation.intent.start
        or situation.stopped_by_agent.get(container.id) in ("", container.started_at)
        or _PROXY_FAILED in container.error.lower()
    )


def start(
    draft: Draft,
    service: DesiredService,
    container: Container,
    current: Mapping[str, Container],
    ground: Ground,
) -> None:
    if unmet := all_unmet(draft, service, current, ground):
        patience = HEALTH_PATIENCE if any(d.condition == "healthy" for d in unmet) else None
        draft.wait_service(service.name, "waits for " + ", ".join(unmet.values()), patience)
        return
    if absent := [name for name in sorted(parents(service.spec)) if not _hosts(current.get(name))]:
        names = ", ".join(absent)
        draft.wait_service(service.name, f"waits for {names} to run, whose namespace it shares")
        return
    cause = "created, not started yet" if container.state == "created" else "was stopped"
    draft.emit(StartContainer(container.app_uuid, container.service, container.id, cause))


def _hosts(owner: Container | None) -> bool:
    """Whether the engine lets another container into this one's namespaces."""
    return owner is not None and owner.state in ("running", "paused")


def all_unmet(
    draft: Draft, service: DesiredService, current: Mapping[str, Container], ground: Ground
) -> dict[Dependency, str]:
    """The dependencies for which the service may not be started yet, and why."""
    wanted = {other.name: other for other in ground.app.services}
    return {
        dependency: reason
        for dependency in service.depends_on
        if (reason := _unmet(draft, dependency, wanted, current, ground))
    }


def _unmet(
    draft: Draft,
    dependency: Dependency,
    wanted: Mapping[str, DesiredService],
    current: Mapping[str, Container],
    ground: Ground,
) -> str:
    """Why a dependency is not met yet, or "". One that is not to run cannot be waited for."""
    other = wanted.get(dependency.service)
    if other is None or not should_run(draft, other):
        return ""
    container = current.get(other.name)
    if container is None or container.state == "created" or unlike(other, container, ground):
        return f"{other.name} to be started"
    if dependency.condition == "healthy" and container.health not in ("", "none", "healthy"):
        return f"{other.name} to be healthy (is {container.health})"
    if dependency.condition == "completed":
        done = container.state == "exited" and container.exit_code == 0
        return "" if done else f"{other.name} to complete (is {container.state})"
    return ""
