"""What the agent does to networks, volumes and images: one small function per verb.

Theory: a verb is idempotent. It asks for an end, not for a change, so "is already so" is success:
the object that exists with the wanted configuration, the one that is gone already. An object in
the way with another configuration is an error, because the planner removes it first if it is ours
and has no say over it if it is not (spec 20 §14, §19). Containers have a module of their own.

All functions raise EngineFailed, EngineUnavailable and DeadlineExceeded, nothing else.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import EngineFailed
from ..core.names import SUPERVISOR_NETWORK, normal_image
from ..core.networks import (
    firmware_volume_body,
    is_supervisor_network,
    network_body,
    network_differences,
    network_from_inspect,
    supervisor_network_body,
    volume_body,
    volume_differences,
    volume_from_inspect,
)
from ..core.steps import (
    CreateNetwork,
    CreateVolume,
    RemoveImage,
    RemoveNetwork,
    RemoveVolume,
)
from .client import Client, filters, path
from .failures import is_missing
from .obtained import Records


def delete(client: Client, *parts: str, **params: str) -> None:
    """Remove an object; one that is gone is as good."""
    try:
        client.request("DELETE", path(*parts), params or None)
    except EngineFailed as error:
        if not is_missing(error):
            raise


def create_network(client: Client, step: CreateNetwork) -> None:
    """One of the name with the same configuration will do; with another it is in the way."""
    wanted = step.network
    for found in _networks_named(client, wanted.engine_name):
        network = network_from_inspect(found)
        if network is not None and not network_differences(wanted.spec, network.spec):
            return
        raise EngineFailed(
            f"Trying to create network with name: {wanted.name}, but a network with that name"
            " and a different configuration already exists"
        )
    body = network_body(wanted.engine_name, step.app_id, wanted.spec)
    client.request("POST", "/networks/create", body=body)


def remove_network(client: Client, step: RemoveNetwork) -> None:
    """Remove a network; one that is kept only by containers that are gone is freed first."""
    try:
        delete(client, "networks", step.network_id)
    except EngineFailed as error:
        if error.status != 403 or not _freed_of_ghosts(client, step.network_id):
            raise
        delete(client, "networks", step.network_id)


def _freed_of_ghosts(client: Client, network_id: str) -> bool:
    """Under load the engine goes on counting endpoints of containers that it has removed, and would
    never let the network go. Says whether any was found; nothing alive is disconnected."""
    network = client.find(path("networks", network_id)) or {}
    found = False
    for container_id, endpoint in (network.get("Containers") or {}).items():
        # Once the container is gone the engine finds the endpoint by the container's name only,
        # which may be that of another by now.
        name = str(endpoint.get("Name") or "")
        if name and not any(_is_there(client, key) for key in (container_id, name)):
            body = {"Container": name, "Force": True}
            client.request("POST", path("networks", network_id, "disconnect"), body=body)
            found = True
    return found


def _is_there(client: Client, container: str) -> bool:
    return client.find(path("containers", container, "json")) is not None


def ensure_supervisor_network(client: Client) -> None:
    """`supervisor0` as specified; a wrong one goes first (spec 20 §13.1)."""
    right = False
    for found in _networks_named(client, SUPERVISOR_NETWORK):
        if right or not is_supervisor_network(found):
            delete(client, "networks", found["Id"])
        else:
            right = True
    if not right:
        client.request("POST", "/networks/create", body=supervisor_network_body())


def _networks_named(client: Client, name: str) -> list[dict[str, Any]]:
    """All networks of exactly this name: the engine's filter also matches parts of names."""
    listed = client.get("/networks", filters(name=[name]))
    return [each for each in listed if each.get("Name") == name]


def create_volume(client: Client, step: CreateVolume, apps: frozenset[int]) -> None:
    """The engine answers with the old volume when one has the name, whatever its options: so it
    is compared first (spec 20 §19). `apps`: see volume_from_inspect."""
    wanted = step.volume
    found = client.find(path("volumes", wanted.engine_name))
    if found is None:
        body = volume_body(wanted.engine_name, step.app_uuid, wanted.spec)
        client.request("POST", "/volumes/create", body=body)
        return
    volume = volume_from_inspect(found, apps)
    if volume is None or volume_differences(wanted.spec, volume.spec):
        raise EngineFailed(
            f"Trying to create volume with name: {wanted.name}, but a volume with that name"
            " and a different configuration already exists"
        )


def ensure_extra_firmware(client: Client) -> None:
    """The device's volume for extra firmware; one that is there stays, whatever it is like."""
    client.request("POST", "/volumes/create", body=firmware_volume_body())


def remove_volume(client: Client, step: RemoveVolume) -> None:
    delete(client, "volumes", step.engine_name)


def remove_image(client: Client, step: RemoveImage, records: Records) -> None:
    """Drop a reference: one after another, because removals of one image side by side confuse
    the engine (spec 60 §2.5). EngineFailed 409 while a container uses the last one."""
    wanted = normal_image(step.reference)
    for name in _names_of(client, step.reference, records):
        delete(client, "images", name)
    records.drop(lambda image_id, note: note.reference == wanted or image_id == step.reference)


def _names_of(client: Client, reference: str, records: Records) -> list[str]:
    """What the engine calls the reference. To one by digest belongs the `latest` tag that it got
    when it was fetched (pull.py), and it goes by its digest whatever its repository. What a delta
    made has no digest; without any name it goes by its id."""
    wanted = normal_image(reference)
    if "@" not in wanted:
        return [reference if reference.startswith("sha256:") else wanted]
    repository, _, digest = wanted.partition("@")
    obtained = records.image_of(wanted)
    for image in client.get("/images/json"):
        known = [d for d in image.get("RepoDigests") or () if not d.startswith("<none>")]
        digests = [d for d in known if d.endswith("@" + digest)]
        if digests or image["Id"] == obtained:
            own_tag = f"{repository}:latest"
            known += (t for t in image.get("RepoTags") or () if not t.startswith("<none>"))
            tags = [t for t in known if normal_image(t) == own_tag]
            return [*tags, *digests] or ([] if known else [obtained])
    return []
