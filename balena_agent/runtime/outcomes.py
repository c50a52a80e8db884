"""What comes back from the workers: ended steps and finished looks, taken into what is known.

Theory: a look and the end of a step both bring news of the engine. What was seen goes to the world,
and that the engine answers, or does not, is part of the state. A step that has ended is told and
noted once, here: a success where later decisions build on it, a failure with the ledger, which says
when the step may be tried again. Nothing is decided here; the turn that a message causes does that.

Invariants
  * what a step has left behind is known before anything else is planned: when the look after it has
    failed, a full look comes first;
  * a full look that was overtaken changes nothing;
  * used by the reconciler's thread alone, which also publishes what is changed here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ..core.errors import AgentError, Cancelled, EngineFailed, EngineUnavailable, StillProcessing
from ..core.jsonread import truth
from ..core.looks import Patch, Touch
from ..core.names import REQUIRES_REBOOT
from ..core.observed import Observed
from ..core.steps import (
    AwaitHandover,
    CreateContainer,
    Fetch,
    RequestPowerOff,
    RequestReboot,
    RequireReboot,
    SetNetworkConfig,
    StartContainer,
    Step,
    StopContainer,
)
from . import telling
from .commands import Commands
from .damper import Damper
from .executor import Outcome
from .handovers import Handovers
from .ledger import Ledger
from .lookout import Looked, Lookout
from .notes import Notes
from .ports import Clock, Host
from .power import AcceptedPower
from .state import Present
from .world import World

_log = logging.getLogger(__name__)


class Looks:
    """What was seen of the engine. `full` is told of every full look that counts."""

    def __init__(
        self,
        present: Present,
        world: World,
        lookout: Lookout,
        full: Callable[[Observed], None],
    ) -> None:
        self._present = present
        self._world = world
        self._lookout = lookout
        self._full = full

    def looked(self, looked: Looked) -> None:
        """A look of its own has ended."""
        match looked.seen:
            case Patch() as patch:
                self._world.see(patch, looked.asked)
            case Observed() as full:
                if self._lookout.is_current(looked):
                    self._found()
                    self._world.see_all(full, looked.asked)
                    self._full(full)
            case EngineUnavailable() as error:
                self.lost(error)
            case error:
                _log.warning("Could not look at the engine: %s", error)
                self._lookout.failed()

    def after(self, outcome: Outcome) -> None:
        """The look that ends a step."""
        if outcome.patch is None:
            # What the step has left is not known: nothing is planned before it is.
            self._present.change(looked=False)
            self._lookout.ask_all()
        else:
            self._world.see(outcome.patch, outcome.asked)
            self._lookout.seen(outcome.patch.containers, outcome.asked)

    def lost(self, error: EngineUnavailable) -> None:
        """The engine does not answer."""
        if self._lookout.failed():
            _log.warning("%s", error.message)
        self._present.change(engine_error=error.reason, looked=False)

    def doubt(self) -> None:
        """The world may be another by now."""
        self._lookout.ask(Touch(everything=True))

    def _found(self) -> None:
        self._lookout.succeeded()
        if self._present.now.engine_error:
            _log.info("The engine answers")
        self._present.change(engine_error="", looked=True)


class Outcomes:
    """What became of steps."""

    def __init__(
        self,
        looks: Looks,
        present: Present,
        world: World,
        notes: Notes,
        ledger: Ledger,
        damper: Damper,
        handovers: Handovers,
        commands: Commands,
        power: AcceptedPower,
        host: Host,
        clock: Clock,
    ) -> None:
        self._looks = looks
        self._present = present
        self._world = world
        self._notes = notes
        self._ledger = ledger
        self._damper = damper
        self._handovers = handovers
        self._commands = commands
        self._power = power
        self._host = host
        self._clock = clock

    def ended(self, outcome: Outcome) -> None:
        """A step has ended, one way or the other."""
        self._looks.after(outcome)
        if outcome.error is None:
            self._succeeded(outcome.step)
        else:
            self._failed(outcome.step, outcome.error)

    def judge_handovers(self) -> None:
        """Note the hand-overs that have failed as failures of their waits."""
        if self._present.now.looked:
            stopped = self._notes.stopped_by_agent
            for step, reason in self._handovers.failures(self._world.observed, stopped):
                self._failed(step, EngineFailed(reason))

    def _succeeded(self, step: Step) -> None:
        self._ledger.succeed(step)
        telling.done(step)
        if isinstance(step, CreateContainer):
            self._created(step)
        elif isinstance(step, StartContainer):
            self._started(step)
        elif isinstance(step, StopContainer):  # the engine may have restarted it meanwhile
            self._notes.stop(step.container_id, self._world.observed)
        elif isinstance(step, Fetch):
            self._present.change(update_downloaded=True)
        elif isinstance(step, AwaitHandover):
            self._handovers.ended(step, self._world.observed)
        elif isinstance(step, (RequestReboot, RequestPowerOff)):
            self._power.begin()
            self._commands.power_accepted()
        elif isinstance(step, RequireReboot):
            self._notes.made_in(step.container_id, self._host.state().boot_id)
        elif isinstance(step, SetNetworkConfig):
            self._commands.network_configured()

    def _created(self, step: CreateContainer) -> None:
        """Remember what the container was asked to be: that is what later looks compare."""
        self._damper.created(step.service, self._clock.monotonic())
        if made := self._world.created(step.service):
            self._notes.asked(*made, self._world.intend(*made))
            if truth((step.service.spec.fields.get("Labels") or {}).get(REQUIRES_REBOOT)):
                self._notes.made_in(made[0], self._host.state().boot_id)

    def _started(self, step: StartContainer) -> None:
        self._notes.started(step.container_id, self._world.observed)
        intent = self._present.now.intent
        started = intent.start - {(step.app_uuid, step.service)}
        self._commands.intend(replace(intent, start=started))

    def _failed(self, step: Step, error: AgentError) -> None:
        if isinstance(error, Cancelled):
            telling.given_up(step, error)
        elif isinstance(error, EngineUnavailable):
            self._looks.lost(error)
            # It may be this step that the engine dies of.
            self._ledger.fail(step, error, self._clock.wall())
        elif isinstance(error, StillProcessing):
            telling.postponed(self._ledger.postpone(step, error, self._clock.wall()))
        else:
            self._went_wrong(step, error)

    def _went_wrong(self, step: Step, error: AgentError) -> None:
        if isinstance(error, EngineFailed):
            self._looks.doubt()
            self._notes.refused(step, self._world.observed)
        now = self._clock.wall()
        failure = self._ledger.fail(step, error, now)
        text = telling.failed(failure, error, now)
        if not failure.muted:
            self._present.change(update_failed=True, last_error=text)
