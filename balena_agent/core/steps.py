"""The closed vocabulary of things the agent does to the world, one outside call each.

Theory: the planner returns steps, the executor hands each to an adapter, nobody else acts. A step
is a value: what to do, to what, and why (`cause`). Every step has

    identity   verb and subject; back-off, "already under way" and cancellation go by it
    subject    what it works on; two steps on one subject never run at the same time
    limit      seconds after which the executor gives it up
    touched    what has to be looked at again when it has ended, well or not
    effect     what it makes of an `Observed` value

`effect` is the model of the engine: the in-memory fake is `effect` and nothing else, the
convergence proof runs on it, and the contract tests compare it with the real engine. Steps are
idempotent: an adapter treats "is already so" as success.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from .desired import DesiredNetwork, DesiredService, DesiredVolume
from .names import ContainerName
from .networkconfig import NetworkChange
from .observed import Container, Image, Network, Observed, Volume

STOP_MARGIN = 30.0
"""Seconds beyond the grace period that a stop may take: signal, kill, engine's own delays."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Make an image present: nothing to do, a tag, or a pull. `service` names the first user."""

    reference: str
    app_uuid: str
    app_id: int
    service: str
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RemoveImage:
    """Drop one reference; the engine deletes the image with its last one."""

    reference: str
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class CreateNetwork:
    app_uuid: str
    app_id: int
    network: DesiredNetwork
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RemoveNetwork:
    app_uuid: str
    engine_name: str
    network_id: str
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class CreateVolume:
    app_uuid: str
    app_id: int
    volume: DesiredVolume
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RemoveVolume:
    app_uuid: str
    engine_name: str
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class EnsureSupervisorNetwork:
    """Make `supervisor0` as specified (spec 20 §13.1), removing a wrong one first."""

    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class CreateContainer:
    """Create a service's container and join its networks; all or nothing (spec 21 §11)."""

    service: DesiredService
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class StartContainer:
    app_uuid: str
    service: str
    container_id: str
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class StopContainer:
    """Stop with the container's own signal and grace, then harder. `final`: about to be removed,
    so its restart policy goes first and a container that cannot be stopped is killed."""

    app_uuid: str
    service: str
    container_id: str
    grace: int = 10
    final: bool = False
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    """Remove a container and its anonymous volumes."""

    app_uuid: str
    service: str
    container_id: str
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RenameContainer:
    """Give a container that is right in all but its name the name of the new release."""

    app_uuid: str
    service: str
    container_id: str
    name: ContainerName
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TakeLocks:
    """Take the update locks of all named services of an app, or none (spec 20 §17)."""

    app_uuid: str
    app_id: int
    services: tuple[str, ...]
    force: bool = False
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ReleaseLocks:
    app_uuid: str
    app_id: int
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RequestReboot:
    force: bool = False
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RequestPowerOff:
    force: bool = False
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class SetNetworkConfig:
    """Give the host another name or proxy, and see that it has it (spec 30 §6)."""

    change: NetworkChange
    cause: str = field(default="", compare=False)


EngineStep = (
    Fetch
    | RemoveImage
    | CreateNetwork
    | RemoveNetwork
    | CreateVolume
    | RemoveVolume
    | EnsureSupervisorNetwork
    | CreateContainer
    | StartContainer
    | StopContainer
    | RemoveContainer
    | RenameContainer
)
HostStep = TakeLocks | ReleaseLocks | RequestReboot | RequestPowerOff | SetNetworkConfig
Step = EngineStep | HostStep

_VERBS: Mapping[type, str] = {
    Fetch: "fetch",
    RemoveImage: "remove-image",
    CreateNetwork: "create-network",
    RemoveNetwork: "remove-network",
    CreateVolume: "create-volume",
    RemoveVolume: "remove-volume",
    EnsureSupervisorNetwork: "ensure-supervisor-network",
    CreateContainer: "create",
    StartContainer: "start",
    StopContainer: "stop",
    RemoveContainer: "remove",
    RenameContainer: "rename",
    TakeLocks: "take-locks",
    ReleaseLocks: "release-locks",
    RequestReboot: "reboot",
    RequestPowerOff: "power-off",
    SetNetworkConfig: "configure",
}


class Ticket(Protocol):
    """What a step under way can tell and hear; made by the executor, given to the adapter."""

    @property
    def cancelled(self) -> bool: ...

    def on_cancel(self, action: Callable[[], None]) -> None:
        """Run `action` (from another thread) when the step is given up; at once if it is."""

    def progress(self, percent: float) -> None:
        """Real progress, 0 to 100; also proof of work for the watchdog and the time limit."""


@dataclass(frozen=True, slots=True)
class Touch:
    """What to look at again. Containers by id or name; `everything` asks for a full look."""

    containers: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    everything: bool = False

    def __or__(self, other: Touch) -> Touch:
        return Touch(
            self.containers | other.containers,
            self.networks | other.networks,
            self.volumes | other.volumes,
            self.images | other.images,
            self.everything or other.everything,
        )

    def __bool__(self) -> bool:
        return bool(
            self.everything or self.containers or self.networks or self.volumes or self.images
        )


@dataclass(frozen=True, slots=True)
class Patch:
    """The answer of a partial look: objects by key, None where there is none any more."""

    containers: Mapping[str, Container | None] = field(default_factory=dict)
    networks: Mapping[str, Network | None] = field(default_factory=dict)
    volumes: Mapping[str, Volume | None] = field(default_factory=dict)
    images: Mapping[str, Image | None] = field(default_factory=dict)


T = TypeVar("T")


def merged(known: Mapping[str, T], news: Mapping[str, T | None]) -> Mapping[str, T]:
    """`known` with the news; the same object when there is none."""
    if not news:
        return known
    result = {**known, **{k: v for k, v in news.items() if v is not None}}
    for key, value in news.items():
        if value is None:
            result.pop(key, None)
    return result


def apply_patch(observed: Observed, patch: Patch) -> Observed:
    return replace(
        observed,
        containers=merged(observed.containers, patch.containers),
        networks=merged(observed.networks, patch.networks),
        volumes=merged(observed.volumes, patch.volumes),
        images=merged(observed.images, patch.images),
    )


def verb(step: Step) -> str:
    return _VERBS[type(step)]


def service_of(step: Step) -> tuple[str, str]:
    """(app uuid, service) that a step is about; empty where it is about neither."""
    if isinstance(step, CreateContainer):
        return step.service.key
    return getattr(step, "app_uuid", ""), str(getattr(step, "service", ""))


def subject(step: Step) -> str:
    """The thing a step works on, e.g. `service 1/web` or `network 1_default`."""
    match step:
        case Fetch() | RemoveImage():
            return f"image {step.reference}"
        case CreateNetwork():
            return f"network {step.network.engine_name}"
        case RemoveNetwork():
            return f"network {step.engine_name}"
        case CreateVolume():
            return f"volume {step.volume.engine_name}"
        case RemoveVolume():
            return f"volume {step.engine_name}"
        case EnsureSupervisorNetwork():
            return "network supervisor0"
        case TakeLocks() | ReleaseLocks():
            return f"locks {step.app_id}"
        case RequestReboot() | RequestPowerOff() | SetNetworkConfig():
            return "host"
        case _:
            return "service " + "/".join(service_of(step))


def identity(step: Step) -> str:
    return f"{verb(step)} {subject(step)}"


def limit(step: Step) -> float:
    """Seconds without progress after which a step is given up."""
    match step:
        case StopContainer():
            return step.grace + STOP_MARGIN
        case Fetch():
            return 600.0
        case TakeLocks() | ReleaseLocks():
            return 15.0
        case SetNetworkConfig():
            return 300.0
        case _:
            return 90.0


def touched(step: Step) -> Touch:
    match step:
        case Fetch() | RemoveImage():
            return Touch(images=frozenset({step.reference}))
        case CreateNetwork():
            return Touch(networks=frozenset({step.network.engine_name}))
        case RemoveNetwork():
            return Touch(networks=frozenset({step.network_id}))
        case CreateVolume():
            return Touch(volumes=frozenset({step.volume.engine_name}))
        case RemoveVolume():
            return Touch(volumes=frozenset({step.engine_name}))
        case EnsureSupervisorNetwork():
            return Touch(networks=frozenset({"supervisor0"}))
        case CreateContainer():
            return Touch(containers=frozenset({str(step.service.container_name)}))
        case StartContainer() | StopContainer() | RemoveContainer() | RenameContainer():
            return Touch(containers=frozenset({step.container_id}))
        case _:
            return Touch()


def describe(step: Step) -> str:
    """One line for people: `create web: not running yet`."""
    _, service = service_of(step)
    name = service or subject(step).partition(" ")[2] or "device"
    if isinstance(step, Fetch):
        name = f"{step.reference} for {step.service}"
    return f"{verb(step)} {name}" + (f": {step.cause}" if step.cause else "")
