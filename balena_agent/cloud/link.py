"""The device's link to its cloud: targets come in, reports go out, and how it stands is known.

Theory: the threads (poll.py, report.py, logs.py) exist only on a device that its cloud knows. They
are begun by the first snapshot that says so: it also has the targets that the store remembered, and
without those nobody could tell what need not be fetched. Afterwards every snapshot is a hint to
them. Without a cloud, or before the device is registered, this is next to nothing: their code is
not even in memory.

Health (spec 10 §8.2) is about the world as much as about the agent, so no watchdog depends on it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from ..core.cloudanswer import CloudStatus, Outcome, status_after
from ..core.connectivity import FULL
from ..core.intent import Apply, NoteCloud
from ..core.polling import SPREAD
from ..core.snapshot import Snapshot
from ..runtime.state import Published
from ..runtime.threads import show_name
from ..watchdog import Watchdog
from . import client
from .probe import Probe

if TYPE_CHECKING:
    from ..core.cloudreport import DeviceSide
    from ..core.hardware import Metrics
    from ..core.keyvalue import KeyValueStore
    from ..runtime.ports import Submit
    from .bookmark import Mark
    from .logs import LogUpload, OpenJournal
    from .poll import Exchange, TargetPoll
    from .report import StateReport
    from .timed import Timed

_log = logging.getLogger(__name__)

_ADDRESSES_KEPT = 10.0

Addresses = Callable[[], tuple[str, ...]]


class CloudLink:
    """See the module. `addresses`, `macs`, `secret` (the key of the device's own API) and
    `hardware` are what reports need beside the snapshot; `version` is the agent's own.
    `synchronised`: whether the clock was set from outside, None where nobody can tell. `journal`
    and `mark` are what log lines need; without them none are sent. `lookup`: see client.Lookup;
    `exchange` and `probe` bring their own."""

    def __init__(
        self,
        published: Published,
        submit: Submit,
        memory: KeyValueStore,
        watchdog: Watchdog,
        version: str,
        addresses: Addresses = tuple,
        macs: Addresses = tuple,
        secret: Callable[[], str] = str,
        hardware: Callable[[], Metrics | None] = lambda: None,
        exchange: Exchange = client.exchange,
        synchronised: Callable[[], bool | None] = lambda: None,
        probe: Probe | None = None,
        journal: OpenJournal | None = None,
        mark: Mark | None = None,
        lookup: client.Lookup = str,
    ) -> None:
        self._published = published
        self._submit = submit
        self._memory = memory
        self._watchdog = watchdog
        self._version = version
        self._addresses = addresses
        self._macs = macs
        self._secret = secret
        self._hardware = hardware
        self._exchange = exchange
        self._synchronised = synchronised
        self._probe = probe or Probe()
        self._journal = journal
        self._mark = mark
        self._lookup = lookup
        self._chance = random.SystemRandom().random
        self._lock = threading.Lock()
        self._stopped = False
        self._poll: TargetPoll | None = None
        self._report: StateReport | None = None
        self._logs: LogUpload | None = None
        self._identity: tuple[object, ...] = ()
        self._connectivity = ""
        self._known: tuple[float, tuple[str, ...], tuple[str, ...]] = (float("-inf"), (), ())
        self._last_success = time.monotonic()
        self._shown = CloudStatus()

    # ---- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Follow the snapshots, from the reconciler's first one on."""
        self._published.subscribe(self._seen)
        if self._published.current.version:
            self._seen(self._published.current)

    def stop(self) -> None:
        """End soon; a request under way is left to itself, but for that of log lines: it is given
        a moment to end well."""
        with self._lock:
            self._stopped = True
            for each in (self._poll, self._report):
                if each:
                    each.stop()
        if self._logs:
            self._logs.stop()

    def poll_now(self, force: bool, cancel: bool) -> Future[str]:
        """Fetch the target and apply it, in the background. A device that has no cloud to ask
        applies the target that it has. The future ends when it is accepted, or with the reason why
        none came."""
        poll = self._poll
        if poll and self._published.current.facts.provisioned:
            return poll.ask(force, cancel)
        return self._submit(Apply(force, cancel))

    def report_now(self) -> None:
        """Something is new that no snapshot tells, like the key of the device's own API."""
        if report := self._report:
            report.look()

    def healthy(self) -> bool:
        """Whether the cloud can be reached and has been asked with success lately. A device that
        has none is not judged. May wait for two seconds."""
        now = self._published.current
        if not now.facts.provisioned:
            return True
        limit = 2 * now.settings.poll_interval / 1000 + SPREAD
        if time.monotonic() - self._last_success > limit:
            return False
        return not now.settings.connectivity_check or self._probe.connected(now.facts.api_endpoint)

    # ---- snapshots ------------------------------------------------------------------------

    def _seen(self, snapshot: Snapshot) -> None:
        """In the reconciler's thread: quick."""
        facts = snapshot.facts
        identity = (
            facts.provisioned, facts.api_endpoint, facts.device_uuid, facts.device_api_key,
        )  # fmt: skip
        new, self._identity = identity != self._identity, identity
        if new:  # nobody can have asked for this one before
            self._last_success = time.monotonic()
        before, self._connectivity = self._connectivity, facts.connectivity
        if self._poll is None or self._report is None:
            if facts.provisioned:
                self._begin()
            return
        if new:
            self._poll.look()
        if before != facts.connectivity == FULL:
            self._poll.reachable()
            self._report.reachable()
            if self._logs:
                self._logs.reachable()
        self._report.look(urgent=new)
        if self._logs:
            self._logs.seen(snapshot)

    def _begin(self) -> None:
        from .poll import MARGIN, TargetPoll
        from .report import StateReport
        from .timed import Timed

        exchange = Timed(self._exchange, self._synchronised)
        with self._lock:
            if self._stopped or self._poll:
                return
            self._poll = TargetPoll(
                self._published, self._submit, self._memory,
                self._watchdog.pulse("cloud poll", MARGIN), self._polled, self._chance,
                self._version, exchange,
            )  # fmt: skip
            self._report = StateReport(
                self._published, self._memory, self._watchdog.pulse("cloud report", MARGIN),
                self._device, self._ended, self._chance, self._version, exchange,
            )  # fmt: skip
            threads = [self._poll.thread, self._report.thread]
            if self._journal and self._mark:
                self._logs = self._log_upload(self._journal, self._mark, exchange)
                threads.append(self._logs.thread)
            for thread in threads:
                thread.start()
                show_name(thread)

    def _log_upload(self, journal: OpenJournal, mark: Mark, timed: Timed) -> LogUpload:
        from .logs import LogUpload
        from .upload import Upload

        return LogUpload(
            self._published, self._memory, self._watchdog.pulse("cloud logs", client.RESOLVER),
            journal, mark, self._chance, timed, partial(Upload.open, lookup=self._lookup),
        )  # fmt: skip

    def _device(self) -> DeviceSide:
        """Asking the kernel for addresses is dear while the engine is at work: not every time."""
        from ..core.cloudreport import DeviceSide

        now = time.monotonic()
        if now - self._known[0] >= _ADDRESSES_KEPT:
            self._known = (now, self._addresses(), self._macs())
        _, addresses, macs = self._known
        return DeviceSide(addresses, macs, self._secret(), self._hardware())

    # ---- how it stands --------------------------------------------------------------------

    def _polled(self, outcome: Outcome) -> None:
        if outcome.worked:
            self._last_success = time.monotonic()
        self._ended(outcome)

    def _ended(self, outcome: Outcome) -> None:
        """Show how the device stands, if that is new."""
        status = status_after(outcome)
        with self._lock:
            before, self._shown = self._shown, status
            if status == before or self._stopped:
                return
            self._submit(NoteCloud(status))
        if status.state != before.state:
            tell = _log.info if outcome.worked else _log.warning
            tell("The cloud is %s%s", status.state, f": {status.error}" if status.error else "")
