"""Looks at a part of the world: what to look at, what was seen, and how that becomes knowledge.

Theory: the full look is the truth; a partial one refreshes what an event or a step names. Its
answer is a patch, and applying patches in the order of their looks gives what a full look gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .observed import Container, Image, Network, Observed, Volume


@dataclass(frozen=True, slots=True)
class Touch:
    """What to look at again. Containers by id or name; `everything` asks for a full look."""

    containers: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    everything: bool = False

    def __or__(self, other: Touch) -> Touch:
        return Touch(
            self.containers | other.containers,
            self.networks | other.networks,
            self.volumes | other.volumes,
            self.images | other.images,
            self.everything or other.everything,
        )

    def __bool__(self) -> bool:
        return bool(
            self.everything or self.containers or self.networks or self.volumes or self.images
        )


@dataclass(frozen=True, slots=True)
class Patch:
    """The answer of a partial look: objects by key, None where there is none any more."""

    containers: Mapping[str, Container | None] = field(default_factory=dict)
    networks: Mapping[str, Network | None] = field(default_factory=dict)
    volumes: Mapping[str, Volume | None] = field(default_factory=dict)
    images: Mapping[str, Image | None] = field(default_factory=dict)


T = TypeVar("T")


def merged(known: Mapping[str, T], news: Mapping[str, T | None]) -> Mapping[str, T]:
    """`known` with the news; the same object when there is none."""
    if not news:
        return known
    result = {**known, **{k: v for k, v in news.items() if v is not None}}
    for key, value in news.items():
        if value is None:
            result.pop(key, None)
    return result


def apply_patch(observed: Observed, patch: Patch) -> Observed:
    return replace(
        observed,
        containers=merged(observed.containers, patch.containers),
        networks=merged(observed.networks, patch.networks),
        volumes=merged(observed.volumes, patch.volumes),
        images=merged(observed.images, patch.images),
    )
