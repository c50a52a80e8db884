"""An app that is taken down as a whole and comes back: restart and purge (spec 20 §21).

Theory: a restart is a renewal without volumes. As long as anything is left of what is to go, the
app has no wanted services: every container of it goes, under the app's update locks. When the last
one has gone the volumes go. When those have gone nothing of the renewal is left, and the ordinary
rules bring back what the target says. So a renewal is read off the world like everything else.

Invariants: a volume leaves the renewal when it is seen to be gone, and only then is it made again,
so no data is purged twice; no volume goes before the locks are held, or while a container of its
app is there. Networks and images stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .desired import Desired, DesiredApp, DesiredService
from .intent import Intent, PurgeApp, Renewal, RestartApp
from .jsonread import truth
from .names import EXTRA_FIRMWARE, REQUIRES_REBOOT
from .observed import Container, Observed
from .services import take_down
from .situation import Draft
from .steps import CreateContainer, RemoveVolume, Step

PURGED = "its data is purged"
"""The cause of every step of a purge."""


def in_current_state(app_id: int, observed: Observed) -> bool:
    """Whether the device has anything of an app: a container, a network or a volume. What belongs
    to no app has a number that is none, too (observed.NO_APP)."""
    return app_id > 0 and any(
        thing.app_id == app_id
        for kind in (observed.containers, observed.networks, observed.volumes)
        for thing in kind.values()
    )


def renewal(
    command: RestartApp | PurgeApp, observed: Observed, app: DesiredApp | None = None
) -> Renewal:
    """What has to go for a command, by the world as it is when the command comes. `app` is what
    the target says, None when it says nothing."""
    mine = _containers(command.app_id, observed)
    containers = frozenset(container.id for container in mine)
    if isinstance(command, RestartApp):
        return Renewal(containers, cause="restart was asked for")
    volumes = {v.engine_name for v in observed.volumes.values() if v.app_id == command.app_id}
    specs = [container.spec for container in mine]
    specs += [service.spec for service in app.services] if app else []
    if EXTRA_FIRMWARE in observed.volumes and any(EXTRA_FIRMWARE in s.volumes for s in specs):
        volumes.add(EXTRA_FIRMWARE)  # the engine makes it again with its first user
    return Renewal(containers, frozenset(volumes), PURGED)


def joined(intent: Intent, app_id: int, new: Renewal) -> Renewal:
    """The renewal together with what is left of one before it: a restart does not end a purge."""
    known = intent.renewals.get(app_id, Renewal())
    cause = known.cause if known.volumes else new.cause
    return Renewal(known.containers | new.containers, known.volumes | new.volumes, cause)


def left_over(intent: Intent, observed: Observed) -> Mapping[int, Renewal]:
    """The renewals without what has gone; those that are through are left out."""
    found: dict[int, Renewal] = {}
    for app_id, begun in intent.renewals.items():
        others = _used_by_others(app_id, observed)
        left = replace(
            begun,
            containers=begun.containers & observed.containers.keys(),
            volumes=(begun.volumes & observed.volumes.keys()) - others,
        )
        if left.containers or left.volumes:
            found[app_id] = left
    return found


def has_returned(
    app_id: int, old: frozenset[str], intent: Intent, observed: Observed, desired: Desired
) -> bool:
    """Whether an app is through with its renewal: nothing old is left, and every service of the
    target has a container, which has been started if the service shall run."""
    if app_id in intent.renewals or old & observed.containers.keys():
        return False
    known = _containers(app_id, observed)
    there = {container.service for container in known}
    begun = {container.service for container in known if container.state != "created"}
    app = app_of(desired, app_id)
    return app is None or all(
        s.name in (begun if s.running and not _rests(intent, s) else there) for s in app.services
    )


def app_of(desired: Desired, app_id: int) -> DesiredApp | None:
    return next((app for app in desired.apps if app.app_id == app_id), None)


def plan_renewal(
    draft: Draft,
    begun: Renewal,
    containers: Iterable[Container],
    services: Iterable[str],
    present: Iterable[str],
) -> None:
    """The rules for an app under renewal. `services` are those that the target names, `present` the
    volumes that there are."""
    draft.down = True
    draft.wait(f"app {draft.app_uuid}", f"is down and comes back: {begun.cause}")
    known = list(containers)
    locks = tuple(sorted({*services, *(container.service for container in known)}))
    for container in known:
        take_down(draft, container, begun.cause)
    made = any(_makes(step, draft.app_id) for step in draft.situation.running.values())
    for name in sorted(begun.volumes.intersection(present)) if not (known or made) else ():
        draft.emit(RemoveVolume(draft.app_uuid, name, begun.cause), needs_lock=bool(locks))
    draft.take_locks(locks)


def _makes(step: Step, app_id: int) -> bool:
    return isinstance(step, CreateContainer) and step.service.app_id == app_id


def _rests(intent: Intent, service: DesiredService) -> bool:
    """Whether a service that shall run is not started now: a user has stopped it meanwhile, or it
    starts after a reboot."""
    labels = service.spec.fields.get("Labels") or {}
    return service.key in intent.stopped or truth(labels.get(REQUIRES_REBOOT))


def _containers(app_id: int, observed: Observed) -> list[Container]:
    return [c for c in observed.containers.values() if c.app_id == app_id and c.name]


def _used_by_others(app_id: int, observed: Observed) -> frozenset[str]:
    specs = (c.spec for c in observed.containers.values() if c.app_id != app_id)
    return frozenset().union(*(spec.volumes for spec in specs))
