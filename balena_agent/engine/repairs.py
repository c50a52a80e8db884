"""What the agent puts right in a live container: its networks, and the fields that may change.

Theory: the verbs are idempotent like all others (actions.py). The engine calls a membership that is
there already, or is gone already, an error; then an inspect tells which. An update that the engine
takes only in part answers with success (0 means "leave it" to it, and a limit without support is
dropped), so the container is inspected afterwards: a field that is not as asked for is a failure.

All verbs raise EngineFailed, EngineUnavailable and DeadlineExceeded, nothing else.
"""

from __future__ import annotations

from typing import Any

from ..core.body import endpoint_body
from ..core.canonical import canonical, engine_form
from ..core.errors import EngineFailed
from ..core.jsonread import Json, shown
from ..core.steps import ConnectNetwork, DisconnectNetwork, UpdateContainer
from .client import Client, path


def connect(client: Client, step: ConnectNetwork) -> None:
    """Join a network; a member already is fine. One that does not run may "join" a network that
    does not exist, so that is asked first."""
    network = step.endpoint.network
    if client.find(path("networks", network)) is None:
        raise EngineFailed(f"network {network} not found", 404)
    body = {"Container": step.container_id, "EndpointConfig": endpoint_body(step.endpoint)}
    try:
        client.request("POST", path("networks", network, "connect"), body=body)
    except EngineFailed:
        if network not in _members(client, step.container_id):
            raise


def disconnect(client: Client, step: DisconnectNetwork) -> None:
    """Leave a network; not in it, or gone altogether, is as good."""
    body = {"Container": step.container_id}
    try:
        client.request("POST", path("networks", step.network, "disconnect"), body=body)
    except EngineFailed:
        if step.network in _members(client, step.container_id):
            raise


def update(client: Client, step: UpdateContainer) -> None:
    """Change fields of a container, and see that they have changed."""
    names = {name: name.partition(".")[2] for name in step.fields}
    body = {key: engine_form(name, step.fields[name]) for name, key in names.items()}
    client.request("POST", path("containers", step.container_id, "update"), body=body)
    host = client.get(path("containers", step.container_id, "json"))["HostConfig"]
    for name, key in names.items():
        live: Json = canonical(name, host.get(key))
        if live != step.fields[name]:
            raise EngineFailed(f"the engine leaves {key} at {shown(live)}")


def _members(client: Client, container_id: str) -> dict[str, Any]:
    """The networks of a container by name; of one that is gone, none."""
    found = client.find(path("containers", container_id, "json"))
    return dict(found["NetworkSettings"]["Networks"] or {}) if found else {}
