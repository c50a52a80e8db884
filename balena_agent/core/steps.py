"""The closed vocabulary of things the agent does to the world, one outside call each.

Theory: the planner returns steps, the executor hands each to an adapter, nobody else acts. A step
is a value: what to do, to what, and why (`cause`). What the runtime must know of every step, such
as its identity and its time limit, is derived from it in traits.py; what it makes of an `Observed`
value is in effects.py.

Invariants: steps are idempotent: an adapter treats "is already so" as success. Two steps that
differ in nothing but their causes are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .desired import HANDOVER_SECONDS, DesiredNetwork, DesiredService, DesiredVolume
from .jsonread import Json
from .names import ContainerName
from .networkconfig import NetworkChange
from .spec import Endpoint


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
