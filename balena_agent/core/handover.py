"""The update strategy hand-over: the old container runs until the new one has taken over.

Theory (spec 20 §15.3): the old one retires (it gets another name and is never started again by the
engine), the new one is created and started beside it, and when it has said that it is ready, or its
time is up, the old one goes. Whatever happens on the way is read off the world at the next look:

    the old one alone             retire it, create the new one; or, when that cannot be done now,
                                  reinstate it and say what is waited for
    both, new one not started     the old one stays, the new one is started when it may be
    both, new one started by us   the old one stays until the wait has ended
    both, started by a run before an interrupted hand-over: the newest stays, the old one goes
    both, new one ended or ill    the hand-over has failed: the new one goes, the old one is
                                  reinstated and its update tried again after a pause

The only memory is in the `Situation`: the new containers whose wait is not over (`handovers`), and
those that have failed and are not gone yet (`failed_handovers`): the engine starts many a container
again that has ended, and then it looks as if it had taken over. A failed attempt is noted once
(`failures`), as a failure of the wait: so its back-off and its reason are seen like those of any
other step.

There is no hand-over where old and new could not be there at once, or where nothing is to be handed
over: when a network or volume has to go, both publish one port, somebody else's container has the
name for a retired one, others share the service's namespaces, the old one does not run, or the new
one shall not. Then the service is replaced in the usual way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from .body import parents
from .canonical import DEFAULTS
from .desired import DesiredApp, DesiredService
from .names import ContainerName
from .observed import Container, Observed
from .situation import Draft, Situation
from .spec import ContainerSpec
from .steps import (
    AwaitHandover,
    CreateContainer,
    ReinstateContainer,
    RetireContainer,
    StartContainer,
    Step,
)

HAND_OVER = "hand-over"
"""The update strategy."""

_PORT_TAKEN = ("port is already allocated", "address already in use")
_NAME_TAKEN = "is already in use"
_ANY_ADDRESS = ("", "0.0.0.0", "::")
_ENDED = ("exited", "restarting", "dead", "removing")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Who stands for a service: `current`, and `old` while it has not handed over to it. `cause`
    says why every other container goes, where there is more to say than that it is one too many."""

    current: Container | None = None
    old: Container | None = None
    cause: str = ""


def serving(container: Container) -> bool:
    """Whether there is something that could be handed over."""
    return container.state == "running"


def possible(service: DesiredService, app: DesiredApp) -> bool:
    """Whether the service can be handed over at all, whatever its containers are like. Those who
    share its namespaces would have to go with the old container anyway."""
    return service.strategy == HAND_OVER and not any(
        service.name in parents(other.spec) for other in app.services
    )


def choose(
    draft: Draft,
    service: DesiredService,
    alive: Iterable[Container],
    right: Collection[str],
    leaving: Collection[str],
) -> Chosen:
    """Of several containers of a service that hands over: who stays. `right` are those that are as
    wanted, `leaving` those that must go in any case (ids)."""

    situation = draft.situation
    unproven = {*situation.handovers, *situation.failed_handovers}

    def rank(container: Container) -> tuple[bool, bool, str, str]:
        proven = container.id not in unproven
        return serving(container), proven, container.created_at, container.id

    known = list(alive)
    new = max((c for c in known if c.id in right), key=rank, default=None)
    if new is None:
        return Chosen(max(known, key=rank))
    others = [c for c in known if c is not new and c.id not in leaving and serving(c)]
    old = max(others, key=rank, default=None)
    if old is None:
        return Chosen(new)
    if reason := clash(draft, service, old):
        return Chosen(new, cause=reason)
    if reason := _failure(situation, service, new):
        return Chosen(old, cause=reason)
    if new.state == "created" or new.id in situation.handovers:
        return Chosen(new, old)
    return Chosen(new, cause="has handed over" if old.retired else "")


def clash(draft: Draft, service: DesiredService, old: Container) -> str:
    """Why old and new cannot be there at once, or "": a port that both publish, be it that we see
    it, or that the engine has said so of the new one's start; or the name for the old one, when the
    engine has said that another container has it."""
    theirs = old.effective_spec
    if shared := sorted(_fixed_ports(service.spec, theirs)):
        return f"the new container needs its port {shared[0]}"
    refused = None if old.retired else draft.failure(_retire(old))
    if refused and _NAME_TAKEN in refused.error:
        return f"it cannot hand over: {refused.error}"
    pause = draft.situation.pause(_start(service))
    taken = pause is not None and any(words in pause.error for words in _PORT_TAKEN)
    return "the new container needs its port" if taken and _bindings(theirs) else ""


def attempt(draft: Draft, service: DesiredService) -> bool:
    """Whether a hand-over may be tried now, after what became of earlier attempts."""
    wait = AwaitHandover(service.app_uuid, service.app_id, service.name, "", "")
    steps: tuple[Step, ...] = (CreateContainer(service), _start(service), wait)
    return not draft.pausing(*steps)


def retire(draft: Draft, old: Container, cause: str) -> None:
    draft.emit(_retire(old, cause), needs_lock=True)


def call_off(draft: Draft, old: Container) -> None:
    """It has to wait: then it had better be as before, until its hand-over can go on."""
    if old.retired and serving(old):
        reinstate(draft, old, old.name, "its hand-over cannot go on now")


def reinstate(draft: Draft, container: Container, name: ContainerName | None, cause: str) -> None:
    """Needs no lock: nothing changes for the service, and it is safer off."""
    assert name is not None
    policy = "HostConfig.RestartPolicy"
    asked = container.intended.fields if container.intended else {}
    where = (container.app_uuid, container.service, container.id)
    draft.emit(ReinstateContainer(*where, name, asked.get(policy, DEFAULTS[policy]), cause))


def beside(draft: Draft, service: DesiredService, new: Container, old: Container) -> None:
    """Old and new are both there, and the new one has not taken over yet."""
    attempt(draft, service)
    if new.state != "created":
        where = (service.app_uuid, service.app_id, service.name)
        cause = "the new container runs beside the old one"
        draft.emit(AwaitHandover(*where, old.id, new.id, service.handover_timeout, cause))
    elif not old.retired:
        retire(draft, old, "the new container is about to be started")


# ---- what the runtime keeps in mind --------------------------------------------------------------


def begins(step: StartContainer, observed: Observed) -> bool:
    """Whether the start of this container is the start of a hand-over's wait."""
    new = observed.containers.get(step.container_id)
    return new is not None and _predecessor(new, observed) is not None


def failures(
    handovers: Collection[str], observed: Observed, stopped_by_agent: Collection[str]
) -> Iterator[tuple[AwaitHandover, str]]:
    """The hand-overs that have failed: what was waited for, and why it will not come."""
    for new_id in sorted(handovers):
        new = observed.containers.get(new_id)
        old = _predecessor(new, observed) if new else None
        if new is None or old is None or new_id in stopped_by_agent:
            continue
        if reason := fault(new):
            yield AwaitHandover(new.app_uuid, new.app_id, new.service, old.id, new_id), reason


def lasting(handovers: Iterable[str], observed: Observed) -> frozenset[str]:
    """Those that still have somebody to take over from. With nobody there one that has failed
    before is better than none."""
    containers = observed.containers
    known = (containers[new_id] for new_id in handovers if new_id in containers)
    return frozenset(c.id for c in known if _predecessor(c, observed))


def fault(new: Container) -> str:
    """Why a container that was started cannot take over, or ""."""
    if new.state in _ENDED:
        return f"the new container ended with code {new.exit_code}"
    return "the new container is unhealthy" if new.health == "unhealthy" else ""


def _predecessor(new: Container, observed: Observed) -> Container | None:
    """Another serving container of the same service; apps may have changed their uuid."""
    for other in observed.containers.values():
        same = other.service == new.service and (
            other.app_uuid == new.app_uuid or other.app_id == new.app_id
        )
        if same and other.id != new.id and serving(other):
            return other
    return None


# ---- inside --------------------------------------------------------------------------------------


def _retire(old: Container, cause: str = "") -> RetireContainer:
    assert old.name is not None  # the planner leaves others alone
    return RetireContainer(old.app_uuid, old.service, old.id, old.name, cause)


def _start(service: DesiredService) -> StartContainer:
    return StartContainer(service.app_uuid, service.name, "")


def _failure(situation: Situation, service: DesiredService, new: Container) -> str:
    """Why the hand-over to `new` has failed, or "". A start that will be tried again counts too: a
    power cut meanwhile would leave nobody who is started."""
    if known := situation.failed_handovers.get(new.id):
        return known
    if new.state != "created":
        return fault(new)
    pause = situation.pause(_start(service))
    return f"the new container cannot be started: {pause.error}" if pause else ""


def _bindings(spec: ContainerSpec) -> dict[str, list[dict[str, str]]]:
    return dict(spec.fields.get("HostConfig.PortBindings") or {})


def _published(spec: ContainerSpec) -> Iterator[tuple[str, str, str]]:
    """(address, port of the host, protocol) of every port that is not left to the engine."""
    for port, hosts in _bindings(spec).items():
        for host in hosts or ():
            number = host.get("HostPort") or ""
            if number.isdecimal() and int(number):
                yield host.get("HostIp") or "", number, port.partition("/")[2] or "tcp"


def _fixed_ports(new: ContainerSpec, old: ContainerSpec) -> set[str]:
    taken = list(_published(old))
    return {
        f"{number}/{protocol}"
        for address, number, protocol in _published(new)
        for other, theirs, kind in taken
        if (number, protocol) == (theirs, kind)
        and (address == other or address in _ANY_ADDRESS or other in _ANY_ADDRESS)
    }
