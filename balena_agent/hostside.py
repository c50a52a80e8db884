"""The host's side of the agent: its adapters, built and joined, and the one look at all of them.

Theory: every adapter knows one service or file of the host, and none knows another. Here they are
given to each other, so that the daemon deals with the host as a whole: what steps are done with
(`machine`), what is found out (`files`, `facts`), what clients may ask for directly. Nothing here
decides anything, and nothing talks to the bus before that has been started.

Level-triggered: inotify, NetworkManager and hostnamed only say that it is time to look, and so does
the clock. A look finds everything out again; `looked` is told whether anything is new.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from . import __version__
from .config import Settings
from .core.desired import DesiredService
from .core.errors import AgentError
from .core.handover import HAND_OVER
from .core.observed import HostFacts
from .core.switches import VPN
from .host.adapter import MachineHost
from .host.bootfiles import Memory
from .host.bus import Bus
from .host.clock import Clock
from .host.discovery import announce
from .host.files import HostFiles, Places
from .host.handover import Handovers
from .host.hostname import Hostname
from .host.journal_kernel import KernelLog
from .host.led import Led
from .host.locks import UpdateLocks
from .host.logind import Logind
from .host.machine import boot_id
from .host.metrics import Meter, Readings
from .host.network import addresses
from .host.networkconfig import NetworkConfiguration
from .host.networkmanager import NetworkManager
from .host.persistence import JournalKeeping
from .host.proxy import HostProxy
from .host.proxytrial import UNSETTLED, ProxyTrial
from .host.ssdt import load_tables
from .host.switchboard import Switchboard
from .host.systemd import Systemd
from .host.vpn import CONNECTED, Vpn
from .host.watch import FileWatch

_log = logging.getLogger(__name__)


class HostSide:
    """See the module. `memory` is where settings outlive a power cut. `looked` is called in the
    thread that looks, after every look. `reached`: whether the cloud answers; None without one."""

    def __init__(
        self,
        settings: Settings,
        memory: Memory,
        bus: Bus,
        looked: Callable[[bool], None],
        reached: Callable[[], bool | None],
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._looked = looked
        self.systemd = Systemd(bus)
        self.logind = Logind(bus)
        self.clock = Clock(bus)
        self.locks = UpdateLocks(settings.paths.locks)
        self._handovers = Handovers(self.locks)
        self.led = Led(settings.host.led)
        self._vpn = Vpn(self.systemd)
        switches = Switchboard(self.systemd, JournalKeeping(self.systemd))
        self.files = HostFiles(_places(settings), memory, switches=switches)
        self.facts: HostFacts = self.files.facts
        self._network_manager = NetworkManager(bus)
        name = settings.host.hostname
        self._hostname = Hostname(bus, self.systemd, name, self.files.remember_hostname)
        self.network = self._network_configuration(memory, reached)
        self.hardware = Readings(Meter(settings.paths.data), KernelLog(boot_id()).found)
        directories = (*self.files.directories, str(Path(CONNECTED).parent))
        self._watch = FileWatch(directories, self._look)
        self.machine = MachineHost(
            self.locks,
            self._handovers,
            self.logind,
            settings.paths.state,
            self.files.breadcrumbs,
            self.files.config,
            self.files.settings,
            self.network,
        )

    def start(self) -> None:
        """Look now and from now on. The bus has been started."""
        for service in (self._network_manager, self._hostname):
            try:
                service.on_change(self._watch.soon)
            except AgentError as error:
                _log.warning("Changes of the host are seen late: %s", error.message)
        self._watch.start()
        self.network.start()
        if self._settings.host.announce:
            announce(self._bus, self.facts.api_port, __version__, self.files.profile)

    def close(self) -> None:
        """Look no longer, and give back what the host has lent us."""
        self._watch.close()
        self.network.close()
        self.led.close()

    def _look(self) -> None:
        before, told = self.facts, self.files.problems
        new = self.files.refresh()
        for problem in self.files.problems:
            if problem not in told:
                _log.warning("Settings: %s", problem)
        self.facts = replace(
            self.files.facts,
            addresses=addresses(),
            connectivity=self._network_manager.connectivity(),
        )
        self._make_room_for_vpn()
        if self.facts.hostname != before.hostname:
            self._hostname.tell_others(self.facts.hostname)
        self._looked(new or self.facts != before)

    def _make_room_for_vpn(self) -> None:
        """The directory in which the VPN's scripts tell that it is connected, to be watched."""
        if self.facts.managed and VPN in self.files.settings.current.switches:
            try:
                Path(CONNECTED).parent.mkdir(0o755, parents=True, exist_ok=True)
            except OSError as error:
                _log.debug("%s: %s", CONNECTED, error.strerror)

    def prepare(self, service: DesiredService) -> None:
        """What a container needs on the host before it is created."""
        self.locks.prepare_directory(service.app_id, service.name)
        if service.strategy == HAND_OVER:
            self._handovers.clear(service.app_id, service.name)

    def vpn(self) -> tuple[bool, bool]:
        """Whether the VPN is switched on, and whether it is connected."""
        found = self._vpn.state()
        return found.enabled, found.connected

    def lookup(self, host: str) -> str:
        """The address of a `.local` name, as Avahi has it. Any other name, and one that Avahi does
        not know, is left to the resolver. Takes 10 s at most."""
        if not host.rstrip(".").lower().endswith(".local"):
            return host
        from .host.avahi import resolve  # few clouds have such a name

        try:
            return resolve(self._bus, host.rstrip("."))
        except AgentError as error:
            _log.debug("%s", error.message)
            return host

    def load_tables(self) -> None:
        """Have the kernel load the ACPI tables that configfs.json names."""
        load_tables(self.files.acpi_tables, self._settings.paths.root, self.systemd.start)

    def _network_configuration(
        self, memory: Memory, reached: Callable[[], bool | None]
    ) -> NetworkConfiguration:
        host = self._settings.host
        proxy = ProxyTrial(
            HostProxy(
                self.systemd,
                f"{self._settings.paths.boot}/system-proxy",
                guard=self.files.guard,
                unsettled=lambda now: memory.set_setting(UNSETTLED, now or None),
            ),
            reached if host.proxy_rollback else lambda: None,
            memory,
            self.files.breadcrumbs.boot_id,
            host.proxy_rollback_after,
        )
        return NetworkConfiguration(self._hostname, proxy, lambda: self.files.facts.device_uuid)


def _places(settings: Settings) -> Places:
    paths = settings.paths
    return Places(
        files=settings.host,
        root=paths.root,
        boot=paths.boot,
        run=paths.run,
        shared=str(Path(paths.locks).parent),
        wanted_profile=settings.agent.profile,
        api_port=settings.api.port,
        engine_socket=settings.engine.socket,
        compat_version=settings.api.compat_version,
    )
