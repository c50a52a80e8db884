"""What is known of every step, derived from the step alone.

Theory: those who queue, time, delay or show steps treat them all alike. They go by

    verb       what is done, in a word; stands in names, messages and APIs
    subject    what it works on; two steps on one subject never run at the same time
    identity   verb and subject; back-off, "already under way" and cancellation go by it
    limit      seconds after which the executor gives it up
    touched    what has to be looked at again when it has ended, well or not

A step has one more trait, `effect`, what it makes of an `Observed` value (effects.py). That is the
model of the engine: the in-memory fake is `effect` and nothing else, the convergence proof runs on
it, and the contract tests compare it with the real engine.

Invariant: the cause of a step decides nothing here; `describe` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping

from .looks import Touch
from .names import EXTRA_FIRMWARE, SUPERVISOR_NETWORK
from .steps import (
    AwaitHandover,
    ChangeConfig,
    ConnectNetwork,
    CreateContainer,
    CreateNetwork,
    CreateVolume,
    DisconnectNetwork,
    DumpConfig,
    EnsureExtraFirmware,
    EnsureSupervisorNetwork,
    Fetch,
    HostStep,
    ReinstateContainer,
    ReleaseLocks,
    RemoveContainer,
    RemoveImage,
    RemoveNetwork,
    RemoveVolume,
    RenameContainer,
    RequestPowerOff,
    RequestReboot,
    RequireReboot,
    RetireContainer,
    SetBootConfig,
    SetFirmwareVolume,
    SetNetworkConfig,
    StartContainer,
    Step,
    StopContainer,
    SwitchFeature,
    TakeLocks,
    UpdateContainer,
)

STOP_MARGIN = 30.0
"""Seconds beyond the grace period that a stop may take: signal, kill, engine's own delays."""

HANDOVER_MARGIN = 15.0
"""Seconds beyond its timeout that the wait for a hand-over may take."""

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
