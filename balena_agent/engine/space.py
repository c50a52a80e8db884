"""Whether there is room for an image, asked before a pull that would fill the disk.

Theory (spec 20 §18.6): an engine that runs out of space in the middle of a pull leaves a device
that can hardly be helped, and tries again for ever. The registry tells how big the packed layers
are, the engine which of them it has. What is left is the least that the pull needs; it must fit
into the free space of the engine's directory less a reserve. That is no promise that unpacked
layers fit as well, but what it refuses cannot succeed.

Whatever cannot be known - size, directory, free space - is no reason to refuse.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import AgentError, DiskFull
from .client import Client, path
from .registry import Manifest, Registry

RESERVE_SHARE = 0.10
RESERVE_LEAST = 256 << 20


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a file system."""

    total: int
    free: int

    @property
    def reserve(self) -> int:
        """What a pull must leave free."""
        return max(int(self.total * RESERVE_SHARE), RESERVE_LEAST)


Measure = Callable[[str], Space | None]
"""The space of the file system in which a directory is; None when it cannot be known."""


def measured(directory: str) -> Space | None:
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def check_space(client: Client, name: str, registry: Registry, measure: Measure) -> None:
    """DiskFull when the image can surely not be stored; Cancelled."""
    manifest = registry.manifest()
    space = _of_engine(client, measure) if manifest else None
    if manifest is None or space is None:
        return
    available = space.free - space.reserve
    if sum(manifest.sizes) <= available:
        return  # the usual case: no need to ask which layers are there already
    needed = _missing(client, manifest, registry)
    if needed and needed > available:
        raise DiskFull(
            f"not enough space for image {name}: it needs {_mib(needed)},"
            f" {_mib(space.free)} are free and {_mib(space.reserve)} of them are kept in reserve"
        )


def _of_engine(client: Client, measure: Measure) -> Space | None:
    try:
        directory = client.get("/info").get("DockerRootDir")
    except AgentError:
        return None
    return measure(str(directory)) if directory else None


def _missing(client: Client, manifest: Manifest, registry: Registry) -> int | None:
    """Bytes of the layers that the engine does not have, None when it cannot be known. It shares
    layers from the first one up: one that stands on another layer is another one."""
    wanted = registry.layers(manifest)
    if len(wanted) != len(manifest.sizes):
        return None
    try:
        present = _present(client)
    except AgentError:
        return None
    shared = max((_common(wanted, there) for there in present), default=0)
    return sum(manifest.sizes[shared:])


def _present(client: Client) -> list[list[str]]:
    """The layers of every image that there is."""
    ids = [str(each["Id"]) for each in client.get("/images/json")]
    found = [client.find(path("images", image_id, "json")) or {} for image_id in ids]
    return [list((each.get("RootFS") or {}).get("Layers") or ()) for each in found]


def _common(wanted: tuple[str, ...], there: list[str]) -> int:
    count = 0
    for left, right in zip(wanted, there, strict=False):
        if left != right:
            break
        count += 1
    return count


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
