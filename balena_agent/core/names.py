"""Names and labels of the objects that we own in the engine, in both directions.

Theory: a device may move between the peer (balenaSupervisor) and us, so names and labels are the
peer's, to the letter (spec 20 §10 and §19, spec 21 §7 and §11). An object is ours when it carries
the label `io.balena.supervised` (or its old `io.resin.` spelling). Reading is tolerant: what does
not parse is not ours to touch, and never an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SUPERVISED = "io.balena.supervised"
APP_ID = "io.balena.app-id"
APP_UUID = "io.balena.app-uuid"
SERVICE_ID = "io.balena.service-id"
SERVICE_NAME = "io.balena.service-name"
IPAM_MARK = "io.balena.private.ipam.config"
STRATEGY = "io.balena.update.strategy"
HANDOVER_TIMEOUT = "io.balena.update.handover-timeout"
SUPERVISOR_API = "io.balena.features.supervisor-api"
REQUIRES_REBOOT = "io.balena.update.requires-reboot"

EXTRA_FIRMWARE = "extra-firmware"
"""The one volume that belongs to the device and to no app (spec 30 §17)."""

SUPERVISOR_NETWORK = "supervisor0"
SUPERVISOR_GATEWAY = "10.114.104.1"
SUPERVISOR_SUBNET = "10.114.104.0/25"

LOCK_ROOT = "/tmp/balena-supervisor/services"

RETIRED = "old_"
"""How the name of a container begins that hands over to a new one (spec 20 §15.3)."""

# No id of ours is longer, and Python does not read numbers without end.
_ID = r"\d{1,18}"
_CONTAINER = re.compile(
    rf"(?P<service>.+)_(?P<image>{_ID})_(?P<release>{_ID})(?:_(?P<commit>[0-9a-zA-Z]+))?\Z"
)
_VOLUME = re.compile(rf"(?P<app>{_ID})_(?P<name>\S+)\Z")
_NAMELESS = re.compile(r"[0-9a-f]{64}\Z")
_APP_UUID = re.compile(r"(?:[0-9a-fA-F]+|user-app)\Z")
"""The peer calls an app of the oldest preload form `user-app`."""
_NETWORK = re.compile(r"(?P<app>[0-9a-fA-F]+|user-app)_(?P<name>\S+)\Z")
_COMMIT = re.compile(r"[0-9a-zA-Z_.-]+\Z")


@dataclass(frozen=True, slots=True)
class ContainerName:
    """`<service>_<imageId>_<releaseId>_<commit>`; old releases leave the commit out."""

    service: str
    image_id: int
    release_id: int
    commit: str

    def __str__(self) -> str:
        tail = f"_{self.commit}" if self.commit else ""
        return f"{self.service}_{self.image_id}_{self.release_id}{tail}"


def names_networks(app_uuid: str) -> bool:
    """Whether the networks of an app with this uuid can be told from those of strangers."""
    return _APP_UUID.match(app_uuid) is not None


def names_containers(commit: str) -> bool:
    """Whether the engine takes this commit as a part of a container's name."""
    return _COMMIT.match(commit) is not None


def retired_name(name: ContainerName) -> str:
    """What a container of this name is called while it hands over."""
    return f"{RETIRED}{name}"


def parse_container_name(name: str) -> ContainerName | None:
    """The name, also of a container that hands over."""
    found = _CONTAINER.match(name.lstrip("/").removeprefix(RETIRED))
    if not found:
        return None
    return ContainerName(
        found["service"], int(found["image"]), int(found["release"]), found["commit"] or ""
    )


def network_name(app_uuid: str, name: str) -> str:
    return f"{app_uuid}_{name}"


def volume_name(app_id: int, name: str) -> str:
    return f"{app_id}_{name}"


def parse_network_name(engine_name: str) -> tuple[str, str] | None:
    """(app uuid or id text, network name), or None for a foreign name."""
    found = _NETWORK.match(engine_name)
    return (found["app"], found["name"]) if found else None


def is_nameless_volume(engine_name: str) -> bool:
    """Whether the engine itself made the name up."""
    return _NAMELESS.match(engine_name) is not None


def parse_volume_name(engine_name: str) -> tuple[int, str] | None:
    """(app id, volume name), or None for a foreign name."""
    found = _VOLUME.match(engine_name)
    return (int(found["app"]), found["name"]) if found else None


def current_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels with `io.resin.` keys under today's name; an explicit new name wins (spec 21 §7.2)."""
    renamed = {
        key.replace("resin", "balena"): value
        for key, value in labels.items()
        if key.startswith("io.resin.")
    }
    return renamed | {k: v for k, v in labels.items() if not k.startswith("io.resin.")}


def is_supervised(labels: Mapping[str, str]) -> bool:
    """Whether the (already renamed) labels mark one of ours."""
    return SUPERVISED in labels


def lock_directory(app_id: int, service: str) -> str:
    """Host directory that holds the update locks of a service (spec 20 §2)."""
    return f"{LOCK_ROOT}/{app_id}/{service}"


_HUB_STARTS = ("docker.io/", "index.docker.io/", "library/")
_HUB = re.compile(r"(?:(?:index\.)?docker\.io/)?(?:library/)?(?=[^/]+\Z)|(?:index\.)?docker\.io/")


def normal_image(reference: str) -> str:
    """An image reference in its normal form: `repo@digest`, or `repo:tag` (spec 20 §18.1).

    The default registry and its `library/` are left out, as the engine does when it lists images.
    """
    name, _, digest = reference.partition("@")
    name = _HUB.sub("", name, count=1) if name.startswith(_HUB_STARTS) else name
    head, _, last = name.rpartition("/")
    repository = (head + "/" if head else "") + last.split(":", 1)[0]
    if digest:
        return f"{repository}@{digest}"
    return name if ":" in last else f"{name}:latest"


def image_registry(reference: str) -> str:
    """The registry host of a reference, or "" for a name without one."""
    first, slash, _ = reference.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else ""
