"""Volumes that nobody needs any more (spec 10 §8.24, spec 20 §19).

Theory: what is to go is decided when the request comes, by name: volumes of ours, and nameless
ones, that no container uses and no target of any source declares. A name leaves the list when its
volume has gone or has found a user. That a container which is not ours uses a volume is the
engine's to know: it refuses, and the volume stays.

Invariant: as long as it is not known what every stored target declares, nothing is unneeded.
"""

from __future__ import annotations

from collections.abc import Iterable

from .desired import Desired
from .intent import CleanupVolumes, Intent
from .names import EXTRA_FIRMWARE, volume_name
from .observed import Observed
from .target import Target


def unneeded(
    command: CleanupVolumes, observed: Observed, targets: Iterable[Target | None]
) -> frozenset[str]:
    """Engine names of the volumes that go. `targets` of all sources; None is one that cannot be
    read. With an app id only volumes of that app go."""
    known = list(targets)
    if not known or None in known:
        return frozenset()
    keep = used(observed) | {EXTRA_FIRMWARE}
    keep |= {name for target in known if target for name in declared(target)}
    return frozenset(
        volume.engine_name
        for volume in observed.volumes.values()
        if command.app_id in (None, volume.app_id) and volume.engine_name not in keep
    )


def still_unneeded(intent: Intent, observed: Observed, desired: Desired) -> frozenset[str]:
    """What is left of a clean-up."""
    if not intent.cleanup:
        return intent.cleanup
    wanted = {volume.engine_name for app in desired.apps for volume in app.volumes}
    return (intent.cleanup & observed.volumes.keys()) - used(observed) - wanted


def used(observed: Observed) -> frozenset[str]:
    """Engine names of the volumes that containers of ours use."""
    specs = (container.spec for container in observed.containers.values())
    return frozenset().union(*(spec.volumes for spec in specs))


def declared(target: Target) -> frozenset[str]:
    """Engine names of all volumes that a target declares, rejected apps included."""
    return frozenset(
        volume_name(app.app_id, name)
        for app in target.apps.values()
        if app.release
        for name in app.release.volumes
    )
