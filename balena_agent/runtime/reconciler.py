"""The single writer: mailbox -> look -> plan -> publish -> execute, in one thread.

Theory: the reconciler owns all changing state of the agent. Everything reaches it as a message
(commands, outcomes of steps, progress, finished looks) or as a wake-up ("look again at this").
Every turn merges what came in, compiles the target, plans against the world as it is now known,
starts the steps of the plan on workers, and publishes one immutable snapshot. It does no I/O of
its own but the store's.

Invariants
  * durable before visible: a target or a standing intent is in the store before it is published;
  * nothing is planned before the first full look, nor between a new target and the look after it;
  * two steps on one subject never run at once (the planner sees what is in flight);
  * every turn ends within the watchdog's patience, idle turns included.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from dataclasses import replace

from ..core.damping import notices as kept_services
from ..core.desired import Desired
from ..core.errors import (
    AgentError,
    Cancelled,
    EngineFailed,
    EngineUnavailable,
    RefusedByHost,
    StillProcessing,
)
from ..core.intent import Apply, Command, Intent
from ..core.jsonread import truth
from ..core.looks import Patch, Touch
from ..core.names import REQUIRES_REBOOT
from ..core.observed import HostFacts, Observed
from ..core.plan import Plan
from ..core.planner import plan, plan_apart
from ..core.situation import Situation
from ..core.snapshot import Snapshot
from ..core.status import deltas_wanted, lent_to_user, locks_overridden
from ..core.steps import (
    AwaitHandover,
    CreateContainer,
    Fetch,
    RequestPowerOff,
    RequestReboot,
    RequireReboot,
    RetireContainer,
    SetNetworkConfig,
    StartContainer,
    Step,
    StopContainer,
)
from ..watchdog import Watchdog
from . import telling
from .adoption import Adoption
from .borrowing import Borrowing
from .commands import Commands
from .compiler import Compiler, ServiceKeys
from .damper import Damper
from .executor import Executor, Outcome, Progress
from .handovers import Handovers
from .hosting import Hosting
from .housekeeping import Housekeeping
from .ledger import Ledger
from .longwaits import LongWaits
from .lookout import Looked, Lookout
from .mailbox import CarryOn, Given, Mailbox, NewFacts, Quit, StopServices
from .notes import Notes
from .policy import Memory, Policy
from .ports import Clock, Engine, Host, Store
from .resume import resume_fetches
from .state import Present, Published
from .underway import UnderWay
from .world import World

_log = logging.getLogger(__name__)

POWER_PATIENCE_SECONDS = 90.0

_Message = Outcome | Progress | Looked | Given | StopServices | CarryOn | NewFacts | Quit


class Reconciler:
    """See the module. `submit`, `wake`, `new_facts` and `stop_services` are for any thread."""

    def __init__(
        self,
        engine: Engine,
        host: Host,
        store: Store,
        clock: Clock,
        watchdog: Watchdog,
        published: Published,
        service_keys: ServiceKeys,
        memory: Memory,
        policy: Policy,
    ) -> None:
        self._host = host
        self._hosting = Hosting(host)
        self._clock = clock
        self._published = published
        self._policy = policy
        self._pulse = watchdog.pulse("reconciler", policy.patience)
        self._mailbox: Mailbox[_Message] = Mailbox()
        post = self._mailbox.post
        self._executor = Executor(engine, host, watchdog, post, policy.workers, policy.pullers)
        self._lookout = Lookout(engine, self._executor, clock, post)
        self._ledger = Ledger()
        self._damper = Damper()
        self._world = World(memory.specs, memory.tolerated)
        self._notes = Notes(
            store,
            self._problem,
            memory.stopped_by_agent,
            memory.owned_images,
            memory.commits,
            memory.origins,
            memory.fetch_failures,
        )
        resume_fetches(self._ledger, memory, clock.wall())
        self._long_waits = LongWaits()
        self._adoption = Adoption(self._world, self._notes, service_keys)
        self._compiler = Compiler(self._adoption.service_key)
        self._under_way = UnderWay(self._executor)
        self._handovers = Handovers()
        self._stop_answers: list[Future[str]] = []
        self._power_until = 0.0
        self._dirty = True
        """Whether there is something to reconcile: a message has come, or a turn has left work."""
        self._present = Present(
            replace(
                published.current,
                target=memory.target,
                source=memory.source,
                raw_target=memory.raw_target,
                targets=memory.all_targets(),
                intent=Intent(stopped=memory.stopped),
                commits=memory.commits,
                update_pending=memory.target is not None,
            )
        )
        borrowing = Borrowing(store, self._ledger, memory, policy, self._under_way.steps)
        self._commands = Commands(
            self._present,
            store,
            self._ledger,
            self._damper,
            self._lookout,
            self._world,
            self._compiled,
            self._mailbox.wake,
            self._compiler.forget,
            borrowing,
        )
        self._housekeeping = Housekeeping(
            self._present, self._world, self._notes, self._damper, self._commands, borrowing
        )
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    @property
    def _now(self) -> Snapshot:
        return self._present.now

    # ---- for any thread -------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, command: Command) -> Future[str]:
        """Give a command. The future ends when it is met, or with an AgentError."""
        answer: Future[str] = Future()
        self._mailbox.post(Given(command, answer))
        return answer

    def wake(self, touch: Touch) -> None:
        """Look again at this; nothing is lost if it comes too often or not at all."""
        self._mailbox.wake(touch)

    def new_facts(self, facts: HostFacts) -> None:
        self._mailbox.post(NewFacts(facts))

    def stop_services(self) -> Future[str]:
        """Stop every service in order, because the host goes down; plan nothing else any more."""
        answer: Future[str] = Future()
        self._mailbox.post(StopServices(answer))
        return answer

    def carry_on(self) -> None:
        """The host does not go down after all: back to what the target says."""
        self._mailbox.post(CarryOn())

    def close(self, timeout: float) -> None:
        """End the thread. Steps under way are left to themselves; the next start finds out."""
        self._mailbox.post(Quit())
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._executor.close()

    # ---- the loop -------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            messages, touch = self._mailbox.take(self._rest())
            try:
                goes_on = self.turn(messages, touch)
                self._commands.published()
                if not goes_on:
                    return
            except Exception:
                self._defect()
            self._pulse.beat("turn done")

    def _defect(self) -> None:
        """A defect of ours: say so and go on from a fresh look, at a calm pace."""
        _log.exception("defect in the reconciler")
        self._lookout.ask_all(delay=5.0)

    def _rest(self) -> float:
        """Seconds that may pass until there is something to do by ourselves."""
        self._ledger.keep_time(self._clock.wall())
        pauses = (self._lookout.rest(), self._ledger.next_due(self._clock.wall()))
        known = [pause for pause in pauses if pause is not None]
        return max(0.0, min([self._policy.patience / 3, *known]))

    def turn(self, messages: list[_Message], touch: Touch) -> bool:
        """One turn of the loop; False when it was the last."""
        self._lookout.ask(touch)
        self._dirty |= bool(messages)
        for message in messages:
            if isinstance(message, Quit):
                return False
            try:
                self._handle(message)
            except Exception:  # what else came in with it is not lost
                self._defect()
        self._lookout.start(self._now.engine_up, self._under_way.in_hand(self._world.observed))
        self._expire_power()
        if self._dirty or self._retry_is_due():
            self._reconcile()
        return True

    def _retry_is_due(self) -> bool:
        due = self._ledger.due(self._clock.wall())
        return any(name not in self._under_way for name in due)

    def _handle(self, message: _Message) -> None:
        match message:
            case Outcome():
                self._ended(message)
            case Progress(step=step, percent=percent):
                self._under_way.progress(step, percent)
            case Looked():
                self._looked(message)
            case Given():
                if isinstance(message.command, Apply) and message.command.cancel:
                    self._under_way.give_up_unwanted(())
                self._commands.take(message)
            case StopServices(answer=answer):
                self._stop_answers.append(answer)
                self._present.change(stopping=True)
            case CarryOn():
                self._present.change(stopping=False)
                self._answer_stops("called off")
            case NewFacts(facts=facts):
                self._commands.new_facts(facts)
            case Quit():
                pass

    def _expire_power(self) -> None:
        """The host accepted a reboot but none came: say so and go on (architecture B11.3)."""
        if self._power_until and self._clock.monotonic() > self._power_until:
            self._power_until = 0.0
            self._commands.intend(replace(self._now.intent, power=None))
            text = "The host accepted a reboot or power-off but none came"
            self._problem(text)
            # One that the device needs is asked for again, but not at once.
            self._ledger.fail(RequestReboot(), RefusedByHost(text), self._clock.wall())
            self._dirty = True

    # ---- what comes back ------------------------------------------------------------------

    def _ended(self, outcome: Outcome) -> None:
        step = outcome.step
        self._under_way.ended(step)
        if outcome.patch is None:
            # What the step has left is not known: nothing is planned before it is.
            self._present.change(looked=False)
            self._lookout.ask_all()
        else:
            self._world.see(outcome.patch, outcome.asked)
            self._lookout.seen(outcome.patch.containers, outcome.asked)
        if outcome.error is None:
            self._succeeded(step)
        else:
            self._failed(step, outcome.error)

    def _succeeded(self, step: Step) -> None:
        self._ledger.succeed(step)
        telling.done(step)
        if isinstance(step, CreateContainer):
            self._created(step)
        elif isinstance(step, StartContainer):
            self._notes.started(step.container_id, self._world.observed)
            started = self._now.intent.start - {(step.app_uuid, step.service)}
            self._commands.intend(replace(self._now.intent, start=started))
        elif isinstance(step, StopContainer):  # the engine may have restarted it meanwhile
            self._notes.stop(step.container_id, self._world.observed)
        elif isinstance(step, Fetch):
            self._present.change(update_downloaded=True)
        elif isinstance(step, AwaitHandover):
            self._handovers.ended(step, self._world.observed)
        elif isinstance(step, (RequestReboot, RequestPowerOff)):
            self._power_until = self._clock.monotonic() + POWER_PATIENCE_SECONDS
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

    def _failed(self, step: Step, error: AgentError) -> None:
        if isinstance(error, Cancelled):
            telling.given_up(step, error)
        elif isinstance(error, EngineUnavailable):
            self._engine_lost(error)
            # It may be this step that the engine dies of.
            self._ledger.fail(step, error, self._clock.wall())
        elif isinstance(error, StillProcessing):
            telling.postponed(self._ledger.postpone(step, error, self._clock.wall()))
        else:
            if isinstance(error, EngineFailed):
                self._lookout.ask(Touch(everything=True))  # the world may be another by now
                self._notes.refused(step, self._world.observed)
            now = self._clock.wall()
            failure = self._ledger.fail(step, error, now)
            text = telling.failed(failure, error, now)
            if not failure.muted:
                self._present.change(update_failed=True, last_error=text)

    def _looked(self, looked: Looked) -> None:
        match looked.seen:
            case Patch() as patch:
                self._world.see(patch, looked.asked)
            case Observed() as full:
                if self._lookout.is_current(looked):
                    self._engine_found()
                    self._world.see_all(full, looked.asked)
                    if self._adoption.first_look(full):
                        self._compiler.forget()
            case EngineUnavailable() as error:
                self._engine_lost(error)
            case error:
                _log.warning("Could not look at the engine: %s", error)
                self._lookout.failed()

    def _engine_found(self) -> None:
        self._lookout.succeeded()
        if self._now.engine_error:
            _log.info("The engine answers")
        if self._now.engine_error or not self._now.looked:
            self._present.change(engine_error="", looked=True)

    def _engine_lost(self, error: EngineUnavailable) -> None:
        if self._lookout.failed():
            _log.warning("%s", error.message)
        self._present.change(engine_error=error.reason, looked=False)

    # ---- planning and acting --------------------------------------------------------------

    def _reconcile(self) -> None:
        self._dirty = False
        desired = self._compiled()
        if self._now.looked:
            self._adoption.take_note(desired, self._under_way.subjects())
        self._present.change(desired=desired, observed=self._world.observed)
        self._housekeeping.tidy()
        self._judge_handovers()
        self._hosting.look(self._now)
        situation = self._situation()
        planned = self._plan(situation)
        self._present.change(plan=planned, standing=situation.standing(), host=self._hosting.config)
        self._long_waits.tell(planned.waits, self._clock.monotonic())
        if self._may_act():
            self._under_way.give_up_unwanted(planned.wanted)
        for step in planned.steps:
            if vain := self._ledger.in_vain(step, self._clock.wall()):
                self._dirty = True
                self._present.change(last_error=telling.failed(*vain, self._clock.wall()))
            else:
                self._begin(step)
        self._ledger.turn_over()
        self._commands.settle(self._under_way.subjects())
        self._flags(planned)
        notices = telling.notices(self._now) + kept_services(planned)
        notices += tuple(filter(None, (deltas_wanted(self._now).notice,)))
        notices += self._hosting.notices() + self._notes.notices()
        telling.new_notices(self._now.notices, notices)
        self._present.change(notices=notices)
        self._publish()

    def _compiled(self) -> Desired:
        now, observed = self._now, self._world.observed
        facts = replace(now.facts, engine_lacks=observed.unsupported)
        return self._compiler.compile(now.target, observed.images, facts)

    def _may_act(self) -> bool:
        """Nothing is done to the engine without a look at it; what is forced on the host is."""
        intent = self._now.intent
        asked = intent.power or intent.network
        return self._now.looked or bool(asked and asked.force and self._now.engine_error)

    def _plan(self, situation: Situation) -> Plan:
        if not self._may_act():
            return plan_apart(situation)
        found = plan(self._now.desired, self._world.observed, situation)
        self._ledger.prune(found.wanted | found.remembered)
        if not (self._now.intent.power or self._now.stopping):  # they want no download, for now
            self._notes.fetches_failed(self._ledger.failures().values(), self._clock.wall())
        return found

    def _situation(self) -> Situation:
        policy = self._policy
        return Situation(
            running=self._under_way.steps(),
            backoff=self._ledger.backoff(self._clock.wall()),
            intent=self._now.intent,
            locked=self._host.held_locks(),
            owned_images=self._notes.owned_images,
            stopped_by_agent=self._notes.stopped_by_agent,
            handovers=self._handovers.waiting,
            joined=self._notes.joined,
            keep_images=policy.keeps_images(self._now.facts.managed) or lent_to_user(self._now),
            keep_volumes=policy.keeps_volumes(self._now.facts.managed) or lent_to_user(self._now),
            override_locks=policy.override_locks or locks_overridden(self._now),
            damped=self._damper.damped,
            stopping=self._now.stopping,
            power_requested=bool(self._power_until),
            host=self._host.state(),
            origins=self._notes.origins,
            deltas=deltas_wanted(self._now).on,
            remove_peer=policy.remove_peer,
            host_steps=self._hosting.plan.steps,
        )

    def _begin(self, step: Step) -> None:
        if isinstance(step, StopContainer):
            self._notes.stop(step.container_id, self._world.observed)
        elif isinstance(step, RetireContainer):
            self._adoption.retiring(step)
        self._handovers.begin(step, self._world.observed)
        self._damper.begun(step)
        self._under_way.begin(step, self._clock.wall())

    def _judge_handovers(self) -> None:
        """Note the hand-overs that have failed as failures of their waits."""
        if self._now.looked:
            stopped = self._notes.stopped_by_agent
            for step, reason in self._handovers.failures(self._world.observed, stopped):
                self._failed(step, EngineFailed(reason))

    def _flags(self, planned: Plan) -> None:
        """Flags for the API, commits that are wholly applied, and the end of a forced update."""
        if not self._now.looked:
            return
        idle = not self._under_way
        settled = idle and not planned.steps and not planned.waits
        if settled:
            self._present.change(update_pending=False, update_downloaded=False, update_failed=False)
            if self._now.intent.force:
                self._commands.intend(replace(self._now.intent, force=frozenset()))
            self._answer_stops("all services are stopped")
        elif planned.steps or planned.waits:
            self._present.change(update_pending=True)
        if idle:
            self._housekeeping.save_commits(planned)

    def _answer_stops(self, message: str) -> None:
        answers, self._stop_answers = self._stop_answers, []
        for answer in answers:
            answer.set_result(message)

    def _problem(self, text: str) -> None:
        _log.error(text)
        self._present.change(last_error=text)

    def _publish(self) -> None:
        self._present.change(running=self._under_way.shown(), failures=self._ledger.failures())
        if replace(self._now, version=0) != replace(self._published.current, version=0):
            self._present.now = self._published.publish(self._now)
