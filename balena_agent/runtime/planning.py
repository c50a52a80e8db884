"""What is decided in a turn: from all that is known to a plan.

Theory: core.planner decides on values. Here these values are gathered from those who keep them, so
that a plan is made of one consistent picture, and what follows from a plan for the ledger and the
notes is drawn.

Invariants: nothing is planned for an engine that was not looked at, but what is forced on the host.
Used by the reconciler's thread alone.
"""

from __future__ import annotations

from ..core.plan import Plan
from ..core.planner import plan, plan_apart
from ..core.situation import Situation
from ..core.status import deltas_wanted, lent_to_user, locks_overridden
from .damper import Damper
from .handovers import Handovers
from .hosting import Hosting
from .ledger import Ledger
from .notes import Notes
from .policy import Policy
from .ports import Clock, Host
from .power import AcceptedPower
from .state import Present
from .underway import UnderWay
from .world import World


class Planning:
    """See the module."""

    def __init__(
        self,
        present: Present,
        world: World,
        notes: Notes,
        ledger: Ledger,
        damper: Damper,
        under_way: UnderWay,
        handovers: Handovers,
        hosting: Hosting,
        power: AcceptedPower,
        policy: Policy,
        host: Host,
        clock: Clock,
    ) -> None:
        self._present = present
        self._world = world
        self._notes = notes
        self._ledger = ledger
        self._damper = damper
        self._under_way = under_way
        self._handovers = handovers
        self._hosting = hosting
        self._power = power
        self._policy = policy
        self._host = host
        self._clock = clock

    def may_act(self) -> bool:
        """Nothing is done to the engine without a look at it; what is forced on the host is."""
        now = self._present.now
        asked = now.intent.power or now.intent.network
        return now.looked or bool(asked and asked.force and now.engine_error)

    def plan(self, situation: Situation) -> Plan:
        """What to do now. Failures of what nobody wants any more are forgotten."""
        if not self.may_act():
            return plan_apart(situation)
        now = self._present.now
        found = plan(now.desired, self._world.observed, situation)
        self._ledger.prune(found.wanted | found.remembered)
        if not (now.intent.power or now.stopping):  # they want no download, for now
            self._notes.fetches_failed(self._ledger.failures().values(), self._clock.wall())
        return found

    def situation(self) -> Situation:
        """What the next plan is made for."""
        now, policy = self._present.now, self._policy
        return Situation(
            running=self._under_way.steps(),
            backoff=self._ledger.backoff(self._clock.wall()),
            intent=now.intent,
            locked=self._host.held_locks(),
            owned_images=self._notes.owned_images,
            stopped_by_agent=self._notes.stopped_by_agent,
            handovers=self._handovers.waiting,
            failed_handovers=self._handovers.failed,
            joined=self._notes.joined,
            keep_images=policy.keeps_images(now.facts.managed) or lent_to_user(now),
            keep_volumes=policy.keeps_volumes(now.source) or lent_to_user(now),
            override_locks=policy.override_locks or locks_overridden(now),
            damped=self._damper.damped,
            stopping=now.stopping,
            power_requested=bool(self._power),
            host=self._host.state(),
            origins=self._notes.origins,
            deltas=deltas_wanted(now).on,
            remove_peer=policy.remove_peer,
            host_steps=self._hosting.plan.steps,
        )
