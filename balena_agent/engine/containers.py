"""What the agent does to containers: create, start, stop, remove, rename, retire, reinstate.

Theory: the verbs are idempotent like all others (actions.py). Creating is all or nothing: a
container that could not join each of its networks is removed again, so that no half-made one is
ever taken for the real thing (spec 21 §11). Stopping is a ladder, because a container that cannot
be stopped must not hold up an update for ever:

    restart policy off (final)  ->  stop with its own grace  ->  kill  ->  remove by force (final)

Each rung is tried when the one before failed or overran. "final" means that the container is about
to be removed anyway, so no rung is too hard.

All verbs raise EngineFailed, EngineUnavailable and DeadlineExceeded, nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..core.body import create_body, endpoint_body, joins, parents, resolved
from ..core.desired import DesiredService
from ..core.effects import NO_RESTART
from ..core.errors import DeadlineExceeded, EngineFailed
from ..core.names import APP_ID, APP_UUID, SERVICE_NAME, current_labels, retired_name
from ..core.observed import HostFacts
from ..core.spec import Endpoint
from ..core.steps import (
    CreateContainer,
    ReinstateContainer,
    RemoveContainer,
    RenameContainer,
    RetireContainer,
    StartContainer,
    StopContainer,
)
from .actions import delete
from .client import Client, path
from .failures import is_missing
from .observe import is_ours

_LOG = logging.getLogger(__name__)

GRACE_MARGIN = 10.0
"""Seconds beyond the grace period that the engine gets for a stop before we kill."""
RUNG_LIMIT = 5.0
"""Seconds for each other rung; all of them together stay within traits.STOP_MARGIN."""

Prepare = Callable[[DesiredService], None]


def create(client: Client, step: CreateContainer, prepare: Prepare, facts: HostFacts) -> None:
    """Create the service's container and join its networks; or leave nothing behind."""
    service = step.service
    prepare(service)
    spec = resolved(service.spec, _parent_ids(client, service))
    further = joins(spec)
    _check_networks(client, further)
    container_id = _made(client, service, create_body(spec, facts.device_name))
    try:
        for endpoint in further:
            wanted = {"Container": container_id, "EndpointConfig": endpoint_body(endpoint)}
            client.request("POST", path("networks", endpoint.network, "connect"), body=wanted)
    except Exception:
        _discard(client, container_id)
        raise


def _check_networks(client: Client, further: tuple[Endpoint, ...]) -> None:
    """A container that does not run yet may "join" a network that does not exist; the engine only
    complains when it starts. One call tells, for the few services with several networks."""
    if not further:
        return
    there = {network["Name"] for network in client.get("/networks")}
    for endpoint in further:
        if endpoint.network not in there:
            raise EngineFailed(f"network {endpoint.network} not found", 404)


def _parent_ids(client: Client, service: DesiredService) -> dict[str, str]:
    """The live containers of the services whose namespaces are shared (spec 21 §5.4)."""
    names = parents(service.spec)
    if not names:
        return {}
    listed = client.get("/containers/json", {"all": "1"})
    return {name: _newest(listed, service, name) for name in names}


def _newest(listed: list[dict[str, Any]], service: DesiredService, name: str) -> str:
    """The container that `name`, a service of the same app, has now: the engine lists the newest
    first, and a running one is better than one that an update has left behind."""
    found = [c for c in listed if _is_of(c.get("Labels"), service, name)]
    found.sort(key=lambda container: container.get("State") != "running")
    if not found:
        raise EngineFailed(f"service {name}, of which {service.name} is a part, has no container")
    return str(found[0]["Id"])


def _is_of(labels: dict[str, str] | None, service: DesiredService, name: str) -> bool:
    marks = current_labels(labels or {})
    same_app = marks.get(APP_UUID) == service.app_uuid or (
        APP_UUID not in marks and marks.get(APP_ID) == str(service.app_id)
    )
    return is_ours(labels) and same_app and marks.get(SERVICE_NAME) == name


def _made(client: Client, service: DesiredService, body: dict[str, Any]) -> str:
    """The id of the new container. A leftover of ours under its name makes way, once."""
    try:
        return _posted(client, service, body)
    except EngineFailed as error:
        if error.status != 409 or not _cleared(client, service):
            raise
    return _posted(client, service, body)


def _posted(client: Client, service: DesiredService, body: dict[str, Any]) -> str:
    name = {"name": str(service.container_name)}
    made = client.post("/containers/create", name, body)
    for warning in made.get("Warnings") or ():
        _LOG.warning("the engine about %s: %s", service.name, warning)
    return str(made["Id"])


def _cleared(client: Client, service: DesiredService) -> bool:
    """Remove who holds the name, if it is an older self of this service."""
    holder = client.find(path("containers", str(service.container_name), "json"))
    if holder is None:
        return True
    if not _is_of(holder["Config"].get("Labels"), service, service.name):
        return False
    delete(client, "containers", holder["Id"], force="1", v="1")
    return True


def _discard(client: Client, container_id: str) -> None:
    """Take back a half-made container. What made it so is the error to report, not this one."""
    try:
        delete(client, "containers", container_id, force="1", v="1")
    except Exception as error:
        _LOG.warning("container %s is left half-made: %s", container_id[:12], error)


def start(client: Client, step: StartContainer, facts: HostFacts) -> None:
    """A running container is fine. An image for another processor is named as such."""
    try:
        client.request("POST", path("containers", step.container_id, "start"))
    except EngineFailed as error:
        if str(error).rstrip().removesuffix(": unknown").endswith("exec format error"):
            raise EngineFailed(
                f"Application architecture incompatible with {facts.device_type}:"
                " exec format error",
                error.status,
            ) from error
        raise


def stop(client: Client, step: StopContainer) -> None:
    """Go down the ladder until the container does not run; one that is gone does not either.

    The engine's own stop also ends a restart loop. Only where it fails does the restart policy go:
    that is one more call, and a write, that the usual case can do without.
    """
    try:
        _stopped(client, step.container_id, step.grace)
    except (EngineFailed, DeadlineExceeded) as error:
        if isinstance(error, EngineFailed) and is_missing(error):
            return
        _killed(client, step, error)


def _no_restarts(client: Client, container_id: str) -> None:
    """Without this a container that had to be killed comes back before it is removed. It helps,
    but it is no condition: whatever goes wrong here, the kill is tried."""
    body = {"RestartPolicy": {"Name": "no"}}
    target = path("containers", container_id, "update")
    try:
        client.request("POST", target, body=body, limit=RUNG_LIMIT)
    except (EngineFailed, DeadlineExceeded) as error:
        _LOG.info("restart policy of %s stays: %s", container_id[:12], error)


def _stopped(client: Client, container_id: str, grace: int) -> None:
    """The engine's own stop; a container that is not running is as good (304)."""
    target = path("containers", container_id, "stop")
    client.request("POST", target, {"t": str(grace)}, limit=grace + GRACE_MARGIN)


def _killed(client: Client, step: StopContainer, reason: Exception) -> None:
    """The last rungs. Raises `reason`, why the gentle way failed, if they fail too; and
    DeadlineExceeded if the engine takes the kill but the container is slow to end: it still may."""
    _LOG.warning("killing %s, it did not stop: %s", step.container_id[:12], reason)
    if step.final:
        _no_restarts(client, step.container_id)
    try:
        kill = path("containers", step.container_id, "kill")
        client.request("POST", kill, limit=RUNG_LIMIT)
        wait = path("containers", step.container_id, "wait")
        client.request("POST", wait, {"condition": "not-running"}, limit=RUNG_LIMIT)
    except (EngineFailed, DeadlineExceeded) as error:
        if getattr(error, "status", 0) in (404, 409):
            return  # gone, or not running
        if not step.final:
            raise error if isinstance(error, DeadlineExceeded) else reason from error
        delete(client, "containers", step.container_id, force="1", v="1")


def remove(client: Client, step: RemoveContainer) -> None:
    """Remove a container and its anonymous volumes; a removal under way will do."""
    try:
        delete(client, "containers", step.container_id, v="1")
    except EngineFailed as error:
        if error.status != 409 or "already in progress" not in str(error):
            raise


def rename(client: Client, step: RenameContainer) -> None:
    """A container that has the name is fine; one whose name another has is not."""
    _renamed(client, step.container_id, str(step.name))


def retire(client: Client, step: RetireContainer) -> None:
    """The name first: who finds it knows what is to be done or taken back."""
    _renamed(client, step.container_id, retired_name(step.name))
    _with_policy(client, step.container_id, NO_RESTART)


def reinstate(client: Client, step: ReinstateContainer) -> None:
    """The name last, for the same reason."""
    _with_policy(client, step.container_id, step.policy)
    _renamed(client, step.container_id, str(step.name))


def _with_policy(client: Client, container_id: str, policy: Mapping[str, Any]) -> None:
    target = path("containers", container_id, "update")
    client.request("POST", target, body={"RestartPolicy": dict(policy)})


def _renamed(client: Client, container_id: str, name: str) -> None:
    target = path("containers", container_id, "rename")
    try:
        client.request("POST", target, {"name": name})
    except EngineFailed:
        found = client.find(path("containers", container_id, "json"))
        if found is None or found["Name"] != f"/{name}":
            raise
