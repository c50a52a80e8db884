"""Removing what dead runs left behind.

A device is dead when the `up` that made it was killed, when its keeper was killed, or when it
belongs to a process that has ended (`Machine(owned=True)`). A device that was switched off (kill,
power-off) is not dead: its disk waits for `up`.
"""

from __future__ import annotations

import re
import shutil

from . import base, cgroups
from .disk import CGROUP_PREFIX, owner_is_gone
from .machine import Machine, machines
from .network import Link, existing_indexes
from .outer import (
    CACHE,
    DEVICES,
    LOCKS,
    cgroup_root,
    is_locked,
    lock,
    lock_if_free,
    mount_table,
    read_json,
    say,
    unmount,
    unmount_nspawn_run,
)


def collect() -> list[str]:
    """Remove all leftovers; what was removed, one line each."""
    removed = []
    for machine in machines():
        reason = why_dead(machine)
        if reason:
            machine.down()
            removed.append(f"device {machine.name}: {reason}")
    removed += _stray_mounts() + _stray_cgroups() + _stray_links() + _stray_bases()
    _stray_locks()
    unmount_nspawn_run()
    return removed


def why_dead(machine: Machine) -> str:
    """'' for a device that is in order, and for one that somebody is making, starting or removing:
    its lock is tried, and nobody else changes it while it is looked at."""
    with lock_if_free(LOCKS / f"device-{machine.name}") as free:
        return _fault(machine) if free else ""


def _fault(machine: Machine) -> str:
    """Called with the device's lock held: then no keeper starts."""
    if machine.phase == "absent":
        return ""
    if owner_is_gone(machine.record):
        return "its owner has ended"
    if not machine.exists:
        return "it was never finished"
    # Its keeper may have ended between the two halves of the first look, in good order.
    if machine.phase == "dead" and machine.phase == "dead":
        return "its keeper was killed"
    if not machine.record.get("complete"):
        return "its `up` was killed"
    return ""


def _names() -> set[str]:
    return {machine.name for machine in machines()}


def _stray_mounts() -> list[str]:
    removed = []
    for fields in mount_table():
        match = re.fullmatch(rf"{DEVICES}/([^/]+)/root", fields[1])
        if match and match[1] not in _names():
            unmount(DEVICES / match[1] / "root")
            removed.append(f"mount {fields[1]}")
    return removed


def _stray_cgroups() -> list[str]:
    root = cgroup_root()
    if root is None:
        return []
    removed = []
    for path in root.glob(f"{CGROUP_PREFIX}*"):
        if path.name.removeprefix(CGROUP_PREFIX) not in _names():
            cgroups.kill(path)
            cgroups.remove(path)
            removed.append(f"cgroup {path}")
    return removed


def _stray_links() -> list[str]:
    removed = []
    with lock("network"):
        used = {int(read_json(path).get("index", -1)) for path in DEVICES.glob("*/device.json")}
        for index in existing_indexes() - used:
            Link(index).remove()
            removed.append(f"link {Link(index).outer_name}")
    return removed


def _stray_bases() -> list[str]:
    """Bases that were never finished, and complete ones that neither we nor a device use."""
    current = base.current_key()
    removed = []
    for path in sorted(CACHE.glob("base-*")):
        key = path.name.removeprefix("base-").partition(".")[0]
        if is_locked(LOCKS / f"base-{key}"):
            continue
        with lock(f"base-{key}"):
            used = {str(machine.record.get("base")) for machine in machines()} | {current}
            if path.suffix == ".making" or key not in used:
                say(f"removing {path}")
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(f"base {path.name}")
    return removed


def _stray_locks() -> None:
    for path in LOCKS.glob("device-*"):
        if path.name.removeprefix("device-") not in _names() and not is_locked(path):
            with lock(path.name):
                path.unlink(missing_ok=True)
