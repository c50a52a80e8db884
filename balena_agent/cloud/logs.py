"""The thread that sends log lines to the cloud (spec 31 §8).

Theory: it has a reader of the journal of its own, so nobody else ever waits for a cloud, and what
cannot be sent stays in the journal. As long as the cloud takes lines they flow from the reader
through a bounded intake into one long request. When that breaks, reader and intake are thrown away;
after a pause both begin anew behind the last line that the cloud certainly has. A restart of the
agent is the same thing: what is remembered is a cursor. What is certain is kept in the store, once
a minute, because flash wears out; how far the lines have really come is left in a file that does
not outlive the boot, so that a process that is killed repeats nothing.

Lines are only read when they may be sent: not without a cloud, not in local mode, not with
SUPERVISOR_LOG_CONTROL off. What is written meanwhile is never sent.

Invariants: at most one request is under way; endpoint, key and uuid are read for every request;
nothing of this waits for ever, and a turn that has ended, whatever its result, is proof of work.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ..core.cloudanswer import BAD, DENIED, OFFLINE, UNTIMED, Outcome, judged
from ..core.errors import AgentError
from ..core.keyvalue import KeyValueStore
from ..core.logupload import GRACE, QUEUED, Delivery, Intake, reopen_after, uploadable
from ..core.lookup import log_levels
from ..core.observed import HostFacts
from ..core.polling import LONGEST_SLEEP, failures_after, may_be_cut_short
from ..core.snapshot import Snapshot
from ..core.status import local_mode
from ..runtime.loghub import Batch, Deliver, Reader
from ..runtime.state import Published
from ..watchdog import Pulse
from . import client
from .bookmark import Bookmark, Mark
from .poll import WayBack
from .timed import Timed, unanswered
from .upload import SEND_SECONDS, Upload

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.1
UNDER_WAY_SECONDS = 1.0
"""How often lines are sent at most, and how often while earlier ones have not landed yet."""

LANDING_SECONDS = 0.01
"""How soon it is looked whether they have: a kill before that would send them twice."""

IDLE_SECONDS = 60.0
ROTATE_SECONDS = 3600.0
"""When a stream is ended: after such a silence, and after so long a life."""

END_SECONDS = 5.0
STOP_SECONDS = 2.0
EARLY_SECONDS = 60.0
"""A device that has never sent a line begins with those of the last minute of this boot."""

JOURNAL_RETRY = 60.0
_ANSWER_LOOK = 1.0
_LONG = 600.0
_MARGIN = client.RESOLVER


class Stream(Protocol):
    """`Upload` is one."""

    def send(self, data: bytes) -> None: ...
    def answer(self) -> client.Reply | None: ...
    def landed(self) -> bool: ...
    def finish(self, seconds: float) -> client.Reply: ...
    def close(self) -> None: ...


OpenStream = Callable[[str, str, str], Stream]
"""Endpoint, key and path; see `Upload.open`."""

OpenJournal = Callable[[Deliver, str, float], Reader]
"""Read behind a cursor, or without one ("") what was written since a time (s, UTC). Unavailable."""


class Refused(AgentError):
    """The cloud takes no more."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class LogUpload:
    """See the module. `timed` knows of clocks that are not set; the rest as in `TargetPoll`."""

    def __init__(
        self,
        published: Published,
        memory: KeyValueStore,
        pulse: Pulse,
        journal: OpenJournal,
        mark: Mark,
        chance: Callable[[], float],
        timed: Timed,
        open_stream: OpenStream = Upload.open,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._published = published
        self._pulse = pulse
        self._journal = journal
        self._bookmark = Bookmark(memory, mark)
        self._chance = chance
        self._timed = timed
        self._open_stream = open_stream
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._urgent = threading.Event()
        self._stopping = False
        self._concerns: tuple[object, ...] = ()
        self._identity: tuple[str, ...] = ()
        self._off = False
        self._since = 0.0
        self._delivery = Delivery()
        self._intake = Intake()
        self._reader: Reader | None = None
        self._stream: Stream | None = None
        self._owing = False
        self._opened = self._flushed = float("-inf")
        self._failures, self._cut, self._not_before = 0, False, float("-inf")
        self._denied = False
        self._way_back = WayBack()
        self.thread = threading.Thread(target=self._run, name="cloud-logs", daemon=True)

    # ---- for any thread -------------------------------------------------------------------

    def seen(self, snapshot: Snapshot) -> None:
        """Wake up if this one says anything new about logs. In the reconciler's thread: quick."""
        facts = snapshot.facts
        concerns = (wanted(snapshot), snapshot.looked, _identity(facts))
        if concerns != self._concerns:
            self._concerns = concerns
            self._wake()

    def reachable(self) -> None:
        """There is a way to the cloud again: it need not be waited for any longer."""
        self._way_back.note()
        self._wake()

    def stop(self) -> None:
        """End the stream well if that can be done in a moment."""
        self._stopping = True
        self._wake()
        if self.thread.is_alive():
            self.thread.join(STOP_SECONDS + 1)
        self._bookmark.closed = True

    def _wake(self) -> None:
        self._news.set()
        self._urgent.set()

    def _deliver(self, intake: Intake, batch: Batch) -> None:
        """In the journal's thread."""
        levels = log_levels(self._published.current)
        lines = [line for line in batch.lines if uploadable(line, levels)]
        with self._lock:
            intake.add(lines, batch.cursor, batch.live, self._clock())
        self._news.set()

    # ---- the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            rest = self.turn()
            self._pulse.within(rest + _MARGIN, "waits for log lines")
            if self._news.wait(rest):
                # Lines come in swarms: one chunk for all of a moment.
                left = self._flushed + FLUSH_SECONDS - self._clock()
                left = min(left, rest) if self._delivery.under_way else left
                self._urgent.wait(max(left, LANDING_SECONDS))
            self._urgent.clear()
            self._news.clear()
        self._halt()

    def turn(self) -> float:
        """Send what there is; the seconds until the next look."""
        snapshot = self._published.current
        self._pulse.within(2 * SEND_SECONDS + _MARGIN, "sends log lines")
        try:
            rest = self._work(snapshot) if wanted(snapshot) else self._pause()
        except Exception:
            if not self._stopping:
                _log.exception("defect while sending log lines")
            self._drop()
            self._not_before = self._clock() + _LONG
            rest = _LONG
        self._pulse.beat("looked for log lines")
        return rest

    def _pause(self) -> float:
        """Nobody wants lines, nor those that are written now at a later time."""
        self._halt()
        if not self._off:
            self._off, self._identity = True, ()
            self._delivery = Delivery()
            self._bookmark.forget()
        return _LONG

    def _work(self, snapshot: Snapshot) -> float:
        facts = snapshot.facts
        self._meet(facts)
        now = self._clock()
        self._not_before = self._way_back.end_of(self._not_before, self._cut, now, self._chance())
        if now < self._not_before:
            return min(self._not_before - now, LONGEST_SLEEP)
        try:
            if self._owing and self._stream is None:
                self._open(facts)
            if self._reader is None and not (snapshot.looked and self._read()):
                return JOURNAL_RETRY
            return self._pump(facts)
        except Refused as error:
            return self._failed(error.outcome)
        except AgentError as error:
            return self._failed(self._last_word() or unanswered(error))

    def _meet(self, facts: HostFacts) -> None:
        """Another identity has nothing to wait for on account of the one before; another cloud, or
        another device, has no lines yet."""
        identity = _identity(facts)
        if identity == self._identity:
            return
        if identity[:2] != self._identity[:2]:
            self._halt()
            self._begin(identity)
        elif self._stream is not None:
            self._halt()
        self._identity, self._denied = identity, False
        self._failures, self._cut, self._not_before = 0, False, float("-inf")

    def _begin(self, identity: tuple[str, ...]) -> None:
        """Find out where to begin: where we were, or with what is new."""
        if self._identity:
            self._bookmark.forget()
        cursor, self._since = self._bookmark.recall((identity[0], identity[1])), self._wall()
        if not (self._off or self._identity):
            booted = self._since - time.clock_gettime(time.CLOCK_BOOTTIME)
            self._since = max(self._since - EARLY_SECONDS, booted)
        if not cursor:
            self._since = self._bookmark.begin(self._since)
        self._off = False
        self._delivery, self._owing = Delivery(cursor), False

    def _read(self) -> bool:
        """Have the journal read behind what is certain; whether that can be done."""
        intake = Intake()
        try:
            self._reader = self._journal(
                lambda batch: self._deliver(intake, batch), self._delivery.certain, self._since
            )
        except AgentError as error:
            _log.warning("No log lines go to the cloud: %s", error.message)
            return False
        self._intake = intake
        return True

    # ---- the stream -----------------------------------------------------------------------

    def _open(self, facts: HostFacts) -> None:
        self._opened = self._clock()
        path = f"/device/v2/{facts.device_uuid}/log-stream"
        endpoint = facts.logs_endpoint or facts.api_endpoint
        self._stream = self._timed.run(
            lambda: self._open_stream(endpoint, facts.device_api_key, path)
        )
        self._owing = False
        self._flushed = self._clock() - FLUSH_SECONDS

    def _pump(self, facts: HostFacts) -> float:
        """One look at everything; the seconds until the next one."""
        with self._lock:
            waiting = self._intake.waiting
            cursor = "" if waiting else self._intake.take(self._clock()).cursor
        if self._stream is None and waiting:
            self._open(facts)
        elif self._stream is None:
            self._delivery.passed(cursor)
            self._bookmark.note(self._delivery, self._clock())
            return _LONG
        self._delivery.flushed(cursor)
        self._look()
        if waiting and self._clock() >= self._next_flush():
            self._flush()
        return self._rest(waiting)

    def _look(self) -> None:
        """What the other side says, and how far the lines have come."""
        stream = self._stream
        assert stream is not None
        reply = stream.answer()
        if reply is not None:
            raise Refused(_outcome(reply))
        now = self._clock()
        if now - self._opened >= GRACE:
            self._failures, self._denied = 0, False
        if stream.landed():
            self._delivery.landed(now)
        self._delivery.settle(now)
        self._bookmark.note(self._delivery, self._clock())

    def _next_flush(self) -> float:
        pause = UNDER_WAY_SECONDS if self._delivery.under_way else FLUSH_SECONDS
        return self._flushed + pause

    def _flush(self) -> None:
        """Send all that waits now, but no more than can wait at once: while they are sent over a
        slow line others come."""
        stream, left = self._stream, QUEUED
        assert stream is not None
        while left > 0 and not self._bookmark.closed:
            with self._lock:
                data, cursor = self._intake.take(self._clock())
            if data:
                self._pulse.within(2 * SEND_SECONDS + _MARGIN, "sends log lines")
                stream.send(data)
                self._flushed = self._clock()
            self._delivery.flushed(cursor)
            if not data:
                return
            left -= len(data)
            self._look()

    def _rest(self, waiting: bool) -> float:
        """The seconds until the next look; ends a stream that has lived long enough."""
        now = self._clock()
        busy = waiting or self._delivery.under_way
        silent = not busy and now - self._flushed >= IDLE_SECONDS
        if silent or now - self._opened >= ROTATE_SECONDS:
            self._end(END_SECONDS)
            return FLUSH_SECONDS if waiting else _LONG
        if self._delivery.under_way and now - self._flushed < FLUSH_SECONDS:
            return LANDING_SECONDS
        return FLUSH_SECONDS if busy else _ANSWER_LOOK

    def _end(self, seconds: float) -> None:
        """End the stream as the cloud expects it: then it confirms the lines."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            outcome = judged(stream.finish(seconds).status)
            if not outcome.worked:
                raise Refused(outcome)
        finally:
            stream.close()
        self._delivery.acknowledged()
        self._bookmark.note(self._delivery, self._clock(), ended=True)

    def _failed(self, outcome: Outcome) -> float:
        """Begin anew behind what is certain, after a pause."""
        with self._lock:
            waiting = self._intake.waiting
        delivery, now = self._delivery, self._clock()
        uncertain = delivery.under_way or delivery.arrived != delivery.certain
        self._owing = self._owing or waiting or uncertain
        self._drop()
        denied, before = outcome.kind == DENIED, self._denied
        if denied:
            # A first refusal may be a misunderstanding, unless it has been thought over for long.
            late = now - self._opened >= GRACE
            self._failures = self._failures if before else int(late)
        self._denied = denied
        asked = denied or outcome.retry_after is not None
        pause = reopen_after(outcome, self._failures, self._chance())
        self._not_before = (now if asked else self._opened) + pause
        self._failures = failures_after(outcome, self._failures)
        self._cut = may_be_cut_short(outcome)
        wait = max(0.0, self._not_before - now)
        if outcome.kind == BAD:
            _log.warning("The cloud does not understand the log stream: %s", outcome.reason)
        elif outcome.kind != UNTIMED and self._owing:
            _log.info("Log lines wait for the cloud: %s; again in %d s", outcome.reason, wait)
        return max(wait, FLUSH_SECONDS)

    def _last_word(self) -> Outcome | None:
        """Who is cut off may have been told why."""
        reply = None
        with contextlib.suppress(AgentError):
            reply = self._stream.answer() if self._stream else None
        return _outcome(reply) if reply else None

    def _drop(self) -> None:
        """Reader, stream and what was in memory are gone; what is not certain is sent again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._close_reader()
        self._delivery.broken()
        self._bookmark.note(self._delivery, self._clock())

    def _halt(self) -> None:
        """The same, but for what can be sent in a moment; nothing is read from now on."""
        try:
            if self._stream is not None:
                if wanted(self._published.current):
                    self._flush()
                self._end(STOP_SECONDS)
        except AgentError as error:
            _log.debug("the log stream ended badly: %s", error.message)
        self._drop()

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        self._intake = Intake()


def wanted(snapshot: Snapshot) -> bool:
    """Whether lines go to the cloud at all (spec 31 §8.2)."""
    facts = snapshot.facts
    return facts.provisioned and snapshot.settings.log_control and not local_mode(snapshot)


def _identity(facts: HostFacts) -> tuple[str, ...]:
    return (facts.logs_endpoint or facts.api_endpoint, facts.device_uuid, facts.device_api_key)


def _outcome(reply: client.Reply) -> Outcome:
    """What an answer before the end means; a good one means that the cloud has had enough."""
    outcome = judged(reply.status, reply.headers.get("retry-after", ""), time.time())
    return Outcome(OFFLINE, "it has ended the log stream") if outcome.worked else outcome
