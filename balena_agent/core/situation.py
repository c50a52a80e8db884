"""Everything besides target and world that a plan depends on, as data; and the plan under
construction.

Theory: the planner has no clock, no locks and no memory. What the runtime knows of these comes in
here: steps under way, steps in back-off, locks that we hold, what users asked for. `Draft` applies
to every step the same three questions, so that no rule can forget one: is its subject busy, is it
in back-off, does it need a lock that we do not hold yet?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .intent import Intent
from .plan import Plan, Wait
from .steps import HostConfigStep, Step, TakeLocks, identity, subject


@dataclass(frozen=True, slots=True)
class Backoff:
    """A step that failed and is not due again before `until` (wall time)."""

    until: float
    error: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Situation:
    """See the module. `running` and `backoff` are keyed by step identity, `locked` holds app ids.

    `owned_images` are the only references that may be removed. `stopped_by_agent` are containers
    (ids) that the agent stopped, for whatever reason: nobody else starts them when they shall run.
    `stopping`: the host goes down, services are to be stopped in order and nothing else.
    `host_steps` are what the target's variables ask of the host (hostconfig.plan_host).
    """

    running: Mapping[str, Step] = field(default_factory=dict)
    backoff: Mapping[str, Backoff] = field(default_factory=dict)
    intent: Intent = field(default_factory=Intent)
    locked: frozenset[int] = frozenset()
    owned_images: frozenset[str] = frozenset()
    stopped_by_agent: frozenset[str] = frozenset()
    keep_images: bool = True
    keep_volumes: bool = True
    override_locks: bool = False
    stopping: bool = False
    power_requested: bool = False
    host_steps: tuple[HostConfigStep, ...] = ()

    def standing(self) -> Situation:
        """What does not change from one moment to the next: without work, failures and intent."""
        return replace(
            self, running={}, backoff={}, intent=Intent(), stopping=False, power_requested=False
        )


class Draft:
    """A plan in the making, for one app or for the device as a whole. All drafts of one plan share
    `busy`, the subjects of steps under way or planned: so two apps never plan for one thing."""

    def __init__(
        self, situation: Situation, busy: set[str], app_uuid: str = "", app_id: int = -1
    ) -> None:
        self.situation = situation
        self.app_uuid = app_uuid
        self.app_id = app_id
        self.steps: list[Step] = []
        self.waits: list[Wait] = []
        self.wanted: set[str] = set()
        self.down = False
        """Whether a service that should run is not there yet: half-way through a replacement."""
        self._busy = busy
        self._lock_causes: list[str] = []

    @property
    def locked(self) -> bool:
        return self.app_id in self.situation.locked

    @property
    def idle(self) -> bool:
        """Nothing to do and nothing waited for, as far as this draft goes."""
        return not (self.steps or self.waits or self.wanted or self._lock_causes)

    def wants(self, *verbs: str) -> bool:
        """Whether a step of one of these verbs is wanted, planned or held back."""
        return any(name.split(" ", 1)[0] in verbs for name in self.wanted)

    def emit(self, step: Step, needs_lock: bool = False) -> None:
        """Plan a step, or note why it cannot be done now."""
        name, about = identity(step), subject(step)
        self.wanted.add(name)
        pause = self.situation.backoff.get(name)
        if about in self._busy:
            return
        if pause:
            self.wait(about, f"{pause.error} (attempt {pause.count} failed)", pause.until)
        elif needs_lock and not self.locked:
            self._lock_causes.append(f"{name}: {step.cause}")
        else:
            self._busy.add(about)
            self.steps.append(step)

    def let_end(self, step: Step) -> None:
        """The effect is there already: a step still under way for it may come to its end."""
        if identity(step) in self.situation.running:
            self.wanted.add(identity(step))

    def wait(self, about: str, reason: str, until: float = 0.0) -> None:
        wait = Wait(about, reason, until)
        if wait not in self.waits:
            self.waits.append(wait)

    def wait_service(self, name: str, reason: str) -> None:
        """A wait of one of the app's services, under the subject that its steps have too."""
        self.wait(f"service {self.app_uuid}/{name}", reason)

    def take_locks(self, services: tuple[str, ...]) -> None:
        """One step for all locks that the steps so far asked for, and only if any did."""
        if self._lock_causes:
            force = self.situation.override_locks or self.situation.intent.forced(self.app_uuid)
            cause = self._lock_causes[0]
            self._lock_causes = []
            self.emit(TakeLocks(self.app_uuid, self.app_id, services, force, cause))

    def plan(self, settled_apps: frozenset[str] = frozenset()) -> Plan:
        return Plan(tuple(self.steps), tuple(self.waits), frozenset(self.wanted), settled_apps)
