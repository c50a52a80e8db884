"""The agent's faces, built and joined: what HTTP and D-Bus clients are given.

Theory: a face decides nothing. It reads the published snapshot, gives commands to the reconciler,
and asks the host and the cloud's side the few things that are no part of the state. Here each face
gets its share of these. The HTTP server is on the port that config.json names; it moves when
another one is named, and stays where it is when that one cannot be had.

Invariant: nothing is served before `start`, and nothing talks to the bus before that was started.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from . import __version__
from .api.around import Around
from .api.auth import Auth
from .api.dbus import AgentService
from .api.dbus_host import Machine
from .api.dbus_tree import Facts
from .api.host_config import HostNetwork
from .api.http import Settings as HttpSettings
from .api.http import build
from .api.logs import LogStreams
from .api.server import HttpServer
from .api.streams import Streams
from .cloud.link import CloudLink
from .cloud.tags import CloudTags
from .config import Settings
from .core.errors import AgentError
from .core.firewall import INTERFACES
from .core.status import local_mode
from .host.bus import Bus
from .host.journalctl import Journalctl
from .host.machine import write_durable
from .host.network import addresses, is_on, mac_addresses, reserve_port
from .hostside import HostSide
from .runtime.guard import Guard
from .runtime.loghub import LogHub
from .runtime.ports import Submit
from .runtime.state import Published
from .store import Store

_log = logging.getLogger(__name__)


class Faces:
    """See the module. `guard` keeps others from the port, if the host's firewall is used. `healthy`
    and `problems` say how it stands with the agent itself."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        bus: Bus,
        host: HostSide,
        published: Published,
        submit: Submit,
        cloud: CloudLink,
        tags: CloudTags,
        logs: LogHub,
        guard: Guard | None,
        healthy: Callable[[], bool],
        problems: Callable[[], tuple[str, ...]],
    ) -> None:
        self._settings = settings
        self._store = store
        self._host = host
        self._files = host.files
        self._published = published
        self._submit = submit
        self._cloud = cloud
        self._tags = tags
        self._guard = guard
        self._healthy = healthy
        self.streams = Streams(settings.api.streams)
        self._log_streams = LogStreams(
            self.streams, logs.subscribe, Journalctl().open, lambda: published.current
        )
        self.http = self._http()
        self._named_port = self.http.port
        """The port that config.json names, as far as we have tried it."""
        self.service = AgentService(
            bus,
            published,
            submit,
            Facts(__version__, healthy, self._addresses, problems=problems),
            self._machine(),
            open_log=self._log_streams.open_pipe,
        )

    def start(self) -> None:
        """Serve. The bus has been started. Unavailable where the port cannot be had."""
        self.http.start()
        self.service.start()
        self._leave_key()

    def stop_http(self) -> None:
        """Streams end first: they would hold their clients."""
        self.streams.close()
        self.http.stop()

    def reserve_port(self) -> None:
        """Have the kernel give the port to nobody else. What it refuses is told."""
        if problem := reserve_port(self._files.facts.api_port):
            _log.warning("%s", problem)

    def follow_port(self) -> None:
        """Be on the port that config.json names now. One that is taken is not tried again before
        another is named."""
        if (port := self._files.facts.api_port) != self._named_port:
            self._named_port = port
            if port != self.http.port:
                self._listen_anew()

    def _listen_anew(self) -> None:
        """Where the named port cannot be had the old one stays."""
        self.reserve_port()
        fresh, old = self._http(), self.http
        try:
            fresh.start()
        except AgentError as error:
            _log.error("The API stays on port %d: %s", old.port, error.message)
            return
        _log.info("The API is on port %d now", fresh.port)
        self.http = fresh
        old.stop()

    def _http(self) -> HttpServer:
        api = self._settings.api
        app = build(
            self._published,
            self._submit,
            Auth(self._store, api.open_in_local_mode),
            lambda: self._healthy() and self._cloud.healthy(),
            HttpSettings(
                api.compat_version, max(1, api.workers - 4), self._files.facts.api_timeout / 1000
            ),
            self._log_streams.endpoints(),
            self._around(),
        )
        port = self._files.facts.api_port
        return HttpServer(app, port, api.address, api.workers, admits=self._admits)

    def _admits(self, address: str) -> bool:
        """Without the firewall's rules the server itself keeps others out (spec 30 §13)."""
        guard = self._guard
        if guard is None or not guard.problem or local_mode(self._published.current):
            return True
        return is_on(address, INTERFACES)

    def _around(self) -> Around:
        """What the HTTP API is given beside the snapshot and the reconciler."""
        return Around(
            rotate=self._rotate_key,
            refresh=self._cloud.poll_now,
            addresses=addresses,
            macs=mac_addresses,
            blink=self._host.led.identify,
            vpn=self._host.vpn,
            host_config=HostNetwork(self._host.network.read, self._submit),
            tags=self._tags,
            hardware=self._host.hardware.read,
            version=__version__,
        )

    def _machine(self) -> Machine:
        """What the D-Bus service is given beside the snapshot and the reconciler."""
        return Machine(
            self._host.network.read,
            self._host.led.identify,
            self._cloud.poll_now,
            lambda: self._rotate_key(self._store.global_key()),
            self._host.logind.obstacles,
        )

    def _addresses(self) -> tuple[str, ...]:
        """As of the last look at the host, in no time."""
        return self._published.current.facts.addresses or addresses()

    def _rotate_key(self, key: str) -> str:
        """A new key for the old one. Local tools that use the device's own key get it, too; a
        service gets its own when a target is applied next."""
        fresh = self._store.rotate_key(key)
        if fresh == self._store.global_key():
            self._leave_key()
        self._cloud.report_now()
        return fresh

    def _leave_key(self) -> None:
        """The device-wide API key for root's own tools: readable by root alone, gone at reboot."""
        try:
            key = self._store.global_key()
            write_durable(Path(self._settings.paths.run) / "api-key", key.encode(), 0o600)
        except (OSError, AgentError) as error:
            _log.warning("Cannot leave the API key for local tools: %s", error)
