"""What local mode leaves behind on a device of a cloud, and what of it goes again (spec 20 §25).

Theory: while a user has the device, nothing of the cloud's is removed, and what the user brings
comes on top. So what there was is noted when local mode begins. When it has ended containers and
networks of ours follow the target as ever. Volumes and images, which otherwise stay, go if they
were not there before and no target that stays names them: volumes of ours, and images of whatever
kind, for builds on the device leave many without a name. Which these are is decided once, before
the first step towards another target, and noted: what is made from then on is not the user's, be
the end as late as it may. What has gone, or has been named since, leaves the list for good. So a
death in the middle leaves only less to do.

Deviation: the peer also removes containers, networks and volumes that are not of its making. We
leave them, as everywhere: whoever made them by hand removes them by hand. What they use stays too,
because the engine refuses to remove it, and nothing waits for that.

Invariants: without a note nothing goes; what is to go only ever gets less; nothing that a
container uses goes, and nothing at all while it is not known what some target declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .cleanup import declared
from .desired import Desired
from .images import meant, of_peer
from .jsonread import Json
from .names import EXTRA_FIRMWARE
from .observed import NO_APP, Container, Observed
from .target import Target, images_of

_KINDS_LEFT = ("volumes", "images")
_KINDS = ("containers", "networks", *_KINDS_LEFT)


@dataclass(frozen=True, slots=True)
class Left:
    """Volumes (engine names) and images (ids) that local mode has left."""

    volumes: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.volumes or self.images)

    def __or__(self, other: Left) -> Left:
        return Left(self.volumes | other.volumes, self.images | other.images)

    def __and__(self, other: Left) -> Left:
        return Left(self.volumes & other.volumes, self.images & other.images)

    def __sub__(self, other: Left) -> Left:
        return Left(self.volumes - other.volumes, self.images - other.images)


@dataclass(frozen=True, slots=True)
class Possessions:
    """What there was: running containers, networks and images by id, volumes by engine name.
    `left` is what local mode has left and is still there; None until it has ended."""

    containers: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    left: Left | None = None

    def to_json(self) -> dict[str, Json]:
        made: dict[str, Json] = {kind: sorted(getattr(self, kind)) for kind in _KINDS}
        if self.left is not None:
            made["left"] = {kind: sorted(getattr(self.left, kind)) for kind in _KINDS_LEFT}
        return made


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
    there, left = _sets(raw, _KINDS), _sets(raw.get("left", {}), _KINDS_LEFT)
    if there is None or ("left" in raw and left is None):
        return None
    containers, networks, volumes, images = there
    return Possessions(containers, networks, volumes, images, Left(*left) if left else None)


def _sets(raw: Json, kinds: tuple[str, ...]) -> list[frozenset[str]] | None:
    """The lists under these names; None unless each of them is one."""
    found = [raw.get(kind) for kind in kinds] if isinstance(raw, Mapping) else [None]
    lists = [each for each in found if isinstance(each, list)]
    return [frozenset(map(str, each)) for each in lists] if len(lists) == len(found) else None


def at_begin(before: Possessions | None, observed: Observed) -> Possessions:
    """The note while a user has the device. To one who comes back before the end belongs what he
    had left, and nothing that has been made meanwhile."""
    there = possessions(observed)
    if before is None:
        return there
    if before.left is None:
        return before
    volumes, images = there.volumes - before.left.volumes, there.images - before.left.images
    return replace(there, volumes=volumes, images=images)


def left_behind(before: Possessions, observed: Observed, targets: Iterable[Target | None]) -> Left:
    """What was not there before and no target names; once that is noted, what is left of it.
    `targets` are those that stay; None among them is one that cannot be read."""
    known = [target for target in targets if target]
    mine = {v.engine_name for v in observed.volumes.values() if v.app_id != NO_APP}
    theirs = {i.id for i in observed.images.values() if not of_peer(i)}
    came = Left(frozenset(mine - before.volumes), frozenset(theirs - before.images))
    volumes = {EXTRA_FIRMWARE} | {name for each in known for name in declared(each)}
    images = meant({name for each in known for name in images_of(each)}, observed)
    named = Left(frozenset(volumes), frozenset(images.values()))
    return (came if before.left is None else came & before.left) - named


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
