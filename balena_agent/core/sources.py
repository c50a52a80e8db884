"""Targets of several sources, side by side (spec 20 §5.6).

Theory: who sets a target replaces what the same source has set before, and nothing else: the local
user, the cloud (by its address), the peer that we took over from, a preloaded device. All of them
are kept, as they came. One that cannot be read any more is kept too: nobody knows then what it
needs, and that matters to those who remove things.

There are two voices: the local user's, and one from afar: the cloud's, or until it has spoken what
the peer or the preload has left. In local mode the user's is in force, else the other; either goes
before none. Apps that are no fleet stay whoever is in force, so that local mode never ends them.
What of the two is in force is worked out anew from what is kept, and nowhere remembered: when the
device gets another cloud, or leaves its cloud, too. So the user's is forgotten when his time is
over (runtime/borrowing.py), lest it come back as soon as a cloud is silent. What the peer or the
preload has left stands in until the first cloud has spoken, and never again: it is old by then. A
device that is moved stays as it is until its new cloud says something.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from .heritage import SOURCE as PEER
from .jsonread import truth
from .observed import HostFacts
from .target import App, Target
from .variables import plain_names

LOCAL: Final = "local"
PRELOAD: Final = "preload"
_NO_CLOUD: Final = frozenset({LOCAL, PEER, PRELOAD})
_LOCAL_MODE = "SUPERVISOR_LOCAL_MODE"


@dataclass(frozen=True, slots=True)
class KeptTarget:
    """What one source has set last. `raw` as it came; `target` is None where it does not read."""

    raw: str
    target: Target | None


@dataclass(frozen=True, slots=True)
class InForce:
    """The target that counts, made from that of `source` and the lasting apps of the other."""

    source: str = ""
    raw: str = ""
    target: Target | None = None


def in_force(targets: Mapping[str, KeptTarget], facts: HostFacts) -> InForce:
    """Which target counts now. Without a readable one there is none."""
    afar, local = from_afar(targets, facts), _readable(targets, LOCAL)
    mine = (local, afar) if says_local(targets, facts) or not afar else (afar, local)
    source, other = mine if mine[0] else mine[::-1]
    kept = targets.get(source)
    if kept is None or kept.target is None:
        return InForce()
    beside = targets[other].target if other else None
    return InForce(source, kept.raw, _with_lasting(kept.target, beside))


def is_cloud(source: str) -> bool:
    """Whether a target of this source has come from a cloud itself."""
    return bool(source) and source not in _NO_CLOUD


def says_local(targets: Mapping[str, KeptTarget], facts: HostFacts) -> bool:
    """Whether the device is in local mode as far as what came from afar says: always so without a
    cloud (spec 20 §25)."""
    kept = targets.get(from_afar(targets, facts))
    config = kept.target.config if kept and kept.target else {}
    return not facts.managed or truth(plain_names(config).get(_LOCAL_MODE))


def from_afar(targets: Mapping[str, KeptTarget], facts: HostFacts) -> str:
    """The source whose target is the cloud's word, or stands for it; "" for none."""
    if targets.keys() - _NO_CLOUD:
        return _readable(targets, facts.api_endpoint)
    return next((name for name in (PEER, PRELOAD) if _readable(targets, name)), "")


def _readable(targets: Mapping[str, KeptTarget], source: str) -> str:
    known = targets.get(source)
    return source if known and known.target else ""


def _with_lasting(target: Target, other: Target | None) -> Target:
    """A target with those apps of another that are no fleet, unless it has them itself."""
    known = {app.app_id for app in target.apps.values()}
    lasting: dict[str, App] = {
        uuid: app
        for uuid, app in (other.apps if other else {}).items()
        if app.app_class != "fleet" and uuid not in target.apps and app.app_id not in known
    }
    return replace(target, apps={**target.apps, **lasting}) if lasting else target
