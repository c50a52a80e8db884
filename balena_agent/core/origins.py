"""Where a container came from, as far as the engine cannot tell: our notes on it.

Theory: two rules need to know what was when a container was made or started. One that was made in
this boot and asks for a reboot is not started before the next; boots are told apart by their id,
because clocks step. And a service whose `depends_on` says `restart: true` is made anew after what
it depends on was: so it is noted on which containers a running one stands.

A lost note is never a reason to act. A container without one counts as right, and what it stands
on is noted as soon as it runs; so nothing is made anew twice for one cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .desired import Desired, DesiredApp, DesiredService
from .observed import Container, Observed


@dataclass(frozen=True, slots=True)
class Origin:
    """`boot` is the id of the boot in which the container was made, "" where that was not noted;
    `parents` maps services that it depends on, with `restart`, to their containers (ids)."""

    boot: str = ""
    parents: Mapping[str, str] = field(default_factory=dict)


def renewed_parent(
    service: DesiredService,
    container: Container,
    current: Mapping[str, Container],
    origins: Mapping[str, Origin],
) -> str:
    """The service that was made anew under this container, and started; "" if none was."""
    noted = origins.get(container.id, Origin()).parents
    for dependency in service.depends_on:
        now, before = current.get(dependency.service), noted.get(dependency.service)
        if not dependency.restart or now is None or before is None:
            continue
        if now.id != before and now.state != "created":
            return dependency.service
    return ""


def to_note(
    desired: Desired, observed: Observed, origins: Mapping[str, Origin]
) -> dict[str, Origin]:
    """Notes on running containers whose parents are not noted yet."""
    apps = [app for app in desired.apps if not app.problem]
    restarting = [(app, s) for app in apps for s in app.services if _parents(s)]
    if not restarting:
        return {}
    found: dict[str, Origin] = {}
    for app, service in restarting:
        container = _the_one(app, service.name, observed)
        if container is None or not container.running:
            continue
        origin = origins.get(container.id, Origin())
        missing = {
            name: parent.id
            for name in _parents(service) - origin.parents.keys()
            if (parent := _the_one(app, name, observed)) and parent.state != "created"
        }
        if missing:
            found[container.id] = replace(origin, parents={**origin.parents, **missing})
    return found


def _parents(service: DesiredService) -> frozenset[str]:
    return frozenset(each.service for each in service.depends_on if each.restart)


def _the_one(app: DesiredApp, name: str, observed: Observed) -> Container | None:
    """The only container of a service; None in the middle of a replacement."""
    found = [
        container
        for container in observed.containers.values()
        if container.service == name and container.app_id == app.app_id
    ]
    return found[0] if len(found) == 1 else None
