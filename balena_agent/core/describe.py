"""From a snapshot to what our own faces show: D-Bus, `balena-agentctl`, `systemctl status`.

Theory: the peer's documents (report.py) show results; these show *why*: every step with its cause,
every wait with its reason, every failure with the time of its next attempt. `describe` is the whole
of it as one JSON document; members are only ever added. Times are wall time in seconds. API keys
are never part of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .jsonread import Json
from .names import normal_image
from .observed import Container
from .plan import Wait
from .scopes import EVERYTHING, Scope
from .snapshot import NOT_ASKED, Failure, Running, Snapshot
from .status import View, applying, cloud_state, local_mode, overall_progress, target_apps, view_of
from .steps import Step
from .target import App, Release, Service
from .traits import describe as words_for
from .traits import identity, service_of, service_subject, subject, verb

UNKNOWN = "Unknown"
"""The status of a service while nobody can tell: the engine does not answer."""

_SHOWN_STEPS = 3
_LINE = 200


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """One service as a row of a table: of the target, or one that is about to go.

    `container_id` is "" without a container; then `status` is about the image.
    `download_progress` is a percentage while the service's image is downloaded. `waiting` says what
    the service waits for, "" when it does not.
    """

    app_uuid: str
    app_id: int
    app_name: str
    service: str
    service_id: int
    release_id: int
    commit: str
    image: str
    container_id: str
    status: str
    download_progress: int | None
    waiting: str


def service_rows(snapshot: Snapshot) -> tuple[ServiceRow, ...]:
    """Every service of the device once, sorted by app id and name."""
    view = view_of(snapshot)
    rows = [
        _target_row(view, app, app.release, service)
        for app in target_apps(snapshot)
        if app.release
        for service in app.release.services.values()
    ]
    known = {(row.app_uuid, row.service) for row in rows}
    rows += [_old_row(view, found[0]) for key, found in view.containers.items() if key not in known]
    return tuple(sorted(rows, key=lambda row: (row.app_id, row.app_uuid, row.service)))


def _target_row(view: View, app: App, release: Release, service: Service) -> ServiceRow:
    container = view.container_of(app, release, service.name)
    status, _ = view.service_status(app, release, service)
    if container is None and (others := view.containers.get((app.uuid, service.name))):
        # The old release still runs: people want to see that, beside the progress of the new one.
        container, status = others[0], view.container_status(others[0])
    if container is None and view.snapshot.engine_error:
        status = UNKNOWN
    return ServiceRow(
        app_uuid=app.uuid,
        app_id=app.app_id,
        app_name=app.name,
        service=service.name,
        service_id=service.service_id,
        release_id=release.release_id,
        commit=release.commit,
        image=service.image,
        container_id=container.id if container else "",
        status=status,
        download_progress=view.downloads.get(normal_image(service.image)),
        waiting=_waiting(view.snapshot, app.uuid, service.name, service.image),
    )


def _old_row(view: View, container: Container) -> ServiceRow:
    name = container.name
    return ServiceRow(
        app_uuid=container.app_uuid,
        app_id=container.app_id,
        app_name="",
        service=container.service,
        service_id=container.service_id,
        release_id=name.release_id if name else 0,
        commit=name.commit if name else "",
        image=container.spec.image,
        container_id=container.id,
        status=view.container_status(container),
        download_progress=None,
        waiting=_waiting(view.snapshot, container.app_uuid, container.service, ""),
    )


def _waiting(snapshot: Snapshot, app_uuid: str, service: str, image: str) -> str:
    """The reason of the first wait whose subject is this service or its image."""
    about = _subjects(app_uuid, service, image)
    return next((wait.reason for wait in snapshot.plan.waits if wait.subject in about), "")


def _subjects(app_uuid: str, service: str, image: str) -> set[str]:
    """The subjects under which the planner names a service's waits."""
    images = {f"image {image}", f"image {normal_image(image)}"} if image else set()
    return {service_subject(app_uuid, service)} | images


def describe(snapshot: Snapshot, version: str) -> dict[str, Json]:
    """The whole state as one document; `version` is the agent's own."""
    return {
        "version": version,
        "status": status_line(snapshot),
        "device": _device(snapshot),
        "engine": {
            "state": "up" if snapshot.engine_up else "down",
            "error": snapshot.engine_error,
            "socket": snapshot.facts.engine_socket,
        },
        "managed": snapshot.facts.managed,
        "cloud": {"state": cloud_state(snapshot), "error": _cloud_error(snapshot)},
        "localMode": local_mode(snapshot),
        "source": snapshot.source,
        "update": {
            "pending": snapshot.update_pending,
            "downloaded": snapshot.update_downloaded,
            "failed": snapshot.update_failed,
            "progress": overall_progress(snapshot),
        },
        "apps": _apps(snapshot),
        **plan_state(snapshot, EVERYTHING),
        "host": _host(snapshot),
        "lastError": snapshot.last_error,
        "notices": list(snapshot.notices),
    }


def _cloud_error(snapshot: Snapshot) -> str:
    """Why a device that has a cloud is not online."""
    return snapshot.cloud.error if snapshot.facts.provisioned else ""


def _device(snapshot: Snapshot) -> dict[str, Json]:
    facts = snapshot.facts
    name = snapshot.target.name if snapshot.target else None
    return {
        "uuid": facts.device_uuid,
        "name": name or facts.device_name,
        "type": facts.device_type,
        "arch": facts.device_arch,
        "os": facts.os_name,
        "osVariant": facts.os_variant,
        "hostname": facts.hostname,
        "apiPort": facts.api_port,
        "apiEndpoint": facts.api_endpoint,
    }


def _host(snapshot: Snapshot) -> dict[str, Json]:
    """What of the host the agent sees to. `absent` says why there is no more."""
    host = snapshot.host
    return {
        "profile": host.profile,
        "bootFiles": sorted(name for name, file in host.boot.items() if not file.problem),
        "absent": dict(host.absent),
        "rebootRequired": list(host.reboot),
        "problems": list(host.problems),
    }


def _apps(snapshot: Snapshot) -> list[Json]:
    """Apps of the target, then those of which something is left, each with its services."""
    rows: dict[str, list[ServiceRow]] = {app.uuid: [] for app in target_apps(snapshot)}
    for row in service_rows(snapshot):
        rows.setdefault(row.app_uuid, []).append(row)
    return [_app(snapshot, uuid, mine) for uuid, mine in rows.items()]


def _app(snapshot: Snapshot, uuid: str, rows: list[ServiceRow]) -> dict[str, Json]:
    app = snapshot.target.apps.get(uuid) if snapshot.target else None
    problems = [a.problem for a in snapshot.desired.apps if a.uuid == uuid and a.problem]
    return {
        "id": app.app_id if app else rows[0].app_id,
        "uuid": uuid,
        "name": app.name if app else "",
        "class": app.app_class if app else "",
        "inTarget": app is not None,
        "commit": app.release.commit if app and app.release else "",
        "appliedCommit": snapshot.commits.get(uuid, ""),
        "problem": problems[0] if problems else "",
        "services": [_service(row) for row in rows],
    }


def _service(row: ServiceRow) -> dict[str, Json]:
    return {
        "name": row.service,
        "id": row.service_id,
        "releaseId": row.release_id,
        "commit": row.commit,
        "image": row.image,
        "containerId": row.container_id,
        "status": row.status,
        "downloadProgress": row.download_progress,
        "waiting": row.waiting,
    }


def plan_state(snapshot: Snapshot, scope: Scope) -> dict[str, Json]:
    """What is done, will be done, is waited for and has failed, as far as `scope` may see it."""
    return {
        "settled": not applying(snapshot),
        "steps": [step_state(s) for s in snapshot.plan.steps if _visible(snapshot, scope, s)],
        "running": [
            _running(entry)
            for entry in snapshot.running.values()
            if _visible(snapshot, scope, entry.step)
        ],
        "waits": [wait_state(wait) for wait in _waits(snapshot, scope)],
        "failures": [
            _failure(entry)
            for entry in snapshot.failures.values()
            if _visible(snapshot, scope, entry.step)
        ],
    }


def step_state(step: Step) -> dict[str, Json]:
    app, service = service_of(step)
    return {
        "step": verb(step),
        "subject": subject(step),
        "app": app,
        "service": service,
        "cause": step.cause,
    }


def _running(entry: Running) -> dict[str, Json]:
    percent = entry.percent if entry.percent >= 0 else None
    return step_state(entry.step) | {"percent": percent, "since": entry.since}


def _failure(entry: Failure) -> dict[str, Json]:
    return step_state(entry.step) | {
        "attempts": entry.count,
        "error": entry.error,
        "retryAt": entry.retry_at,
        "locked": entry.locked,
    }


def wait_state(wait: Wait) -> dict[str, Json]:
    return {"subject": wait.subject, "reason": wait.reason, "until": wait.until or None}


def _visible(snapshot: Snapshot, scope: Scope, step: Step) -> bool:
    app_uuid, _ = service_of(step)
    return scope.everything or app_uuid in _uuids(snapshot, scope)


def _uuids(snapshot: Snapshot, scope: Scope) -> frozenset[str]:
    """The apps (uuids) of a scope."""
    in_target = {app.uuid for app in target_apps(snapshot) if scope.in_scope(app.app_id)}
    containers = snapshot.observed.containers.values()
    return frozenset(in_target | {c.app_uuid for c in containers if scope.in_scope(c.app_id)})


def _waits(snapshot: Snapshot, scope: Scope) -> Iterable[Wait]:
    """Waits whose subject is in scope: an app, its services, their images, its locks; and that
    everything waits for the engine, while that is so."""
    if not snapshot.looked:
        yield Wait("engine", snapshot.engine_error or "it is looked at before anything is planned")
    yield from _waits_of_plan(snapshot, scope)


def _waits_of_plan(snapshot: Snapshot, scope: Scope) -> Iterable[Wait]:
    if scope.everything:
        return snapshot.plan.waits
    subjects = {f"locks {scope.app_id}"}
    for app in target_apps(snapshot):
        if scope.in_scope(app.app_id):
            subjects |= {f"app {app.name}", f"app {app.uuid}"}
    for row in service_rows(snapshot):
        if scope.in_scope(row.app_id):
            subjects |= _subjects(row.app_uuid, row.service, row.image)
    return [wait for wait in snapshot.plan.waits if wait.subject in subjects]


def status_line(snapshot: Snapshot) -> str:
    """What the agent does or waits for: one short sentence for `systemctl status`."""
    line = " ".join(_status(snapshot).split())
    if snapshot.host.reboot:
        line += "; a reboot is needed for " + ", ".join(snapshot.host.reboot)
    if error := _cloud_error(snapshot):
        line += f"; cloud: {error}"
    return line if len(line) <= _LINE else line[: _LINE - 1] + "…"


def _status(snapshot: Snapshot) -> str:
    if not snapshot.engine_up:
        if snapshot.engine_error == NOT_ASKED:
            return "Starting"
        return f"Engine is not answering: {snapshot.engine_error}"
    doing = _doing(snapshot)
    if doing:
        return ("Stopping: " if snapshot.stopping else "Applying: ") + _some(doing, ", ")
    if snapshot.stopping:
        return "Stopping"
    if snapshot.plan.waits:
        first, *more = snapshot.plan.waits
        subject = first.subject.rpartition("/")[2] if "service " in first.subject else first.subject
        return f"Waiting: {subject}: {first.reason}" + (f" (+{len(more)})" if more else "")
    if not snapshot.looked:
        return "Looking at the engine"
    return _settled(snapshot)


def _doing(snapshot: Snapshot) -> list[str]:
    """Steps under way, then those about to begin, without their causes."""
    said = [_brief(entry.step, entry.percent) for entry in snapshot.running.values()]
    return said + [_brief(s) for s in snapshot.plan.steps if identity(s) not in snapshot.running]


def _brief(step: Step, percent: float = -1.0) -> str:
    return words_for(replace(step, cause="")) + (f" {int(percent)}%" if percent >= 0 else "")


def _some(said: list[str], between: str) -> str:
    more = f" (+{len(said) - _SHOWN_STEPS})" if len(said) > _SHOWN_STEPS else ""
    return between.join(said[:_SHOWN_STEPS]) + more


def _settled(snapshot: Snapshot) -> str:
    if snapshot.target is None:
        return "Settled: no target state yet"
    apps = target_apps(snapshot)
    services = sum(len(app.release.services) for app in apps if app.release)
    line = f"Settled: {_count(services, 'service')} in {_count(len(apps), 'app')}"
    rejected = [a for a in snapshot.desired.apps if a.problem]
    told = [f"app {app.name or app.uuid} is rejected: {app.problem}" for app in rejected]
    known = snapshot.observed.containers.values()
    if failing := sorted({each.service for each in known if each.state == "restarting"}):
        told.append(f"has ended and is being restarted: {', '.join(failing)}")
    return "; ".join([line, *told])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
