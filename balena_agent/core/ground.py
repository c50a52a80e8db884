"""What the services of one app stand on, and in what a container is not as wanted.

Theory: every rule about a service reads the same few facts of its app and of what is around it;
here they are one value. Whether a container is "as wanted" is asked in many places and must have
one answer: what can be repaired in place does not count, nor does what this engine drops, nor what
a container is kept in spite of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from . import damping
from .body import differences, parents
from .desired import DesiredApp, DesiredService
from .drift import can_be_joined
from .intent import ServiceKey
from .names import SUPERVISOR_NETWORK
from .observed import Container
from .spec import Difference

_SHOWN_DIFFERENCES = 3


@dataclass(frozen=True, slots=True)
class Ground:
    """What the services of one app stand on.

    `usable` are the engine names of networks and volumes that are there and as wanted; `replaced`
    maps those that must go to the reason, which drives their users out first. `leftovers` are
    images that nobody needs any more and that are about to be removed. `api_fault` is what is wrong
    with the network of our API (supervisor.py). `ignored` are fields that this engine drops,
    `damped` see Situation.
    """

    app: DesiredApp
    containers: Mapping[str, tuple[Container, ...]]
    usable: frozenset[str]
    replaced: Mapping[str, str]
    leftovers: tuple[str, ...] = ()
    api_fault: str = ""
    ignored: frozenset[str] = frozenset()
    damped: Mapping[ServiceKey, str] = field(default_factory=dict)

    @property
    def declared(self) -> frozenset[str]:
        """Networks and volumes that the plan itself provides; the engine has or makes others."""
        networks = (network.engine_name for network in self.app.networks)
        volumes = (volume.engine_name for volume in self.app.volumes)
        return frozenset((*networks, *volumes, SUPERVISOR_NETWORK))

    def missing_images(self) -> list[str]:
        return [s.name for s in self.app.services if not s.image_present]


def differing(service: DesiredService, container: Container, ground: Ground) -> list[Difference]:
    """In what the container is not as wanted, but for what a repair in place puts right."""
    ids = {
        name: ground.containers[name][0].id
        for name in parents(service.spec)
        if name in ground.containers
    }
    parent_id = ids.get(service.spec.parent)
    found = differences(service.spec, container.effective_spec, parent_id, ids, ground.ignored)
    return [difference for difference in found if not can_be_joined(container, difference)]


def unlike(service: DesiredService, container: Container, ground: Ground) -> str:
    """The differing fields in words, or "" when the container is as wanted, or is kept anyway."""
    found = differing(service, container, ground)
    return "" if damping.is_kept(service, found, ground.damped) else in_words(found)


def in_words(found: list[Difference]) -> str:
    shown = [str(difference) for difference in found[:_SHOWN_DIFFERENCES]]
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return "; ".join(shown) + more
