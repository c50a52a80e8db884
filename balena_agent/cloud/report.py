"""The thread that tells the cloud how the device is doing (spec 20 §23.6, spec 31 §6).

Theory: there is no queue of reports. What is to be told is the difference between what the device
is now and what the cloud has last acknowledged, worked out when it may be sent: a report that
failed is not sent again, a newer one is. Snapshots are only a hint that there may be news. What may
be sent, and when, is decided by pure functions (core/cloudreport.py, withheld.py, polling.py).

What the cloud has acknowledged is remembered, so a restart tells nothing twice; another boot,
another uuid or another cloud begins anew. Of mere load no memory is written, nor of how far a
download is: it is not worth the wear of the flash.

Invariants: at most one report is under way; endpoint, key and uuid are read for every request; an
attempt ends, whatever its result, and that is the proof of work; no secret is ever told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ..core.cloudanswer import UNTIMED, Outcome, judged
from ..core.cloudreport import (
    DeviceSide,
    Report,
    difference,
    full_report,
    memorable,
    only_metrics,
    releases_of,
    wanted_releases,
    without_metrics,
)
from ..core.errors import AgentError
from ..core.jsonread import Json
from ..core.keyvalue import KeyValueStore
from ..core.observed import HostFacts
from ..core.polling import (
    after_failure,
    failures_after,
    may_be_cut_short,
    report_due,
    request_limit,
)
from ..core.snapshot import Snapshot
from ..core.withheld import TRIAL, Withheld, after, after_bad_request, allowed, expired
from ..runtime.state import Published
from ..watchdog import Pulse
from . import client
from .poll import MARGIN, Exchange, WayBack
from .timed import unanswered

_log = logging.getLogger(__name__)

ACKNOWLEDGED = "cloud_report"
IDLE_SECONDS = 60.0
"""How often it is looked for news that no snapshot tells: load, addresses."""

SETTLE_SECONDS = 1.0
"""Snapshots often come in swarms: one look for all of a second."""

BAD_REQUEST = 400
_NO_CLOUD_SECONDS = 600.0
_SHOWN = 200
_NOTHING_ELSE: Report = {"status": "Idle"}
_NEVER = float("-inf")


class StateReport:
    """See the module. `device` is asked before every report; the rest as in `TargetPoll`."""

    def __init__(
        self,
        published: Published,
        memory: KeyValueStore,
        pulse: Pulse,
        device: Callable[[], DeviceSide],
        ended: Callable[[Outcome], None],
        chance: Callable[[], float],
        version: str,
        exchange: Exchange = client.exchange,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._published = published
        self._memory = memory
        self._pulse = pulse
        self._device = device
        self._ended = ended
        self._chance = chance
        self._version = version
        self._exchange = exchange
        self._clock = clock
        self._news = threading.Event()
        self._urgent = threading.Event()
        self._stopped = False
        self._identity: tuple[str, ...] = ()
        self._acknowledged: Report = {}
        self._kept: Report = {}
        self._withheld = Withheld()
        self._failures = 0
        self._cut = False
        self._way_back = WayBack()
        self._sent_at = _NEVER
        self._not_before = _NEVER
        self.thread = threading.Thread(target=self._run, name="cloud-report", daemon=True)

    # ---- for any thread -------------------------------------------------------------------

    def look(self, urgent: bool = False) -> None:
        """There may be something to tell. `urgent`: no wait that is on counts any more."""
        if urgent:
            self._urgent.set()
        self._news.set()

    def reachable(self) -> None:
        """There is a way to the cloud again: it need not be waited for any longer."""
        self._way_back.note()
        self.look(urgent=True)

    def stop(self) -> None:
        self._stopped = True
        self.look(urgent=True)

    # ---- the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            rest = self.turn()
            self._pulse.within(rest + MARGIN, "waits for something to report")
            self._news.wait(rest)
            # What comes in before a report may go out is looked at once, when it may.
            pause = max(0.0, self._not_before - self._clock())
            self._pulse.within(pause + MARGIN, "waits until it may report")
            self._urgent.wait(pause)
            self._urgent.clear()
            self._news.clear()

    def turn(self) -> float:
        """Report if there is something and its time has come; the seconds until the next look."""
        snapshot = self._published.current
        if not snapshot.facts.provisioned:
            self._identity = ()
            return _NO_CLOUD_SECONDS
        try:
            self._meet(snapshot)
            now = self._clock()
            self._not_before = self._way_back.end_of(
                self._not_before, self._cut, now, self._chance()
            )
            pause = self._not_before - now
            rest = pause if pause > 0 else self._look(snapshot)
        except Exception:
            if not self._stopped:
                _log.exception("defect in a report")
            rest = IDLE_SECONDS
        self._pulse.beat("looked for something to report")
        return rest

    def _meet(self, snapshot: Snapshot) -> None:
        """Another identity has nothing to wait for on account of the one before; another cloud, or
        another device, knows nothing yet."""
        facts = snapshot.facts
        identity = (facts.api_endpoint, facts.device_uuid, facts.device_api_key)
        if identity == self._identity:
            return
        if identity[:2] != self._identity[:2]:
            self._acknowledged = self._recall(snapshot)
            self._kept = without_metrics(self._acknowledged)
            self._withheld, self._sent_at = Withheld(), _NEVER
        self._identity = identity
        self._failures, self._cut, self._not_before = 0, False, _NEVER

    def _look(self, snapshot: Snapshot) -> float:
        now = self._clock()
        whole = full_report(snapshot, self._device())
        wanted = wanted_releases(snapshot)
        self._withheld = expired(self._withheld, releases_of(whole), now)
        changes = difference(self._acknowledged, allowed(whole, self._withheld, wanted))
        trial = self._withheld.apps == TRIAL
        if trial and not changes:
            changes = dict(_NOTHING_ELSE)
        if not changes:
            self._not_before = now + SETTLE_SECONDS
            return IDLE_SECONDS
        pause = report_due(only_metrics(changes), now - self._sent_at)
        if pause > 0 and not (trial or self._failures):
            self._not_before = now + SETTLE_SECONDS
            return min(pause, IDLE_SECONDS)
        outcome = self._send(snapshot.facts, changes)
        self._withheld = after(
            self._withheld, outcome, changes, releases_of(whole), wanted, self._clock()
        )
        if outcome.worked:
            self._acknowledge(snapshot, changes)
        if self._withheld.apps == TRIAL and not trial:
            return 0.0
        return self._pause(outcome)

    def _pause(self, outcome: Outcome) -> float:
        now = self._clock()
        if outcome.worked:
            wait = report_due(False, now - self._sent_at)
        else:
            interval = self._published.current.settings.poll_interval / 1000
            wait = after_failure(outcome, self._failures, interval, self._chance())
            if outcome.kind != UNTIMED:
                _log.info("The report to the cloud failed: %s; again in %d s", outcome.reason, wait)
        self._failures = failures_after(outcome, self._failures)
        self._cut = may_be_cut_short(outcome)
        self._not_before = now + wait
        return wait

    def _send(self, facts: HostFacts, changes: Report) -> Outcome:
        limit = request_limit(self._published.current.settings.api_request_timeout)
        self._pulse.within(limit + MARGIN, "reports to the cloud")
        self._sent_at = self._clock()
        body: Json = {facts.device_uuid: changes}
        headers = {"User-Agent": client.user_agent(facts, self._version)}
        try:
            reply = self._exchange(
                facts.api_endpoint, facts.device_api_key, "PATCH", "/device/v3/state", body,
                limit, headers,
            )  # fmt: skip
        except AgentError as error:
            outcome = unanswered(error)
        else:
            outcome = judged(reply.status, reply.headers.get("retry-after", ""), time.time())
            if reply.status == BAD_REQUEST:
                self._broke_a_rule(reply, facts, changes)
        self._ended(outcome)
        return outcome

    def _broke_a_rule(self, reply: client.Reply, facts: HostFacts, changes: Report) -> None:
        """Tell what the cloud said, without the secrets that it may have quoted."""
        text = " ".join(reply.body.decode(errors="replace").split())
        for secret in (facts.device_api_key, str(changes.get("api_secret") or "")):
            text = text.replace(secret, "(not shown)") if secret else text
        _log.warning("The cloud does not accept the report: %s", text[:_SHOWN])
        self._withheld = after_bad_request(self._withheld, self._clock())

    # ---- what the cloud has ---------------------------------------------------------------

    def _acknowledge(self, snapshot: Snapshot, changes: Report) -> None:
        self._acknowledged = {**self._acknowledged, **changes}
        report = memorable(self._acknowledged)
        lasting = without_metrics(report)
        if lasting == self._kept or self._stopped:
            return
        try:
            self._memory.set_setting(ACKNOWLEDGED, {**_circumstances(snapshot), "report": report})
            self._kept = lasting
        except AgentError as error:
            _log.warning("Cannot remember what was reported: %s", error.message)

    def _recall(self, snapshot: Snapshot) -> Report:
        noted = self._memory.setting(ACKNOWLEDGED)
        if not isinstance(noted, dict):
            return {}
        report = noted.pop("report", None)
        same = noted == _circumstances(snapshot)
        return dict(report) if same and isinstance(report, dict) else {}


def _circumstances(snapshot: Snapshot) -> dict[str, Json]:
    """What an acknowledged report is worth something in."""
    facts, boot = snapshot.facts, snapshot.standing.host.boot_id
    return {"endpoint": facts.api_endpoint, "uuid": facts.device_uuid, "boot": boot}
