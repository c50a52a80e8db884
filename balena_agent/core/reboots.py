"""Reboots that the device itself needs (spec 20 §20): who waits for one, and when it is asked for.

Theory: that a reboot is required is a fact about the host: somebody left word of it, and the word
goes with the boot. Nothing is remembered here. While the fact stands, the plan goes on as ever;
when it leaves nothing else to do it ends with a reboot: the update locks of all apps, as for a
user's reboot, then the request. That is one attempt. Whatever is in its way, a user's lock or the
host's refusal, the attempt is called off as a whole: the locks go back, so that nobody is locked
out by a reboot that does not come, and the next attempt follows when the back-off has passed.

Services that wait do not hold it up: they may wait for this very reboot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from .desired import DesiredService
from .jsonread import truth
from .names import REQUIRES_REBOOT
from .observed import Container
from .plan import Plan, Wait
from .situation import Draft, Situation
from .steps import ReleaseLocks, RequestReboot, RequireReboot, Step, TakeLocks
from .traits import identity, verb

HOST_UPDATE: Final = "Waiting for Host OS update to finish"
CAUSE: Final = "changes wait for it"
_SUBJECT: Final = "reboot"


@dataclass(frozen=True, slots=True)
class Owner:
    """An app that has containers, with the services whose locks are taken."""

    uuid: str
    app_id: int
    services: tuple[str, ...]


def awaits_boot(service: DesiredService, container: Container, situation: Situation) -> bool:
    """Whether the container must not be started in this boot: its label says so, and it was made
    in it. By our note; without one by time, and when neither is known it may start."""
    labels = service.spec.fields.get("Labels") or {}
    if container.state != "created" or not truth(labels.get(REQUIRES_REBOOT)):
        return False
    host, origin = situation.host, situation.origins.get(container.id)
    if origin and origin.boot:
        return origin.boot == host.boot_id
    return bool(host.booted_at) and container.created_at[:19] > host.booted_at


def plan_requirement(draft: Draft, service: DesiredService, container: Container) -> None:
    """Leave word that the reboot is required; then wait for it."""
    if draft.situation.host.reboot_required:
        draft.wait_service(service.name, "starts after the reboot that it requires")
        return
    cause = f"label {REQUIRES_REBOOT}"
    draft.emit(RequireReboot(container.app_uuid, container.service, container.id, cause))


def with_reboot(found: Plan, owners: Iterable[Owner], situation: Situation) -> Plan:
    """The plan, which goes on to the reboot that is required when nothing else is left to do."""
    if not situation.host.reboot_required:
        return found
    if _work_is_left(found, situation):
        return _waiting(found, Wait(_SUBJECT, "is required; everything else is done before"))
    if situation.host.host_update:
        return _waiting(found, Wait(_SUBJECT, HOST_UPDATE, patience=0.0))
    return _attempt(found, tuple(owners), situation)


def accepted() -> Plan:
    """The host has agreed to go down: nothing is begun any more."""
    return Plan(waits=(Wait(_SUBJECT, "was accepted by the host"),))


def _work_is_left(found: Plan, situation: Situation) -> bool:
    """Locks alone are no work: those of an attempt are in nobody's way."""
    own = verb(ReleaseLocks("", 0)) + " "
    under_way = situation.running.values()
    return any(not name.startswith(own) for name in found.wanted) or any(
        not isinstance(step, (TakeLocks, RequestReboot)) for step in under_way
    )


def _attempt(found: Plan, owners: tuple[Owner, ...], situation: Situation) -> Plan:
    takes = [
        TakeLocks(
            owner.uuid,
            owner.app_id,
            owner.services,
            situation.override_locks or situation.intent.forced(owner.uuid),
            f"reboot: {CAUSE}",
        )
        for owner in owners
    ]
    request = RequestReboot(cause=CAUSE)
    attempt: tuple[Step, ...] = (request, *takes)
    names = frozenset(identity(step) for step in attempt)
    pauses = [pause for step in attempt if (pause := situation.pause(step))]
    if pauses:
        last = max(pauses, key=lambda pause: pause.until)
        planned = _waiting(found, Wait(_SUBJECT, last.reason, last.until))
        return replace(planned, wanted=found.wanted | names)
    missing = [step for step in takes if step.app_id not in situation.locked]
    ready: list[Step] = [*missing] or [request]
    steps = tuple(step for step in ready if identity(step) not in situation.running)
    planned = replace(found, steps=steps, wanted=names)
    return _waiting(planned, Wait(_SUBJECT, "is required; the update locks are taken for it"))


def _waiting(found: Plan, wait: Wait) -> Plan:
    return replace(found, waits=(*found.waits, wait))
