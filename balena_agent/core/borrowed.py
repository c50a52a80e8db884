"""What local mode leaves behind on a device of a cloud, and what of it goes again (spec 20 §25).

Theory: while a user has the device, nothing of the cloud's is removed, and the user's volumes come
on top. So what there was is noted when local mode begins. When it has ended containers and
networks follow the target as ever; volumes, which otherwise nobody ever removes, go if they were
not there before and no target that stays declares them. All of it is read off the note and the
world in every turn: a death in the middle leaves only less to do.

Invariants: without a note nothing goes; nothing that a container uses goes, and nothing at all
while it is not known what some target declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .cleanup import declared, used
from .desired import Desired
from .jsonread import Json
from .names import EXTRA_FIRMWARE
from .observed import NO_APP, Observed
from .target import Target


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


def left_behind(
    before: Possessions, observed: Observed, targets: Iterable[Target | None]
) -> frozenset[str] | None:
    """Engine names of the volumes that local mode has left. `targets` are those that stay; None
    among them is one that cannot be read. None: it is not known."""
    known = list(targets)
    if None in known:
        return None
    keep = before.volumes | {EXTRA_FIRMWARE}
    keep |= {name for target in known if target for name in declared(target)}
    mine = {v.engine_name for v in observed.volumes.values() if v.app_id != NO_APP}
    return frozenset(mine - keep)


def free(volumes: frozenset[str], observed: Observed) -> frozenset[str]:
    """Those that no container uses."""
    return volumes - used(observed)


def has_visitors(observed: Observed, desired: Desired) -> bool:
    """Whether an app that the target does not have still has containers."""
    ours = {app.app_id for app in desired.apps}
    return any(c.app_id not in ours for c in observed.containers.values() if c.name)
