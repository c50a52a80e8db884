"""Counts how often each service is recreated for one and the same spec (spec 20 §12).

Theory: core/damping.py says what follows from too many; here they are counted. A creation counts
when the agent itself has removed a container of the service since the one before: the first
container, and one that somebody else has removed, are no loop. Once tripped, the damper stays so
until the spec is another one, or until somebody asks for another try.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.damping import LIMIT, WINDOW_SECONDS
from ..core.desired import DesiredService
from ..core.intent import ServiceKey
from ..core.steps import RemoveContainer, Step, StopContainer
from ..core.traits import service_of


class Damper:
    """Used by one thread. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._removed: set[ServiceKey] = set()
        self._times: dict[ServiceKey, tuple[str, list[float]]] = {}
        self._damped: dict[ServiceKey, str] = {}

    @property
    def damped(self) -> Mapping[ServiceKey, str]:
        """Services that were recreated too often, with the digest of their spec."""
        return dict(self._damped)

    def begun(self, step: Step) -> None:
        """A step was started; one that makes an end of a container is remembered."""
        final = isinstance(step, StopContainer) and step.final
        if final or isinstance(step, RemoveContainer):
            self._removed.add(service_of(step))

    def created(self, service: DesiredService, now: float) -> None:
        """A container of the service was made."""
        key, digest = service.key, service.spec.digest()
        if key not in self._removed:
            return
        self._removed.discard(key)
        known, times = self._times.get(key, ("", []))
        recent = [at for at in times if at > now - WINDOW_SECONDS] if known == digest else []
        self._times[key] = (digest, [*recent, now])
        self._damped.pop(key, None)
        if len(recent) + 1 > LIMIT:
            self._damped[key] = digest

    def forgive(self, app_uuid: str = "") -> None:
        """Somebody wants it tried again: one app, or all of them. A whole app, because services
        that share a namespace are recreated together."""
        for memory in (self._times, self._damped):
            for key in [key for key in memory if app_uuid in ("", key[0])]:
                del memory[key]

    def keep_only(self, services: frozenset[ServiceKey]) -> None:
        """Forget services that are in no target any more."""
        self._removed &= services
        for memory in (self._times, self._damped):
            for key in memory.keys() - services:
                del memory[key]
