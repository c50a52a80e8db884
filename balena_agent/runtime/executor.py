"""From a planned step to its outcome: one port call on a worker, under the step's time limit.

Theory: the reconciler must never block, so every outside call runs on a worker thread. A worker
does the step, then looks again at just what the step touched, and posts one `Outcome`. The look
carries a sequence number that was drawn before it began: whoever merges looks can tell which of
two is the newer knowledge. Workers are started when there is work and end when they have been idle
for a while. Downloads, waits for hand-overs, and short jobs such as looks and cancels have workers
of their own: a slow pull never holds up a stop, nor slow stops the look that a new target needs.

A step that is given up before a worker has come to it ends then and there: it is never begun, and
so its adapter is told nothing of the cancel.

Invariant: every accepted job posts exactly one outcome, whatever happens.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ..core.errors import AgentError, Broken, Cancelled
from ..core.looks import Patch
from ..core.steps import AwaitHandover, Fetch, HostStep, Step
from ..core.traits import identity, limit, touched
from ..watchdog import Pulse, Watchdog
from .ports import Engine, Host
from .threads import show_name

_log = logging.getLogger(__name__)

LIMIT_MARGIN = 60.0
"""Adapters keep a step's limit themselves; this much later the worker counts as stuck."""

WAITERS = 32
"""Hand-overs that are waited for at once; they need nothing but a thread each."""

HELPERS = 4
"""Short jobs that are done at once."""

IDLE_SECONDS = 20.0
"""How long a worker waits for more work before it ends."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step has ended. `error` is None when it succeeded. `patch` is what the world looks like
    now where the step touched it; None when the look failed too. `asked` orders looks."""

    step: Step
    error: AgentError | None
    patch: Patch | None
    asked: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A running step has got this far (percent)."""

    step: Step
    percent: float


class StepTicket:
    """The executor's half of core.ticket.Ticket."""

    def __init__(self, step: Step, report: Callable[[float], None]) -> None:
        self.step = step
        self.pulse: Pulse | None = None
        self._report = report
        self._lock = threading.Lock()
        self._begun = False
        self._cancelled = False
        self._actions: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def on_cancel(self, action: Callable[[], None]) -> None:
        with self._lock:
            if not self._cancelled:
                self._actions.append(action)
                return
        action()

    def progress(self, percent: float) -> None:
        if self.pulse:
            self.pulse.beat(f"{percent:.0f} %")
        self._report(percent)

    def begin(self) -> bool:
        """Whether the caller is the first who takes the step on; nobody else may then."""
        with self._lock:
            first, self._begun = not self._begun, True
        return first

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            actions, self._actions = self._actions, []
        for action in actions:
            action()


class Crew:
    """Threads that run jobs: started on demand up to `size`, ended when idle."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._open = 0
        """Jobs that wait or are being done: so many threads are of use."""
        self._numbers = itertools.count(1)
        self._closed = False

    def submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._jobs.put(job)
            self._open += 1
            if self._open <= self._threads or self._threads >= self._size or self._closed:
                return
            self._threads += 1
            name = f"{self._name}-{next(self._numbers)}"
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                self._jobs.put(None)

    def _work(self) -> None:
        show_name(threading.current_thread())
        while True:
            job = self._next()
            if job is None:
                return
            try:
                job()
            finally:
                with self._lock:
                    self._open -= 1

    def _next(self) -> Callable[[], None] | None:
        """The next job, or None when this thread shall end; then it is no longer counted."""
        try:
            job = self._jobs.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            job = None
        with self._lock:
            if job is None and not self._closed:
                with suppress(queue.Empty):  # never wait here: another thread may be quicker
                    job = self._jobs.get_nowait()  # it came in while we were giving up
            if job is None:
                self._threads -= 1
        return job


class Executor:
    """Runs steps and looks; posts `Outcome` and `Progress` to `post`, from worker threads."""

    def __init__(
        self,
        engine: Engine,
        host: Host,
        watchdog: Watchdog,
        post: Callable[[Outcome | Progress], None],
        workers: int = 8,
        pullers: int = 3,
    ) -> None:
        self._engine = engine
        self._host = host
        self._watchdog = watchdog
        self._post = post
        self._workers = Crew("worker", workers)
        self._pullers = Crew("puller", pullers)
        self._waiters = Crew("waiter", WAITERS)
        self._helpers = Crew("helper", HELPERS)
        self._looks = itertools.count(1)
        self._tickets: dict[str, StepTicket] = {}
        self._lock = threading.Lock()

    def start(self, step: Step) -> None:
        """Begin a step; returns at once."""
        ticket = StepTicket(step, lambda percent: self._post(Progress(step, percent)))
        with self._lock:
            self._tickets[identity(step)] = ticket
        self._crew(step).submit(lambda: self._run(ticket))

    def cancel(self, step_identity: str) -> None:
        """Give a step up. It still posts its outcome, with a Cancelled error."""
        with self._lock:
            ticket = self._tickets.get(step_identity)
        if ticket:
            # Closing a stream may block for a moment: not in the caller's thread.
            self._helpers.submit(lambda: self._give_up(ticket))

    def submit(self, job: Callable[[], None]) -> None:
        """Run a look, or another short job, on a worker."""
        self._helpers.submit(job)

    def next_look(self) -> int:
        """The sequence number for a look that begins now."""
        return next(self._looks)

    def close(self) -> None:
        with self._lock:
            tickets = list(self._tickets.values())
        for ticket in tickets:
            if isinstance(ticket.step, (Fetch, AwaitHandover)):
                ticket.cancel()
        for crew in (self._workers, self._pullers, self._waiters, self._helpers):
            crew.close()

    def _crew(self, step: Step) -> Crew:
        match step:
            case Fetch():
                return self._pullers
            case AwaitHandover():
                return self._waiters
            case _:
                return self._workers

    def _give_up(self, ticket: StepTicket) -> None:
        ticket.cancel()
        self._run(ticket)  # no more than its outcome, if it was still waiting for a worker

    def _run(self, ticket: StepTicket) -> None:
        if not ticket.begin():
            return
        step = ticket.step
        error = self._perform(step, ticket)
        with self._lock:
            self._tickets.pop(identity(step), None)
        asked = self.next_look()
        self._post(Outcome(step, error, self._look(step), asked))

    def _perform(self, step: Step, ticket: StepTicket) -> AgentError | None:
        ticket.pulse = pulse = self._watchdog.pulse(identity(step), limit(step) + LIMIT_MARGIN)
        try:
            if ticket.cancelled:
                raise Cancelled("given up before it began")
            if isinstance(step, HostStep):
                self._host.perform(step, ticket)
            else:
                self._engine.perform(step, ticket)
        except AgentError as error:
            return error
        except Exception as error:
            _log.exception("defect in step %s", identity(step))
            return Broken(f"internal error: {type(error).__name__}")
        finally:
            self._watchdog.forget(pulse)
        return None

    def _look(self, step: Step) -> Patch | None:
        touch = touched(step)
        if not touch:
            return Patch()
        try:
            return self._engine.look(touch)
        except AgentError as error:
            _log.info("could not look at what %s touched: %s", identity(step), error)
        except Exception:
            _log.exception("defect in a look")
        return None
