"""Commands as data, and the standing intent that they leave behind.

Theory: an API face never acts. It turns a request into a command; the reconciler folds the command
into the `Intent`, and the planner reads target and intent together. An intent entry stands until
it is met or overtaken, so a command survives a failed attempt, and what cannot be met shows up as
a wait or an error instead of being forgotten. `outcome` tells when a command is met.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
class Power:
    """Reboot the host, or power it off. `who` asked, for the journal."""

    off: bool = False
    force: bool = False
    who: str = ""


ServiceCommand = StartService | StopService | RestartService
Command = SetTarget | Apply | ServiceCommand | Power


@dataclass(frozen=True, slots=True)
class Intent:
    """What commands have left to be done or kept.

    stopped   services that a user stopped, with the commit then wanted: they stay stopped,
              over recreation and agent restarts, until started or until a new commit
    start     services to be started once, though their container has exited
    recreate  containers to be replaced, whatever they are like
    force     apps (uuids; "" = all) whose update locks are overridden until they are settled
    power     the reboot or power-off that is under way
    """

    stopped: Mapping[ServiceKey, str] = field(default_factory=dict)
    start: frozenset[ServiceKey] = frozenset()
    recreate: frozenset[str] = frozenset()
    force: frozenset[str] = frozenset()
    power: Power | None = None

    def forced(self, app_uuid: str) -> bool:
        return "" in self.force or app_uuid in self.force


def without(intent: Intent, key: ServiceKey) -> Intent:
    """The intent with nothing left of what was said about one service's running state."""
    return replace(
        intent,
        stopped={k: v for k, v in intent.stopped.items() if k != key},
        start=intent.start - {key},
    )
