"""What several endpoints check or say in the same words (spec 10 §7, §8.9, §8.16)."""

from __future__ import annotations

from ..core.errors import EngineUnavailable
from ..core.intent import ServiceKey
from ..core.snapshot import Snapshot

NO_SERVICE_NAMED = (
    "serviceName or imageId parameters were not provided or the app is multi-container."
    " Use the v2 service action endpoints."
)
STOP_MARGIN = 5.0
"""Seconds beyond a container's grace period for which an answer waits for its stop."""


def engine_needed(snapshot: Snapshot) -> None:
    """Refuse what cannot be told or done without the engine."""
    if snapshot.engine_error:
        raise EngineUnavailable(snapshot.engine_error)


def grace(snapshot: Snapshot, key: ServiceKey) -> int:
    """Seconds that the containers of a service were promised for their stop."""
    mine = [c.stop_timeout for c in snapshot.observed.containers.values() if c.key == key]
    return max(mine, default=10)
