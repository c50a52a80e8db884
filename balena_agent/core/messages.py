"""The sentences with which steps are told: in the journal, and on the device's log stream.

Users' tooling greps these lines, so where the peer has a wording it is kept (spec 20 §29).
"""

from __future__ import annotations

from dataclasses import dataclass

from .steps import (
    CreateContainer,
    CreateNetwork,
    CreateVolume,
    EnsureSupervisorNetwork,
    Fetch,
    ReleaseLocks,
    RemoveContainer,
    RemoveImage,
    RemoveNetwork,
    RemoveVolume,
    RenameContainer,
    RequestPowerOff,
    RequestReboot,
    SetNetworkConfig,
    StartContainer,
    Step,
    StopContainer,
    TakeLocks,
)


@dataclass(frozen=True, slots=True)
class Sentences:
    """What is said when a step begins, has succeeded ("" = nothing) and has failed."""

    begin: str
    done: str
    failed: str


def sentences(step: Step) -> Sentences:
    match step:
        case Fetch(reference=name):
            return _of("Downloading image", "Downloaded image", "download image", name)
        case RemoveImage(reference=name):
            return _of("Deleting image", "Deleted image", "delete image", name)
        case CreateContainer(service=service):
            name = f"{service.name} {service.spec.image}"
            return _of("Installing service", "Installed service", "install service", name)
        case StartContainer(service=name):
            return _of("Starting service", "Started service", "start service", name)
        case StopContainer(service=name, final=final):
            if final:
                return _of("Killing service", "Killed service", "kill service", name)
            return _of("Stopping service", "Stopped service", "stop service", name)
        case RemoveContainer(service=name):
            return _of("Removing container of", "Removed container of", "remove container of", name)
        case RenameContainer(service=name):
            what = "metadata for service"
            return _of(f"Updating {what}", f"Updated {what}", f"update {what}", name)
        case CreateNetwork() | RemoveNetwork() | CreateVolume() | RemoveVolume():
            return _part(step)
        case EnsureSupervisorNetwork():
            return _of("Creating network", "Created network", "create network", "supervisor0")
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


def failure(step: Step, reason: str) -> str:
    return f"{sentences(step).failed} due to '{reason}'"


def locked(seconds: float, reason: str) -> str:
    """The line that every reader of device logs knows when updates are locked."""
    return f"Updates are locked, retrying in {max(1, round(seconds))}s. Reason: {reason}"
