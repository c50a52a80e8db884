"""Takes note of containers that nobody noted (core/adoption.py tells which, and why).

Invariant: before the first full look no API key is made. It may stand in a container already.
"""

from __future__ import annotations

from collections.abc import Collection

from ..core.adoption import adopted, keys_of
from ..core.desired import Desired
from ..core.observed import Observed
from ..core.steps import RetireContainer
from ..core.traits import service_subject
from .compiler import ServiceKeys
from .notes import Notes
from .world import World


class Adoption:
    """Used by one thread."""

    def __init__(self, world: World, notes: Notes, service_keys: ServiceKeys) -> None:
        self._world = world
        self._notes = notes
        self._service_keys = service_keys
        self._looked = False

    def service_key(self, app_id: int, service: str) -> str:
        """The API key of a service; "" until the first look."""
        return self._service_keys(app_id, service) if self._looked else ""

    def first_look(self, observed: Observed) -> bool:
        """Recover keys from the containers of the first full look; False for any later one."""
        if self._looked:
            return False
        for (app_id, service), key in keys_of(observed.containers.values()).items():
            self._notes.recover_key(app_id, service, key)
        self._looked = True
        return True

    def retiring(self, step: RetireContainer) -> None:
        """Remember what the container was asked to be, should nobody have: its restart policy is
        taken away, and must be known when it is given back."""
        known = self._world.observed.containers.get(step.container_id)
        if known and known.intended is None:
            self._notes.asked(known.id, known.spec, self._world.intend(known.id, known.spec))

    def take_note(self, desired: Desired, busy: Collection[str]) -> None:
        """Adopt what is as wanted, but for services that a step works on (`busy`: subjects)."""
        observed = self._world.observed
        for container_id, spec in adopted(desired, observed).items():
            if service_subject(*observed.containers[container_id].key) not in busy:
                self._notes.asked(container_id, spec, self._world.intend(container_id, spec))
