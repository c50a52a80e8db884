"""From an app of the target to what the engine shall have: its services, networks and volumes.

Theory: `desired_app` is a pure function of the app, the images that are here, the host's facts and
the API keys (spec 21 §1); composition.py does the single service. Unusable values are left out and
noted; a value that cannot be left out safely becomes the app's `problem`, and then nothing of the
app is touched, while all other apps go on. No input makes `desired_app` raise: a composition is
text from strangers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from .attachments import Surroundings, supervisor_endpoint
from .composition import Compiled, Scope, compiled_service
from .contracts import device_facts, judge, omission, rejection
from .dependencies import cycle, unheard_health
from .desired import DesiredApp, DesiredNetwork, DesiredService, DesiredVolume
from .environment import app_environment
from .errors import InvalidInput
from .fields import Notes
from .jsonread import Json
from .names import names_containers, names_networks, network_name, volume_name
from .networks import network_spec, volume_spec
from .observed import HostFacts, Image
from .spec import NetworkSpec
from .target import SUPERVISOR_APPS, App, Release, Service, is_container


def desired_app(
    app: App,
    images: Callable[[str], Image | None],
    facts: HostFacts,
    service_key: Callable[[int, str], str],
) -> DesiredApp:
    """One app in the engine's terms (spec 21; spec 20 §8, §13.3, §16). Never raises.

    `images` finds an image by its reference, `service_key` the key with which a service may call
    our API ("" = none known).
    """
    found = DesiredApp(app.uuid, app.app_id, app.name, "", app.app_class)
    release = app.release
    if release is None:
        return found
    found = replace(found, commit=release.commit)
    if app.uuid in SUPERVISOR_APPS:
        return found
    if problem := _nameless(app, release):
        return replace(found, problem=problem)
    services = {name: s for name, s in release.services.items() if is_container(app, s)}
    found, services = _judged(found, services, facts)
    if found.problem:
        return found
    around = Surroundings(app.uuid, frozenset(release.networks), frozenset(services))
    injected = app_environment(app, facts)
    scope = Scope(app, release, images, facts, service_key, around, injected)
    problems: list[str] = []
    compiled = _services(services.values(), scope, problems)
    notes = Notes(f"app {app.name!r}")
    networks = _networks(app, release, compiled, notes, problems)
    volumes = _volumes(app, release, compiled, notes)
    if problems:
        return replace(found, problem="; ".join(problems))
    ready = _with_health_notes(_with_api_networks(compiled))
    return replace(
        found, services=_with_app_notes(ready, notes), networks=networks, volumes=volumes
    )


def _nameless(app: App, release: Release) -> str:
    """Why the engine's objects of an app could not be named, or not be known again: they would be
    made anew for ever."""
    where = Notes(f"app {app.name!r}")
    if not names_networks(app.uuid):
        return str(where.refusal("uuid", app.uuid, "expecting hexadecimal digits"))
    if not names_containers(release.commit):
        return str(where.refusal("commit", release.commit, "expecting letters, digits, _, . and -"))
    return ""


def _judged(
    found: DesiredApp, services: dict[str, Service], facts: HostFacts
) -> tuple[DesiredApp, dict[str, Service]]:
    """The app, perhaps rejected for its contracts, and those services that can run here."""
    verdict = judge(services, device_facts(facts))
    if not verdict.unmet:
        return found, services
    if not verdict.accepted:
        return replace(found, problem=rejection(found.name or found.uuid, verdict)), {}
    kept = {name: service for name, service in services.items() if name not in verdict.unmet}
    return replace(found, left_out=verdict.optional, warnings=(omission(verdict),)), kept


def _services(
    services: Iterable[Service], scope: Scope, problems: list[str]
) -> dict[str, Compiled]:
    compiled: dict[str, Compiled] = {}
    for service in services:
        notes = Notes(f"app {scope.app.name!r} service {service.name!r}")
        try:
            compiled[service.name] = compiled_service(service, scope, notes)
        except InvalidInput as error:
            problems.append(str(error))
        except Exception as error:  # a defect of ours must not stop the other apps (D4)
            problems.append(f"{notes.where}: cannot be compiled: {error!r}")
    graph = {name: [d.service for d in c.service.depends_on] for name, c in compiled.items()}
    if circle := cycle(graph):
        where = f"app {scope.app.name!r} service {circle[0]!r}"
        problems.append(f"{where}: depends_on: circle of dependencies {' -> '.join(circle)}")
    return compiled


def _with_api_networks(compiled: Mapping[str, Compiled]) -> tuple[DesiredService, ...]:
    """All services; the owner of a network namespace joins our network for those that share it,
    because a member of a shared namespace cannot join anything itself (spec 21 §5.4)."""
    services = {name: found.service for name, found in compiled.items()}
    for found in compiled.values():
        if not found.wants_api or not _shared_with(found.service):
            continue
        owner = found.service
        while parent := _shared_with(owner):
            owner = services[parent]
        if _can_join(owner) and supervisor_endpoint() not in owner.spec.endpoints:
            endpoints = (*owner.spec.endpoints, supervisor_endpoint())
            spec = replace(owner.spec, endpoints=endpoints)
            services[owner.name] = replace(owner, spec=spec)
    return tuple(services.values())


def _with_health_notes(services: tuple[DesiredService, ...]) -> tuple[DesiredService, ...]:
    """Images bring health checks too: before an image is here nothing can be said."""
    checks = {s.name: s.spec.fields.get("Healthcheck") or {} for s in services if s.image_present}
    lines = {s.name: unheard_health(s.depends_on, checks) for s in services}
    return tuple(
        replace(s, warnings=(*s.warnings, *lines[s.name])) if lines[s.name] else s for s in services
    )


def _shared_with(service: DesiredService) -> str:
    return service.spec.parent


def _can_join(service: DesiredService) -> bool:
    return service.spec.fields["HostConfig.NetworkMode"] not in ("host", "none")


def _networks(
    app: App,
    release: Release,
    compiled: Mapping[str, Compiled],
    notes: Notes,
    problems: list[str],
) -> tuple[DesiredNetwork, ...]:
    """Declared networks and `default`, which holds nothing if all services use the host's."""
    specs: dict[str, NetworkSpec] = {}
    for name, raw in release.networks.items():
        try:
            specs[name] = network_spec(raw, name, notes)
        except InvalidInput as error:
            problems.append(str(error))
    if "default" not in release.networks:
        modes = {c.service.spec.fields["HostConfig.NetworkMode"] for c in compiled.values()}
        specs["default"] = NetworkSpec(config_only=modes <= {"host"})
    return tuple(
        DesiredNetwork(name, network_name(app.uuid, name), spec) for name, spec in specs.items()
    )


def _volumes(
    app: App, release: Release, compiled: Mapping[str, Compiled], notes: Notes
) -> tuple[DesiredVolume, ...]:
    """Declared volumes, and those that a service mounts without a declaration."""
    used = (name for found in compiled.values() for name in found.volumes)
    raw: dict[str, Mapping[str, Json]] = {name: {} for name in used} | dict(release.volumes)
    return tuple(
        DesiredVolume(name, volume_name(app.app_id, name), volume_spec(definition, name, notes))
        for name, definition in raw.items()
    )


def _with_app_notes(
    services: tuple[DesiredService, ...], notes: Notes
) -> tuple[DesiredService, ...]:
    """Notes about networks and volumes have no place of their own: the first service carries
    them, so that they are seen once."""
    if not notes.lines or not services:
        return services
    first = replace(services[0], warnings=(*services[0].warnings, *notes.lines))
    return (first, *services[1:])
