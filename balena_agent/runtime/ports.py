"""What the runtime needs from the world: the adapters' side of the bargain, as protocols. And the
two doors through which others reach the reconciler.

Every method may block, but only for the time its docstring names, and raises nothing but
`AgentError`s. The in-memory fakes of the tests satisfy the same protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Protocol

from ..core.hostconfig import HostConfig
from ..core.images import FetchFailure
from ..core.intent import Command, ServiceKey
from ..core.jsonread import Json
from ..core.looks import Patch, Touch
from ..core.observed import HostState, Observed
from ..core.origins import Origin
from ..core.spec import ContainerSpec
from ..core.steps import EngineStep, HostStep
from ..core.ticket import Ticket


class Engine(Protocol):
    """The container engine."""

    def observe(self) -> Observed:
        """The full look. EngineUnavailable when the engine does not answer (at most 60 s)."""

    def look(self, touch: Touch) -> Patch:
        """A look at a few objects. `touch.everything` is not for this call."""

    def perform(self, step: EngineStep, ticket: Ticket) -> None:
        """Do one step; "is already so" is success. EngineFailed, EngineUnavailable, Cancelled,
        DeadlineExceeded. Ends within the step's limit but for a Fetch that makes progress."""


class Host(Protocol):
    """The machine around the engine."""

    def perform(self, step: HostStep, ticket: Ticket) -> None:
        """Do one step. Locked, RefusedByHost, BusUnavailable, DeadlineExceeded, Cancelled."""

    def state(self) -> HostState:
        """How it stands with its boot. Called in every turn: at once, from local files."""

    def held_locks(self) -> frozenset[int]:
        """App ids whose update locks we hold."""

    def config(self) -> HostConfig:
        """What the host is set to, as of the last look at its files; never blocks."""


class Clock(Protocol):
    """Time, so that tests can run days in milliseconds."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class Store(Protocol):
    """What must survive a power cut. Only the reconciler's thread calls it."""

    @property
    def trouble(self) -> str:
        """Why something could not be written lately; empty while all is well."""

    def save_target(self, source: str, raw: str) -> None:
        """Durable when it returns."""

    def forget_target(self, source: str) -> None:
        """Drop what one source asked for; durable when it returns."""

    def set_setting(self, key: str, value: Json) -> None:
        """Durable when it returns; None removes it."""

    def save_stopped(self, stopped: Mapping[ServiceKey, str]) -> None: ...

    def save_commit(self, app_uuid: str, app_id: int, commit: str) -> None: ...

    def save_specs(self, specs: Mapping[str, ContainerSpec]) -> None:
        """What containers (ids) were asked to be."""

    def save_origins(self, origins: Mapping[str, Origin]) -> None:
        """Where containers (ids) came from."""

    def save_tolerated(self, container_id: str, fields: Mapping[str, Json]) -> None:
        """Fields of which the engine made something else than it was asked for, and what."""

    def recover_key(self, app_id: int, service: str, key: str) -> None:
        """Take on the API key that a service's container has, unless the service has one."""

    def forget_containers(self, ids: frozenset[str]) -> None:
        """Drop every note about containers that are gone."""

    def save_stopped_by_agent(self, stopped: Mapping[str, str]) -> None:
        """The containers that the agent itself stopped and may have to start again."""

    def own_images(self, references: frozenset[str]) -> None:
        """References that a target of ours named: the only ones we may ever remove."""

    def disown_image(self, reference: str) -> None: ...

    def save_fetch_failures(self, failures: Mapping[str, FetchFailure]) -> None:
        """How often downloads (references) have failed in a row."""

    def forget_fetch_failures(self, references: frozenset[str]) -> None: ...


Submit = Callable[[Command], Future[str]]
"""The reconciler's door, callable from any thread: the future is done when the command is met, or
raises an AgentError."""

Wake = Callable[[Touch], None]
"""How an adapter says "look again at this"; never blocks, callable from any thread."""
