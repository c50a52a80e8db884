"""What takes the device as a whole: power, a change of the host, a shutdown that has begun.

Theory: each of them has a plan of its own, which stands in the place of the ordinary one: it has
the steps that it needs, waits for what is under way, and begins nothing else. Those that somebody
asked for come under the update locks of all apps; a shutdown cannot wait for locks.

Invariants: none of them is planned beside another; nothing here is remembered between plans.
"""

from __future__ import annotations

from .desired import Desired
from .observed import Observed
from .plan import Plan
from .reboots import Owner
from .situation import Draft, Situation, joined
from .steps import Fetch, RequestPowerOff, RequestReboot, SetNetworkConfig, StopContainer, TakeLocks
from .traits import service_subject, subject


def plan_power(owners: list[Owner], situation: Situation, busy: set[str]) -> Plan:
    """A reboot or power-off: all update locks first, then nothing but the request. No other step
    is planned, and running downloads are dropped because no plan wants them."""
    power = situation.intent.power
    assert power is not None
    device = Draft(situation, busy)
    word = "power-off" if power.off else "reboot"
    drafts = [device, *_all_locks(owners, situation, busy, power.force, word)]
    waiting = len(drafts) > 1
    for name, step in situation.running.items():
        if not isinstance(step, (TakeLocks, Fetch, RequestReboot, RequestPowerOff)):
            device.wait(word, f"waits for {name} to end")
            waiting = True
    if situation.power_requested:
        device.wait(word, "was accepted by the host")
    elif not waiting:
        cause = f"asked for by {power.who or 'somebody'}"
        request = RequestPowerOff if power.off else RequestReboot
        device.emit(request(power.force, cause))
    return joined(drafts, frozenset())


def plan_host_change(owners: list[Owner], situation: Situation, busy: set[str]) -> Plan:
    """A change of the host's name or proxy, which takes moments: all update locks, then the change.
    What is under way goes on meanwhile, nothing else is begun."""
    asked = situation.intent.network
    assert asked is not None
    device = Draft(situation, busy)
    drafts = [device, *_all_locks(owners, situation, busy, asked.force, "a change of the host")]
    if len(drafts) == 1:
        device.emit(SetNetworkConfig(asked.change, "asked for over an API"))
    else:
        device.wait("host", "waits for the update locks of all apps")
    for step in situation.running.values():
        device.let_end(step)
    return joined(drafts, frozenset())


def _all_locks(
    owners: list[Owner], situation: Situation, busy: set[str], force: bool, why: str
) -> list[Draft]:
    """Take the update locks of every app that has containers; empty when we hold them all."""
    drafts = []
    overridden = force or situation.override_locks
    cause = f"{why} was asked for"
    for app in owners:
        if app.app_id not in situation.locked:
            draft = Draft(situation, busy, app.uuid, app.app_id)
            draft.emit(TakeLocks(app.uuid, app.app_id, app.services, overridden, cause))
            drafts.append(draft)
    return drafts


def plan_shutdown(desired: Desired, observed: Observed, situation: Situation) -> Plan:
    """The host goes down: stop every running container, dependents before what they depend on.
    Locks do not matter any more, and nothing else is begun (architecture B9)."""
    draft = Draft(situation, {subject(step) for step in situation.running.values()})
    running = [c for c in observed.containers.values() if c.running]
    up = {container.key for container in running}
    dependents: dict[tuple[str, str], set[str]] = {}
    for app in desired.apps:
        for service in app.services:
            for dependency in service.depends_on:
                if service.key in up:
                    dependents.setdefault((app.uuid, dependency.service), set()).add(service.name)
    for container in sorted(running, key=lambda c: (c.key, c.id)):
        if above := dependents.get(container.key):
            after = ", ".join(sorted(above))
            draft.wait(service_subject(*container.key), f"stops after {after}")
        else:
            where = (container.app_uuid, container.service, container.id)
            cause = "the host is shutting down"
            draft.emit(StopContainer(*where, container.stop_timeout, cause=cause))
    return draft.plan()
