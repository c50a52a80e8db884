"""What local mode leaves behind on a device of a cloud, and what of it goes again (spec 20 §25).

Theory: while a user has the device, nothing of the cloud's is removed, and what the user brings
comes on top. So what there was is noted when local mode begins. When it has ended containers and
networks of ours follow the target as ever. Volumes and images, which otherwise stay, go if they
were not there before and no target that stays names them: volumes of ours, and images of whatever
kind, for builds on the device leave many without a name. All of it is read off the note and the
world in every turn: a death in the middle leaves only less to do.

Deviation: the peer also removes containers, networks and volumes that are not of its making. We
leave them, as everywhere: whoever made them by hand removes them by hand. What they use stays too,
because the engine refuses to remove it, and nothing waits for that.

Invariants: without a note nothing goes; nothing that a container uses goes, and nothing at all
while it is not known what some target declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .cleanup import declared
from .desired import Desired
from .images import meant, of_peer
from .jsonread import Json
from .names import EXTRA_FIRMWARE
from .observed import NO_APP, Container, Observed
from .target import Target, images_of


@dataclass(frozen=True, slots=True)
class Possessions:
    """Running containers, networks and images by id, volumes by engine name."""

    containers: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Json]:
        kinds = ("containers", "networks", "volumes", "images")
        return {kind: sorted(getattr(self, kind)) for kind in kinds}


def possessions(observed: Observed) -> Possessions:
    return Possessions(
        frozenset(c.id for c in observed.containers.values() if c.running),
        frozenset(observed.networks),
        frozenset(observed.volumes),
        frozenset(observed.images),
    )


def possessions_from_json(raw: Json) -> Possessions | None:
    """None for none, and for what cannot be read: then nothing goes."""
    if not isinstance(raw, Mapping):
        return None
    kinds = [raw.get(kind) for kind in ("containers", "networks", "volumes", "images")]
    if not all(isinstance(kind, list) for kind in kinds):
        return None
    return Possessions(*(frozenset(map(str, kind or ())) for kind in kinds))


@dataclass(frozen=True, slots=True)
class Left:
    """Volumes (engine names) and images (ids) that local mode has left."""

    volumes: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.volumes or self.images)

    def __or__(self, other: Left) -> Left:
        return Left(self.volumes | other.volumes, self.images | other.images)

    def __sub__(self, other: Left) -> Left:
        return Left(self.volumes - other.volumes, self.images - other.images)


def left_behind(
    before: Possessions, observed: Observed, targets: Iterable[Target | None]
) -> Left | None:
    """What was not there before and no target names. `targets` are those that stay; None among
    them is one that cannot be read. None: it is not known."""
    known = list(targets)
    if None in known:
        return None
    there = [target for target in known if target]
    keep = before.volumes | {EXTRA_FIRMWARE} | {n for each in there for n in declared(each)}
    mine = {v.engine_name for v in observed.volumes.values() if v.app_id != NO_APP}
    named = meant({name for each in there for name in images_of(each)}, observed)
    theirs = {i.id for i in observed.images.values() if not of_peer(i)}
    return Left(frozenset(mine - keep), frozenset(theirs - before.images - {*named.values()}))


def found(before: Possessions, target: Target, observed: Observed) -> frozenset[str]:
    """Image references of the user's target that mean what was there before: that he names them
    does not make them ours, to be removed when he has gone."""
    known = meant(images_of(target), observed)
    return frozenset(name for name, image_id in known.items() if image_id in before.images)


def used(observed: Observed) -> Left:
    """What containers of ours use."""
    return _used_by(observed.containers.values())


def kept(observed: Observed, desired: Desired) -> Left:
    """What is used by containers that nobody is going to replace: of an app that is left as it is,
    and those that bear a name which is not of our making."""
    rejected = {app.app_id for app in desired.apps if app.problem}
    containers = observed.containers.values()
    return _used_by(c for c in containers if c.name is None or c.app_id in rejected)


def _used_by(containers: Iterable[Container]) -> Left:
    specs = [container.spec for container in containers]
    volumes = frozenset(name for spec in specs for name in spec.volumes)
    return Left(volumes, frozenset(spec.image for spec in specs))


def has_visitors(observed: Observed, desired: Desired) -> bool:
    """Whether an app that the target does not have still has containers."""
    ours = {app.app_id for app in desired.apps}
    return any(c.app_id not in ours for c in observed.containers.values() if c.name)
