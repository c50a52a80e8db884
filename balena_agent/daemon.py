"""The whole machine on one page: builds adapters, threads and faces, starts and stops them. What
belongs to the host is joined in hostside.py, what clients see in faces.py.

Start order: settings, store, bus, faces, READY=1, then the runtime. Readiness does not wait for
the engine or a network: these may be absent for hours. The container library is imported by the
first look at the engine, after READY.

Stop order: faces first, so that nobody is promised anything any more. When the host itself goes
down, the services are stopped in order before that, while the engine still answers; on a mere
restart of the agent the containers are left alone (architecture B9).

The main thread owns signals and the watchdog. Loss of the system bus ends the process with an
error: systemd starts it again, and the containers never notice.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from functools import partial
from pathlib import Path

from . import __version__
from .cloud import client
from .cloud.link import CloudLink
from .cloud.probe import Probe, answers
from .cloud.reach import reached
from .cloud.tags import CloudTags
from .config import Settings
from .core.access import cloud_access
from .core.describe import status_line
from .core.errors import AgentError
from .core.looks import Touch
from .core.lookup import container_source
from .core.snapshot import Snapshot
from .core.status import deltas_wanted
from .engine.adapter import DockerEngine
from .engine.obtained import Records
from .faces import Faces
from .host.bus import Bus
from .host.firewall import Firewall
from .host.goodbye import Goodbye
from .host.journal_reader import LOOK_SECONDS, JournalReader
from .host.logmark import LogMark
from .host.network import addresses, mac_addresses
from .host.sigbus import BusErrors
from .hostside import HostSide
from .peer import FILE as PEER_FILE
from .runtime.connectivity import Connectivity
from .runtime.guard import Guard
from .runtime.loghub import Batch, Deliver, LogHub, Reader
from .runtime.policy import Policy
from .runtime.preload import Preload
from .runtime.reconciler import Reconciler
from .runtime.state import Published
from .runtime.threads import show_name
from .startup import SystemClock, remembered, take_over
from .store import Store
from .watchdog import Notify, Watchdog, watchdog_interval

_log = logging.getLogger(__name__)

STOP_SERVICES_SECONDS = 100.0
LAST_WORK_SECONDS = 30.0
PROBE_SECONDS = 10.0
THREAD_STACK = 512 * 1024


class Daemon:
    """See the module. `run` returns the exit status of the process."""

    def __init__(self, settings: Settings, notify: Notify) -> None:
        self._settings = settings
        self._stop = threading.Event()
        # A signal that comes just before a thread begins to wait for a lock is not heard before
        # the wait is over. Python writes every signal into this pipe, which can be waited for.
        self._ended, self._end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._failure = ""
        self._reported: tuple[str, ...] = ()
        self._interval = watchdog_interval()
        self.watchdog = Watchdog(notify)
        self._bus_errors = BusErrors()
        self._bus_errors.install()
        self.store = Store(settings.paths.store, damaged=self._fail)
        self.bus = Bus(on_lost=self._bus_lost)
        self.host = HostSide(settings, self.store, self.bus, self._host_looked, self._cloud_reached)
        self._ask = partial(client.request, lookup=self.host.lookup)
        self.files = self.host.files
        facts = self.files.facts
        take_over(self.store, Path(settings.paths.data) / PEER_FILE, facts)
        memory = remembered(self.store, facts)
        name = (memory.target and memory.target.name) or self.store.setting("name")
        facts = replace(facts, device_name=name or facts.device_name)
        first = Snapshot(facts=facts, host=self.files.settings.current)
        self.published = Published(first)
        self.engine = DockerEngine(
            settings.engine.socket,
            self.host.prepare,
            version=settings.engine.api_version,
            facts=lambda: self.published.current.facts,
            known_apps=self._known_apps,
            access=lambda: cloud_access(self.published.current.facts),
            deltas=lambda: deltas_wanted(self.published.current),
            records=Records(self.store.obtained_images(), self.store),
        )
        self.reconciler = Reconciler(
            self.engine,
            self.host.machine,
            self.store,
            SystemClock(),
            self.watchdog,
            self.published,
            self.store.service_key,
            memory,
            self._policy(),
        )
        self.guard = Guard(self.published, Firewall()) if settings.host.firewall else None
        self.logs = LogHub(self._read_journal)
        self.goodbye = Goodbye(self.host.logind, self._last_work, self.reconciler.carry_on)
        self._tags = CloudTags(lambda: self.published.current.facts, self.store, self._ask)
        self.cloud = CloudLink(
            self.published, self.reconciler.submit, self.store, self.watchdog, __version__,
            addresses, mac_addresses, self.store.global_key, self.host.hardware.read,
            partial(client.exchange, lookup=self.host.lookup), self.host.clock.synchronised,
            Probe(partial(answers, lookup=self.host.lookup)),
            journal=lambda deliver, after, since: self._read_journal(
                deliver, after, since, "cloud-journal"
            ),
            mark=LogMark(Path(settings.paths.run) / "log-mark"),
            lookup=self.host.lookup,
        )  # fmt: skip
        self.faces = Faces(
            settings,
            self.store,
            self.bus,
            self.host,
            self.published,
            self.reconciler.submit,
            self.cloud,
            self._tags,
            self.logs,
            self.guard,
            lambda: not self.watchdog.stuck(),
            self._problems,
        )
        self._preload = Preload(
            Path(settings.paths.data) / "apps.json", self.reconciler.submit, self.store.set_setting
        )

    def _cloud_reached(self) -> bool | None:
        return reached(self.files.facts, self._ask)

    # ---- life -----------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop. 0 after an orderly stop, 1 after a failure."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        try:
            self._start()
            self._serve()
        except AgentError as error:
            self._failure = error.message
        if self._failure:
            _log.error("The agent ends: %s", self._failure)
            self.watchdog.status(self._failure)
        self._shut_down()
        return 1 if self._failure else 0

    def _start(self) -> None:
        for problem in self._problems():
            _log.warning("Settings: %s", problem)
        for problem in dict.fromkeys((*self.store.problems, self.store.trouble)):
            if problem:
                _log.error("Store: %s", problem)
        self.faces.reserve_port()
        self.bus.start()
        if self.guard:
            self.guard.start()
        self.faces.start()
        self.published.subscribe(self._tell_status)
        self.published.subscribe(Connectivity(self.host.led.warn).seen)
        self._tell_status(self.published.current)
        self.watchdog.ready()
        if not self.store.targets() and self._preload.read():
            self.published.subscribe(self._preload.seen)
        self._adopt_locks()
        self.cloud.start()
        self.reconciler.start()
        self.host.start()
        if self.files.acpi_tables:
            self._thread("ssdt", self.host.load_tables)
        self.goodbye.start()
        self._tags.start()
        self._thread("events", self._watch_engine)
        self._thread("prober", self._probe)
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                show_name(thread)
        # What is here now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()

    def _serve(self) -> None:
        """The main thread: feed the watchdog while every worker proves its work."""
        while not self._stop.is_set():
            if select.select([self._ended], [], [], self._interval / 3)[0]:
                self._stop.set()
            self._pet()

    def _pet(self) -> None:
        stuck = tuple(f"{pulse.name} ({pulse.note})" for pulse in self.watchdog.pet())
        if stuck and stuck != self._reported:
            _log.critical("Stuck, systemd will restart the agent: %s", "; ".join(stuck))
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        elif self._reported and not stuck:
            self._tell_status(self.published.current)
        self._reported = stuck

    def _shut_down(self) -> None:
        self.watchdog.stopping()
        if not self._failure and self._host_goes_down():
            self._stop_services()
        if self.guard:
            self.guard.close()
        self.faces.stop_http()
        self._tags.stop()
        self.cloud.stop()
        self.faces.service.stop()
        self.host.close()
        self.engine.close()
        self.reconciler.close(timeout=5.0)
        self.goodbye.close()
        self.bus.close()
        self.store.close()

    def _host_goes_down(self) -> bool:
        if not self._settings.agent.stop_services_on_shutdown:
            return False
        try:
            return self.host.systemd.is_stopping()
        except AgentError as error:
            _log.warning("Cannot tell whether the host goes down: %s", error.message)
            return False

    def _last_work(self) -> None:
        """A shutdown begins: use the moment that logind gives us. What is left is done when
        systemd stops us."""
        if not self._settings.agent.stop_services_on_shutdown:
            return
        with contextlib.suppress(FutureTimeoutError):
            self.reconciler.stop_services().result(LAST_WORK_SECONDS)

    def _stop_services(self) -> None:
        _log.info("The host goes down: stopping services in order")
        answer = self.reconciler.stop_services()
        deadline = time.monotonic() + STOP_SERVICES_SECONDS
        while time.monotonic() < deadline:
            self._pet()
            try:
                answer.result(timeout=1.0)
                return
            except FutureTimeoutError:
                continue
        _log.warning("Some services have not stopped in time; the engine will stop them")

    # ---- parts ----------------------------------------------------------------------------

    def _policy(self) -> Policy:
        agent, engine = self._settings.agent, self._settings.engine
        return Policy(
            keep_images={"yes": True, "no": False}.get(engine.keep_images),
            remove_peer=engine.cleanup_peer_supervisor_images,
            workers=agent.workers,
            pullers=agent.pullers,
            patience=max(6.0, self._interval / 2),
        )

    def _read_journal(
        self, deliver: Deliver, after: str = "", since: float = 0.0, name: str = "journal"
    ) -> Reader:
        """A reader of the journal, which proves its work as long as it lives."""
        pulse = self.watchdog.pulse(name, self._interval)
        reader = JournalReader.open(
            lambda lines, cursor, live: deliver(Batch(lines, cursor, live)),
            lambda container_id: container_source(self.published.current, container_id),
            after,
            beat=lambda: pulse.beat("the journal is read"),
            ended=lambda: self.watchdog.forget(pulse),
            look=min(LOOK_SECONDS, self._interval / 3),
            since=since,
            bus_errors=self._bus_errors,
        )
        reader.thread.name = name
        show_name(reader.thread)
        return reader

    def _known_apps(self) -> frozenset[int]:
        kept = [each.target for each in self.published.current.targets.values() if each.target]
        return frozenset(app.app_id for target in kept for app in target.apps.values())

    def _adopt_locks(self) -> None:
        """Locks that a killed run has left would keep services from ever taking their own."""
        try:
            self.host.locks.adopt()
        except AgentError as error:
            _log.warning("Cannot look after update locks: %s", error.message)

    def _tell_status(self, snapshot: Snapshot) -> None:
        line = status_line(snapshot)
        told = dict.fromkeys((line, *self._problems(), *snapshot.host.problems))
        self.watchdog.status(" | ".join(told))

    def _problems(self) -> tuple[str, ...]:
        firewall = (f"firewall: {self.guard.problem}",) if self.guard and self.guard.problem else ()
        return (*firewall, *self._settings.problems, *self.files.problems)

    # ---- threads --------------------------------------------------------------------------

    def _thread(self, name: str, body: Callable[[], None]) -> None:
        threading.Thread(target=body, name=name, daemon=True).start()

    def _host_looked(self, new: bool) -> None:
        """Somebody may have changed something on the host."""
        if new:
            self.reconciler.new_facts(self.host.facts)
            self._tell_status(self.published.current)
        self.faces.follow_port()

    def _watch_engine(self) -> None:
        """Events are hints: this thread has no pulse, the minutely full look makes up for it."""
        everything = Touch(everything=True)
        wake = self.reconciler.wake
        self.engine.watch(wake, self._stop, lambda: wake(everything))

    def _probe(self) -> None:
        """Prove that the bus thread and the HTTP workers work, from outside of both."""
        bus = self.watchdog.pulse("bus", self._interval)
        http = self.watchdog.pulse("http", self._interval)
        while not self._stop.wait(self._interval / 3):
            try:
                bus.beat(self.bus.probe(PROBE_SECONDS))
            except AgentError as error:
                bus.note = error.message
            if self.faces.http.probe(PROBE_SECONDS):
                http.beat("ping was answered")
            else:
                http.note = "GET /ping was not answered"
            self.store.catch_up()
            self.host.locks.catch_up()
            self._preload.catch_up()

    def _bus_lost(self, reason: str) -> None:
        self._fail(f"the system bus is lost ({reason})")

    def _fail(self, reason: str) -> None:
        """Nothing but another start helps: systemd sees to it, and the containers go on."""
        if not (self._stop.is_set() or self._failure):
            self._failure = reason
            os.write(self._end, b"\0")
