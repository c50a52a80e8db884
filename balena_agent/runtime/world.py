"""What the reconciler knows of the engine: full and partial looks merged in the right order.

Theory: looks are made by several workers at once and may arrive late. Each carries a sequence
number drawn before it began. An object's knowledge is replaced only by a look that began later;
so a slow, old look can never overwrite a newer one. A full look replaces everything but the
objects that were looked at after it began.

The specs that containers were asked to be (`intended`), and what the engine made of them
(`tolerated`), are joined in here, so that everybody sees containers whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from ..core.body import resolved
from ..core.desired import DesiredService
from ..core.drift import deviations
from ..core.jsonread import Json
from ..core.looks import Patch, apply_patch
from ..core.observed import Container, Observed
from ..core.spec import ContainerSpec

T = TypeVar("T")

_Key = tuple[str, str]


class World:
    """See the module. Used by one thread."""

    def __init__(
        self,
        specs: Mapping[str, ContainerSpec],
        tolerated: Mapping[str, Mapping[str, Json]] = MappingProxyType({}),
    ) -> None:
        self.observed = Observed()
        self.specs = dict(specs)
        self.tolerated = dict(tolerated)
        self._known_since: dict[_Key, int] = {}
        self._all_known_since = 0

    def intend(self, container_id: str, spec: ContainerSpec) -> Mapping[str, Json]:
        """Remember what a container was asked to be, and what the engine made of it otherwise: that
        is tolerated from now on, and the answer."""
        self.specs[container_id] = spec
        known = self.observed.containers.get(container_id)
        if known is None:
            return {}
        asked = replace(known, intended=spec)
        if found := deviations(asked):
            self.tolerated[container_id] = found
            asked = replace(asked, tolerated=found)
        self.observed = apply_patch(self.observed, Patch(containers={container_id: asked}))
        return found

    def created(self, service: DesiredService) -> tuple[str, ContainerSpec] | None:
        """The id of a service's new container, and what it was asked to be."""
        name, known = str(service.container_name), self.observed.containers.values()
        ids = {c.service: c.id for c in known if c.app_uuid == service.app_uuid}
        made = next((c.id for c in known if c.raw_name == name), None)
        if made is None:
            return None
        return made, resolved(service.spec, ids)

    def see(self, patch: Patch, asked: int) -> None:
        """Merge a partial look."""
        fresh = Patch(
            containers=self._joined(self._fresh("container", patch.containers, asked)),
            networks=self._fresh("network", patch.networks, asked),
            volumes=self._fresh("volume", patch.volumes, asked),
            images=self._fresh("image", patch.images, asked),
        )
        self.observed = apply_patch(self.observed, fresh)

    def see_all(self, full: Observed, asked: int) -> None:
        """Merge a full look."""
        before = self.observed
        seen = Observed(
            containers=self._newest("container", full.containers, before.containers, asked),
            networks=self._newest("network", full.networks, before.networks, asked),
            volumes=self._newest("volume", full.volumes, before.volumes, asked),
            images=self._newest("image", full.images, before.images, asked),
            unsupported=full.unsupported,
        )
        self._known_since = {k: n for k, n in self._known_since.items() if n > asked}
        self._all_known_since = asked
        joined = self._joined(seen.containers)
        self.observed = replace(seen, containers={k: c for k, c in joined.items() if c})

    def gone(self) -> frozenset[str]:
        """Containers that we have notes about but that do not exist any more."""
        return frozenset(self.specs.keys() - self.observed.containers.keys())

    def forget(self, container_ids: frozenset[str]) -> None:
        for container_id in container_ids:
            self.specs.pop(container_id, None)
            self.tolerated.pop(container_id, None)

    def _fresh(self, kind: str, news: Mapping[str, T | None], asked: int) -> dict[str, T | None]:
        fresh: dict[str, T | None] = {}
        for key, value in news.items():
            if asked > self._known_since.get((kind, key), self._all_known_since):
                self._known_since[kind, key] = asked
                fresh[key] = value
        return fresh

    def _newest(
        self, kind: str, full: Mapping[str, T], before: Mapping[str, T], asked: int
    ) -> dict[str, T]:
        result = dict(full)
        for (what, key), since in self._known_since.items():
            if what == kind and since > asked:
                result.pop(key, None)
                if key in before:
                    result[key] = before[key]
        return result

    def _joined(self, containers: Mapping[str, Container | None]) -> dict[str, Container | None]:
        return {
            key: replace(container, intended=self.specs[key], tolerated=self.tolerated.get(key, {}))
            if container and key in self.specs
            else container
            for key, container in containers.items()
        }
