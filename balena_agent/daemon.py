"""The whole machine on one page: builds adapters, threads and faces, starts and stops them.

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

import faulthandler
import gc
import logging
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from pathlib import Path

from . import __version__
from .api.auth import Auth
from .api.dbus import AgentService
from .api.dbus_tree import Facts
from .api.http import Settings as HttpSettings
from .api.http import build
from .api.server import HttpServer
from .config import Settings
from .core import heritage
from .core.access import cloud_access
from .core.borrowed import possessions_from_json
from .core.describe import status_line
from .core.desired import DesiredService
from .core.errors import AgentError
from .core.handover import STRATEGY as HAND_OVER
from .core.looks import Touch
from .core.observed import HostFacts
from .core.snapshot import Snapshot
from .core.sources import LOCAL, PRELOAD, KeptTarget, in_force
from .core.status import deltas_wanted
from .core.target import Target, read_local
from .engine.adapter import DockerEngine
from .engine.obtained import Records
from .host.adapter import MachineHost
from .host.breadcrumbs import Breadcrumbs
from .host.bus import Bus
from .host.configfile import ConfigFile
from .host.handover import Handovers
from .host.locks import UpdateLocks
from .host.logind import Logind
from .host.machine import facts as host_facts
from .host.machine import profile, write_durable
from .host.network import addresses, reserve_port
from .host.systemd import Systemd
from .peer import FILE as PEER_FILE
from .peer import read_peer
from .runtime import preload
from .runtime.borrowing import KEY as BEFORE_LOCAL_MODE
from .runtime.executor import show_name
from .runtime.policy import Memory, Policy
from .runtime.preload import Preload
from .runtime.reconciler import Reconciler
from .runtime.state import Published
from .store import Store
from .watchdog import Notify, Watchdog, watchdog_interval

_log = logging.getLogger(__name__)

STOP_SERVICES_SECONDS = 100.0
PROBE_SECONDS = 10.0
THREAD_STACK = 512 * 1024


class SystemClock:
    """ports.Clock with the machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class Daemon:
    """See the module. `run` returns the exit status of the process."""

    def __init__(self, settings: Settings, notify: Notify) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._failure = ""
        self._reported: tuple[str, ...] = ()
        self._interval = watchdog_interval()
        self.watchdog = Watchdog(notify)
        self.store = Store(settings.paths.store)
        facts, problems = host_facts(
            settings.host,
            api_port=settings.api.port,
            engine_socket=settings.engine.socket,
            stored_uuid=self._device_uuid(),
            root=settings.paths.root,
        )
        take_over(self.store, Path(settings.paths.data) / PEER_FILE, facts)
        memory = self._memory(facts)
        name = (memory.target and memory.target.name) or self.store.setting("name")
        compat = settings.api.compat_version
        facts = replace(facts, device_name=name or facts.device_name, compat_version=compat)
        self._problems = (*settings.problems, *problems, *_missing_files(settings))
        self.published = Published(Snapshot(facts=facts))
        self.bus = Bus(on_lost=self._bus_lost)
        self.systemd = Systemd(self.bus)
        self._locks = locks = UpdateLocks(settings.paths.locks)
        self.engine = DockerEngine(
            settings.engine.socket,
            self._prepare,
            version=settings.engine.api_version,
            facts=lambda: self.published.current.facts,
            known_apps=self._known_apps,
            access=lambda: cloud_access(self.published.current.facts),
            deltas=lambda: deltas_wanted(self.published.current),
            records=Records(self.store.obtained_images(), self.store),
        )
        self.reconciler = Reconciler(
            self.engine,
            MachineHost(
                locks,
                Logind(self.bus),
                settings.paths.state,
                Breadcrumbs(settings.paths.run, settings.paths.locks),
                ConfigFile(settings.host.config_json),
            ),
            self.store,
            SystemClock(),
            self.watchdog,
            self.published,
            self.store.service_key,
            memory,
            self._policy(),
        )
        self.http = self._http()
        self.service = AgentService(
            self.bus,
            self.published,
            self.reconciler.submit,
            Facts(version=__version__, healthy=self._healthy, addresses=addresses),
        )
        self._preload = Preload(Path(settings.paths.data) / "apps.json", self.reconciler.submit)

    # ---- life -----------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop. 0 after an orderly stop, 1 after a failure."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
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
        for problem in self._problems:
            _log.warning("Settings: %s", problem)
        if self.store.trouble:
            _log.error("Store: %s", self.store.trouble)
        if problem := reserve_port(self.http.port):
            _log.warning("%s", problem)
        self.bus.start()
        self.http.start()
        self.service.start()
        self._leave_key()
        self.published.subscribe(self._tell_status)
        self._tell_status(self.published.current)
        self.watchdog.ready()
        if not self.store.targets() and self._preload.read():
            self.published.subscribe(self._preload.seen)
        self._adopt_locks()
        self.reconciler.start()
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
        while not self._stop.wait(self._interval / 3):
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
        self.http.stop()
        self.service.stop()
        self.engine.close()
        self.reconciler.close(timeout=5.0)
        self.bus.close()
        self.store.close()

    def _host_goes_down(self) -> bool:
        if not self._settings.agent.stop_services_on_shutdown:
            return False
        try:
            return self.systemd.is_stopping()
        except AgentError as error:
            _log.warning("Cannot tell whether the host goes down: %s", error.message)
            return False

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

    def _device_uuid(self) -> str:
        known = self.store.setting("device_uuid")
        if isinstance(known, str) and known:
            return known
        made = uuid.uuid4().hex
        self.store.set_setting("device_uuid", made)
        return made

    def _memory(self, facts: HostFacts) -> Memory:
        """What the store remembers. A stored target that no longer reads is told and left out."""
        stored = self.store.targets()
        targets = {name: KeptTarget(raw, _stored(name, raw)) for name, raw in stored.items()}
        chosen = in_force(targets, facts)
        return Memory(
            chosen.target,
            chosen.source,
            chosen.raw,
            self.store.stopped(),
            self.store.specs(),
            self.store.stopped_by_agent(),
            self.store.owned_images(),
            self.store.commits(),
            self.store.origins(),
            self.store.tolerated(),
            self.store.fetch_failures(),
            targets,
            possessions_from_json(self.store.setting(BEFORE_LOCAL_MODE)),
        )

    def _prepare(self, service: DesiredService) -> None:
        """What a container needs on the host before it is created."""
        self._locks.prepare_directory(service.app_id, service.name)
        if service.strategy == HAND_OVER:
            Handovers(self._locks).clear(service.app_id, service.name)

    def _policy(self) -> Policy:
        agent, engine = self._settings.agent, self._settings.engine
        # Without a cloud the device is in local mode, where images are kept (spec 20 §25).
        return Policy(
            keep_images=engine.keep_images != "no",
            keep_volumes=True,
            remove_peer=engine.cleanup_peer_supervisor_images,
            workers=agent.workers,
            pullers=agent.pullers,
            patience=max(6.0, self._interval / 2),
        )

    def _http(self) -> HttpServer:
        api = self._settings.api
        app = build(
            self.published,
            self.reconciler.submit,
            Auth(self.store, api.open_in_local_mode),
            self._healthy,
            HttpSettings(compat_version=api.compat_version, held_requests=max(1, api.workers - 4)),
        )
        port = self.published.current.facts.api_port
        return HttpServer(app, port, api.address, api.workers)

    def _known_apps(self) -> frozenset[int]:
        kept = [each.target for each in self.published.current.targets.values() if each.target]
        return frozenset(app.app_id for target in kept for app in target.apps.values())

    def _leave_key(self) -> None:
        """The device-wide API key for root's own tools: readable by root alone, gone at reboot."""
        try:
            key = self.store.global_key()
            write_durable(Path(self._settings.paths.run) / "api-key", key.encode(), 0o600)
        except (OSError, AgentError) as error:
            _log.warning("Cannot leave the API key for local tools: %s", error)

    def _adopt_locks(self) -> None:
        """Locks that a killed run has left would keep services from ever taking their own."""
        try:
            self._locks.adopt()
        except AgentError as error:
            _log.warning("Cannot look after update locks: %s", error.message)

    def _healthy(self) -> bool:
        return not self.watchdog.stuck()

    def _tell_status(self, snapshot: Snapshot) -> None:
        line = status_line(snapshot)
        self.watchdog.status(" | ".join((line, *self._problems)))

    # ---- threads --------------------------------------------------------------------------

    def _thread(self, name: str, body: Callable[[], None]) -> None:
        threading.Thread(target=body, name=name, daemon=True).start()

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
                self.bus.probe(PROBE_SECONDS)
                bus.beat("ping came back")
            except AgentError as error:
                bus.note = error.message
            if self.http.probe(PROBE_SECONDS):
                http.beat("ping was answered")
            else:
                http.note = "GET /ping was not answered"

    def _bus_lost(self, reason: str) -> None:
        if not self._stop.is_set():
            self._failure = f"the system bus is lost ({reason})"
            self._stop.set()


def take_over(store: Store, database: Path, facts: HostFacts) -> None:
    """Take on what the peer left on the device, if that was never done. Problems are told only:
    without a target nothing is changed, and the next start tries again."""
    try:
        if store.imported_peer() or not database.exists():
            return
        left = read_peer(database, facts.device_uuid, facts.api_endpoint)
        store.import_peer(left)
    except (AgentError, OSError) as error:
        _log.warning("Nothing is taken over from the peer: %s", error)
        return
    _log.info("Taken over from the peer: %d API keys, %s", len(left.keys),
              "its target" if left.target else "no target")  # fmt: skip
    for problem in left.problems:
        _log.warning("Taking over from the peer: %s", problem)


def _missing_files(settings: Settings) -> tuple[str, ...]:
    """What a balenaOS device must have. A generic host needs no config.json."""
    path = settings.host.config_json
    on_balena = profile(settings.agent.profile, settings.host.os_release) == "balenaos"
    return (f"no {path}",) if on_balena and not Path(path).exists() else ()


def _read_stored_local(raw: str) -> Target:
    from .core.jsonread import parse_object

    return read_local(parse_object(raw, "stored target"))


_READERS: Mapping[str, Callable[[str], Target | None]] = {
    LOCAL: _read_stored_local,
    heritage.SOURCE: heritage.read,
    PRELOAD: preload.parse,
}
"""How the stored target of a source is read; every other source is a cloud, by its address."""


def _stored(source: str, raw: str) -> Target | None:
    """A stored target; one that does not read is told and no more than kept."""
    try:
        return _READERS.get(source, heritage.read)(raw)
    except AgentError as error:
        _log.error("The stored target of source %s cannot be used: %s", source, error)
        return None
