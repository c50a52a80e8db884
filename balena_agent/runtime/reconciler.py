"""The single writer: mailbox -> look -> plan -> publish -> execute, in one thread.

Theory: the reconciler owns all changing state of the agent. Everything reaches it as a message
(commands, outcomes of steps, progress, finished looks) or as a wake-up ("look again at this").
Every turn merges what came in, compiles the target, plans against the world as it is now known,
starts the steps of the plan on workers, and publishes one immutable snapshot. It does no I/O of
its own but the store's. This module is the turn; what a command, an outcome or a look means, and
how a plan is made, is said in commands.py, outcomes.py and planning.py, in the same thread.

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
from ..core.errors import RefusedByHost
from ..core.intent import Apply, Command, Intent
from ..core.looks import Touch
from ..core.observed import HostFacts, Observed
from ..core.plan import Plan
from ..core.snapshot import Snapshot
from ..core.status import deltas_wanted
from ..core.steps import RequestReboot, RetireContainer, Step, StopContainer
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
from .outcomes import Looks, Outcomes
from .planning import Planning
from .policy import Memory, Policy
from .ports import Clock, Engine, Host, Store
from .power import AcceptedPower
from .resume import resume_fetches
from .state import Present, Published
from .underway import UnderWay
from .world import World

_log = logging.getLogger(__name__)

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
        self._power = AcceptedPower(clock)
        self._dirty = True
        """Whether there is something to reconcile: a message has come, or a turn has left work."""
        self._present = Present(_first(published.current, memory))
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
        self._looks = Looks(self._present, self._world, self._lookout, self._full_look)
        self._outcomes = Outcomes(
            self._looks,
            self._present,
            self._world,
            self._notes,
            self._ledger,
            self._damper,
            self._handovers,
            self._commands,
            self._power,
            host,
            clock,
        )
        self._planning = Planning(
            self._present,
            self._world,
            self._notes,
            self._ledger,
            self._damper,
            self._under_way,
            self._handovers,
            self._hosting,
            self._power,
            policy,
            host,
            clock,
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
                self._under_way.ended(message.step)
                self._outcomes.ended(message)
            case Progress(step=step, percent=percent):
                self._under_way.progress(step, percent)
            case Looked():
                self._looks.looked(message)
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
        if self._power.is_overdue():
            self._commands.intend(replace(self._now.intent, power=None))
            text = "The host accepted a reboot or power-off but none came"
            self._problem(text)
            # One that the device needs is asked for again, but not at once.
            self._ledger.fail(RequestReboot(), RefusedByHost(text), self._clock.wall())
            self._dirty = True

    def _full_look(self, full: Observed) -> None:
        if self._adoption.first_look(full):
            self._compiler.forget()

    # ---- planning and acting --------------------------------------------------------------

    def _reconcile(self) -> None:
        self._dirty = False
        desired = self._compiled()
        if self._now.looked:
            self._adoption.take_note(desired, self._under_way.subjects())
        self._present.change(desired=desired, observed=self._world.observed)
        self._housekeeping.tidy()
        self._outcomes.judge_handovers()
        self._hosting.look(self._now)
        situation = self._planning.situation()
        planned = self._planning.plan(situation)
        self._present.change(plan=planned, standing=situation.standing(), host=self._hosting.config)
        self._long_waits.tell(planned.waits, self._clock.monotonic())
        self._act(planned)
        self._commands.settle(self._under_way.subjects())
        self._flags(planned)
        self._tell_notices(planned)
        self._publish()

    def _act(self, planned: Plan) -> None:
        if self._planning.may_act():
            self._under_way.give_up_unwanted(planned.wanted)
        for step in planned.steps:
            if vain := self._ledger.in_vain(step, self._clock.wall()):
                self._dirty = True
                self._present.change(last_error=telling.failed(*vain, self._clock.wall()))
            else:
                self._begin(step)
        self._ledger.turn_over()

    def _compiled(self) -> Desired:
        now, observed = self._now, self._world.observed
        facts = replace(now.facts, engine_lacks=observed.unsupported)
        return self._compiler.compile(now.target, observed, facts)

    def _begin(self, step: Step) -> None:
        if isinstance(step, StopContainer):
            self._notes.stop(step.container_id, self._world.observed)
        elif isinstance(step, RetireContainer):
            self._adoption.retiring(step)
        self._handovers.begin(step, self._world.observed)
        self._damper.begun(step)
        self._under_way.begin(step, self._clock.wall())

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

    def _tell_notices(self, planned: Plan) -> None:
        notices = telling.notices(self._now) + kept_services(planned)
        notices += tuple(filter(None, (deltas_wanted(self._now).notice,)))
        notices += self._hosting.notices() + self._notes.notices()
        telling.new_notices(self._now.notices, notices)
        self._present.change(notices=notices)

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


def _first(found: Snapshot, memory: Memory) -> Snapshot:
    """What the agent knows before it has looked at anything."""
    return replace(
        found,
        target=memory.target,
        source=memory.source,
        raw_target=memory.raw_target,
        targets=memory.all_targets(),
        intent=Intent(stopped=memory.stopped),
        commits=memory.commits,
        update_pending=memory.target is not None,
    )
