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

from .intent import Intent, ServiceKey
from .observed import HostState
from .origins import Origin
from .plan import Plan, Wait
from .steps import HostConfigStep, Step, TakeLocks
from .traits import identity, service_subject, subject


@dataclass(frozen=True, slots=True)
class Backoff:
    """A step has failed since it last succeeded; it is `due` again at `until` (wall time)."""

    until: float
    error: str
    count: int = 1
    muted: bool = False
    """Not worth a wait: see images.py."""
    due: bool = False

    @property
    def reason(self) -> str:
        """What the plan says of it. What was only put off has not failed (`count` 0)."""
        return f"{self.error} (attempt {self.count} failed)" if self.count else self.error


@dataclass(frozen=True, slots=True)
class Situation:
    """See the module. `running` and `backoff` are keyed by step identity, `locked` holds app ids.

    `owned_images` are the only references that may be removed. `stopped_by_agent` are containers
    (ids) that the agent stopped, for whatever reason, with the start (`started_at`) that it put an
    end to, "" where unknown: nobody else starts them when they shall run.
    `damped` maps services that were recreated too often to the digest of the spec that they were
    recreated for (spec 20 §12).
    `stopping`: the host goes down, services are to be stopped in order and nothing else. `origins`
    are our notes on containers (ids).
    `handovers` are containers (ids) that were started beside an older one of their service and
    have not taken over from it yet (handover.py); `failed_handovers` says of those that are to go
    why they could not, whatever has become of them since.
    `joined` are the runs of containers that share another's network and were begun by the agent
    (drift.outlived).
    `deltas`: images may come as deltas. `remove_peer`: the peer's own images may go.
    `host_steps` are what the target's variables ask of the host (hostconfig.plan_host).
    """

    running: Mapping[str, Step] = field(default_factory=dict)
    backoff: Mapping[str, Backoff] = field(default_factory=dict)
    intent: Intent = field(default_factory=Intent)
    locked: frozenset[int] = frozenset()
    owned_images: frozenset[str] = frozenset()
    stopped_by_agent: Mapping[str, str] = field(default_factory=dict)
    handovers: frozenset[str] = frozenset()
    failed_handovers: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    keep_images: bool = True
    keep_volumes: bool = True
    override_locks: bool = False
    damped: Mapping[ServiceKey, str] = field(default_factory=dict)
    stopping: bool = False
    power_requested: bool = False
    host: HostState = field(default_factory=HostState)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    deltas: bool = False
    remove_peer: bool = False
    host_steps: tuple[HostConfigStep, ...] = ()

    def pause(self, step: Step) -> Backoff | None:
        """The failure of a step that is not due again yet."""
        known = self.backoff.get(identity(step))
        return None if known is None or known.due else known

    def standing(self) -> Situation:
        """What does not change from one moment to the next: without work, failures and intent."""
        return replace(
            self,
            running={},
            backoff={},
            intent=Intent(),
            stopping=False,
            power_requested=False,
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
        self.remembered: set[str] = set()
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
        pause = self.situation.pause(step)
        if pause and pause.muted:  # nothing waits for it, no reboot either
            self.remembered.add(name)
            return
        self.wanted.add(name)
        if about in self._busy:
            return
        if pause:
            self.wait(about, pause.reason, pause.until)
        elif needs_lock and not self.locked:
            self._lock_causes.append(f"{name}: {step.cause}")
        else:
            self._busy.add(about)
            self.steps.append(step)

    def failure(self, step: Step) -> Backoff | None:
        """The failure of a step, due again or not, which is not wanted by this. A failure is kept
        as long as some rule wants its step, or asks for it here."""
        self.remembered.add(identity(step))
        return self.situation.backoff.get(identity(step))

    def pausing(self, *steps: Step) -> bool:
        """Whether one of these steps has failed and is not due yet; a wait says so."""
        failures = [(step, self.failure(step)) for step in steps]
        for step, pause in failures:
            if pause and not pause.due:
                self.wait(subject(step), pause.reason, pause.until)
                return True
        return False

    def let_end(self, step: Step) -> None:
        """The effect is there already: a step still under way for it may come to its end."""
        if identity(step) in self.situation.running:
            self.wanted.add(identity(step))

    def wait(
        self, about: str, reason: str, until: float = 0.0, patience: float | None = None
    ) -> None:
        wait = Wait(about, reason, until, patience)
        if wait not in self.waits:
            self.waits.append(wait)

    def wait_service(self, name: str, reason: str, patience: float | None = None) -> None:
        """A wait of one of the app's services, under the subject that its steps have too."""
        self.wait(service_subject(self.app_uuid, name), reason, patience=patience)

    def take_locks(self, services: tuple[str, ...]) -> None:
        """One step for all locks that the steps so far asked for, and only if any did."""
        if self._lock_causes:
            force = self.situation.override_locks or self.situation.intent.forced(self.app_uuid)
            cause = self._lock_causes[0]
            self._lock_causes = []
            self.emit(TakeLocks(self.app_uuid, self.app_id, services, force, cause))

    def plan(self, settled_apps: frozenset[str] = frozenset()) -> Plan:
        return Plan(
            tuple(self.steps),
            tuple(self.waits),
            frozenset(self.wanted),
            settled_apps,
            frozenset(self.remembered),
        )


def joined(drafts: list[Draft], settled: frozenset[str]) -> Plan:
    """One plan of many drafts. `settled`: uuids of the apps for which nothing is left to do."""
    return Plan(
        tuple(step for draft in drafts for step in draft.steps),
        tuple(wait for draft in drafts for wait in draft.waits),
        frozenset().union(*(draft.wanted for draft in drafts)),
        settled,
        frozenset().union(*(draft.remembered for draft in drafts)),
    )
