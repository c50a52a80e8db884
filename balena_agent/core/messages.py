"""The sentences with which steps are told: in the journal, and on the device's log stream.

Users' tooling greps these lines, so where the peer has a wording it is kept (spec 20 §29).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from .names import EXTRA_FIRMWARE
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


@dataclass(frozen=True, slots=True)
class Sentences:
    """What is said when a step begins, has succeeded ("" = nothing, for both) and has failed."""

    begin: str
    done: str
    failed: str


def sentences(step: Step) -> Sentences:
    match step:
        case Fetch(reference=name, source=source):
            begin = "Downloading delta for image" if source else "Downloading image"
            return _of(begin, "Downloaded image", "download image", name)
        case RemoveImage(reference=name):
            return _of("Deleting image", "Deleted image", "delete image", name)
        case CreateContainer(service=service):
            name = f"{service.name} {service.spec.image}"
            return _of("Installing service", "Installed service", "install service", name)
        case StartContainer(service=name):
            return _of("Starting service", "Started service", "start service", name)
        case StopContainer(service=name, final=final):
            if step.again:
                begin = f"Restarting service {name}: {step.cause}"
                return Sentences(begin, "", f"Failed to restart service '{name}'")
            if final:
                return _of("Killing service", "Killed service", "kill service", name)
            return _of("Stopping service", "Stopped service", "stop service", name)
        case RemoveContainer(service=name):
            return _of("Removing container of", "Removed container of", "remove container of", name)
        case RenameContainer(service=name):
            what = "metadata for service"
            return _of(f"Updating {what}", f"Updated {what}", f"update {what}", name)
        case RetireContainer() | ReinstateContainer() | AwaitHandover():
            return _handover(step)
        case ConnectNetwork() | DisconnectNetwork() | UpdateContainer():
            return _repair(step)
        case CreateNetwork() | RemoveNetwork() | CreateVolume() | RemoveVolume():
            return _part(step)
        case EnsureSupervisorNetwork():
            return _of("Creating network", "Created network", "create network", "supervisor0")
        case EnsureExtraFirmware():
            return _of("Creating volume", "Created volume", "create volume", EXTRA_FIRMWARE)
        case RequireReboot(service=name):
            what = json.dumps({"serviceName": name}, separators=(",", ":"))
            done = f"Reboot has been scheduled to apply changes: {what}"
            return Sentences("", done, "Failed to schedule a reboot")
        case SetFirmwareVolume():
            text = "os.kernel.extraFirmwareVol in config.json"
            return Sentences(f"Setting {text}", f"Set {text}", f"Failed to set {text}")
        case TakeLocks():
            return Sentences("Taking update locks", "", "Failed to take update locks")
        case ReleaseLocks():
            return Sentences("Releasing update locks", "", "Failed to release update locks")
        case RequestReboot():
            return Sentences("Rebooting", "", "Could not reboot")
        case RequestPowerOff():
            return Sentences("Shutting down", "", "Could not shut down")
        case SetNetworkConfig():
            return Sentences("Changing the host's settings", "Changed the host's settings",
                             "Failed to change the host's settings")  # fmt: skip
        case ChangeConfig(variables=variables):
            what = f"configuration change {_json(variables)}"
            return Sentences(
                f"Applying {what}", f"Applied {what}", "Error applying configuration change"
            )
        case SetBootConfig(variables=variables):
            what = f"boot config: {_json(variables)}"
            return Sentences(f"Applying {what}", f"Applied {what}", "Error setting boot config")
        case DumpConfig():
            return Sentences("Leaving the target's variables for the OS", "", "Error leaving them")
        case SwitchFeature(switch=name, setting=setting):
            what = f"{name} to {setting}"
            return Sentences(f"Switching {what}", f"Switched {what}", f"Error switching {what}")


def _handover(step: RetireContainer | ReinstateContainer | AwaitHandover) -> Sentences:
    what = "hand-over of service"
    match step:
        case RetireContainer(service=name):
            return _of(f"Preparing {what}", f"Prepared {what}", f"prepare {what}", name)
        case ReinstateContainer(service=name):
            return _of(f"Taking back {what}", f"Took back {what}", f"take back {what}", name)
        case AwaitHandover(service=name):
            return _of("Handing over service", "Handed over service", "hand over service", name)


def _repair(step: ConnectNetwork | DisconnectNetwork | UpdateContainer) -> Sentences:
    name = f"service '{step.service}'"
    match step:
        case ConnectNetwork():
            what, where = "connect", f"{name} to network '{step.endpoint.network}'"
        case DisconnectNetwork():
            what, where = "disconnect", f"{name} from network '{step.network}'"
        case UpdateContainer():
            what, where = "reset", f"{', '.join(sorted(step.fields))} of {name}"
    begin, done = {
        "connect": ("Connecting", "Connected"),
        "disconnect": ("Disconnecting", "Disconnected"),
        "reset": ("Resetting", "Reset"),
    }[what]
    return Sentences(f"{begin} {where}", f"{done} {where}", f"Failed to {what} {where}")


def _part(step: CreateNetwork | RemoveNetwork | CreateVolume | RemoveVolume) -> Sentences:
    match step:
        case CreateNetwork():
            verb, kind, name = "creat", "network", step.network.name
        case RemoveNetwork():
            verb, kind, name = "remov", "network", step.engine_name
        case CreateVolume():
            verb, kind, name = "creat", "volume", step.volume.name
        case RemoveVolume():
            verb, kind, name = "remov", "volume", step.engine_name
    begin = f"{verb.capitalize()}ing {kind} '{name}'"
    done = f"{verb.capitalize()}ed {kind} '{name}'"
    return Sentences(begin, done, f"Error {verb}ing {kind} '{name}'")


def _of(begin: str, done: str, failed: str, name: str) -> Sentences:
    return Sentences(f"{begin} '{name}'", f"{done} '{name}'", f"Failed to {failed} '{name}'")


def _json(variables: Mapping[str, str]) -> str:
    """Variables as JSON; an image among them is cut short."""
    short = {n: value if len(value) <= 200 else value[:199] + "…" for n, value in variables.items()}
    return json.dumps(short, ensure_ascii=False, separators=(",", ":"))


def changed_settings(variables: Mapping[str, str]) -> str:
    return f"Applied configuration change {_json(variables)}"


def reboot_scheduled(variables: Mapping[str, str]) -> str:
    return f"Reboot has been scheduled to apply changes: {_json(variables)}"


def failure(step: Step, reason: str) -> str:
    if isinstance(step, ChangeConfig | SetBootConfig | DumpConfig | SwitchFeature):
        return f"{sentences(step).failed}: {reason}"
    return f"{sentences(step).failed} due to '{reason}'"


def locked(seconds: float, reason: str) -> str:
    """The line that every reader of device logs knows when updates are locked."""
    return f"Updates are locked, retrying in {max(1, round(seconds))}s. Reason: {reason}"
