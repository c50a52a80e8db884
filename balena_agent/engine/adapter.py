"""The container engine as the runtime sees it: `DockerEngine` satisfies ports.Engine.

Theory: the adapter decides nothing. It looks (observe.py), does one step at a time per calling
thread (actions.py, containers.py, pull.py) and passes wake-ups on (events.py). It has no state of
its own that matters: a new adapter on the same socket is as good as an old one.

Invariants: nothing but AgentErrors leaves it, a surprise becomes Broken with its cause chained;
every call ends within the limit of its step (core.traits.limit), but for a Fetch that moves; all
methods may be called from any number of threads at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..core.access import CloudAccess
from ..core.deltas import DeltaSettings
from ..core.errors import AgentError, Broken, Cancelled
from ..core.looks import Patch, Touch
from ..core.observed import HostFacts, Observed
from ..core.steps import (
    ConnectNetwork,
    CreateContainer,
    CreateNetwork,
    CreateVolume,
    DisconnectNetwork,
    EngineStep,
    EnsureExtraFirmware,
    EnsureSupervisorNetwork,
    Fetch,
    ReinstateContainer,
    RemoveContainer,
    RemoveImage,
    RemoveNetwork,
    RemoveVolume,
    RenameContainer,
    RetireContainer,
    StartContainer,
    StopContainer,
    UpdateContainer,
)
from ..core.ticket import Ticket
from ..core.traits import describe, limit
from . import actions, containers, repairs
from .client import API_VERSION, Client, Link
from .events import Events, Stop, Wake
from .observe import KnownApps, Observer
from .obtained import Records

if TYPE_CHECKING:
    from .pull import Puller


class DockerEngine:
    """One engine behind one socket. Nothing is opened before the first call.

    `access` tells who the device is towards registries, `deltas` whether images may come as deltas,
    `records` holds what images were obtained for, `prepare` makes what a container needs on the
    host before it is created, `facts` tells name and type of the device, `known_apps` the ids of
    the target's apps (for volumes of old releases, spec 20 §10).
    """

    def __init__(
        self,
        socket: str,
        prepare: containers.Prepare,
        *,
        version: str = API_VERSION,
        access: Callable[[], CloudAccess] = CloudAccess,
        facts: Callable[[], HostFacts] = HostFacts,
        known_apps: KnownApps = frozenset,
        deltas: Callable[[], DeltaSettings] = DeltaSettings,
        records: Records | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = Link(socket, version)
        self._client = Client(self._link)
        self._observer = Observer(self._client, known_apps, records=records)
        self._access = access
        self._deltas = deltas
        self._now = now
        self._puller: Puller | None = None
        self._lock = threading.Lock()
        self._events = Events(self._link)
        self._prepare = prepare
        self._known_apps = known_apps
        self._facts = facts

    def observe(self) -> Observed:
        """The full look. EngineUnavailable, DeadlineExceeded, EngineFailed."""
        with _only_ours("looking at the engine"):
            return self._observer.everything()

    def look(self, touch: Touch) -> Patch:
        """A look at a few objects (the rule is in observe.py). Errors as `observe`."""
        if touch.everything:
            raise Broken("a look at everything is observe()")
        with _only_ours("looking at the engine"):
            return self._observer.look(touch)

    def perform(self, step: EngineStep, ticket: Ticket) -> None:
        """Do one step. EngineFailed, EngineUnavailable, DeadlineExceeded, Cancelled."""
        if ticket.cancelled:
            raise Cancelled(f"given up before it began: {describe(step)}")
        with _only_ours(describe(step)):
            if isinstance(step, Fetch):
                self._fetcher().fetch(step, ticket)
            else:
                self._act(step, self._client.bounded(limit(step)))

    def watch(self, wake: Wake, stop: Stop, reconnected: Callable[[], None]) -> None:
        """The body of the events thread; see Events.watch."""
        self._events.watch(wake, stop, reconnected)

    def close(self) -> None:
        """End the event stream for good and let go of idle connections."""
        self._events.close()
        self._link.close()

    def _fetcher(self) -> Puller:
        """Made at the first download: most runs of the agent have none."""
        with self._lock:
            if self._puller is None:
                from .delta import Deltas
                from .pull import Puller

                self._puller = Puller(
                    self._client,
                    self._observer,
                    lambda registry: self._access().credentials(registry),
                    self._now,
                    deltas=Deltas(self._client, self._access, self._deltas, self._now),
                )
            return self._puller

    def _act(self, step: EngineStep, client: Client) -> None:
        match step:
            case CreateContainer():
                containers.create(client, step, self._prepare, self._facts())
            case StartContainer():
                containers.start(client, step, self._facts())
            case StopContainer():
                containers.stop(client, step)
            case RemoveContainer():
                containers.remove(client, step)
            case RenameContainer():
                containers.rename(client, step)
            case RetireContainer():
                containers.retire(client, step)
            case ReinstateContainer():
                containers.reinstate(client, step)
            case ConnectNetwork():
                repairs.connect(client, step)
            case DisconnectNetwork():
                repairs.disconnect(client, step)
            case UpdateContainer():
                repairs.update(client, step)
            case CreateVolume():
                actions.create_volume(client, step, self._known_apps())
            case RemoveImage():
                actions.remove_image(client, step, self._observer.records)
            case _:
                _act_elsewhere(step, client)


def _act_elsewhere(step: EngineStep, client: Client) -> None:
    """The verbs on networks and volumes."""
    match step:
        case CreateNetwork():
            actions.create_network(client, step)
        case RemoveNetwork():
            actions.remove_network(client, step)
        case RemoveVolume():
            actions.remove_volume(client, step)
        case EnsureExtraFirmware():
            actions.ensure_extra_firmware(client)
        case EnsureSupervisorNetwork():
            actions.ensure_supervisor_network(client)
        case _:
            raise Broken(f"the engine does not do this: {step}")


@contextmanager
def _only_ours(doing: str) -> Iterator[None]:
    """Whatever is no AgentError is a defect of ours, and says so."""
    try:
        yield
    except AgentError:
        raise
    except Exception as error:
        raise Broken(f"unexpected {type(error).__name__} in {doing}") from error
