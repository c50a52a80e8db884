"""In-memory stand-ins for the host, the store and time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping

from balena_agent.core.errors import AgentError, Locked
from balena_agent.core.intent import ServiceKey
from balena_agent.core.spec import ContainerSpec
from balena_agent.core.steps import (
    HostStep,
    ReleaseLocks,
    RequestPowerOff,
    RequestReboot,
    SetNetworkConfig,
    TakeLocks,
    Ticket,
)


class FakeHost:
    """ports.Host. `user_locks` maps app ids to the service whose lock a user holds; `files` are
    the lock files of ours, which outlive us: app id and service."""

    def __init__(self, files: frozenset[tuple[int, str]] = frozenset()) -> None:
        self.files = set(files)
        self.user_locks: dict[int, str] = {}
        self.refusal: AgentError | None = None
        self.requests: list[HostStep] = []
        self._held: set[int] = set()
        self._mutex = threading.Lock()

    def perform(self, step: HostStep, ticket: Ticket) -> None:
        with self._mutex:
            match step:
                case TakeLocks(app_id=app, services=services, force=force):
                    self._take(app, services, force)
                case ReleaseLocks(app_id=app):
                    self._release(app)
                case RequestReboot() | RequestPowerOff() | SetNetworkConfig():
                    if self.refusal:
                        raise self.refusal
                    self.requests.append(step)

    def held_locks(self) -> frozenset[int]:
        with self._mutex:
            return frozenset(self._held)

    def adopt(self) -> None:
        """What the daemon does at its start with the lock files of a run that was killed."""
        with self._mutex:
            for app in {app for app, _ in self.files}:
                with contextlib.suppress(Locked):
                    self._take(app, (), force=False)

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
        self.stopped: dict[ServiceKey, str] = {}
        self.commits: dict[str, str] = {}
        self.specs: dict[str, ContainerSpec] = {}
        self.stopped_by_agent: frozenset[str] = frozenset()
        self.images: set[str] = set()

    def save_target(self, source: str, raw: str) -> None:
        self._check()
        self.targets[source] = raw

    def save_stopped(self, stopped: Mapping[ServiceKey, str]) -> None:
        self._check()
        self.stopped = dict(stopped)

    def save_commit(self, app_uuid: str, app_id: int, commit: str) -> None:
        self._check()
        self.commits[app_uuid] = commit

    def save_specs(self, specs: Mapping[str, ContainerSpec]) -> None:
        self._check()
        self.specs.update(specs)

    def forget_containers(self, ids: frozenset[str]) -> None:
        self._check()
        self.stopped_by_agent -= ids
        for container_id in ids:
            self.specs.pop(container_id, None)

    def save_stopped_by_agent(self, ids: frozenset[str]) -> None:
        self._check()
        self.stopped_by_agent = ids

    def own_images(self, references: frozenset[str]) -> None:
        self._check()
        self.images |= references

    def disown_image(self, reference: str) -> None:
        self._check()
        self.images.discard(reference)

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

    def advance(self, seconds: float) -> None:
        self._wall += seconds
        self._monotonic += seconds
