"""Containers of the time when an app was one container: they keep the ids of their service.

Theory: such a container (label `io.balena.legacy-container`) was made before services had ids of
their own, so its service id is not the cloud's. Made anew only for that it would lose time and the
user would gain nothing. So where an app is one service on both sides, of the same name, what is
wanted inherits the mark and the service id of what is there (spec 20 §26.3). A container that is
made anew for another reason, after the old one has gone, has nothing to inherit: that ends it.
"""

from __future__ import annotations

from dataclasses import replace

from .desired import Desired, DesiredApp, DesiredService
from .jsonread import truth
from .names import SERVICE_ID
from .observed import Container, Observed

LEGACY = "io.balena.legacy-container"


def with_inheritance(desired: Desired, observed: Observed) -> Desired:
    """The same wish, but for services that take over the ids of a legacy container."""
    known = [c for c in observed.containers.values() if c.name is not None]
    if not any(map(_is_legacy, known)):
        return desired
    return replace(desired, apps=tuple(_app(app, known) for app in desired.apps))


def _app(app: DesiredApp, known: list[Container]) -> DesiredApp:
    mine = [c for c in known if c.app_uuid == app.uuid or c.app_id == app.app_id]
    if len(app.services) != 1 or {c.service for c in mine} != {app.services[0].name}:
        return app
    marked = [c for c in mine if _is_legacy(c)]
    if not marked:
        return app
    heir = _heir(app.services[0], max(marked, key=lambda c: (c.created_at, c.id)))
    return replace(app, services=(heir,))


def _heir(service: DesiredService, container: Container) -> DesiredService:
    there = container.effective_spec.fields["Labels"]
    labels = service.spec.fields["Labels"]
    kept = {LEGACY: there[LEGACY], SERVICE_ID: str(container.service_id)}
    spec = replace(service.spec, fields={**service.spec.fields, "Labels": {**labels, **kept}})
    return replace(service, spec=spec, service_id=container.service_id)


def _is_legacy(container: Container) -> bool:
    return truth((container.effective_spec.fields.get("Labels") or {}).get(LEGACY))
