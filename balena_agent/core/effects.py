"""The model of the engine: what each step makes of an `Observed` value.

Theory: this is the half of the contract that tests stand on. The in-memory fake engine is `effect`
and nothing else; the convergence proof applies it; a contract test compares it with the real
engine after every verb. So a planner that is proved against it is proved against reality, as far
as the contract tests reach. Effects are total: a step on something that is gone changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, TypeVar

from .body import resolved
from .jsonread import Json
from .names import EXTRA_FIRMWARE, SUPERVISOR_NETWORK, normal_image, retired_name
from .networks import SUPERVISOR_SPEC, supervisor_differences
from .observed import NO_APP, Container, Image, Network, Observed, Obtained, Volume
from .spec import ContainerSpec, Endpoint, VolumeSpec
from .steps import (
    ConnectNetwork,
    CreateContainer,
    CreateNetwork,
    CreateVolume,
    DisconnectNetwork,
    EngineStep,
    EnsureExtraFirmware,
    EnsureSupervisorNetwork,
    Fetch,
    ReinstateContainer,
    RemoveContainer,
    RemoveImage,
    RemoveNetwork,
    RemoveVolume,
    RenameContainer,
    RetireContainer,
    StartContainer,
    StopContainer,
    UpdateContainer,
)


def effect(step: EngineStep, observed: Observed, new_id: str = "") -> Observed:
    """The world after `step`. `new_id` names a created object (default: made from its name)."""
    match step:
        case Fetch():
            return _with_image(observed, step, new_id)
        case RemoveImage():
            return _without_reference(observed, step.reference)
        case CreateNetwork():
            return _with_network(observed, step, new_id)
        case RemoveNetwork():
            return replace(observed, networks=_less(observed.networks, step.network_id))
        case CreateVolume():
            return _with_volume(observed, step)
        case RemoveVolume():
            return replace(observed, volumes=_less(observed.volumes, step.engine_name))
        case EnsureSupervisorNetwork():
            return _with_supervisor_network(observed, new_id)
        case EnsureExtraFirmware():
            return _with_firmware_volume(observed)
        case CreateContainer():
            return _with_container(observed, step, new_id)
        case StartContainer():
            now = _later(observed)
            return _changed(observed, step.container_id, state="running", started_at=now)
        case StopContainer():
            return _stopped(observed, step.container_id)
        case RemoveContainer():
            return replace(observed, containers=_less(observed.containers, step.container_id))
        case RenameContainer():
            return _changed(observed, step.container_id, name=step.name, raw_name=str(step.name))
        case RetireContainer():
            return _named(observed, step, retired_name(step.name), NO_RESTART)
        case ReinstateContainer():
            return _named(observed, step, str(step.name), step.policy)
        case ConnectNetwork():
            return _respecified(observed, step.container_id, lambda s: _joined(s, step.endpoint))
        case DisconnectNetwork():
            return _respecified(observed, step.container_id, lambda s: _left(s, step.network))
        case UpdateContainer():
            return _respecified(
                observed,
                step.container_id,
                lambda s: replace(s, fields={**s.fields, **step.fields}),
            )


NO_RESTART: Final[Mapping[str, Json]] = MappingProxyType({"Name": "no", "MaximumRetryCount": 0})

T = TypeVar("T")


def _less(known: Mapping[str, T], key: str) -> Mapping[str, T]:
    return {k: v for k, v in known.items() if k != key}


def _changed(observed: Observed, container_id: str, **changes: object) -> Observed:
    known = observed.containers.get(container_id)
    if known is None:
        return observed
    changed = replace(known, **changes)  # type: ignore[arg-type]
    return replace(observed, containers={**observed.containers, container_id: changed})


def _named(
    observed: Observed,
    step: RetireContainer | ReinstateContainer,
    raw_name: str,
    policy: Mapping[str, Json],
) -> Observed:
    known = observed.containers.get(step.container_id)
    if known is None:
        return observed
    fields = {**known.spec.fields, "HostConfig.RestartPolicy": dict(policy)}
    spec = replace(known.spec, fields=fields)
    return _changed(observed, known.id, name=step.name, raw_name=raw_name, spec=spec)


def _later(observed: Observed) -> str:
    """A time after every start that there was."""
    known = (c.started_at for c in observed.containers.values() if c.started_at.isdigit())
    return f"{max(map(int, known), default=0) + 1:06}"


def _respecified(
    observed: Observed, container_id: str, how: Callable[[ContainerSpec], ContainerSpec]
) -> Observed:
    known = observed.containers.get(container_id)
    return _changed(observed, container_id, spec=how(known.spec)) if known else observed


def _joined(spec: ContainerSpec, endpoint: Endpoint) -> ContainerSpec:
    if endpoint.network in spec.networks:
        return spec
    return replace(spec, endpoints=(*spec.endpoints, endpoint))


def _left(spec: ContainerSpec, network: str) -> ContainerSpec:
    return replace(spec, endpoints=tuple(e for e in spec.endpoints if e.network != network))


def _stopped(observed: Observed, container_id: str) -> Observed:
    known = observed.containers.get(container_id)
    if known is None or not known.running:
        return observed
    return _changed(observed, container_id, state="exited")


def _with_image(observed: Observed, step: Fetch, new_id: str) -> Observed:
    if observed.image(step.reference):
        return observed
    name = normal_image(step.reference)
    tags, digests = (set(), {name}) if "@" in name else ({name}, set())
    noted = frozenset({Obtained(name, step.app_id, step.service)})
    image_id = new_id or f"sha256:{name}"
    image = Image(image_id, frozenset(tags), frozenset(digests), obtained=noted)
    return replace(observed, images={**observed.images, image.id: image})


def _without_reference(observed: Observed, reference: str) -> Observed:
    """An image goes with its last reference. One that a container uses stays as it is: the engine
    refuses."""
    image = observed.image(reference)
    if image is None or any(c.spec.image == image.id for c in observed.containers.values()):
        return observed
    name = normal_image(reference)
    left = replace(
        image,
        tags=image.tags - {name},
        digests=image.digests - {name},
        obtained=frozenset(note for note in image.obtained if note.reference != name),
    )
    if left.tags or left.digests:
        return replace(observed, images={**observed.images, image.id: left})
    return replace(observed, images=_less(observed.images, image.id))


def _with_network(observed: Observed, step: CreateNetwork, new_id: str) -> Observed:
    wanted = step.network
    if any(n.engine_name == wanted.engine_name for n in observed.networks.values()):
        return observed
    made = Network(
        new_id or f"id-{wanted.engine_name}", wanted.engine_name, step.app_uuid, step.app_id,
        wanted.name, wanted.spec,
    )  # fmt: skip
    return replace(observed, networks={**observed.networks, made.id: made})


def _with_volume(observed: Observed, step: CreateVolume) -> Observed:
    wanted = step.volume
    if wanted.engine_name in observed.volumes:
        return observed
    made = Volume(wanted.engine_name, step.app_id, step.app_uuid, wanted.name, wanted.spec)
    return replace(observed, volumes={**observed.volumes, made.engine_name: made})


def _with_firmware_volume(observed: Observed) -> Observed:
    if EXTRA_FIRMWARE in observed.volumes:
        return observed
    made = Volume(EXTRA_FIRMWARE, NO_APP, "", EXTRA_FIRMWARE, VolumeSpec())
    return replace(observed, volumes={**observed.volumes, made.engine_name: made})


def _with_supervisor_network(observed: Observed, new_id: str) -> Observed:
    """A right one stays, wrong ones go, and one is made where none is left."""
    known = [n for n in observed.networks.values() if n.engine_name == SUPERVISOR_NETWORK]
    right = [n for n in known if not supervisor_differences(n.spec)][:1]
    name = SUPERVISOR_NETWORK
    made = right or [Network(new_id or f"id-{name}", name, "", 0, name, SUPERVISOR_SPEC)]
    others = {k: n for k, n in observed.networks.items() if n not in known}
    return replace(observed, networks=others | {n.id: n for n in made})


def _with_container(observed: Observed, step: CreateContainer, new_id: str) -> Observed:
    """Nothing when the name is taken: the engine refuses it too."""
    service = step.service
    name = str(service.container_name)
    if any(c.raw_name == name for c in observed.containers.values()):
        return observed
    made = Container(
        id=new_id or f"id-{name}-{len(observed.containers)}",
        app_uuid=service.app_uuid,
        app_id=service.app_id,
        service=service.name,
        service_id=service.service_id,
        name=service.container_name,
        state="created",
        spec=resolved(service.spec, _ids(observed, service.app_uuid)),
        raw_name=name,
    )
    return replace(observed, containers={**observed.containers, made.id: made})


def _ids(observed: Observed, app_uuid: str) -> dict[str, str]:
    """Container ids of an app's services, for `network_mode: service:x` and its like."""
    return {c.service: c.id for c in observed.containers.values() if c.app_uuid == app_uuid}
