"""An engine in memory: `core.effects.effect` applied to one `Observed`, and nothing else.

Theory: the model of the engine is `effect`; the contract suite compares it with the real engine
verb by verb, and runs over this fake too. So a test that uses the fake stands on proven ground.
What the real engine refuses (`refusal`) the fake refuses as well, with the engine's statuses.

A test may make the engine unreachable (`down`), let steps fail (`fail`), slow them down or watch
them (`before`), and change the world behind the agent's back (`change`). Thread-safe.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from balena_agent.core.body import joins, parents, resolved
from balena_agent.core.desired import DesiredService
from balena_agent.core.effects import effect
from balena_agent.core.errors import AgentError, Broken, Cancelled, EngineFailed, EngineUnavailable
from balena_agent.core.looks import Patch, Touch
from balena_agent.core.names import SUPERVISOR_NETWORK, normal_image, retired_name
from balena_agent.core.networks import supervisor_differences
from balena_agent.core.observed import Container, Observed
from balena_agent.core.steps import (
    ConnectNetwork,
    CreateContainer,
    CreateNetwork,
    CreateVolume,
    EngineStep,
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
    UpdateContainer,
)
from balena_agent.core.ticket import Ticket
from balena_agent.core.traits import identity, touched

BUILT_IN_NETWORKS = frozenset({"bridge", "host", "none"})

T = TypeVar("T")


class Stop(Protocol):
    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


@dataclass
class _Failure:
    """An error for the next `times` steps whose identity begins with `which`."""

    which: str
    error: AgentError
    times: int


class FakeEngine:
    """Satisfies ports.Engine, and has the extra doors of DockerEngine: watch and close."""

    def __init__(self, observed: Observed | None = None) -> None:
        self.down = False
        self.missing_images: set[str] = set()
        self.performed: list[EngineStep] = []
        self.before: Callable[[EngineStep, Ticket], None] = lambda step, ticket: None
        self._lock = threading.RLock()
        self._observed = observed or Observed()
        self._ever = _Ever()
        self._failures: list[_Failure] = []
        self._watchers: list[Callable[[Touch], None]] = []
        self._numbers = itertools.count(1)
        self._closed = threading.Event()

    # ---- what a test does ------------------------------------------------------------------------

    @property
    def observed(self) -> Observed:
        with self._lock:
            return self._observed

    def change(self, how: Callable[[Observed], Observed], touch: Touch) -> None:
        """The world changes by itself; whoever watches is woken with `touch`."""
        with self._lock:
            self._ever.note(self._observed)
            self._observed = how(self._observed)
            self._ever.note(self._observed)
        self._wake(touch)

    def fail(self, which: str, error: AgentError, times: int = 1) -> None:
        """Let the next `times` steps fail whose identity begins so: `start service 1/web`."""
        with self._lock:
            self._failures.append(_Failure(which, error, times))

    # ---- the port --------------------------------------------------------------------------------

    def observe(self) -> Observed:
        self.ping()
        with self._lock:
            self._ever.note(self._observed)
            return self._observed

    def look(self, touch: Touch) -> Patch:
        if touch.everything:
            raise Broken("a look at everything is observe()")
        self.ping()
        with self._lock:
            self._ever.note(self._observed)
            now, ever = self._observed, self._ever
            return Patch(
                containers={i: now.containers.get(i) for i in ever.ids_of(touch.containers)},
                networks=_absolute(now.networks, ever.networks) if touch.networks else {},
                volumes=_absolute(now.volumes, ever.volumes) if touch.volumes else {},
                images=_absolute(now.images, ever.images) if touch.images else {},
            )

    def perform(self, step: EngineStep, ticket: Ticket) -> None:
        if ticket.cancelled:
            raise Cancelled(f"given up before it began: {identity(step)}")
        self.before(step, ticket)
        if ticket.cancelled:
            raise Cancelled(f"given up: {identity(step)}")
        self.ping()
        with self._lock:
            self._raise_planned(step)
            self._do(step)
            self.performed.append(step)
        if isinstance(step, Fetch):
            ticket.progress(100)
        self._wake(touched(step))

    def watch(
        self, wake: Callable[[Touch], None], stop: Stop, reconnected: Callable[[], None]
    ) -> None:
        with self._lock:
            self._watchers.append(wake)
        reconnected()
        while not (stop.is_set() or self._closed.is_set()):
            stop.wait(0.01)
        with self._lock:
            self._watchers.remove(wake)

    def close(self) -> None:
        self._closed.set()

    def ping(self) -> None:
        if self.down:
            raise EngineUnavailable("No such file or directory")

    # ---- inside ----------------------------------------------------------------------------------

    def _raise_planned(self, step: EngineStep) -> None:
        for failure in self._failures:
            if failure.times > 0 and identity(step).startswith(failure.which):
                failure.times -= 1
                raise failure.error

    def _do(self, step: EngineStep) -> None:
        observed = self._observed
        if isinstance(step, Fetch) and normal_image(step.reference) in self.missing_images:
            raise EngineFailed(f"manifest for {step.reference} not found: manifest unknown", 404)
        if refused := refusal(step, observed):
            raise refused
        if isinstance(step, CreateContainer):
            step, observed = _as_made(step, observed)
        # What is downloaded twice is the same image: its id is made from its content.
        new_id = "" if isinstance(step, Fetch) else f"{next(self._numbers):064x}"
        self._observed = effect(step, observed, new_id)
        self._ever.note(self._observed)

    def _wake(self, touch: Touch) -> None:
        with self._lock:
            watchers = tuple(self._watchers)
        for wake in watchers:
            wake(touch)


class _Ever:
    """Every key there ever was, to answer None for what is gone."""

    def __init__(self) -> None:
        self.networks: set[str] = set()
        self.volumes: set[str] = set()
        self.images: set[str] = set()
        self._names: dict[str, set[str]] = {}

    def note(self, observed: Observed) -> None:
        self.networks |= observed.networks.keys()
        self.volumes |= observed.volumes.keys()
        self.images |= observed.images.keys()
        for container in observed.containers.values():
            self._names.setdefault(container.raw_name, set()).add(container.id)

    def ids_of(self, keys: frozenset[str]) -> Iterator[str]:
        for key in keys:
            yield from self._names.get(key, {key})


def _absolute(present: Mapping[str, T], ever: set[str]) -> dict[str, T | None]:
    return {key: present.get(key) for key in ever}


def _as_made(step: CreateContainer, observed: Observed) -> tuple[CreateContainer, Observed]:
    """The step with `service:x` resolved, and a world without an older self under the name."""
    service = step.service
    ids = {name: _newest(observed, service, name).id for name in parents(service.spec)}
    made = replace(service, spec=resolved(service.spec, ids))
    holder = _named(observed, str(service.container_name))
    if holder is not None:
        left = {k: c for k, c in observed.containers.items() if k != holder.id}
        observed = replace(observed, containers=left)
    return replace(step, service=made), observed


def _newest(observed: Observed, service: DesiredService, name: str) -> Container:
    found = [c for c in observed.containers.values() if c.key == (service.app_uuid, name)]
    if not found:
        raise EngineFailed(f"service {name}, of which {service.name} is a part, has no container")
    return max(found, key=lambda c: (c.state == "running", c.created_at))


def _named(observed: Observed, name: str) -> Container | None:
    return next((c for c in observed.containers.values() if c.raw_name == name), None)


# ---- what the engine refuses ---------------------------------------------------------------------


def refusal(step: EngineStep, observed: Observed) -> EngineFailed | None:
    """Why the real engine would refuse the step in this world, or None."""
    match step:
        case CreateContainer():
            return _refused_container(step.service, observed)
        case ConnectNetwork() | UpdateContainer():
            return _refused_repair(step, observed)
        case StartContainer() | RemoveContainer():
            return _refused_on_container(step, observed)
        case RenameContainer() | ReinstateContainer():
            return _refused_name(step.container_id, str(step.name), observed)
        case RetireContainer():
            return _refused_name(step.container_id, retired_name(step.name), observed)
        case CreateNetwork() | CreateVolume():
            return _refused_twin(step, observed)
        case RemoveNetwork() | RemoveVolume() | RemoveImage():
            return _refused_removal(step, observed)
        case EnsureSupervisorNetwork():
            return _refused_supervisor_network(observed)
        case _:
            return None


def _refused_supervisor_network(observed: Observed) -> EngineFailed | None:
    """A wrong one cannot go while somebody runs on it."""
    known = [n for n in observed.networks.values() if n.engine_name == SUPERVISOR_NETWORK]
    wrong = any(supervisor_differences(n.spec) for n in known)
    users = any(SUPERVISOR_NETWORK in c.spec.networks for c in observed.containers.values()
                if c.running)  # fmt: skip
    return EngineFailed("network has active endpoints", 403) if wrong and users else None


def _refused_container(service: DesiredService, observed: Observed) -> EngineFailed | None:
    image, name = service.spec.image, str(service.container_name)
    if image not in observed.images and observed.image(image) is None:
        return EngineFailed(f"No such image: {image}", 404)
    holder = _named(observed, name)
    if holder is not None and holder.key != service.key:
        return EngineFailed(f'Conflict. The container name "/{name}" is already in use', 409)
    return _missing_network(tuple(end.network for end in joins(service.spec)), observed)


def _missing_network(wanted: tuple[str, ...], observed: Observed) -> EngineFailed | None:
    there = {n.engine_name for n in observed.networks.values()} | BUILT_IN_NETWORKS
    missing = [name for name in wanted if name not in there]
    return EngineFailed(f"network {missing[0]} not found", 404) if missing else None


def _refused_on_container(
    step: StartContainer | RemoveContainer, observed: Observed
) -> EngineFailed | None:
    container = observed.containers.get(step.container_id)
    if container is None:
        gone = EngineFailed(f"No such container: {step.container_id}", 404)
        return None if isinstance(step, RemoveContainer) else gone
    if isinstance(step, StartContainer):
        owner = observed.containers.get(container.spec.parent)
        if container.spec.parent and (owner is None or owner.state not in ("running", "paused")):
            words = "cannot join network of a non running container"
            return EngineFailed(f"{words}: {container.spec.parent}", 409)
        return _missing_network(container.spec.networks, observed)
    words = f"You cannot remove a running container {step.container_id}"
    return EngineFailed(words, 409) if container.running else None


def _refused_name(container_id: str, name: str, observed: Observed) -> EngineFailed | None:
    if container_id not in observed.containers:
        return EngineFailed(f"No such container: {container_id}", 404)
    holder = _named(observed, name)
    if holder is not None and holder.id != container_id:
        return EngineFailed(f'The container name "/{name}" is already in use', 409)
    return None


def _refused_repair(
    step: ConnectNetwork | UpdateContainer, observed: Observed
) -> EngineFailed | None:
    if isinstance(step, ConnectNetwork):
        missing = _missing_network((step.endpoint.network,), observed)
        if missing:
            return missing
    if step.container_id not in observed.containers:
        return EngineFailed(f"No such container: {step.container_id}", 404)
    return None


def _refused_twin(step: CreateNetwork | CreateVolume, observed: Observed) -> EngineFailed | None:
    """An object of the same name and another configuration is in the way."""
    if isinstance(step, CreateNetwork):
        kind, wanted, there = "network", step.network.spec, step.network.engine_name
        twins = [n.spec for n in observed.networks.values() if n.engine_name == there]
        other = [spec for spec in twins if spec != wanted]
    else:
        kind, there = "volume", step.volume.engine_name
        volume = observed.volumes.get(there)
        other = [volume.spec] if volume and volume.spec != step.volume.spec else []  # type: ignore[list-item]
    return EngineFailed(f"Trying to create {kind} with name: {there}") if other else None


def _refused_removal(
    step: RemoveNetwork | RemoveVolume | RemoveImage, observed: Observed
) -> EngineFailed | None:
    containers = observed.containers.values()
    if isinstance(step, RemoveNetwork):
        known = observed.networks.get(step.network_id)
        name = known.engine_name if known else ""
        used = any(name in c.spec.networks for c in containers if c.running)
        return EngineFailed("network has active endpoints", 403) if used else None
    if isinstance(step, RemoveVolume):
        used = any(step.engine_name in c.spec.volumes for c in containers)
        return EngineFailed("volume is in use", 409) if used else None
    image = observed.image(step.reference)
    names = {normal_image(step.reference)}
    last = image is not None and not ((image.tags | image.digests) - names)
    used = image is not None and any(c.spec.image == image.id for c in containers)
    return EngineFailed("image is being used", 409) if last and used else None
