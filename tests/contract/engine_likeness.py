"""When two looks at an engine are alike: one at the model and one at reality, or two at one."""

from __future__ import annotations

from typing import Any, Protocol

from balena_agent.core.body import differences
from balena_agent.core.networks import network_differences
from balena_agent.core.observed import Container, Network, Observed, Volume

NOT_IN_THE_MODEL = ("HostConfig.RestartPolicy",)
"""A final stop takes the restart policy away, which `effect` does not tell."""


class AppMark(Protocol):
    """What is whose: other objects in the engine are not compared."""

    uuid: str
    app_id: int
    token: str


def disagreements(model: Observed, real: Observed, app: AppMark) -> list[str]:
    """In what two looks at one app differ, but for ids and times (which no model can know)."""
    return [
        *_container_disagreements(model, real, app),
        *_network_disagreements(model, real, app),
        *_unequal("volumes", _volumes(model, app), _volumes(real, app)),
        *_unequal("images", _images(model, app), _images(real, app)),
    ]


def _unequal(what: str, model: Any, real: Any) -> list[str]:
    return [] if model == real else [f"{what}: the model has {model}, the engine {real}"]


def _container_disagreements(model: Observed, real: Observed, app: AppMark) -> list[str]:
    ours, theirs = _by_name(model, app), _by_name(real, app)
    found = _unequal("containers", sorted(ours), sorted(theirs))
    for name in ours.keys() & theirs.keys():
        left, right = ours[name], theirs[name]
        facts = ("app_uuid", "app_id", "service", "service_id", "name", "state", "stop_timeout")
        for fact in facts:
            found += _unequal(f"{name} {fact}", getattr(left, fact), getattr(right, fact))
        parent = left.spec.parent
        owner = next((c.id for c in theirs.values() if c.service == parent), None)
        found += [
            f"{name}: {each}"
            for each in differences(left.spec, right.spec, owner)
            if each.field not in NOT_IN_THE_MODEL
        ]
        found += _unequal(f"{name} networks", set(left.spec.networks), set(right.spec.networks))
    return found


def _by_name(observed: Observed, app: AppMark) -> dict[str, Container]:
    return {c.raw_name: c for c in observed.containers.values() if c.app_uuid == app.uuid}


def _network_disagreements(model: Observed, real: Observed, app: AppMark) -> list[str]:
    ours, theirs = _networks(model, app), _networks(real, app)
    found = _unequal("networks", sorted(ours), sorted(theirs))
    for name in ours.keys() & theirs.keys():
        left, right = ours[name], theirs[name]
        for fact in ("app", "app_id", "name"):
            found += _unequal(f"{name} {fact}", getattr(left, fact), getattr(right, fact))
        found += [f"{name}: {each}" for each in network_differences(left.spec, right.spec)]
    return found


def _networks(observed: Observed, app: AppMark) -> dict[str, Network]:
    """The app's networks and `supervisor0`."""
    mine = (app.uuid, "")
    return {n.engine_name: n for n in observed.networks.values() if n.app in mine}


def _volumes(observed: Observed, app: AppMark) -> dict[str, Volume]:
    return {k: v for k, v in observed.volumes.items() if v.app_id == app.app_id}


def _images(observed: Observed, app: AppMark) -> set[str]:
    """Names by tag. A pull by tag also records a digest, which the model cannot know."""
    return {name for image in observed.images.values() for name in image.tags if app.token in name}


def unlike(seen: Observed, truth: Observed) -> list[str]:
    """In what two looks at the same engine differ at all, ids and times included."""
    found = []
    for kind in ("containers", "networks", "volumes", "images"):
        left, right = getattr(seen, kind), getattr(truth, kind)
        for key in sorted(left.keys() | right.keys()):
            if left.get(key) != right.get(key):
                found.append(f"{kind}: seen {left.get(key)}, but there is {right.get(key)}")
    return found
