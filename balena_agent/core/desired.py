"""What should be, in the engine's terms: a target compiled against images and host facts.

Theory: a target speaks of compositions; the planner compares canonical specs. Between them stands
the compilation (compose.py), done again whenever the target, an image or a host fact changes. A
service that cannot be compiled carries its `problem`, and its app is then left exactly as it is:
one bad service never stops another app (spec 20 §5.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .names import ContainerName
from .spec import ContainerSpec, NetworkSpec, VolumeSpec

HANDOVER_SECONDS = 60.0
"""How long a hand-over is waited for when nothing else is said (spec 20 §15.3)."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """`condition` is started, healthy or completed; `restart`: made anew after it (spec 20 §16)."""

    service: str
    condition: str = "started"
    restart: bool = False


@dataclass(frozen=True, slots=True)
class DesiredService:
    """One service. `spec` is complete only while the image is present (`image_present`).

    `handover_timeout`: seconds that an old container gets to hand over (spec 20 §15.3).
    """

    app_uuid: str
    app_id: int
    name: str
    container_name: ContainerName
    service_id: int
    image: str
    image_present: bool
    running: bool
    spec: ContainerSpec
    depends_on: tuple[Dependency, ...] = ()
    strategy: str = "download-then-kill"
    handover_timeout: float = HANDOVER_SECONDS
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        return (self.app_uuid, self.name)


@dataclass(frozen=True, slots=True)
class DesiredNetwork:
    name: str
    engine_name: str
    spec: NetworkSpec


@dataclass(frozen=True, slots=True)
class DesiredVolume:
    name: str
    engine_name: str
    spec: VolumeSpec


@dataclass(frozen=True, slots=True)
class DesiredApp:
    """One app. With a `problem` it is rejected: nothing of it is touched. `left_out` are optional
    services that this device cannot run (contracts.py)."""

    uuid: str
    app_id: int
    name: str
    commit: str
    app_class: str = "fleet"
    services: tuple[DesiredService, ...] = ()
    networks: tuple[DesiredNetwork, ...] = ()
    volumes: tuple[DesiredVolume, ...] = ()
    problem: str = ""
    left_out: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Desired:
    """`asked` is False while there is no target at all: that is not a target without apps."""

    apps: tuple[DesiredApp, ...] = field(default_factory=tuple)
    asked: bool = True
