"""What the reconciler is given once, when it is made: memories and rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.borrowed import Possessions
from ..core.images import FetchFailure
from ..core.intent import ServiceKey
from ..core.jsonread import Json
from ..core.origins import Origin
from ..core.sources import KeptTarget, is_cloud
from ..core.spec import ContainerSpec
from ..core.target import Target


@dataclass(frozen=True, slots=True)
class Memory:
    """What the store remembered when the agent started."""

    target: Target | None = None
    source: str = ""
    raw_target: str = ""
    stopped: Mapping[ServiceKey, str] = field(default_factory=dict)
    specs: Mapping[str, ContainerSpec] = field(default_factory=dict)
    stopped_by_agent: Mapping[str, str] = field(default_factory=dict)
    owned_images: frozenset[str] = frozenset()
    commits: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    tolerated: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    fetch_failures: Mapping[str, FetchFailure] = field(default_factory=dict)
    targets: Mapping[str, KeptTarget] = field(default_factory=dict)
    before_local_mode: Possessions | None = None

    def all_targets(self) -> Mapping[str, KeptTarget]:
        """Of all sources, the one in force among them."""
        chosen = {self.source: KeptTarget(self.raw_target, self.target)} if self.source else {}
        return {**self.targets, **chosen}


@dataclass(frozen=True, slots=True)
class Policy:
    """What the settings say about planning and about the threads that do the work."""

    keep_images: bool | None = True
    """None: where there is no cloud. There the device is in local mode (spec 20 §25)."""
    keep_volumes: bool | None = None
    """Those of apps that have left the target. None: unless the target is a cloud's own word. What
    stands in for that one, the peer's last target say, does not tell what may be lost."""
    override_locks: bool = False
    remove_peer: bool = False
    """Whether the peer's own images may be removed; then there is no way back to it."""
    workers: int = 8
    pullers: int = 3
    patience: float = 60.0
    """Seconds within which the reconciler proves that it works."""

    def keeps_images(self, managed: bool) -> bool:
        return not managed if self.keep_images is None else self.keep_images

    def keeps_volumes(self, source: str) -> bool:
        """`source`: whose target is in force."""
        return not is_cloud(source) if self.keep_volumes is None else self.keep_volumes
