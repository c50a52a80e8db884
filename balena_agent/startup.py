"""What an agent finds at its start: the clocks, its own memory, what the peer left on the device.

Theory: nothing here may keep the agent from starting. What cannot be read is told and left out; a
target that is left out is as if it had never come, so nothing is changed on its account.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .core import heritage
from .core.borrowed import possessions_from_json
from .core.errors import AgentError
from .core.jsonread import parse_object
from .core.observed import HostFacts
from .core.sources import LOCAL, PRELOAD, KeptTarget, in_force
from .core.target import Target, read_local
from .peer import read_peer
from .runtime import preload
from .runtime.borrowing import KEY as BEFORE_LOCAL_MODE
from .runtime.policy import Memory
from .store import Store

_log = logging.getLogger(__name__)


class SystemClock:
    """ports.Clock with the machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


def remembered(store: Store, facts: HostFacts) -> Memory:
    """What the store remembers. A stored target that no longer reads is told and left out."""
    stored = store.targets()
    targets = {name: KeptTarget(raw, _stored(name, raw)) for name, raw in stored.items()}
    chosen = in_force(targets, facts)
    return Memory(
        chosen.target,
        chosen.source,
        chosen.raw,
        store.stopped(),
        store.specs(),
        store.stopped_by_agent(),
        store.owned_images(),
        store.commits(),
        store.origins(),
        store.tolerated(),
        store.fetch_failures(),
        targets,
        possessions_from_json(store.setting(BEFORE_LOCAL_MODE)),
    )


def take_over(store: Store, database: Path, facts: HostFacts) -> None:
    """Take on what the peer left on the device, if that was never done. Problems are told only:
    without a target nothing is changed, and the next start tries again."""
    try:
        if store.imported_peer() or not database.exists():
            return
        left = read_peer(database, facts.device_uuid, facts.api_endpoint)
        store.import_peer(left)
    except (AgentError, OSError) as error:
        _log.warning("Nothing is taken over from the peer: %s", error)
        return
    _log.info("Taken over from the peer: %d API keys, %s", len(left.keys),
              "its target" if left.target else "no target")  # fmt: skip
    for problem in left.problems:
        _log.warning("Taking over from the peer: %s", problem)


def _read_stored_local(raw: str) -> Target:
    return read_local(parse_object(raw, "stored target"))


_READERS: Mapping[str, Callable[[str], Target | None]] = {
    LOCAL: _read_stored_local,
    heritage.SOURCE: heritage.read,
    PRELOAD: preload.parse,
}
"""How the stored target of a source is read; every other source is a cloud, by its address."""


def _stored(source: str, raw: str) -> Target | None:
    """A stored target; one that does not read is told and no more than kept."""
    try:
        return _READERS.get(source, heritage.read)(raw)
    except AgentError as error:
        _log.error("The stored target of source %s cannot be used: %s", source, error)
        return None
