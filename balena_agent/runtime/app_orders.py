"""Orders about a whole app, and the clean-up of volumes: taken in, judged, taken back.

Theory: as for every order (orders.py) the command changes the intent at once and the world tells
when it is met. An app that could not come back is not taken down: without its images, rejected, or
while no target says what it is. What a caller is told is "no" when a step of the app has failed;
then the app comes back as it was wanted before, and services that users had stopped stay stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..core.cleanup import unneeded
from ..core.desired import Desired, DesiredApp
from ..core.errors import AgentError, EngineFailed, NoSuchApp, Unavailable
from ..core.intent import AppCommand, CleanupVolumes, Intent, PurgeApp, RestartApp, ServiceKey
from ..core.observed import Observed
from ..core.renewal import app_of, has_returned, in_current_state, joined, renewal
from ..core.snapshot import Snapshot
from ..core.traits import service_subject
from .ledger import Ledger


@dataclass(frozen=True, slots=True)
class AppOrder:
    """What is remembered of a command: the containers (ids) and volumes (engine names) that were
    to go, the subjects of the steps that it needs, and what of the intent it has overridden."""

    command: AppCommand
    old: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()
    stopped: dict[ServiceKey, str] = field(default_factory=dict)
    forced: frozenset[str] = frozenset()


def take(
    command: AppCommand, now: Snapshot, observed: Observed, desired: Desired
) -> tuple[AppOrder, Intent]:
    """The order, and the intent after it. NoSuchApp, Unavailable."""
    if isinstance(command, CleanupVolumes):
        targets = (kept.target for kept in now.targets.values())
        names = unneeded(command, observed, targets)
        order = AppOrder(command, volumes=names, subjects=frozenset(f"volume {n}" for n in names))
        return order, replace(now.intent, cleanup=now.intent.cleanup | names)
    app = _able_to_return(command.app_id, observed, desired)
    begun = renewal(command, observed, app)
    uuids = _uuids(command.app_id, observed, app)
    intent = now.intent
    stopped = {key: c for key, c in intent.stopped.items() if key[0] in uuids}
    forced = (uuids if command.force else frozenset()) - intent.force
    order = AppOrder(
        command,
        begun.containers,
        begun.volumes,
        _subjects(command.app_id, observed, app, begun.volumes),
        stopped,
        forced,
    )
    kept = {key: commit for key, commit in intent.stopped.items() if key not in stopped}
    renewals = {**intent.renewals, command.app_id: joined(intent, command.app_id, begun)}
    return order, replace(intent, stopped=kept, force=intent.force | forced, renewals=renewals)


def _able_to_return(app_id: int, observed: Observed, desired: Desired) -> DesiredApp | None:
    if not in_current_state(app_id, observed):
        raise NoSuchApp(f"Application with ID {app_id} is not in the current state")
    if not desired.asked:
        raise Unavailable(f"No target has come yet that says what application {app_id} is")
    app = app_of(desired, app_id)
    if app and app.problem:
        raise Unavailable(f"The release of application {app_id} is rejected: {app.problem}")
    missing = [service.name for service in app.services if not service.image_present] if app else []
    if missing:
        raise Unavailable(f"The image of service {missing[0]} is not here yet")
    return app


def _uuids(app_id: int, observed: Observed, app: DesiredApp | None) -> frozenset[str]:
    found = {c.app_uuid for c in observed.containers.values() if c.app_id == app_id}
    return frozenset(found | ({app.uuid} if app else set()))


def _subjects(
    app_id: int, observed: Observed, app: DesiredApp | None, volumes: frozenset[str]
) -> frozenset[str]:
    """What the steps work on whose failure is the order's failure."""
    mine = [c for c in observed.containers.values() if c.app_id == app_id]
    found = {service_subject(app.uuid if app else c.app_uuid, c.service) for c in mine}
    found |= {f"volume {name}" for name in volumes} | {f"locks {app_id}"}
    if app:
        found |= {service_subject(app.uuid, service.name) for service in app.services}
        found |= {f"volume {volume.engine_name}" for volume in app.volumes}
        found |= {f"network {network.engine_name}" for network in app.networks}
    return frozenset(found)


def take_back(intent: Intent, order: AppOrder) -> Intent:
    """The intent as if the command had not been given, for a caller who was refused."""
    if isinstance(order.command, CleanupVolumes):
        return replace(intent, cleanup=intent.cleanup - order.volumes)
    app_id = order.command.app_id
    return replace(
        intent,
        stopped={**order.stopped, **intent.stopped},
        force=intent.force - order.forced,
        renewals={key: r for key, r in intent.renewals.items() if key != app_id},
    )


def spared(intent: Intent, order: AppOrder, ledger: Ledger) -> Intent:
    """The intent without volumes that somebody else turned out to use: they stay."""
    if not isinstance(order.command, CleanupVolumes):
        return intent
    refused = {name for name in order.volumes & intent.cleanup if _in_use(name, ledger)}
    return replace(intent, cleanup=intent.cleanup - refused) if refused else intent


def _in_use(volume: str, ledger: Ledger) -> bool:
    errors = ledger.errors_about({f"volume {volume}"})
    return any(isinstance(e, EngineFailed) and e.in_use for e in errors)


def met(order: AppOrder, intent: Intent, observed: Observed, desired: Desired) -> str | None:
    """A message when the world shows what was asked for, else None. For a clean-up it is the
    names of the volumes that have gone, one in a line."""
    match order.command:
        case CleanupVolumes():
            gone = order.volumes - observed.volumes.keys()
            return None if order.volumes & intent.cleanup else "\n".join(sorted(gone))
        case RestartApp(app_id=app_id) | PurgeApp(app_id=app_id):
            word = "purged" if isinstance(order.command, PurgeApp) else "restarted"
            return word if has_returned(app_id, order.old, intent, observed, desired) else None


def error_about(
    order: AppOrder, intent: Intent, desired: Desired, ledger: Ledger
) -> AgentError | None:
    """Why the order cannot be met, if so."""
    if isinstance(order.command, CleanupVolumes):
        left = {f"volume {name}" for name in order.volumes & intent.cleanup}
        return next(iter(ledger.errors_about(left)), None)
    app = app_of(desired, order.command.app_id)
    if app and app.problem:
        return Unavailable(f"The new release of application {app.app_id} is rejected")
    return next(iter(ledger.errors_about(order.subjects)), None)
