"""The host's side of the agent: its adapters, built and joined, as one value for the daemon.

Theory: every adapter knows one service or file of the host, and none knows another. Here they are
given to each other, so that the daemon deals with the host as a whole: what steps are done with
(`machine`), what is found out (`files`), what clients may ask for directly. Nothing here decides
anything, and nothing talks to the bus before that has been started.
"""

from __future__ import annotations

from pathlib import Path

from .config import Settings
from .core.desired import DesiredService
from .core.handover import STRATEGY as HAND_OVER
from .core.networkconfig import NAME_LENGTH
from .host.adapter import MachineHost
from .host.bus import Bus
from .host.files import HostFiles, Memory, Places
from .host.handover import Handovers
from .host.hostname import Hostname
from .host.led import Led
from .host.locks import UpdateLocks
from .host.logind import Logind
from .host.networkconfig import NetworkConfiguration
from .host.proxy import HostProxy
from .host.ssdt import load_tables
from .host.systemd import Systemd
from .host.vpn import Vpn


class HostSide:
    """See the module. `memory` is where settings outlive a power cut."""

    def __init__(self, settings: Settings, memory: Memory, bus: Bus) -> None:
        self._settings = settings
        self._bus = bus
        self.systemd = Systemd(bus)
        self.logind = Logind(bus)
        self.locks = UpdateLocks(settings.paths.locks)
        self.led = Led(settings.host.led)
        self._vpn = Vpn(self.systemd)
        self.files = HostFiles(_places(settings), memory)
        self.network = self._network_configuration()
        self.machine = MachineHost(
            self.locks,
            self.logind,
            settings.paths.state,
            self.files.breadcrumbs,
            self.files.config,
            self.files.settings,
            self.network,
        )

    def prepare(self, service: DesiredService) -> None:
        """What a container needs on the host before it is created."""
        self.locks.prepare_directory(service.app_id, service.name)
        if service.strategy == HAND_OVER:
            Handovers(self.locks).clear(service.app_id, service.name)

    def vpn(self) -> tuple[bool, bool]:
        """Whether the VPN is switched on, and whether it is connected."""
        found = self._vpn.state()
        return found.enabled, found.connected

    def load_tables(self) -> None:
        """Have the kernel load the ACPI tables that configfs.json names."""
        load_tables(self.files.acpi_tables, self._settings.paths.root, self.systemd.start)

    def _network_configuration(self) -> NetworkConfiguration:
        def default_name() -> str:
            return self.files.facts.device_uuid[:NAME_LENGTH]

        file = self._settings.host.hostname
        hostname = Hostname(self._bus, self.systemd, file, self._remember_name)
        directory = Path(self._settings.paths.boot) / "system-proxy"
        return NetworkConfiguration(hostname, HostProxy(self.systemd, str(directory)), default_name)

    def _remember_name(self, name: str) -> None:
        """The OS makes the name from config.json at every boot, where there is one."""
        if self.files.config.writable and Path(self._settings.host.config_json).exists():
            self.files.config.merge({("hostname",): name})


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
