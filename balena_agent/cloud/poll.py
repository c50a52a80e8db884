"""The thread that asks the cloud for the target state (spec 31 §4, spec 20 §22).

Theory: the cloud's document is one source of targets among others (core/sources.py): what reads
well is submitted as `SetTarget` and all else is the reconciler's business. What does not read is
told, once per distinct document, and the target before it stays. When to ask is decided by pure
functions (core/polling.py).

The ETag belongs to the document that is stored, not to the last one seen: it is kept with that
one's digest, so that after a restart the cloud need not send what the device still has, and never
says "unchanged" of a document that was rejected or lost.

Invariants: endpoint, key and uuid are read for every request; an attempt ends, whatever its result,
and that is the proof of work; nothing is asked before the device is registered.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from hashlib import sha256

from ..core.cloudanswer import BAD, OK, UNTIMED, Outcome, judged
from ..core.errors import AgentError, InvalidTarget, Refused, Unavailable
from ..core.intent import Apply, SetTarget
from ..core.jsonread import Json
from ..core.keyvalue import KeyValueStore
from ..core.logline import TELL
from ..core.observed import HostFacts
from ..core.polling import (
    LONGEST_SLEEP,
    after_return,
    failures_after,
    first_poll,
    may_be_cut_short,
    next_poll,
    request_limit,
)
from ..core.target import Target, read_v3
from ..runtime.ports import Submit
from ..runtime.state import Published
from ..watchdog import Pulse
from . import client
from .timed import unanswered

_log = logging.getLogger(__name__)

ETAG = "target_etag"
LARGEST = 16 << 20
MARGIN = client.RESOLVER
"""Seconds that the resolver and the scheduler may add to a wait or a request."""

_STORED_SECONDS = 30.0
_NO_CLOUD_SECONDS = 600.0


Exchange = Callable[..., client.Reply]
"""`client.exchange`."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody wants a poll now; see `intent.Apply`. `answers` end with the poll."""

    force: bool = False
    cancel: bool = False
    answers: tuple[Future[str], ...] = ()


class WayBack:
    """That there is a way to the cloud again, which any thread may note, cuts the wait after a
    failure short; the thread that waits asks for its new end."""

    def __init__(self) -> None:
        self._noted = threading.Event()
        self._tried = float("-inf")

    def note(self) -> None:
        self._noted.set()

    def end_of(self, due: float, cut: bool, now: float, chance: float) -> float:
        """When a wait ends that would end at `due`. `cut`: whether it may be cut short at all."""
        if not self._noted.is_set():
            return due
        self._noted.clear()
        sooner = after_return(now, self._tried, chance)
        if not cut or sooner >= due:
            return due
        self._tried = sooner
        return sooner


class TargetPoll:
    """See the module. `ended` hears how every attempt ended, in this thread; `chance` draws a
    number from 0 to 1; `version` is the agent's own."""

    def __init__(
        self,
        published: Published,
        submit: Submit,
        memory: KeyValueStore,
        pulse: Pulse,
        ended: Callable[[Outcome], None],
        chance: Callable[[], float],
        version: str,
        exchange: Exchange = client.exchange,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._published = published
        self._submit = submit
        self._memory = memory
        self._pulse = pulse
        self._ended = ended
        self._chance = chance
        self._version = version
        self._exchange = exchange
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: Asked | None = None
        self._wake = threading.Event()
        self._stopped = False
        self._identity: tuple[str, ...] = ()
        self._due = 0.0
        self._failures = 0
        self._cut = False
        self._way_back = WayBack()
        self._told = ""
        self.thread = threading.Thread(target=self._run, name="cloud-poll", daemon=True)

    # ---- for any thread -------------------------------------------------------------------

    def ask(self, force: bool = False, cancel: bool = False) -> Future[str]:
        """Poll now; two requests that come before that are one. The future ends when the target is
        accepted, or with the reason why the cloud has sent none."""
        answer: Future[str] = Future()
        with self._lock:
            before = self._asked or Asked()
            answers = (*before.answers, answer)
            self._asked = Asked(before.force or force, before.cancel or cancel, answers)
        self._wake.set()
        return answer

    def reachable(self) -> None:
        """There is a way to the cloud again: it need not be waited for any longer."""
        self._way_back.note()
        self._wake.set()

    def look(self) -> None:
        """The device's identity may have changed."""
        self._wake.set()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()

    # ---- the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            rest = self.turn()
            self._pulse.within(rest + MARGIN, "waits for the next poll")
            self._wake.wait(rest)
            self._wake.clear()

    def turn(self) -> float:
        """Ask the cloud if that is due; the seconds until it is due again."""
        facts = self._published.current.facts
        with self._lock:
            asked, self._asked = self._asked, None
        if not facts.provisioned:
            self._identity = ()
            if asked:
                _pass_on(self._submit(Apply(asked.force, asked.cancel)), asked)
            return _NO_CLOUD_SECONDS
        self._meet(facts)
        self._due = self._way_back.end_of(self._due, self._cut, self._clock(), self._chance())
        if self._clock() >= self._due:
            self._poll(facts, asked)
        elif asked:
            self._attempt(facts, asked)
        return min(max(0.0, self._due - self._clock()), LONGEST_SLEEP)

    def _meet(self, facts: HostFacts) -> None:
        """Another identity has nothing to wait for on account of the one before."""
        identity = (facts.api_endpoint, facts.device_uuid, facts.device_api_key)
        if identity != self._identity:
            self._identity, self._failures, self._cut = identity, 0, False
            settings = self._published.current.settings
            wait = first_poll(settings.instant_updates, self._interval(), self._chance())
            self._due = self._clock() + wait

    def _interval(self) -> float:
        return self._published.current.settings.poll_interval / 1000

    def _poll(self, facts: HostFacts, asked: Asked | None) -> None:
        """A poll that is due; those that are asked for leave the schedule as it is."""
        outcome = self._attempt(facts, asked)
        wait = next_poll(outcome, self._failures, self._interval(), self._chance())
        self._failures = failures_after(outcome, self._failures)
        self._cut = may_be_cut_short(outcome)
        if not outcome.worked and outcome.kind != UNTIMED:
            _log.info("No target from the cloud: %s; again in %d s",
                      outcome.reason, wait)  # fmt: skip
        self._due = self._clock() + wait

    def _attempt(self, facts: HostFacts, asked: Asked | None) -> Outcome:
        """Ask once. Who asked for it gets the target applied anew, also when it is the old one."""
        fetched = False
        try:
            outcome, fetched = self._fetch(facts, asked is not None and asked.force)
        except AgentError as error:
            outcome = unanswered(error)
        except Exception:
            if not self._stopped:
                _log.exception("defect while asking for the target")
            outcome = Outcome(BAD, "internal error")
        if asked:
            self._answer(asked, outcome, fetched)
        self._ended(outcome)
        self._pulse.beat("asked for the target")
        return outcome

    def _answer(self, asked: Asked, outcome: Outcome, fetched: bool) -> None:
        """The target that we have is applied anew whatever the cloud says; who asked hears it."""
        accepted: Future[str] = Future()
        if asked.cancel or not fetched:
            accepted = self._submit(Apply(asked.force, asked.cancel))
        else:
            accepted.set_result("accepted")
        if error := _why_none(outcome, fetched):
            for answer in asked.answers:
                answer.set_exception(error)
        else:
            _pass_on(accepted, asked)

    def _fetch(self, facts: HostFacts, force: bool) -> tuple[Outcome, bool]:
        """How it ended, and whether a target was handed over."""
        limit = request_limit(self._published.current.settings.api_request_timeout)
        self._pulse.within(limit + MARGIN, "asks for the target")
        etag = self._etag(facts)
        headers = {
            "User-Agent": client.user_agent(facts, self._version),
            "Accept-Encoding": "gzip",
        }
        if etag:
            headers["If-None-Match"] = etag
        path = f"/device/v3/{facts.device_uuid}/state"
        reply = self._exchange(
            facts.api_endpoint, facts.device_api_key, "GET", path, None, limit, headers, LARGEST
        )
        retry_after = reply.headers.get("retry-after", "")
        outcome = judged(reply.status, retry_after, time.time(), bool(etag))
        return self._take(facts, reply, force) if outcome.kind == OK else (outcome, False)

    def _take(self, facts: HostFacts, reply: client.Reply, force: bool) -> tuple[Outcome, bool]:
        """Hand a document over, or tell what is wrong with it."""
        document = _document(reply.body)
        if document is None:
            self._refuse(reply.body, ("The cloud's answer is not a target state.",))
            return Outcome(BAD, "the cloud's answer is not a target state"), False
        try:
            target = read_v3(document, facts.device_uuid)
        except InvalidTarget as error:
            self._refuse(reply.body, tuple(error.message.splitlines()))
            return Outcome(OK), False
        raw = _raw(document, facts.device_uuid, reply.body)
        return Outcome(OK), self._hand_over(
            facts, raw, target, reply.headers.get("etag", ""), force
        )

    def _hand_over(
        self, facts: HostFacts, raw: str, target: Target, etag: str, force: bool
    ) -> bool:
        answer = self._submit(SetTarget(facts.api_endpoint, raw, target, force))
        try:
            answer.result(_STORED_SECONDS)
        except (AgentError, FutureTimeoutError) as error:
            if not self._stopped:
                _log.warning("The target from the cloud is not taken: %s", error or "no answer")
            return False
        self._told = ""
        self._remember(facts, etag, _digest(raw))
        return True

    def _refuse(self, body: bytes, lines: tuple[str, ...]) -> None:
        """The target in force stays. The next request carries no ETag, so that the document is
        judged again, but it is told only once."""
        digest = sha256(body).hexdigest()
        if digest == self._told:
            return
        self._told = digest
        first, *more = lines
        _log.warning("Could not move to new release: %s", first, extra=TELL)
        for line in more:
            _log.warning("%s", line, extra=TELL)
        self._keep(None)

    # ---- the ETag -------------------------------------------------------------------------

    def _etag(self, facts: HostFacts) -> str:
        """The ETag of the stored target, if that is what it was given for. Another version of the
        agent may read another target in it."""
        noted = self._memory.setting(ETAG)
        kept = self._published.current.targets.get(facts.api_endpoint)
        if not isinstance(noted, dict) or kept is None or kept.target is None:
            return ""
        expected = self._note(facts, str(noted.get("etag", "")), _digest(kept.raw))
        return str(noted["etag"]) if noted == expected else ""

    def _remember(self, facts: HostFacts, etag: str, digest: str) -> None:
        noted = self._note(facts, etag, digest) if etag else None
        if not self._stopped and noted != self._memory.setting(ETAG):
            self._keep(noted)

    def _note(self, facts: HostFacts, etag: str, digest: str) -> dict[str, Json]:
        source = {"endpoint": facts.api_endpoint, "uuid": facts.device_uuid}
        return {**source, "etag": etag, "digest": digest, "version": self._version}

    def _keep(self, noted: Json) -> None:
        if self._stopped:  # the store may be closed
            return
        try:
            self._memory.set_setting(ETAG, noted)
        except AgentError as error:
            _log.warning("Cannot remember which target the device has: %s", error.message)


def _why_none(outcome: Outcome, fetched: bool) -> AgentError | None:
    """Why a poll has brought no target; None when it did, or when the old one still counts."""
    if not outcome.worked:
        return Unavailable(f"no target from the cloud: {outcome.reason}")
    if outcome.kind == OK and not fetched:
        return Refused("the target from the cloud is not taken; the journal says why")
    return None


def _pass_on(accepted: Future[str], asked: Asked) -> None:
    """End what `asked` waits for as `accepted` ends."""

    def end(done: Future[str]) -> None:
        for answer in asked.answers:
            if error := done.exception():
                answer.set_exception(error)
            else:
                answer.set_result(done.result())

    accepted.add_done_callback(end)


def _document(body: bytes) -> dict[str, Json] | None:
    try:
        found = json.loads(body.decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _raw(document: Mapping[str, Json], uuid: str, body: bytes) -> str:
    """What is stored: the document as it came, or the part about this device."""
    return body.decode() if len(document) == 1 else json.dumps({uuid: document[uuid]})


def _digest(raw: str) -> str:
    return sha256(raw.encode()).hexdigest()
