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

from collections.abc import Mapping
from dataclasses import dataclass, field

from .desired import HANDOVER_SECONDS, DesiredNetwork, DesiredService, DesiredVolume
from .jsonread import Json
from .looks import Touch
from .names import EXTRA_FIRMWARE, SUPERVISOR_NETWORK, ContainerName
from .networkconfig import NetworkChange
from .spec import Endpoint

STOP_MARGIN = 30.0
"""Seconds beyond the grace period that a stop may take: signal, kill, engine's own delays."""

HANDOVER_MARGIN = 15.0
"""Seconds beyond its timeout that the wait for a hand-over may take."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Make an image present: nothing to do, a tag, or a pull. `service` names the first user,
    `source` an image from which this one may be made with a delta ("" for none)."""

    reference: str
    app_uuid: str
    app_id: int
    service: str
    cause: str = field(default="", compare=False)
    source: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RemoveImage:
    """Drop one reference; the engine deletes the image with its last one. One that no reference
    leads to is named by its id."""

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
class EnsureExtraFirmware:
    """Make the device's volume for extra firmware (spec 20 §13.1, spec 30 §17)."""

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
    so its restart policy goes first and a container that cannot be stopped is killed. `again`:
    the first half of a restart."""

    app_uuid: str
    service: str
    container_id: str
    grace: int = 10
    final: bool = False
    again: bool = False
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
class RetireContainer:
    """Prepare a running container for its hand-over: named `old_<name>`, so that the new one can
    have the name, and never started again by the engine (spec 20 §15.3)."""

    app_uuid: str
    service: str
    container_id: str
    name: ContainerName
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ReinstateContainer:
    """Take a retirement back: restart policy first, then the name, which a crash between them
    leaves to be done."""

    app_uuid: str
    service: str
    container_id: str
    name: ContainerName
    policy: Mapping[str, Json]
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class AwaitHandover:
    """Wait until the new container says in its lock directory that it has taken over, or until
    `timeout` (seconds) is over. Which of the two is no matter: the end is a success."""

    app_uuid: str
    app_id: int
    service: str
    old_id: str
    new_id: str
    timeout: float = HANDOVER_SECONDS
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ConnectNetwork:
    """Make a container a member of a network again (spec 21 §10.3)."""

    app_uuid: str
    service: str
    container_id: str
    endpoint: Endpoint
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class DisconnectNetwork:
    """Take a container out of a network that it shall not be in; `network` is its engine name."""

    app_uuid: str
    service: str
    container_id: str
    network: str
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class UpdateContainer:
    """Bring fields that may change in a live container to the canonical values `fields`; an engine
    that does not take them all has failed."""

    app_uuid: str
    service: str
    container_id: str
    fields: Mapping[str, Json]
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
class RequireReboot:
    """Leave word, until the host is rebooted, that a service's new container waits for it."""

    app_uuid: str
    service: str
    container_id: str
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class SetFirmwareVolume:
    """Have config.json name the volume of extra firmware, for the kernel's next boot."""

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
class ChangeConfig:
    """Bring variables (names without prefix) into config.json; its other keys stay."""

    variables: Mapping[str, str]
    reboot: bool = False
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class SetBootConfig:
    """Bring a boot file to what its variables (names without prefix) ask for. The file is read
    again before it is written, so what others have changed in it stays."""

    backend: str
    variables: Mapping[str, str]
    reboot: bool = True
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class DumpConfig:
    """Leave the target's variables where the OS's scripts look for them."""

    text: str
    cause: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class SwitchFeature:
    """Bring a part of the host into a setting, both words of switches.py, and see that it is."""

    switch: str
    setting: str
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
    | EnsureExtraFirmware
    | CreateContainer
    | StartContainer
    | StopContainer
    | RemoveContainer
    | RenameContainer
    | RetireContainer
    | ReinstateContainer
    | ConnectNetwork
    | DisconnectNetwork
    | UpdateContainer
)
HostConfigStep = ChangeConfig | SetBootConfig | DumpConfig | SwitchFeature
HostStep = (
    AwaitHandover
    | TakeLocks
    | ReleaseLocks
    | RequireReboot
    | SetFirmwareVolume
    | RequestReboot
    | RequestPowerOff
    | SetNetworkConfig
    | HostConfigStep
)
Step = EngineStep | HostStep

_VERBS: Mapping[type, str] = {
    Fetch: "fetch",
    RemoveImage: "remove-image",
    CreateNetwork: "create-network",
    RemoveNetwork: "remove-network",
    CreateVolume: "create-volume",
    RemoveVolume: "remove-volume",
    EnsureSupervisorNetwork: "ensure-supervisor-network",
    EnsureExtraFirmware: "ensure-extra-firmware",
    CreateContainer: "create",
    StartContainer: "start",
    StopContainer: "stop",
    RemoveContainer: "remove",
    RenameContainer: "rename",
    RetireContainer: "retire",
    ReinstateContainer: "reinstate",
    AwaitHandover: "await-handover",
    ConnectNetwork: "connect",
    DisconnectNetwork: "disconnect",
    UpdateContainer: "update",
    TakeLocks: "take-locks",
    ReleaseLocks: "release-locks",
    RequireReboot: "require-reboot",
    SetFirmwareVolume: "set-firmware-volume",
    RequestReboot: "reboot",
    RequestPowerOff: "power-off",
    ChangeConfig: "change-config",
    SetBootConfig: "set-boot-config",
    DumpConfig: "dump-config",
    SwitchFeature: "switch",
    SetNetworkConfig: "configure",
}


def verb(step: Step) -> str:
    return _VERBS[type(step)]


def service_of(step: Step) -> tuple[str, str]:
    """(app uuid, service) that a step is about; empty where it is about neither."""
    if isinstance(step, CreateContainer):
        return step.service.key
    return getattr(step, "app_uuid", ""), str(getattr(step, "service", ""))


def service_subject(app_uuid: str, service: str) -> str:
    """The subject of every step about a service."""
    return f"service {app_uuid}/{service}"


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
            return f"network {SUPERVISOR_NETWORK}"
        case EnsureExtraFirmware():
            return f"volume {EXTRA_FIRMWARE}"
        case SetFirmwareVolume():
            return "config.json"
        case TakeLocks() | ReleaseLocks():
            return f"locks {step.app_id}"
        case RequestReboot() | RequestPowerOff() | SetNetworkConfig():
            return "host"
        case ChangeConfig():
            return "config.json"
        case SetBootConfig():
            return f"boot {step.backend}"
        case DumpConfig():
            return "target-state-config"
        case SwitchFeature():
            return step.switch
        case _:
            return service_subject(*service_of(step))


def identity(step: Step) -> str:
    name = f"{verb(step)} {subject(step)}"
    match step:
        case ConnectNetwork():
            return f"{name} {step.endpoint.network}"
        case DisconnectNetwork():
            return f"{name} {step.network}"
        case _:
            return name


def limit(step: Step) -> float:
    """Seconds without progress after which a step is given up."""
    match step:
        case StopContainer():
            return step.grace + STOP_MARGIN
        case AwaitHandover():
            return step.timeout + HANDOVER_MARGIN
        case Fetch():
            return 600.0
        case TakeLocks() | ReleaseLocks():
            return 15.0
        case SetNetworkConfig():
            return 480.0
        case _:
            return 90.0


def touched(step: Step) -> Touch:
    if isinstance(step, HostStep) and not isinstance(step, AwaitHandover):
        return Touch()
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
            return Touch(networks=frozenset({SUPERVISOR_NETWORK}))
        case EnsureExtraFirmware():
            return Touch(volumes=frozenset({EXTRA_FIRMWARE}))
        case CreateContainer():
            return Touch(containers=frozenset({str(step.service.container_name)}))
        case AwaitHandover():
            return Touch(containers=frozenset({step.new_id}))
        case _:
            return Touch(containers=frozenset({step.container_id}))


def describe(step: Step) -> str:
    """One line for people: `create web: not running yet`."""
    _, service = service_of(step)
    name = service or subject(step).partition(" ")[2] or "device"
    if isinstance(step, Fetch):
        name = f"{step.reference} for {step.service}"
    return f"{verb(step)} {name}" + (f": {step.cause}" if step.cause else "")
