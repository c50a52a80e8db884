"""From the words of a request to the service that is meant (spec 10 §8.16)."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import NoSuchApp, NotFound
from .intent import ServiceKey
from .logline import Source
from .observed import Container
from .snapshot import Snapshot

APP_NOT_FOUND = (
    "App not found: an app needs to be installed for this endpoint to work.\n"
    "\tIf you've recently moved this device from another app,\n"
    "\tplease push an app and wait for it to be installed first."
)
SERVICE_NOT_FOUND = "Service not found, a container must exist for this endpoint to work"
_LEVEL = "BALENA_LOGS_LEVEL"
NOT_IN_RELEASE = "Service does not exist in target release"


def find_service(
    snapshot: Snapshot, app_id: int, service: str | None = None, image_id: int | None = None
) -> ServiceKey:
    """The service that a request means, as (app uuid, name).

    An image id decides over a name. In an app with a single container an image id alone is not
    compared: old clients send stale ones. NoSuchApp without any container of the app, NotFound
    when no container matches or when the target release does not have the service.
    """
    containers = containers_of(snapshot, app_id)
    if not containers:
        raise NoSuchApp(APP_NOT_FOUND)
    chosen = _choose(containers, service, image_id)
    if chosen is None:
        raise NotFound(SERVICE_NOT_FOUND)
    for app in snapshot.desired.apps:
        if app.app_id == app_id and any(s.name == chosen.service for s in app.services):
            return (app.uuid, chosen.service)
    raise NotFound(NOT_IN_RELEASE)


def containers_of(snapshot: Snapshot, app_id: int) -> list[Container]:
    """The containers of an app that have a name of ours, by service."""
    known = [c for c in snapshot.observed.containers.values() if c.app_id == app_id and c.name]
    return sorted(known, key=lambda container: (container.service, container.id))


def _choose(
    containers: list[Container], service: str | None, image_id: int | None
) -> Container | None:
    if image_id is not None:
        named = (c for c in containers if c.name and c.name.image_id == image_id)
        found = next(named, None)
        if found or service is None:
            only = containers[0] if len({c.service for c in containers}) == 1 else None
            return found or only
    return next((c for c in containers if c.service == service), None)


def container_source(snapshot: Snapshot, container_id: str) -> Source | None:
    """Whose log lines a container's lines are; None for a container that was not seen (yet)."""
    container = snapshot.observed.containers.get(container_id)
    if container is None:
        return None
    return Source(container.service, container.service_id, container.app_id)


def log_levels(snapshot: Snapshot) -> Mapping[int, str]:
    """What the owners of services, by service id, want to have of their lines in the cloud: `none`
    of them or those of the error output (`err`, `error`). Others are left out (spec 30 §3.1)."""
    found: dict[int, str] = {}
    for container in snapshot.observed.containers.values():
        environment = container.spec.fields.get("Env")
        level = environment.get(_LEVEL) if isinstance(environment, dict) else None
        if level in ("none", "err", "error"):
            found[container.service_id] = str(level)
    return found
