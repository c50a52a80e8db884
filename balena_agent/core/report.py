"""From a snapshot to the documents that the peer's API shows (spec 10 §8, spec 20 §3.3).

Theory: every reader gets a pure function of one snapshot, so two answers of the same version never
contradict each other and can be cached by version. Nothing here decides anything, and nothing here
knows HTTP: `apps` says which apps the reader may see, whoever that is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from .jsonread import Json, whole_number
from .names import normal_image
from .observed import Container
from .snapshot import Snapshot
from .status import (
    InScope,
    View,
    age,
    applying,
    device_config,
    overall_progress,
    target_apps,
    update_status,
    view_of,
)
from .target import App, Service

INJECTED_KEYS = frozenset(
    {"RESIN_SUPERVISOR_API_KEY", "RESIN_API_KEY", "BALENA_SUPERVISOR_API_KEY", "BALENA_API_KEY"}
)
"""Variables that the agent itself sets in containers; their values are never shown."""


def applications_state(snapshot: Snapshot, apps: InScope) -> dict[str, Json]:
    """`GET /v2/applications/state` (spec 10 §8.14): target apps by name."""
    view = view_of(snapshot)
    rejected = {app.uuid for app in snapshot.desired.apps if app.problem}
    return {
        app.name: _application(view, app, app.uuid in rejected)
        for app in target_apps(snapshot)
        if apps(app.app_id)
    }


def _application(view: View, app: App, rejected: bool) -> dict[str, Json]:
    services: dict[str, Json] = {}
    told: list[tuple[str, int | None]] = []
    for service in app.release.services.values() if app.release else ():
        assert app.release is not None
        status, progress = view.service_status(app, app.release, service)
        told.append((status, progress))
        services[service.name] = {
            "status": status,
            "image": normal_image(service.image),
            "downloadProgress": progress,
            "releaseId": app.release.release_id,
        }
    document: dict[str, Json] = {"appId": app.app_id, "appUuid": app.uuid}
    if app.release:
        document["commit"] = app.release.commit
    return document | {
        "updateStatus": "rejected" if rejected else update_status(told),
        "services": services,
    }


def state_status(snapshot: Snapshot, apps: InScope) -> dict[str, Json]:
    """`GET /v2/state/status` (spec 10 §8.20): one app, by preference the fleet's."""
    view = view_of(snapshot)
    document: dict[str, Json] = {
        "status": "success",
        "appState": "applying" if applying(snapshot) else "applied",
        "overallDownloadProgress": overall_progress(snapshot, apps),
        "containers": [],
        "images": [],
    }
    app_id = _shown_app(view, apps)
    if app_id is None:
        return document
    mine = [c for known in view.containers.values() for c in known if c.app_id == app_id]
    mine.sort(key=age, reverse=True)
    document["containers"] = [_container_entry(view, container) for container in mine]
    document["images"] = _image_entries(view, app_id, mine)
    commit = snapshot.commits.get(_uuid_of(view, app_id))
    return document | ({"release": commit} if commit else {})


def _shown_app(view: View, apps: InScope) -> int | None:
    """The fleet's app, else the lowest id, of those that have a container or an image."""
    target = {app.app_id: app for app in target_apps(view.snapshot)}
    here = {c.app_id for known in view.containers.values() for c in known}
    here |= {
        app.app_id
        for app in target.values()
        for service in (app.release.services.values() if app.release else ())
        if _is_listed(view, app, service)
    }

    def rank(app_id: int) -> tuple[bool, int]:
        app = target.get(app_id)
        return (app is None or app.is_host or app.app_class != "fleet", app_id)

    return min((app_id for app_id in here if apps(app_id)), key=rank, default=None)


def _uuid_of(view: View, app_id: int) -> str:
    known = [app.uuid for app in target_apps(view.snapshot) if app.app_id == app_id]
    known += [uuid for (uuid, _), cs in view.containers.items() if cs[0].app_id == app_id]
    return known[0] if known else ""


def _container_entry(view: View, container: Container) -> dict[str, Json]:
    return {
        "status": view.container_status(container),
        "serviceName": container.service,
        "appId": container.app_id,
        "imageId": container.name.image_id if container.name else None,
        "serviceId": container.service_id,
        "containerId": container.id,
        "createdAt": milliseconds(container.created_at),
    }


def _is_listed(view: View, app: App, service: Service) -> bool:
    """An image is listed once it is here or on its way."""
    return normal_image(service.image) in view.downloads or view.has_image(app, service)


def _image_entries(view: View, app_id: int, containers: list[Container]) -> list[Json]:
    """Images of the target release, then those that only an older container still uses."""
    entries: list[dict[str, Json]] = []
    for app in target_apps(view.snapshot):
        if app.app_id == app_id and app.release:
            services = app.release.services.values()
            entries += [_image_entry(view, app, s) for s in services if _is_listed(view, app, s)]
    known = {(entry["serviceName"], entry["imageId"]) for entry in entries}
    for container in containers:
        if container.name and (container.service, container.name.image_id) not in known:
            known.add((container.service, container.name.image_id))
            entries.append(_old_image_entry(view, container, container.name.image_id))
    return list(entries)


def _image_entry(view: View, app: App, service: Service) -> dict[str, Json]:
    status, progress = view.image_status(app, service)
    entry: dict[str, Json] = {
        "name": normal_image(service.image),
        "appId": app.app_id,
        "serviceName": service.name,
        "imageId": service.image_id,
    }
    image = view.snapshot.observed.image(service.image) if progress is None else None
    if image:
        entry["dockerImageId"] = image.id
    return entry | {"status": status, "downloadProgress": progress}


def _old_image_entry(view: View, container: Container, image_id: int) -> dict[str, Json]:
    image = view.snapshot.observed.images.get(container.spec.image)
    names = sorted(image.tags | image.digests) if image else []
    return {
        "name": names[0] if names else container.spec.image,
        "appId": container.app_id,
        "serviceName": container.service,
        "imageId": image_id,
        "dockerImageId": container.spec.image,
        "status": "Downloaded",
        "downloadProgress": None,
    }


def application_state(snapshot: Snapshot, app_id: int) -> dict[str, Json] | None:
    """`GET /v2/applications/:id/state` (spec 10 §8.15); None when nothing of the app is here.

    Keys are image ids: during an update old and new ones stand side by side.
    """
    view = view_of(snapshot)
    services = _by_image_id(view, app_id)
    if not services:
        return None
    commit = snapshot.commits.get(_uuid_of(view, app_id))
    shown: dict[str, Json] = {"commit": commit} if commit else {}
    local = {str(app_id): {"services": {str(key): value for key, value in services.items()}}}
    return shown | {"local": local, "dependent": {}}


def _by_image_id(view: View, app_id: int) -> dict[int, dict[str, Json]]:
    """What is here of one app, by image id: images of the target, over them containers."""
    found: dict[int, dict[str, Json]] = {}
    for app in target_apps(view.snapshot):
        for service in app.release.services.values() if app.release else ():
            if app.app_id == app_id and app.release and _is_listed(view, app, service):
                status, progress = view.service_status(app, app.release, service)
                found[service.image_id] = _entry(status, app.release.release_id, progress)
    seen: set[int] = set()
    for known in view.containers.values():
        for container in known:
            if container.app_id != app_id or container.name is None:
                continue
            image_id, status = container.name.image_id, view.container_status(container)
            status = "Handing over" if image_id in seen else status
            found[image_id] = _entry(status, container.name.release_id, None)
            seen.add(image_id)
    return found


def _entry(status: str, release_id: int, progress: int | None) -> dict[str, Json]:
    return {"status": status, "releaseId": release_id, "download_progress": progress}


def device_state(
    snapshot: Snapshot, addresses: tuple[str, ...] = (), macs: tuple[str, ...] = ()
) -> dict[str, Json]:
    """`GET /v1/device` (spec 10 §8.11). Commit and status are those of the first app, the status
    that of its first service; `Running` is called `Idle` here."""
    view, facts = view_of(snapshot), snapshot.facts
    document: dict[str, Json] = {
        "api_port": facts.api_port,
        "ip_address": " ".join(addresses),
        "os_version": facts.os_name,
        "mac_address": " ".join(macs),
        "supervisor_version": facts.compat_version,
        "update_pending": applying(snapshot),
        "update_failed": snapshot.update_failed,
        "update_downloaded": snapshot.update_downloaded,
    }
    if not addresses:
        del document["ip_address"]
    ids = {app.app_id for app in target_apps(snapshot)}
    ids |= {c.app_id for known in view.containers.values() for c in known}
    here = {app_id: found for app_id in ids if (found := _by_image_id(view, app_id))}
    if not here:
        return document
    first = min(here)
    commit = snapshot.commits.get(_uuid_of(view, first))
    if commit and not applying(snapshot):
        document["commit"] = commit
    service = here[first][min(here[first])]
    status = service["status"]
    document["status"] = "Idle" if status == "Running" else status
    document["download_progress"] = service["download_progress"]
    return document


def single_app(snapshot: Snapshot, container: Container) -> dict[str, Json]:
    """`GET /v1/apps/:id` (spec 10 §8.10) of an app's only container. The variables are those that
    the container really has, but for its API keys."""
    variables = container.spec.fields.get("Env") or {}
    name = container.name
    document: dict[str, Json] = {"appId": container.app_id}
    if commit := snapshot.commits.get(container.app_uuid) or (name and name.commit):
        document["commit"] = commit
    return document | {
        "containerId": container.id,
        "env": {key: value for key, value in variables.items() if key not in INJECTED_KEYS},
        "imageId": container.spec.image,
        "releaseId": name.release_id if name else None,
    }


def container_ids(snapshot: Snapshot, apps: InScope) -> dict[str, str]:
    """Container ids by service name (spec 10 §8.19). Of several containers the newest counts,
    of several apps with one service name the one with the highest id."""
    mine = [c for c in snapshot.observed.containers.values() if apps(c.app_id)]
    mine.sort(key=lambda container: (container.app_id, age(container)))
    return {container.service: container.id for container in mine}


def local_target_state(snapshot: Snapshot, apps: InScope) -> dict[str, Json]:
    """The `state` member of `GET /v2/local/target-state` (spec 20 §3.3, the D form).

    It can be posted back as it is: `{"local": {name, config, apps}, "dependent": ...}`, apps in the
    v2 input form. A local target comes back as it was posted, unknown members included; any other
    target is brought into this form. Without the keys that the agent puts into containers.
    """
    posted = _posted(snapshot)
    local = posted.get("local") if isinstance(posted.get("local"), dict) else {}
    assert isinstance(local, dict)
    name = snapshot.target.name if snapshot.target else None
    if snapshot.source == "local" and posted:
        shown_apps = _posted_apps(local.get("apps"), apps)
    else:
        mine = (app for app in target_apps(snapshot) if apps(app.app_id))
        shown_apps = {str(app.app_id): _input_form(app) for app in mine}
    return {
        **{key: value for key, value in posted.items() if key != "force"},
        "local": local
        | {
            "name": name or snapshot.facts.device_name,
            "config": device_config(snapshot),
            "apps": shown_apps,
        },
        "dependent": {"apps": [], "devices": []},
    }


def _posted(snapshot: Snapshot) -> dict[str, Json]:
    if snapshot.source != "local" or not snapshot.raw_target:
        return {}
    try:
        raw = json.loads(snapshot.raw_target)
    except ValueError:
        return {}
    return raw if isinstance(raw, dict) else {}


def _posted_apps(apps: Json, in_scope: InScope) -> dict[str, Json]:
    mine = apps if isinstance(apps, dict) else {}
    return {
        key: {**app, "services": _each_without_keys(_mapping(app, "services"))}
        for key, app in mine.items()
        if isinstance(app, dict) and in_scope(whole_number(key) or 0)
    }


def _each_without_keys(services: Mapping[str, Json]) -> dict[str, Json]:
    return {key: _without_keys(service) for key, service in services.items()}


def _without_keys(service: Json) -> Json:
    shown = {k: v for k, v in _mapping(service, "environment").items() if k not in INJECTED_KEYS}
    return {**service, "environment": shown} if isinstance(service, dict) else service


def _mapping(value: Json, key: str) -> dict[str, Json]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _input_form(app: App) -> dict[str, Json]:
    """An app in the v2 input form (spec 20 §3.2)."""
    release = app.release
    if release is None:
        return {"name": app.name, "services": {}, "volumes": {}, "networks": {}}
    services = {str(s.service_id): _service_input(s) for s in release.services.values()}
    return {
        "name": app.name,
        "commit": release.commit,
        "releaseId": release.release_id,
        "services": services,
        "volumes": dict(release.volumes),
        "networks": dict(release.networks),
    }


def _service_input(service: Service) -> Json:
    contract: dict[str, Json] = {"contract": dict(service.contract)} if service.contract else {}
    return _without_keys(
        {
            **service.composition,
            **contract,
            "imageId": service.image_id,
            "serviceName": service.name,
            "serviceId": service.service_id,
            "image": service.image,
            "running": service.running,
            "environment": dict(service.environment),
            "labels": dict(service.labels),
        }
    )


def milliseconds(instant: str) -> str:
    """The engine's time stamp, which has nanoseconds, in the form of ISO 8601 with milliseconds."""
    head, dot, fraction = instant.removesuffix("Z").partition(".")
    digits = (fraction if dot else "")[:3].ljust(3, "0")
    return f"{head}.{digits}Z" if instant.endswith("Z") else instant
