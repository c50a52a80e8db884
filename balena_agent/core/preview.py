"""What a target would do to this device, without doing it. Pure.

Theory: the same compilation and the same planner as in earnest, on the world of a snapshot. The
steps of a plan are played with the model of the engine (effects.py), in rounds, until a plan has
no step left: so the answer holds every step in the order in which it would begin. Back-off and
work under way do not count, nor does a reboot that was asked for; what users have stopped does.

What the model cannot know it takes for the usual case: an update lock can be had, a download
succeeds and brings an image that no container has yet, a service that others wait for becomes
healthy or completes. The last is told as a wait, like all that the plan alone does not bring about.

API keys of services are read off the snapshot: off the target in force, else off the container of
the service. A service that has none yet would get a new one; here a placeholder stands for it, for
such a service has no container, or one that is replaced for want of a key. So nothing is written.

Invariant: a preview ends. It is cut off, and says so, when it takes more rounds than any sane plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import handover
from .adoption import KEY_VARIABLE
from .compose import desired_app
from .describe import step_state, wait_state
from .desired import Desired, DesiredService
from .effects import effect
from .hostconfig import after, plan_host
from .imageindex import ImageIndex
from .intent import ServiceKey
from .jsonread import Json, shown
from .legacy import with_inheritance
from .names import EXTRA_FIRMWARE, normal_image
from .observed import Container, HostFacts, Observed
from .origins import Origin
from .plan import Plan, Wait
from .planner import plan
from .situation import Situation
from .snapshot import Snapshot
from .steps import (
    AwaitHandover,
    ChangeConfig,
    CreateContainer,
    DumpConfig,
    EngineStep,
    Fetch,
    HostConfigStep,
    ReleaseLocks,
    RequestPowerOff,
    RequestReboot,
    RequireReboot,
    SetBootConfig,
    SetFirmwareVolume,
    SetNetworkConfig,
    StartContainer,
    Step,
    SwitchFeature,
    TakeLocks,
)
from .target import Target, images_to_run

_NEW_KEY = "made at the creation of the container"
_ROUNDS = 30
_ROUNDS_PER_SERVICE = 6


@dataclass(frozen=True, slots=True)
class Preview:
    """The steps in order, services whose containers stay as they are, what is waited for on the
    way and in the end, rejected apps (uuid) with their problem, and notes on what is ignored."""

    steps: tuple[Step, ...] = ()
    untouched: tuple[ServiceKey, ...] = ()
    waits: tuple[Wait, ...] = ()
    rejected: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def preview(snapshot: Snapshot, target: Target) -> Preview:
    """What would follow if `target` came now. The snapshot has had its first look."""
    rehearsal = _Rehearsal(snapshot, target)
    first = rehearsal.desired
    rounds = _ROUNDS + _ROUNDS_PER_SERVICE * _size(first, snapshot.observed)
    for _ in range(rounds):
        if not rehearsal.round():
            break
    else:
        rehearsal.waits[Wait("preview", f"is cut off after {rounds} rounds")] = None
    return Preview(
        tuple(_told(step, rehearsal.fetched) for step in rehearsal.steps),
        _untouched(snapshot.observed, first, rehearsal.steps),
        tuple(rehearsal.waits),
        {app.uuid: app.problem for app in first.apps if app.problem},
        tuple(_warnings(first)),
    )


def preview_state(found: Preview) -> dict[str, Json]:
    """The preview as a document, in the words of the published plan (describe.py)."""
    return {
        "steps": [step_state(step) for step in found.steps],
        "untouched": [{"app": app, "service": name} for app, name in found.untouched],
        "waits": [wait_state(wait) for wait in found.waits],
        "rejected": [{"app": uuid, "problem": text} for uuid, text in found.rejected.items()],
        "warnings": list(found.warnings),
    }


class _Rehearsal:
    """A world in which plans are played, and what came of it so far."""

    def __init__(self, snapshot: Snapshot, target: Target) -> None:
        self.steps: list[Step] = []
        self.waits: dict[Wait, None] = {}
        self.fetched: list[str] = []
        self._target = target
        lacks = snapshot.observed.unsupported
        self._facts: HostFacts = replace(snapshot.facts, engine_lacks=lacks)
        self._keys = _known_keys(snapshot)
        self._world = snapshot.observed
        self._host = snapshot.host
        self._situation = _situation(snapshot, target)
        self._made = 0
        self.desired = self._compiled()

    def round(self) -> bool:
        """Play one plan; False when nothing can come after it."""
        found = plan(self.desired, self._world, self._situation)
        before = (self._world, self._situation)
        for step in found.steps:
            self._play(step)
        if (self._world, self._situation) == before:  # at rest, or steps that change nothing
            self._pass_time(found)
        if self._world.images is not before[0].images:
            self.desired = self._compiled()
        return (self._world, self._situation) != before

    def _play(self, step: Step) -> None:
        self.steps.append(step)
        held = self._situation.locked
        match step:
            case TakeLocks(app_id=app_id):
                self._situation = replace(self._situation, locked=held | {app_id})
            case ReleaseLocks(app_id=app_id):
                self._situation = replace(self._situation, locked=held - {app_id})
            case AwaitHandover(new_id=new_id):
                left = self._situation.handovers - {new_id}
                self._situation = replace(self._situation, handovers=left)
            case RequireReboot():
                self._change_host(reboot_required=True)
            case SetFirmwareVolume():
                self._change_host(firmware_volume=EXTRA_FIRMWARE)
            case RequestReboot():  # a user's is left out of the intent, see `_situation`
                self._situation = replace(self._situation, locked=frozenset())
                boot = self._situation.host.boot_id + " and the next"
                self._change_host(boot_id=boot, booted_at="", reboot_required=False)
            case RequestPowerOff() | SetNetworkConfig():
                pass
            case ChangeConfig() | SetBootConfig() | DumpConfig() | SwitchFeature():
                self._play_on_host(step)
            case _:
                self._play_in_engine(step)

    def _play_on_host(self, step: HostConfigStep) -> None:
        self._host = after(step, self._host)
        steps = plan_host(self._target.config, self._facts.managed, self._host).steps
        self._situation = replace(self._situation, host_steps=steps)

    def _play_in_engine(self, step: EngineStep) -> None:
        if isinstance(step, StartContainer):
            if handover.begins(step, self._world):
                begun = self._situation.handovers | {step.container_id}
                self._situation = replace(self._situation, handovers=begun)
            intent = self._situation.intent
            started = intent.start - {(step.app_uuid, step.service)}
            self._situation = replace(self._situation, intent=replace(intent, start=started))
        name = ""
        if isinstance(step, Fetch):
            self.fetched.append(normal_image(step.reference))
        elif isinstance(step, CreateContainer):
            self._made += 1
            name = f"new-{self._made}"
            origin = Origin(self._situation.host.boot_id)
            origins = {**self._situation.origins, name: origin}
            self._situation = replace(self._situation, origins=origins)
        self._world = effect(step, self._world, name)

    def _change_host(self, **facts: Any) -> None:
        self._situation = replace(self._situation, host=replace(self._situation.host, **facts))

    def _pass_time(self, found: Plan) -> None:
        """Tell what is waited for, and let the services that others wait for come along."""
        self.waits |= dict.fromkeys(found.waits)
        if found.waits:
            come_along = dict(_come_along(self.desired, self._world))
            if come_along:
                containers = {**self._world.containers, **come_along}
                self._world = replace(self._world, containers=containers)

    def _compiled(self) -> Desired:
        apps = self._target.apps.values()
        index = ImageIndex(self._world.images)
        found = tuple(desired_app(app, index.get, self._facts, self._key) for app in apps)
        return with_inheritance(Desired(found), self._world)

    def _key(self, app_id: int, service: str) -> str:
        return self._keys.get((app_id, service), _NEW_KEY)


def _situation(snapshot: Snapshot, target: Target) -> Situation:
    """What the next plan would stand on, if nothing were under way and nothing had failed."""
    owned = snapshot.standing.owned_images | {normal_image(name) for name in images_to_run(target)}
    none: frozenset[str] = frozenset()
    intent = replace(snapshot.intent, power=None, renewals={}, cleanup=none, images=none)
    steps = plan_host(target.config, snapshot.facts.managed, snapshot.host).steps
    return replace(
        snapshot.standing, intent=intent, owned_images=owned, damped={}, host_steps=steps
    )


def _known_keys(snapshot: Snapshot) -> Mapping[tuple[int, str], str]:
    """(app id, service) -> API key. The compiled target got its keys from the store."""
    found: dict[tuple[int, str], str] = {}
    for container in snapshot.observed.containers.values():
        environment = container.effective_spec.fields.get("Env") or {}
        if KEY_VARIABLE in environment:
            found[container.app_id, container.service] = environment[KEY_VARIABLE]
    for service in _services(snapshot.desired):
        if KEY_VARIABLE in service.spec.fields.get("Env", {}):
            found[service.app_id, service.name] = service.spec.fields["Env"][KEY_VARIABLE]
    return found


def _services(desired: Desired) -> Iterator[DesiredService]:
    return (service for app in desired.apps for service in app.services)


def _come_along(desired: Desired, world: Observed) -> Iterator[tuple[str, Container]]:
    """Containers that somebody waits for, as they are when that is over."""
    needed = {
        (service.app_id, dependency.service, dependency.condition)
        for service in _services(desired)
        for dependency in service.depends_on
    }
    for key, container in world.containers.items():
        where = (container.app_id, container.service)
        if not container.running:
            continue
        if (*where, "completed") in needed:
            yield key, replace(container, state="exited", exit_code=0)
        elif (*where, "healthy") in needed and container.health not in ("", "none", "healthy"):
            yield key, replace(container, health="healthy")


def _untouched(observed: Observed, desired: Desired, steps: list[Step]) -> tuple[ServiceKey, ...]:
    """Services with containers of which no step touches any; apps go by their new uuid."""
    uuids = {app.app_id: app.uuid for app in desired.apps}
    touched = {getattr(step, "container_id", "") for step in steps}
    services: dict[ServiceKey, bool] = {}
    for container in observed.containers.values():
        if container.name is not None:
            key = (uuids.get(container.app_id, container.app_uuid), container.service)
            services[key] = services.get(key, True) and container.id not in touched
    return tuple(sorted(key for key, left_alone in services.items() if left_alone))


def _told(step: Step, fetched: list[str]) -> Step:
    """The step with nothing in its cause that only the model says: of an image that is still to be
    downloaded nobody knows the id, the command or the environment."""
    for name in fetched:
        head, found, _ = step.cause.partition(f" -> {shown(f'sha256:{name}')}")
        if found:
            return replace(step, cause=f'{head} -> "{name}", which is to be downloaded')
    return step


def _size(desired: Desired, observed: Observed) -> int:
    return sum(1 for _ in _services(desired)) + len(observed.containers)


def _warnings(desired: Desired) -> Iterator[str]:
    for app in desired.apps:
        yield from app.warnings
        for service in app.services:
            yield from service.warnings
