"""The exported objects as values: every object, interface and property of one snapshot.

Theory: `objects(snapshot)` is a pure function, so what appears, disappears or changes on the bus is
the difference of two of its results, and nothing has to remember to announce anything.

    tree        object path -> interface name -> property name -> value
    Difference  what has to be announced to turn one tree into the next
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.describe import ServiceRow, service_rows, status_line
from ..core.intent import ServiceKey
from ..core.snapshot import Snapshot
from ..core.status import cloud_state, local_mode, overall_progress, target_apps
from ..core.target import App
from .dbus_interface import APP, CHANGES, OURS, ROOT, SERVICE, Interface

Values = Mapping[str, Any]
Tree = Mapping[str, Mapping[str, Values]]

IDLE = -1.0

_BY_NAME: Mapping[str, Interface] = {interface.name: interface for interface in OURS}


@dataclass(frozen=True, slots=True)
class Facts:
    """What the bus shows of the agent itself, beside the snapshot; `problems` are those of its
    settings and its firewall. The functions are called often and from the bus thread: they must be
    quick and must not raise."""

    version: str
    healthy: Callable[[], bool] = lambda: True
    addresses: Callable[[], Sequence[str]] = tuple
    log_name: str = "balena-agent"
    problems: Callable[[], Sequence[str]] = tuple


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service is on the bus, and what is known of it."""

    path: str
    row: ServiceRow

    @property
    def key(self) -> ServiceKey:
        return (self.row.app_uuid, self.row.service)


@dataclass(frozen=True, slots=True)
class Difference:
    """`added` and `removed` by path; `changed` are (path, interface name, changed properties)."""

    added: Tree = field(default_factory=dict)
    removed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    changed: tuple[tuple[str, str, Values], ...] = ()


def escaped(label: str) -> str:
    """One path element, as sd_bus_path_encode makes it."""

    def keeps(place: int, byte: int) -> bool:
        char = chr(byte)
        return char.isascii() and (char.isalpha() or (char.isdigit() and place > 0))

    raw = label.encode("utf-8", "replace")
    return "".join(chr(b) if keeps(i, b) else f"_{b:02x}" for i, b in enumerate(raw)) or "_"


def app_path(uuid: str, app_id: int) -> str:
    return f"{ROOT}/app/{escaped(uuid or str(app_id))}"


def service_path(uuid: str, app_id: int, service: str) -> str:
    return f"{app_path(uuid, app_id)}/service/{escaped(service)}"


def places(snapshot: Snapshot) -> tuple[Place, ...]:
    """Every service that the target has or that has a container, each once."""
    found: dict[str, Place] = {}
    for row in service_rows(snapshot):
        path = service_path(row.app_uuid, row.app_id, row.service)
        found.setdefault(path, Place(path, row))
    return tuple(found.values())


def in_target(snapshot: Snapshot, key: ServiceKey) -> bool:
    """Whether the target's release has this service: else nothing can be asked of it."""
    uuid, service = key
    return any(
        app.uuid == uuid and app.release is not None and service in app.release.services
        for app in target_apps(snapshot)
    )


def objects(snapshot: Snapshot, known: Iterable[Place]) -> Tree:
    """All App and Service objects."""
    tree = {place.path: {SERVICE.name: _service(place.row)} for place in known}
    below: dict[str, list[Place]] = {}
    for place in known:
        below.setdefault(app_path(place.row.app_uuid, place.row.app_id), []).append(place)
    wanted = {app_path(app.uuid, app.app_id): app for app in target_apps(snapshot)}
    for path in (*wanted, *(path for path in below if path not in wanted)):
        tree[path] = {APP.name: _app(snapshot, wanted.get(path), below.get(path, []))}
    return tree


def manager(snapshot: Snapshot, facts: Facts) -> Values:
    """The properties of the root object."""
    host, target = snapshot.facts, snapshot.target
    progress = overall_progress(snapshot)
    return {
        "Version": facts.version,
        "DeviceType": host.device_type,
        "OSVersion": host.os_name,
        "DeviceUuid": host.device_uuid,
        "DeviceName": (target.name if target else None) or host.device_name,
        "ApiPort": host.api_port & 0xFFFF,
        "ApiEndpoint": host.api_endpoint,
        "Managed": host.managed,
        "LocalMode": local_mode(snapshot),
        "CloudState": cloud_state(snapshot),
        "EngineState": "up" if snapshot.engine_up else "down",
        "Status": status_line(snapshot),
        "Commit": commit_applied(snapshot),
        "UpdatePending": snapshot.update_pending,
        "UpdateDownloaded": snapshot.update_downloaded,
        "UpdateFailed": snapshot.update_failed,
        "DownloadProgress": IDLE if progress is None else float(progress),
        "Waiting": [[wait.subject, wait.reason] for wait in snapshot.plan.waits],
        "LastError": snapshot.last_error,
        "AddressList": list(facts.addresses()),
        "Healthy": bool(facts.healthy()),
    }


def commit_applied(snapshot: Snapshot) -> str:
    """The release that the device's own app was last brought to."""
    app = main_app(snapshot)
    return snapshot.commits.get(app.uuid, "") if app else ""


def commit_wanted(snapshot: Snapshot) -> str:
    app = main_app(snapshot)
    return app.release.commit if app and app.release else ""


def main_app(snapshot: Snapshot) -> App | None:
    """The app that a device is for: the fleet's, else the one with the lowest id."""

    def rank(app: App) -> tuple[bool, int]:
        return (app.is_host or app.app_class != "fleet", app.app_id)

    return min(target_apps(snapshot), key=rank, default=None)


def difference(old: Tree, new: Tree) -> Difference:
    """What to announce. Only properties that announce their changes are compared."""
    return Difference(
        added={path: faces for path, faces in new.items() if path not in old},
        removed={path: tuple(faces) for path, faces in old.items() if path not in new},
        changed=tuple(
            (path, name, news)
            for path, faces in new.items()
            if path in old
            for name, values in faces.items()
            if (news := _news(name, old[path].get(name, {}), values))
        ),
    )


def signature_of(interface: str, name: str) -> str:
    """The type of a property of ours. KeyError for an interface that is none of ours."""
    found = _BY_NAME[interface].property(name)
    if found is None:
        raise KeyError(name)
    return found.signature


def _news(interface: str, old: Values, new: Values) -> Values:
    announced = {p.name for p in _BY_NAME[interface].properties if p.emits == CHANGES}
    return {k: v for k, v in new.items() if k in announced and old.get(k) != v}


def _service(row: ServiceRow) -> Values:
    return {
        "Name": row.service,
        "AppId": _unsigned(row.app_id),
        "ServiceId": _unsigned(row.service_id),
        "ReleaseId": _unsigned(row.release_id),
        "Image": row.image,
        "ContainerId": row.container_id,
        "Status": row.status,
        "DownloadProgress": percent(row),
        "Waiting": row.waiting,
    }


def percent(row: ServiceRow) -> float:
    return IDLE if row.download_progress is None else float(row.download_progress)


def _app(snapshot: Snapshot, app: App | None, known: Sequence[Place]) -> Values:
    row = known[0].row if known else None
    uuid = app.uuid if app else row.app_uuid if row else ""
    app_id = app.app_id if app else row.app_id if row else 0
    return {
        "Id": _unsigned(app_id),
        "Uuid": uuid,
        "Name": app.name if app else "",
        "Commit": snapshot.commits.get(uuid, ""),
        "Class": app.app_class if app else "",
        "Status": _app_status(snapshot, app),
        "Services": [place.path for place in known],
    }


def _app_status(snapshot: Snapshot, app: App | None) -> str:
    if app is None:
        return "removing"
    if any(desired.uuid == app.uuid and desired.problem for desired in snapshot.desired.apps):
        return "rejected"
    return "settled" if app.uuid in snapshot.plan.settled_apps else "applying"


def _unsigned(number: int) -> int:
    """Ids come from targets and labels: what D-Bus cannot carry is shown as 0."""
    return number if 0 <= number < 2**32 else 0
