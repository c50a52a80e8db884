"""What became of a container since it was made, and the narrow way back (spec 21 §10.3, §5.4).

Theory: what a container was asked to be (`intended`) is compared with the target; where these
differ the container is replaced. What it is now can differ from what it was asked to be only where
the engine lets anybody change a live container: its networks, a few limits and the restart policy.
That is drift, and it is put right in place, one step per thing:

    not in a network of its service     connect
    in a network of ours besides        disconnect; networks of strangers are left alone
    an updatable field is another one   update; replaced only while that has failed
    the owner of its network started    restart: what it shares is dead since then
    again after it

While images of the release are missing the container still belongs to the release before: then it
is held to what it was asked to be, not to the target.

No repair needs the update locks, but for what disturbs the service by order of the target: leaving
a network that it was made with, and the restart (spec 20 §17).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from .canonical import canonical
from .desired import DesiredService
from .jsonread import Json
from .names import SUPERVISOR_NETWORK
from .observed import Container
from .situation import Draft
from .spec import ContainerSpec, Difference, Endpoint
from .steps import ConnectNetwork, DisconnectNetwork, UpdateContainer

UPDATABLE: Final = (
    "HostConfig.RestartPolicy",
    "HostConfig.Memory",
    "HostConfig.MemoryReservation",
    "HostConfig.CpuShares",
    "HostConfig.CpuQuota",
    "HostConfig.NanoCpus",
    "HostConfig.CpusetCpus",
    "HostConfig.PidsLimit",
)
"""The fields that `POST /containers/<id>/update` can change."""

_NOTHING: Final[Mapping[str, Json]] = MappingProxyType({})
_MEMBERSHIP: Final = "Networks."
_FRACTION_DIGITS: Final = 9


# ---- what has drifted ----------------------------------------------------------------------------


def deviations(container: Container) -> Mapping[str, Json]:
    """Updatable fields that are not as the container was asked to be, with their live values."""
    intended, live = container.intended, container.spec
    if intended is None:
        return _NOTHING
    found: dict[str, Json] = {}
    for name in UPDATABLE:
        wanted, value = intended.fields.get(name), live.fields.get(name)
        if wanted != value and canonical(name, wanted) != canonical(name, value):
            found[name] = canonical(name, value)
    return found


def drifted(container: Container, ignored: frozenset[str]) -> Mapping[str, Json]:
    """Updatable fields that somebody changed, with the values to go back to. `ignored` are fields
    that the engine drops."""
    intended, tolerated = container.intended, container.tolerated
    if intended is None:
        return _NOTHING
    return {
        name: canonical(name, intended.fields.get(name))
        for name, value in deviations(container).items()
        if name not in ignored and not (name in tolerated and tolerated[name] == value)
    }


def left_networks(goal: ContainerSpec, container: Container) -> tuple[Endpoint, ...]:
    """Networks that the container shall be in and is not."""
    members = container.spec.networks
    return tuple(end for end in goal.endpoints if end.network not in members)


def surplus_networks(goal: ContainerSpec, container: Container) -> tuple[str, ...]:
    """Networks of ours that the container is in and shall not be."""
    ours = f"{container.app_uuid}_"
    members = (n for n in container.spec.networks if n not in goal.networks)
    return tuple(n for n in members if n.startswith(ours) or n == SUPERVISOR_NETWORK)


def can_be_joined(container: Container, difference: Difference) -> bool:
    """Whether a difference is but a network not joined yet: of a container that was not noted,
    because the agent was killed while it made it (spec 20 §28)."""
    return (
        container.intended is None
        and difference.old is None
        and difference.field.startswith(_MEMBERSHIP)
    )


def outlived(
    container: Container,
    owner: Container | None,
    joined: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> bool:
    """Whether the owner of the network that the container shares has started after it: the
    namespace that the container is in is then a dead one (spec 21 §5.4). `joined` are runs of
    containers (ids) that the agent itself has begun, with the run of the owner that was there:
    between these a clock that was set back says nothing."""
    if owner is None or not (owner.state == container.state == "running"):
        return False
    if joined.get(container.id) == (container.started_at, owner.started_at):
        return False
    began, owner_began = _instant(container.started_at), _instant(owner.started_at)
    return bool(began and owner_began) and began < owner_began


def _instant(stamp: str) -> str:
    """An engine's time in a form that sorts: the engine leaves out zeros at the end."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    return whole and f"{whole}.{fraction:0<{_FRACTION_DIGITS}}"


# ---- the way back --------------------------------------------------------------------------------


def beyond_repair(draft: Draft, container: Container, ignored: frozenset[str]) -> str:
    """Why a drifted container has to be replaced: the engine did not take its fields back when that
    was tried. Else ""."""
    fields = drifted(container, ignored)
    if not fields:
        return ""
    update = _update(container, fields)
    failure = draft.failure(update)
    return f"{update.cause}, and cannot be changed back: {failure.error}" if failure else ""


def repair(
    draft: Draft,
    service: DesiredService,
    container: Container,
    whole_release: bool,
    unusable: Callable[[str], bool],
    ignored: frozenset[str],
) -> bool:
    """Plan all repairs. `whole_release`: no image of the release is missing; `unusable`: whether a
    network is not there, or has to go. False while the container lacks a network: it must not be
    started without."""
    goal = service.spec if whole_release else container.effective_spec
    where = (container.app_uuid, container.service, container.id)
    intended = container.intended
    if fields := drifted(container, ignored):
        draft.emit(_update(container, fields))
    for network in surplus_networks(goal, container):
        made_with = intended is not None and network in intended.networks
        cause = (
            "the target does not name the network any more" if made_with else "not in the target"
        )
        draft.emit(DisconnectNetwork(*where, network, cause), needs_lock=made_with)
    left = left_networks(goal, container)
    for endpoint in left:
        if unusable(endpoint.network):
            draft.wait_service(service.name, f"waits for {endpoint.network} to join it")
        else:
            draft.emit(ConnectNetwork(*where, endpoint, "is not a member any more"))
    return not left


def _update(container: Container, fields: Mapping[str, Json]) -> UpdateContainer:
    cause = ", ".join(sorted(fields)) + " changed since the start"
    where = (container.app_uuid, container.service, container.id)
    return UpdateContainer(*where, fields, cause)
