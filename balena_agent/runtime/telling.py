"""What the runtime tells people: one journal entry per step, with its cause, and odd things once.

Entries carry fields (APP, SERVICE, STEP, CAUSE) so that `journalctl SERVICE=web` works.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ..core.errors import AgentError, Broken, Cancelled
from ..core.intent import Command, PurgeApp
from ..core.logline import TELL
from ..core.messages import changed_settings, reboot_scheduled, sentences
from ..core.messages import failure as failure_text
from ..core.messages import locked as locked_text
from ..core.snapshot import Failure, Snapshot
from ..core.steps import ChangeConfig, SetBootConfig, Step
from ..core.target import Target
from ..core.traits import identity, service_of, verb

_log = logging.getLogger(__name__)


def begun(step: Step) -> None:
    if text := sentences(step).begin:
        _log.info(text, extra=_fields(step))


def done(step: Step) -> None:
    if text := sentences(step).done:
        _log.info(text, extra=_fields(step))
    if isinstance(step, ChangeConfig | SetBootConfig) and step.reboot:
        _log.info(reboot_scheduled(step.variables), extra=_fields(step))


def settings(variables: Mapping[str, str]) -> None:
    """Variables that are in force from now on."""
    if variables:
        _log.info(changed_settings(variables), extra=TELL)


def given_up(step: Step, error: Cancelled) -> None:
    _log.info("%s: %s", identity(step), error.message or "given up", extra=_fields(step))


def failed(failure: Failure, error: AgentError, now: float) -> str:
    """Tell it, and return the sentence."""
    step = failure.step
    if failure.locked:
        text = locked_text(failure.retry_at - now, error.message)
        _log.info(text, extra=_fields(step))
    else:
        text = failure_text(step, error.message)
        _log.warning(
            text, extra=_fields(step), exc_info=error if isinstance(error, Broken) else None
        )
    return text


def postponed(failure: Failure) -> None:
    """It has not failed: somebody else is still at work on it."""
    _log.info(failure.error, extra=_fields(failure.step))


def order_taken(command: Command) -> None:
    if isinstance(command, PurgeApp):
        _log.info("Purging data for app %d", command.app_id, extra=TELL)


def order_ended(command: Command, error: AgentError | None) -> None:
    if isinstance(command, PurgeApp):
        if error is None:
            _log.info("Purged data", extra=TELL)
        else:
            _log.warning("Error purging data: %s", error.message, extra=TELL)


def new_target(source: str, target: Target) -> None:
    apps = ", ".join(
        f"app {app.name or app.uuid} at {app.release.commit if app.release else 'no release'}"
        for app in target.apps.values()
    )
    _log.info("New target from %s: %s", source, apps or "no apps")


def another_source(source: str) -> None:
    """The device has another cloud, or none, from now on."""
    if source:
        _log.info("The target from %s is in force now", source)
    else:
        _log.info("No target is in force now: everything stays as it is until one comes")


def notices(now: Snapshot) -> tuple[str, ...]:
    """What is odd about the targets or the world, in a stable order."""
    lines = [
        f"the stored target of source {source} cannot be used: it is kept until another one comes,"
        " and so is what local mode has left"
        for source, kept in now.targets.items()
        if kept.target is None
    ]
    for app in now.desired.apps:
        if app.problem:
            lines.append(f"app {app.name or app.uuid} is rejected: {app.problem}")
        lines += [_placed(f"app {app.name or app.uuid}", warning) for warning in app.warnings]
        for service in app.services:
            about = f"app {app.name or app.uuid}, service {service.name}"
            lines += [_placed(about, warning) for warning in service.warnings]
    lines += [
        f"container {container.raw_name} has our label but not our name: left alone"
        for container in now.observed.containers.values()
        if container.name is None
    ]
    return tuple(lines)


def _placed(about: str, warning: str) -> str:
    """The warning with what it is about; most say it themselves."""
    return warning if warning.startswith("app '") else f"{about}: {warning}"


def new_notices(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    for line in after:
        if line not in before:
            _log.warning(line)


def _fields(step: Step) -> dict[str, object]:
    app, service = service_of(step)
    fields = {"APP": app, "SERVICE": service, "STEP": verb(step), "CAUSE": step.cause}
    return {"fields": {key: value for key, value in fields.items() if value}}
