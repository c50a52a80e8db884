"""In-memory stand-ins for the host, the store and time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import replace

from balena_agent.core.errors import AgentError, Cancelled, Locked
from balena_agent.core.hostconfig import HostConfig, after
from balena_agent.core.images import FetchFailure
from balena_agent.core.intent import ServiceKey
from balena_agent.core.jsonread import Json
from balena_agent.core.names import EXTRA_FIRMWARE
from balena_agent.core.observed import HostState
from balena_agent.core.origins import Origin
from balena_agent.core.spec import ContainerSpec
from balena_agent.core.steps import (
    AwaitHandover,
    ChangeConfig,
    DumpConfig,
    HostStep,
    ReleaseLocks,
    RequestPowerOff,
    RequestReboot,
    RequireReboot,
    SetBootConfig,
    SetFirmwareVolume,
    SetNetworkConfig,
    SwitchFeature,
    TakeLocks,
)
from balena_agent.core.ticket import Ticket


class FakeHost:
    """ports.Host. `user_locks` maps app ids to the service whose lock a user holds; `files` are
    the lock files of ours, which outlive us: app id and service. A hand-over is done at once, or,
    with `patient`, when its service has a signal in `signals`: there is no time in this world.
    `settings` is what the host is set to: it changes as the model says (hostconfig.after), and in
    no other way."""

    def __init__(
        self,
        files: frozenset[tuple[int, str]] = frozenset(),
        settings: HostConfig | None = None,
    ) -> None:
        self.files = set(files)
        self.settings = settings or HostConfig()
        self.user_locks: dict[int, str] = {}
        self.refusal: AgentError | None = None
        self.boot = HostState(boot_id="boot-1")
        self.requests: list[HostStep] = []
        self.patient = False
        self.signals: set[str] = set()
        self._held: set[int] = set()
        self._mutex = threading.Lock()

    def perform(self, step: HostStep, ticket: Ticket) -> None:
        if isinstance(step, AwaitHandover):
            self._await(step, ticket)
            return
        with self._mutex:
            match step:
                case TakeLocks(app_id=app, services=services, force=force):
                    self._take(app, services, force)
                case ReleaseLocks(app_id=app):
                    self._release(app)
                case RequireReboot():
                    self.boot = replace(self.boot, reboot_required=True)
                case SetFirmwareVolume():
                    self.boot = replace(self.boot, firmware_volume=EXTRA_FIRMWARE)
                case RequestReboot() | RequestPowerOff() | SetNetworkConfig():
                    if self.refusal:
                        raise self.refusal
                    self.requests.append(step)
                case ChangeConfig() | SetBootConfig() | DumpConfig() | SwitchFeature():
                    self.settings = after(step, self.settings)

    def config(self) -> HostConfig:
        return self.settings

    def state(self) -> HostState:
        with self._mutex:
            return self.boot

    def held_locks(self) -> frozenset[int]:
        with self._mutex:
            return frozenset(self._held)

    def adopt(self) -> None:
        """What the daemon does at its start with the lock files of a run that was killed."""
        with self._mutex:
            for app in {app for app, _ in self.files}:
                with contextlib.suppress(Locked):
                    self._take(app, (), force=False)

    def signal(self, service: str) -> None:
        """A new container says that it has taken over."""
        self.signals.add(service)

    def _await(self, step: AwaitHandover, ticket: Ticket) -> None:
        given_up = threading.Event()
        ticket.on_cancel(given_up.set)
        while self.patient and step.service not in self.signals:
            if given_up.wait(0.005):
                raise Cancelled("nobody waits for this hand-over any more")
        self.signals.discard(step.service)

    def _take(self, app: int, services: tuple[str, ...], force: bool) -> None:
        if app in self.user_locks and not force:
            self._release(app)
            service = self.user_locks[app]
            raise Locked(f"Lockfile exists for {{ appId: {app}, service: {service} }}")
        self.user_locks.pop(app, None)
        self.files |= {(app, service) for service in services}
        self._held.add(app)

    def _release(self, app: int) -> None:
        self.files = {(held, service) for held, service in self.files if held != app}
        self._held.discard(app)


class FakeStore:
    """ports.Store in dictionaries; `full` makes every write fail."""

    def __init__(self) -> None:
        self.full: AgentError | None = None
        self.targets: dict[str, str] = {}
        self.settings: dict[str, Json] = {}
        self.stopped: dict[ServiceKey, str] = {}
        self.commits: dict[str, str] = {}
        self.specs: dict[str, ContainerSpec] = {}
        self.origins: dict[str, Origin] = {}
        self.stopped_by_agent: Mapping[str, str] = {}
        self.images: set[str] = set()
        self.tolerated: dict[str, Mapping[str, Json]] = {}
        self.keys: dict[tuple[int, str], str] = {}
        self.fetch_failures: dict[str, FetchFailure] = {}

    @property
    def trouble(self) -> str:
        return self.full.message if self.full else ""

    def save_target(self, source: str, raw: str) -> None:
        self._check()
        self.targets[source] = raw

    def forget_target(self, source: str) -> None:
        self._check()
        self.targets.pop(source, None)

    def set_setting(self, key: str, value: Json) -> None:
        self._check()
        self.settings[key] = value

    def save_stopped(self, stopped: Mapping[ServiceKey, str]) -> None:
        self._check()
        self.stopped = dict(stopped)

    def save_commit(self, app_uuid: str, app_id: int, commit: str) -> None:
        self._check()
        self.commits[app_uuid] = commit

    def save_specs(self, specs: Mapping[str, ContainerSpec]) -> None:
        self._check()
        self.specs.update(specs)

    def save_origins(self, origins: Mapping[str, Origin]) -> None:
        self._check()
        self.origins.update(origins)

    def save_tolerated(self, container_id: str, fields: Mapping[str, Json]) -> None:
        self._check()
        self.tolerated[container_id] = fields

    def recover_key(self, app_id: int, service: str, key: str) -> None:
        self._check()
        self.keys.setdefault((app_id, service), key)

    def forget_containers(self, ids: frozenset[str]) -> None:
        self._check()
        known = self.stopped_by_agent.items()
        self.stopped_by_agent = {i: began for i, began in known if i not in ids}
        for container_id in ids:
            self.specs.pop(container_id, None)
            self.origins.pop(container_id, None)
            self.tolerated.pop(container_id, None)

    def save_stopped_by_agent(self, stopped: Mapping[str, str]) -> None:
        self._check()
        self.stopped_by_agent = dict(stopped)

    def own_images(self, references: frozenset[str]) -> None:
        self._check()
        self.images |= references

    def disown_image(self, reference: str) -> None:
        self._check()
        self.images.discard(reference)

    def save_fetch_failures(self, failures: Mapping[str, FetchFailure]) -> None:
        self._check()
        self.fetch_failures.update(failures)

    def forget_fetch_failures(self, references: frozenset[str]) -> None:
        self._check()
        for reference in references:
            self.fetch_failures.pop(reference, None)

    def _check(self) -> None:
        if self.full:
            raise self.full


class ManualClock:
    """ports.Clock whose hands are moved by the test."""

    def __init__(self, wall: float = 1_000_000.0) -> None:
        self._wall = wall
        self._monotonic = 0.0

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall

    def set(self, wall: float) -> None:
        """Somebody sets the clock."""
        self._wall = wall

    def advance(self, seconds: float) -> None:
        self._wall += seconds
        self._monotonic += seconds
