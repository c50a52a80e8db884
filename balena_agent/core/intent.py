"""Commands as data, and the standing intent that they leave behind.

Theory: an API face never acts. It turns a request into a command; the reconciler folds the command
into the `Intent`, and the planner reads target and intent together. An intent entry stands until
it is met or overtaken, so a command survives a failed attempt, and what cannot be met shows up as
a wait or an error instead of being forgotten. `outcome` tells when a command is met.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .cloudanswer import CloudStatus
from .networkconfig import NetworkChange
from .target import Target

ServiceKey = tuple[str, str]
"""(app uuid, service name)."""


@dataclass(frozen=True, slots=True)
class SetTarget:
    """Accept a target; it has been read already. `raw` is what is stored, as it came."""

    source: str
    raw: str
    target: Target
    force: bool = False


@dataclass(frozen=True, slots=True)
class Apply:
    """Look at everything and try again now, whatever back-off is pending. `cancel` also gives up
    the downloads under way: they begin anew if they are still wanted."""

    force: bool = False
    cancel: bool = False


@dataclass(frozen=True, slots=True)
class StartService:
    key: ServiceKey


@dataclass(frozen=True, slots=True)
class StopService:
    key: ServiceKey
    force: bool = False


@dataclass(frozen=True, slots=True)
class RestartService:
    """Recreate the container from the target (spec 10 §8.16)."""

    key: ServiceKey
    force: bool = False


@dataclass(frozen=True, slots=True)
class RestartApp:
    """Replace all containers of an app; its volumes stay (spec 10 §8.7)."""

    app_id: int
    force: bool = False


@dataclass(frozen=True, slots=True)
class PurgeApp:
    """Take an app down, remove its volumes, and bring it back (spec 10 §8.8)."""

    app_id: int
    force: bool = False


@dataclass(frozen=True, slots=True)
class CleanupVolumes:
    """Remove the volumes that nobody needs; with an `app_id` only those of that app."""

    app_id: int | None = None


@dataclass(frozen=True, slots=True)
class Power:
    """Reboot the host, or power it off. `who` asked, for the journal."""

    off: bool = False
    force: bool = False
    who: str = ""


@dataclass(frozen=True, slots=True)
class ConfigureNetwork:
    """Change the host's name or proxy, under the update locks of all apps (spec 10 §8.13)."""

    change: NetworkChange
    force: bool = False


ServiceCommand = StartService | StopService | RestartService


@dataclass(frozen=True, slots=True)
class NoteCloud:
    """Publish how the device stands with its cloud. It asks for nothing."""

    status: CloudStatus


HostCommand = Power | ConfigureNetwork
"""Commands about the machine as a whole: they need every app's update locks, not the engine."""

AppCommand = RestartApp | PurgeApp | CleanupVolumes
Command = SetTarget | Apply | NoteCloud | ServiceCommand | AppCommand | HostCommand


@dataclass(frozen=True, slots=True)
class Renewal:
    """What of an app has to go before it comes back: containers (ids), then volumes (engine
    names). The rules are in renewal.py."""

    containers: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Intent:
    """What commands have left to be done or kept.

    stopped   services that a user stopped, with the commit then wanted: they stay stopped,
              over recreation and agent restarts, until started or until a new commit
    start     services to be started once, though their container has exited
    recreate  containers to be replaced, whatever they are like
    force     apps (uuids; "" = all) whose update locks are overridden until they are settled
    renewals  apps (ids) that are taken down whole, and what of them is still to go
    cleanup   volumes (engine names) that go because nobody needs them
    images    images (ids) that go unless somebody needs them: they came with local mode
    power     the reboot or power-off that is under way
    network   the change of the host's name or proxy that is under way
    """

    stopped: Mapping[ServiceKey, str] = field(default_factory=dict)
    start: frozenset[ServiceKey] = frozenset()
    recreate: frozenset[str] = frozenset()
    force: frozenset[str] = frozenset()
    renewals: Mapping[int, Renewal] = field(default_factory=dict)
    cleanup: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    power: Power | None = None
    network: ConfigureNetwork | None = None

    def forced(self, app_uuid: str) -> bool:
        return "" in self.force or app_uuid in self.force


def as_before(intent: Intent, key: ServiceKey, before: Intent) -> Intent:
    """The intent with what another one says about one service's running state."""
    plain = without(intent, key)
    stopped = {k: commit for k, commit in before.stopped.items() if k == key}
    start = before.start & {key}
    return replace(plain, stopped={**plain.stopped, **stopped}, start=plain.start | start)


def without(intent: Intent, key: ServiceKey) -> Intent:
    """The intent with nothing left of what was said about one service's running state."""
    return replace(
        intent,
        stopped={k: v for k, v in intent.stopped.items() if k != key},
        start=intent.start - {key},
    )
