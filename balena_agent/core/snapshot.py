"""The one value that every reader of the agent's state reads.

Theory: the reconciler publishes a new `Snapshot` whenever something that a reader could see has
changed; HTTP, D-Bus, the status line and the cloud report are pure functions of it (report.py).
Nothing in it is ever changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .cloudanswer import CloudStatus
from .desired import Desired
from .hostconfig import HostConfig
from .intent import Intent
from .observed import HostFacts, Observed
from .plan import Plan
from .situation import Situation
from .sources import KeptTarget
from .steps import Step
from .target import Target
from .variables import DeviceSettings, effective

NOT_ASKED = "the first look at it has not ended yet"
"""`Snapshot.engine_error` before the first look has ended."""


@dataclass(frozen=True, slots=True)
class Running:
    """A step under way. `percent` is -1 where it has no progress; `since` is wall time."""

    step: Step
    percent: float = -1.0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of a step, and when it is tried again (wall time, seconds). `count` 0:
    nothing failed, but somebody else is still at work. `muted`: nothing waits for it."""

    step: Step
    count: int
    error: str
    retry_at: float
    locked: bool = False
    muted: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """See the module. `commits` are the last releases that were wholly applied, by app uuid.

    `source` names whose target is in force (`local`, or the cloud's address; "" without any);
    `targets` are those of all sources.
    `cloud` is how the last request to it ended; `status.cloud_state` says what that makes.
    `engine_error` is "" while the engine answers. `looked` is False until the first full look.
    `standing` is what the last plan stood on, but for what the snapshot says elsewhere: its
    `running`, `backoff` and `intent` are empty.
    """

    version: int = 0
    target: Target | None = None
    source: str = ""
    raw_target: str = ""
    targets: Mapping[str, KeptTarget] = field(default_factory=dict)
    intent: Intent = field(default_factory=Intent)
    desired: Desired = field(default_factory=Desired)
    observed: Observed = field(default_factory=Observed)
    plan: Plan = field(default_factory=Plan)
    standing: Situation = field(default_factory=Situation)
    running: Mapping[str, Running] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    facts: HostFacts = field(default_factory=HostFacts)
    host: HostConfig = field(default_factory=HostConfig)
    commits: Mapping[str, str] = field(default_factory=dict)
    cloud: CloudStatus = field(default_factory=CloudStatus)
    engine_error: str = NOT_ASKED
    looked: bool = False
    stopping: bool = False
    update_pending: bool = False
    update_downloaded: bool = False
    update_failed: bool = False
    last_error: str = ""
    notices: tuple[str, ...] = ()
    _settings: DeviceSettings | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def settings(self) -> DeviceSettings:
        """What the target's device variables make; the defaults while there is no target. Worked
        out once: it follows from what never changes, so two threads at once do no harm."""
        if self._settings is None:
            config = self.target.config if self.target else {}
            found = effective(config, self.facts.managed).settings
            object.__setattr__(self, "_settings", found)
            return found
        return self._settings

    @property
    def engine_up(self) -> bool:
        return not self.engine_error

    @property
    def settled(self) -> bool:
        """Nothing to do, nothing under way, nothing waited for."""
        return self.looked and not (self.plan.steps or self.plan.waits or self.running)
