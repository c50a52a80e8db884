"""The disk of a device: its directory, its record, the writable layer over the base root.

Nothing of a device lies elsewhere, so removing the directory (after unmounting) removes it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import base, install
from .network import Link, existing_indexes, free_index
from .outer import (
    DEVICES,
    DeviceError,
    cgroup_root,
    is_mounted,
    lock,
    process_start,
    read_json,
    run,
    say,
    unmount,
    write_json,
)

CGROUP_PREFIX = "balena-vdev-"


@dataclass(frozen=True, slots=True)
class Paths:
    """Everything of one device lies under its directory."""

    name: str

    @property
    def home(self) -> Path:
        return DEVICES / self.name

    @property
    def root(self) -> Path:
        return self.home / "root"

    @property
    def engine(self) -> Path:
        return self.home / "docker"

    @property
    def record(self) -> Path:
        return self.home / "device.json"

    @property
    def status(self) -> Path:
        return self.home / "status.json"

    @property
    def lock(self) -> Path:
        return self.home / "keeper.lock"

    @property
    def console(self) -> Path:
        return self.home / "console.log"

    @property
    def cgroup(self) -> Path:
        return (cgroup_root() or Path("/nonexistent")) / f"{CGROUP_PREFIX}{self.name}"


def make(paths: Paths, owned: bool, checkout: Path) -> None:
    """A new disk on the base root; it is mounted then. What is not finished is removed again."""
    paths.home.mkdir()
    try:
        with base.held(checkout) as key:
            record = _new_record(paths, owned, key)
        for directory in (paths.root, paths.engine, paths.home / "upper", paths.home / "work"):
            directory.mkdir()
        # One base, many writable layers; where there is no overlayfs, a copy per device.
        if not _try_overlay(paths, key):
            say("no overlayfs here: copying the base root")
            copy = ["cp", "-a", "--reflink=auto", f"{base.base_path(key)}/.", str(paths.root)]
            run(copy, timeout=600)
            record["copied"] = True
        link = Link(int(record["index"]))
        install.personalise(paths.root, paths.name, str(record["machine_id"]), link.keyfile())
        write_json(paths.record, record | {"made": True})
    except BaseException:
        remove(paths)
        raise


def _new_record(paths: Paths, owned: bool, key: str) -> dict[str, Any]:
    """Take an address; written at once, so that nobody else takes it or sweeps the base away."""
    with lock("network"):
        taken = {int(read_json(path).get("index", -1)) for path in DEVICES.glob("*/device.json")}
        index = free_index(taken | existing_indexes())
        if index is None:
            raise DeviceError("no address left: too many devices (see `list`, `gc`)")
        owner = {"pid": os.getpid(), "start": process_start(os.getpid())}
        record: dict[str, Any] = {
            "name": paths.name, "index": index, "base": key, "machine_id": uuid.uuid4().hex,
            "owner": owner if owned else None, "made": False, "agent": False,
            "complete": False,
        }  # fmt: skip
        write_json(paths.record, record)
        return record


def mount(paths: Paths) -> None:
    """Mount the disk if it is not (the outer machine may have been restarted)."""
    record = read_json(paths.record)
    if record.get("copied") or is_mounted(paths.root):
        return
    if not _try_overlay(paths, str(record["base"])):
        raise DeviceError(f"cannot mount the disk of {paths.name}")


def _try_overlay(paths: Paths, key: str) -> bool:
    layers = {"lowerdir": base.base_path(key), "upperdir": paths.home / "upper",
              "workdir": paths.home / "work"}  # fmt: skip
    options = ",".join(f"{name}={path}" for name, path in layers.items())
    command = ["mount", "-t", "overlay", f"vdev-{paths.name}", "-o", options, str(paths.root)]
    return run(command, check=False).returncode == 0


def remove(paths: Paths) -> None:
    """Unmount and delete; the device must be off."""
    unmount(paths.root)
    shutil.rmtree(paths.home, ignore_errors=True)
    if paths.home.exists():  # something was still dying
        shutil.rmtree(paths.home)


def owner_is_gone(record: Mapping[str, Any]) -> bool:
    """Whether the device belongs to a process that has ended."""
    owner = record.get("owner")
    return owner is not None and process_start(int(owner["pid"])) != owner["start"]
