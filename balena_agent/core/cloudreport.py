"""What the device tells the cloud about itself (spec 20 §23, spec 31 §6).

Theory: the report is a function of the snapshot and of a few facts that no snapshot has. What is
sent of it is the difference to what the cloud has acknowledged, one level below the uuid: a member
goes whole or not at all. `apps` more than any: the cloud takes what is not named for removed. So
it is left out while nobody has looked at the engine, and in local mode, where it is not the
cloud's business.

The cloud checks every type. Members that must not be null are left out where they are unknown;
texts are cut where the cloud would refuse or cut them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from .hardware import Metrics
from .jsonread import Json
from .names import normal_image
from .observed import Container
from .snapshot import Snapshot
from .sources import LOCAL
from .status import DOWNLOADING, View, local_mode, target_apps, update_status, view_of
from .target import SUPERVISOR_APPS, App, Release

Report = dict[str, Json]

APPS: Final = "apps"
NUMBERS: Final = ("cpu_usage", "memory_usage", "memory_total", "storage_usage", "storage_total",
                  "cpu_temp")  # fmt: skip
METRICS: Final = frozenset({*NUMBERS, "storage_block_device", "cpu_id"})
ADDRESSES: Final = frozenset({"ip_address", "mac_address"})
BUCKETS: Mapping[str, int] = {"cpu_usage": 20, "cpu_temp": 5, "memory_usage": 10}
"""How far apart two values are to be in different ones; other metrics count as they are."""

_LIMITS: Mapping[str, int] = {
    "status": 50, "os_version": 70, "supervisor_version": 20, "api_secret": 64,
}  # fmt: skip
_LISTS: Mapping[str, int] = {"ip_address": 2000, "mac_address": 900}
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class DeviceSide:
    """What the report needs beside the snapshot. `api_secret` is the key of the device's own API;
    `hardware` is None where nobody reads it."""

    addresses: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    api_secret: str = ""
    hardware: Metrics | None = None


def full_report(snapshot: Snapshot, device: DeviceSide) -> Report:
    """Everything that can be said now, without the uuid around it."""
    document = _device(snapshot, device) | _metrics(snapshot, device.hardware)
    if (apps := _apps(snapshot)) is not None:
        document[APPS] = apps
    return document


def difference(acknowledged: Mapping[str, Json], now: Mapping[str, Json]) -> Report:
    """The members of `now` that the cloud does not have yet. Empty objects say nothing."""
    return {
        key: value
        for key, value in now.items()
        if value != {} and (key not in acknowledged or _differs(key, acknowledged[key], value))
    }


def only_metrics(changes: Mapping[str, Json]) -> bool:
    return changes.keys() <= METRICS


def memorable(report: Mapping[str, Json]) -> Report:
    """What is to outlive a restart: not the apps while one of them is downloading. Those change
    every few seconds, and what was told of them before is not what the cloud has any more."""
    apps: Mapping[str, Json] = report.get(APPS) or {}
    releases = [release for app in apps.values() for release in app["releases"].values()]
    busy = any(release.get("update_status") == DOWNLOADING for release in releases)
    return {key: value for key, value in report.items() if not (busy and key == APPS)}


def without_metrics(report: Mapping[str, Json]) -> Report:
    return {key: value for key, value in report.items() if key not in METRICS}


def releases_of(document: Mapping[str, Json]) -> frozenset[tuple[str, str]]:
    """The releases that a report names: (app uuid, commit)."""
    return frozenset(
        (uuid, commit)
        for uuid, app in (document.get(APPS) or {}).items()
        for commit in app["releases"]
    )


def wanted_releases(snapshot: Snapshot) -> frozenset[tuple[str, str]]:
    return frozenset((a.uuid, a.release.commit) for a in target_apps(snapshot) if a.release)


def reduced(apps: Mapping[str, Json], wanted: frozenset[tuple[str, str]]) -> Report:
    """`apps` with no other releases than these: the cloud may not know those of the past."""
    found: Report = {}
    for uuid, app in apps.items():
        kept = {c: r for c, r in app["releases"].items() if (uuid, c) in wanted}
        said = app.get("release_uuid")
        known = {"release_uuid": said} if said in kept else {}
        found[uuid] = {**known, "releases": kept}
    return found


# -- the device


def _device(snapshot: Snapshot, device: DeviceSide) -> Report:
    facts = snapshot.facts
    document: Report = {
        "status": "Idle",
        "os_version": facts.os_name or None,
        "os_variant": facts.os_variant if facts.os_variant in ("dev", "prod") else None,
        "supervisor_version": facts.compat_version,
        "ip_address": " ".join(device.addresses),
        "mac_address": " ".join(device.macs),
        "api_port": facts.api_port,
        "api_secret": device.api_secret or None,
    }
    if not snapshot.standing.host.host_update:  # its own scripts tell how far an update is
        document |= {"provisioning_progress": None, "provisioning_state": ""}
    return {key: _cut(key, value) for key, value in document.items() if _sayable(key, value)}


def _sayable(key: str, value: Json) -> bool:
    return key not in _LISTS or bool(value)


def _cut(key: str, value: Json) -> Json:
    if key in _LIMITS and isinstance(value, str):
        return value[: _LIMITS[key]]
    limit = _LISTS.get(key)
    if limit is None or len(value) <= limit:
        return value
    return value[: limit + 1].rpartition(" ")[0]


def _metrics(snapshot: Snapshot, hardware: Metrics | None) -> Report:
    """The metrics; all null where the owner wants none, which is said once."""
    if hardware is None:
        return {}
    undervolted: Report = {"is_undervolted": bool(hardware.is_undervolted)}
    if not snapshot.settings.hardware_metrics:
        return undervolted | dict.fromkeys(sorted(METRICS))
    numbers = {name: _number(getattr(hardware, name)) for name in NUMBERS}
    cpu_id = hardware.cpu_id
    texts: Report = {
        "storage_block_device": hardware.storage_block_device,
        "cpu_id": cpu_id if cpu_id and cpu_id.isascii() and cpu_id.isprintable() else None,
    }
    return {**undervolted, **numbers, **texts}


def _number(value: int | None) -> int | None:
    return None if value is None else min(int(value), _LARGEST)


def _differs(key: str, old: Json, new: Json) -> bool:
    bucket = BUCKETS.get(key)
    if bucket is None or not (isinstance(old, int) and isinstance(new, int)):
        return bool(old != new)
    return old // bucket != new // bucket


# -- the apps


def _apps(snapshot: Snapshot) -> Report | None:
    """Every app of the cloud's target, or None while that cannot be said."""
    if not snapshot.looked or local_mode(snapshot) or snapshot.source in ("", LOCAL):
        return None
    view = view_of(snapshot)
    rejected = {app.uuid for app in snapshot.desired.apps if app.problem}
    return {
        app.uuid: _app(view, app, app.uuid in rejected)
        for app in target_apps(snapshot)
        if not app.is_host
    }


def _app(view: View, app: App, rejected: bool) -> Report:
    releases = dict(_old_releases(view, app))
    if app.release:
        services = dict(_wanted_services(view, app, app.release, rejected))
        status = "rejected" if rejected else _status(services)
        releases[app.release.commit] = {"update_status": status, "services": services}
    commit = view.snapshot.commits.get(app.uuid)
    known = {"release_uuid": commit} if commit else {}
    return {**known, "releases": releases}


def _wanted_services(
    view: View, app: App, release: Release, rejected: bool
) -> Iterator[tuple[str, Report]]:
    """The services of the target's release. Of a rejected one nothing is fetched, so only what is
    there already can be told."""
    for service in release.services.values():
        if rejected and not view.container_of(app, release, service.name):
            continue
        status, progress = view.service_status(app, release, service)
        if app.uuid in SUPERVISOR_APPS:  # that is us
            status, progress = "Running", None
        shown: Report = {"image": normal_image(service.image), "status": status}
        if progress is not None:
            shown["download_progress"] = progress
        yield service.name, shown


def _old_releases(view: View, app: App) -> Iterator[tuple[str, Report]]:
    """Releases of which containers are left. One whose image has lost its name is not told: the
    cloud knows services by their images."""
    found: dict[str, Report] = {}
    wanted = app.release.commit if app.release else ""
    for (uuid, service), containers in view.containers.items():
        for container in containers if uuid == app.uuid else ():
            commit = container.name.commit if container.name else ""
            image = _image_name(view.snapshot, container)
            if commit and commit != wanted and image:
                status = view.container_status(container)
                services = found.setdefault(commit, {})
                services.setdefault(service, {"image": image, "status": status})
    for commit, services in found.items():
        yield commit, {"update_status": _status(services), "services": services}


def _image_name(snapshot: Snapshot, container: Container) -> str:
    """The name under which the image came: our own note, else what the engine calls it."""
    image = snapshot.observed.images.get(container.spec.image)
    if image is None:
        return ""
    noted = sorted(
        each.reference for each in image.obtained if each.service in ("", container.service)
    )
    return next(iter([*noted, *sorted(image.digests), *sorted(image.tags)]), "")


def _status(services: Mapping[str, Report]) -> str:
    return update_status((s["status"], s.get("download_progress")) for s in services.values())
