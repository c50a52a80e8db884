"""Looking at the engine: everything, or just what was touched.

Theory: a full look lists and inspects and is the truth; a partial look refreshes a few objects.
Any sequence of partial looks that covers what changed must end equal to a full look. The rule:

    containers   each touched key, id or name, is inspected. A name also stands for every id that
                 was ever reported under it, so a container that lost the name, or is gone, is
                 found although only its name was touched.
    networks, volumes, images
                 one touched object re-lists its whole kind, which is one cheap call, and the
                 answer is absolute: every object of the kind that there is, and None for each
                 that was ever reported and is gone.

"Ever reported" means since the last full look, which starts the memory afresh. So an answer that
got lost on its way does no harm: the next look at the kind repeats it. Looks may run side by side,
but their answers have to be applied in the order in which the looks began.

What cannot change is asked once: an image's configuration is remembered by the image's id. So a
partial look costs by what changed, not by what exists.

An engine can hold the lock of one sick container for ever; asking about it then never ends. What
is known of such a container, if only from the list, stands in, so that it does not blind us for
all others (core/unread.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ..core.body import container_from_inspect, image_from_inspect, references, unsupported_fields
from ..core.errors import DeadlineExceeded, EngineFailed
from ..core.looks import Patch, Touch
from ..core.names import current_labels, is_supervised
from ..core.networks import (
    network_from_inspect,
    supervisor_network_from_inspect,
    volume_from_inspect,
)
from ..core.observed import Container, Image, ImageConfig, Network, Observed, Volume
from ..core.unread import unread_container
from .client import Client, path
from .obtained import Nowhere, Records

_LOG = logging.getLogger(__name__)

LOOK_LIMIT = 60.0
INFO_LIMIT = 5.0
PATIENCE = 10.0
"""Seconds that a full look waits for one container."""

_TIME = "%Y-%m-%dT%H:%M:%SZ"

KnownApps = Callable[[], frozenset[int]]
"""The ids of the apps of the target: a volume without labels that is named after one is ours."""

T = TypeVar("T")


class _Memory:
    """What was reported since the last full look, and what never changes. Guarded by a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, set[str]] = {}
        self._kinds: dict[str, set[str]] = {}
        self._images: dict[str, Image] = {}
        self._last: dict[str, Container] = {}

    def restart(self, observed: Observed) -> None:
        """A full look: forget what is gone."""
        used = {container.spec.image for container in observed.containers.values()}
        with self._lock:
            self._names = {}
            self._kinds = {}
            for container in observed.containers.values():
                self._names.setdefault(container.raw_name, set()).add(container.id)
            for kind in ("networks", "volumes", "images"):
                self._kinds[kind] = set(getattr(observed, kind))
            self._images = _only(self._images, {*observed.images, *used})
            self._last = dict(observed.containers)

    def reported(self, container: Container) -> None:
        with self._lock:
            self._names.setdefault(container.raw_name, set()).add(container.id)
            self._last[container.id] = container

    def last_seen(self, container_id: str) -> Container | None:
        with self._lock:
            return self._last.get(container_id)

    def ids_of(self, key: str) -> set[str]:
        """The key itself and every id that had it for a name."""
        with self._lock:
            return {key, *self._names.get(key, ())}

    def absolute(self, kind: str, present: Mapping[str, T]) -> dict[str, T | None]:
        """What there is of a kind, with None for what was reported and is gone."""
        with self._lock:
            known = self._kinds.setdefault(kind, set())
            gone = known - present.keys()
            known.update(present)
        return {**present, **dict.fromkeys(gone)}

    def image(self, image_id: str) -> Image | None:
        with self._lock:
            return self._images.get(image_id)

    def keep_image(self, image: Image) -> None:
        with self._lock:
            self._images[image.id] = image


class Observer:
    """The eyes of the adapter. Raises EngineUnavailable, EngineFailed, DeadlineExceeded."""

    def __init__(
        self,
        client: Client,
        known_apps: KnownApps,
        patience: float = PATIENCE,
        records: Records | None = None,
    ) -> None:
        self.records = records or Records({}, Nowhere())
        self._client = client
        self._known_apps = known_apps
        self._patience = patience
        self._memory = _Memory()
        self._lacks: frozenset[str] = frozenset()

    def everything(self) -> Observed:
        """The full look. A missing engine is noticed within seconds."""
        client = self._client.bounded(LOOK_LIMIT)
        client.ping()
        noted = self.records.ids()
        observed = Observed(
            containers=self._containers(client),
            networks=_networks(client),
            volumes=self._volumes(client),
            images=self.images(client),
            unsupported=self._unsupported(client),
        )
        self._memory.restart(observed)
        self.records.keep_only(observed.images, noted)
        return observed

    def look(self, touch: Touch) -> Patch:
        """The partial look, by the rule above."""
        client, memory = self._client.bounded(LOOK_LIMIT), self._memory
        return Patch(
            containers=self._touched(client, touch.containers),
            networks=memory.absolute("networks", _networks(client)) if touch.networks else {},
            volumes=memory.absolute("volumes", self._volumes(client)) if touch.volumes else {},
            images=memory.absolute("images", self.images(client)) if touch.images else {},
        )

    def _unsupported(self, client: Client) -> frozenset[str]:
        """What the engine says it has no support for. An engine that cannot tell, because a plugin
        of its own hangs, is taken as it was."""
        try:
            self._lacks = unsupported_fields(client.get("/info", limit=INFO_LIMIT))
        except (EngineFailed, DeadlineExceeded) as error:
            _LOG.warning("the engine cannot tell about itself: %s", error)
        return self._lacks

    def _containers(self, client: Client) -> dict[str, Container]:
        listed = client.get("/containers/json", {"all": "1"})
        ours = [each for each in listed if is_ours(each.get("Labels"))]
        seen = (self._patiently(client, each) for each in ours)
        return {container.id: container for container in seen if container}

    def _patiently(self, client: Client, listed: Mapping[str, Any]) -> Container | None:
        """One container of a full look, whatever the engine makes of the question."""
        container_id = str(listed["Id"])
        try:
            return self._container(client, container_id, self._patience)
        except (EngineFailed, DeadlineExceeded) as error:
            _LOG.warning("the engine cannot tell about container %s: %s", container_id[:12], error)
            known, failed = self._memory.last_seen(container_id), isinstance(error, EngineFailed)
            created = time.strftime(_TIME, time.gmtime(listed.get("Created") or 0))
            return unread_container(listed, created, known, str(error), failed)

    def _touched(self, client: Client, keys: Iterable[str]) -> dict[str, Container | None]:
        wanted: set[str] = set().union(*map(self._memory.ids_of, keys))
        result: dict[str, Container | None] = {}
        for key in wanted:
            container = self._container(client, key)
            if container:
                self._memory.reported(container)
                result[container.id] = container
            else:
                result.setdefault(key, None)
        return result

    def _container(self, client: Client, key: str, limit: float | None = None) -> Container | None:
        """One container of ours by id or name; None when it is gone or foreign."""
        inspect = client.find(path("containers", key, "json"), limit)
        if inspect is None or not is_ours(inspect["Config"].get("Labels")):
            return None
        config = self._config(client, str(inspect.get("Image") or ""))
        return container_from_inspect(inspect, config)

    def _config(self, client: Client, image_id: str) -> ImageConfig:
        """What the image contributed; nothing, when it was removed under its container."""
        image = self._inspected(client, image_id)
        return image.config if image else ImageConfig()

    def _volumes(self, client: Client) -> dict[str, Volume]:
        apps = self._known_apps()
        listed = client.get("/volumes").get("Volumes") or ()
        seen = (volume_from_inspect(each, apps) for each in listed)
        return {volume.engine_name: volume for volume in seen if volume}

    def images(self, client: Client) -> dict[str, Image]:
        """All images there are; the puller asks too."""
        listed = client.get("/images/json")
        seen = (self._listed_image(client, entry) for entry in listed)
        return {image.id: image for image in seen if image}

    def _listed_image(self, client: Client, entry: Mapping[str, Any]) -> Image | None:
        """A list entry knows today's references, the inspected image all that never changes."""
        image = self._inspected(client, str(entry["Id"]))
        return image and replace(
            image,
            tags=references(entry.get("RepoTags")),
            digests=references(entry.get("RepoDigests")),
            obtained=self.records.of(image.id),
        )

    def _inspected(self, client: Client, image_id: str) -> Image | None:
        known = self._memory.image(image_id)
        if known or not image_id:
            return known
        inspect = client.find(path("images", image_id, "json"))
        image = image_from_inspect(inspect) if inspect else None
        if image:
            self._memory.keep_image(image)
        return image


def is_ours(labels: Mapping[str, str] | None) -> bool:
    """Whether an object's labels, in either spelling, mark one of ours."""
    return is_supervised(current_labels(labels or {}))


def _networks(client: Client) -> dict[str, Network]:
    """The list tells as much of each network as an inspect does, but for its members."""
    seen = map(_network, client.get("/networks"))
    return {network.id: network for network in seen if network}


def _network(listed: Mapping[str, Any]) -> Network | None:
    """A network of ours. `supervisor0` bears no labels: it is ours by its name, right or wrong."""
    return supervisor_network_from_inspect(listed) or network_from_inspect(listed)


def _only(known: dict[str, T], wanted: Iterable[str]) -> dict[str, T]:
    return {key: known[key] for key in wanted if key in known}
