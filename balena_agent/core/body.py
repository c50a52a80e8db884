"""Containers in the engine's own JSON: create bodies out, inspect answers in.

Theory: `create_body` and `spec_from_inspect` are inverse to each other in canonical form, whatever
the engine did to the values in between (spec 21 §10): it fills in from the image, adds an alias,
drops defaults, cleans paths. `differences` compares two specs, wherever they come from: the wanted
one with what was asked for at creation, or, for containers that the peer made, with inspect.
Reading an inspect answer never raises: a container that is not ours, or cannot be understood, is
None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from .canonical import (
    DEFAULTS,
    DEVICE_NAME_VARIABLES,
    canonical,
    engine_form,
    environment_map,
    not_variables,
)
from .errors import InvalidInput
from .jsonread import Json, whole_number
from .names import (
    APP_ID,
    APP_UUID,
    HANDOVER_TIMEOUT,
    RETIRED,
    SERVICE_ID,
    SERVICE_NAME,
    STRATEGY,
    ContainerName,
    current_labels,
    is_supervised,
    normal_image,
    parse_container_name,
)
from .observed import Container, Image, ImageConfig
from .spec import ContainerSpec, Difference, Endpoint, shared_service

MODES: Final = ("HostConfig.NetworkMode", "HostConfig.PidMode", "HostConfig.IpcMode")
_NOT_COMPARED_LABELS: Final = (STRATEGY, HANDOVER_TIMEOUT)
_BY_KEY: Final = ("Env", "Labels")
_LENGTH_OF_SHORT_ID: Final = 12
_NEVER: Final = "0001-01-01T"
_ID_TAIL = re.compile(r"(\d{1,18})_(\d{1,18})(?:_([0-9a-zA-Z_.-]+))?\Z")
_NOBODY: Final[Mapping[str, str]] = MappingProxyType({})

_INFO_SUPPORT: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "MemoryLimit": ("HostConfig.Memory", "HostConfig.MemoryReservation"),
        "PidsLimit": ("HostConfig.PidsLimit",),
        "CPUShares": ("HostConfig.CpuShares",),
        "CPUSet": ("HostConfig.CpusetCpus",),
        "CpuCfsQuota": ("HostConfig.CpuQuota", "HostConfig.NanoCpus"),
        "OomKillDisable": ("HostConfig.OomKillDisable",),
    }
)


# ---- what we send --------------------------------------------------------------------------------


def parents(spec: ContainerSpec) -> frozenset[str]:
    """Services whose namespaces the container shares: they must exist before it (spec 21 §5.4)."""
    shared = (shared_service(str(spec.fields.get(mode) or "")) for mode in MODES)
    return frozenset(filter(None, shared))


def resolved(spec: ContainerSpec, ids: Mapping[str, str]) -> ContainerSpec:
    """The spec with `service:x` replaced by `container:<id of x>` where `ids` knows x."""
    found: dict[str, Json] = {}
    for mode in MODES:
        name = shared_service(str(spec.fields.get(mode) or ""))
        if name and name in ids:
            found[mode] = f"container:{ids[name]}"
    return replace(spec, fields={**spec.fields, **found}) if found else spec


def create_body(spec: ContainerSpec, device_name: str) -> dict[str, Json]:
    """The body of `POST /containers/create` (spec 21 §12): resolve `service:x` before."""
    if "\n" in device_name:
        raise InvalidInput("the device name must not contain a line break", "name")
    body: dict[str, Json] = {"Image": spec.image}
    host: dict[str, Json] = {}
    for name, value in {**spec.fields, **spec.at_create}.items():
        if value is not None:
            section, dot, key = name.partition(".")
            (host if dot else body)[key or section] = engine_form(name, value)
    named = [f"{variable}={device_name}" for variable in DEVICE_NAME_VARIABLES]
    body["Env"] = [*named, *body.get("Env", ())]
    body["ExposedPorts"] = {port: {} for port in host.get("PortBindings", ())}
    main = _main(spec)
    endpoints = {main.network: endpoint_body(main)} if main else {}
    return {**body, "HostConfig": host, "NetworkingConfig": {"EndpointsConfig": endpoints}}


def joins(spec: ContainerSpec) -> tuple[Endpoint, ...]:
    """Networks to join between creation and start: the engine takes only one at creation."""
    main = _main(spec)
    return tuple(end for end in spec.endpoints if end is not main)


def _main(spec: ContainerSpec) -> Endpoint | None:
    mode = spec.fields.get("HostConfig.NetworkMode")
    return next((end for end in spec.endpoints if end.network == mode), None)


def endpoint_body(endpoint: Endpoint) -> dict[str, Json]:
    """The EndpointConfig of a create or connect body."""
    addresses = {
        "IPv4Address": endpoint.ipv4,
        "IPv6Address": endpoint.ipv6,
        "LinkLocalIPs": list(endpoint.link_local),
    }
    body: dict[str, Json] = {"IPAMConfig": {key: v for key, v in addresses.items() if v}}
    if endpoint.aliases:
        body["Aliases"] = list(endpoint.aliases)
    if endpoint.driver_opts:
        body["DriverOpts"] = dict(endpoint.driver_opts)
    return body


# ---- what we read --------------------------------------------------------------------------------


def spec_from_inspect(inspect: Mapping[str, Json], image: ImageConfig) -> ContainerSpec:
    """The canonical form of a live container. `image` fills in what the engine took from there,
    should the engine not have said so itself (spec 21 §10.5)."""
    config, host = inspect.get("Config") or {}, inspect.get("HostConfig") or {}
    fields: dict[str, Json] = {}
    for name in DEFAULTS:
        section, dot, key = name.partition(".")
        fields[name] = canonical(name, host.get(key) if dot else config.get(section))
    _fill_from_image(fields, config, image)
    _without_own_traces(fields, str(inspect.get("Id") or ""))
    networks = (inspect.get("NetworkSettings") or {}).get("Networks") or {}
    own_id = str(inspect.get("Id") or "")[:_LENGTH_OF_SHORT_ID]
    mode = fields["HostConfig.NetworkMode"]
    endpoints = tuple(
        _endpoint_from_inspect(name, networks[name] or {}, own_id)
        for name in sorted(networks, key=lambda name: (name != mode, name))
        if name not in ("host", "none", "bridge")
    )
    return ContainerSpec(str(inspect.get("Image") or config.get("Image") or ""), fields, endpoints)


def _fill_from_image(
    fields: dict[str, Json], config: Mapping[str, Json], image: ImageConfig
) -> None:
    fields["User"] = fields["User"] or image.user
    fields["WorkingDir"] = fields["WorkingDir"] or canonical("WorkingDir", image.working_dir)
    if not config.get("StopSignal") and image.stop_signal:
        fields["StopSignal"] = image.stop_signal
    check = {**image.healthcheck, **(config.get("Healthcheck") or {})}
    fields["Healthcheck"] = canonical("Healthcheck", check)


def _without_own_traces(fields: dict[str, Json], own_id: str) -> None:
    """The engine names a container after its id, and one that shares a network after the owner."""
    if fields["HostConfig.NetworkMode"].startswith("container:"):
        fields["Hostname"] = fields["Domainname"] = ""
    elif fields["Hostname"] == own_id[:_LENGTH_OF_SHORT_ID]:
        fields["Hostname"] = ""


def _endpoint_from_inspect(name: str, raw: Mapping[str, Json], own_id: str) -> Endpoint:
    addresses = raw.get("IPAMConfig") or {}
    local = addresses.get("LinkLocalIPs") or addresses.get("LinkLocalIps") or ()
    return Endpoint(
        network=name,
        aliases=tuple(sorted(a for a in raw.get("Aliases") or () if a != own_id)),
        ipv4=addresses.get("IPv4Address") or "",
        ipv6=addresses.get("IPv6Address") or "",
        link_local=tuple(sorted(local)),
        driver_opts=dict(raw.get("DriverOpts") or {}),
    )


def container_from_inspect(inspect: Mapping[str, Json], image: ImageConfig) -> Container | None:
    """A container of ours (spec 20 §10), or None: not ours, or its labels do not parse."""
    config, state = inspect.get("Config") or {}, inspect.get("State") or {}
    labels = current_labels(config.get("Labels") or {})
    app_id, service_id = whole_number(labels.get(APP_ID)), whole_number(labels.get(SERVICE_ID))
    if not is_supervised(labels) or app_id is None or service_id is None:
        return None
    raw_name = str(inspect.get("Name") or "").lstrip("/")
    name = _container_name(raw_name, labels.get(SERVICE_NAME, ""))
    service = labels.get(SERVICE_NAME) or (name.service if name else "")
    if not service:
        return None
    grace = config.get("StopTimeout")
    return Container(
        id=str(inspect.get("Id") or ""),
        app_uuid=labels.get(APP_UUID, ""),
        app_id=app_id,
        service=service,
        service_id=service_id,
        name=name,
        state=str(state.get("Status") or ""),
        spec=spec_from_inspect(inspect, image),
        created_at=str(inspect.get("Created") or ""),
        started_at=_time(state.get("StartedAt")),
        exit_code=int(state.get("ExitCode") or 0),
        error=str(state.get("Error") or ""),
        health=str((state.get("Health") or {}).get("Status") or ""),
        stop_timeout=DEFAULTS["StopTimeout"] if grace is None else int(grace),
        raw_name=raw_name,
    )


def _time(value: Json) -> str:
    return "" if not value or str(value).startswith(_NEVER) else str(value)


def _container_name(raw: str, service: str) -> ContainerName | None:
    """The name, read with the help of the service label: alone, `a_4_5_123` could also be release
    123 of a service `a_4` (spec 20 §10). One that hands over has a prefix before it all."""
    for start in (f"{service}_", f"{RETIRED}{service}_") if service else ():
        found = _ID_TAIL.match(raw[len(start) :]) if raw.startswith(start) else None
        if found:
            return ContainerName(service, int(found[1]), int(found[2]), found[3] or "")
    return parse_container_name(raw)


def image_from_inspect(inspect: Mapping[str, Json]) -> Image:
    """An image of the engine, names in normal form (spec 20 §18.1)."""
    return Image(
        id=str(inspect.get("Id") or ""),
        tags=references(inspect.get("RepoTags")),
        digests=references(inspect.get("RepoDigests")),
        config=image_config(inspect),
        size=int(inspect.get("Size") or 0),
    )


def references(found: Json) -> frozenset[str]:
    """The names in a list of the engine's, in normal form; it also lists what has none."""
    return frozenset(normal_image(ref) for ref in found or () if "<none>" not in ref)


def image_config(inspect: Mapping[str, Json]) -> ImageConfig:
    """What the image of an inspect answer contributes to containers (spec 21 §4)."""
    config = inspect.get("Config") or {}
    return ImageConfig(
        command=tuple(config.get("Cmd") or ()),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        environment=environment_map(config.get("Env") or ()),
        labels=dict(config.get("Labels") or {}),
        user=config.get("User") or "",
        working_dir=config.get("WorkingDir") or "",
        stop_signal=config.get("StopSignal") or "",
        healthcheck=dict(config.get("Healthcheck") or {}),
        volumes=tuple(sorted(config.get("Volumes") or ())),
        not_variables=not_variables(config.get("Env") or ()),
    )


# ---- what differs --------------------------------------------------------------------------------


def unsupported_fields(info: Mapping[str, Json]) -> frozenset[str]:
    """Fields that this engine drops, by its own `/info`: no reason to replace (spec 21 §10.5)."""
    lacking = (names for key, names in _INFO_SUPPORT.items() if info.get(key) is False)
    return frozenset(name for names in lacking for name in names)


def differences(
    wanted: ContainerSpec,
    actual: ContainerSpec,
    parent_id: str | None = None,
    other_parents: Mapping[str, str] = _NOBODY,
    ignored: frozenset[str] = frozenset(),
) -> tuple[Difference, ...]:
    """Why a container is not what is wanted; empty when it is (spec 21 §10).

    `parent_id` is the live container of the service named by `network_mode: service:x`, and
    `other_parents` the same for services named by `pid` and `ipc` only.
    """
    if wanted == actual:
        return ()
    ids = {**other_parents, **({wanted.parent: parent_id} if parent_id else {})}
    found: list[Difference] = []
    if wanted.image != actual.image:
        found.append(Difference("Image", actual.image, wanted.image))
    for name, default in DEFAULTS.items():
        new, old = wanted.fields.get(name, default), actual.fields.get(name, default)
        if new != old and name not in ignored and not _accepted(name, new, old, wanted, ids):
            found.extend(_field_differences(name, old, new))
    found.extend(_endpoint_differences(wanted, actual))
    return tuple(found)


def _accepted(
    name: str, new: Json, old: Json, wanted: ContainerSpec, ids: Mapping[str, str]
) -> bool:
    """Unequal values that mean the same."""
    if name in MODES:
        return _same_namespace(name, str(new), str(old), ids)
    if name == "Hostname" and not new and wanted.fields.get("HostConfig.NetworkMode") == "host":
        return True  # the engine then writes the host's name there
    return bool(canonical(name, new) == canonical(name, old))  # stored by an older release


def _same_namespace(name: str, new: str, old: str, ids: Mapping[str, str]) -> bool:
    service = shared_service(new)
    if not service or not old.startswith("container:"):
        return False
    if service not in ids and name != "HostConfig.NetworkMode":
        return True  # nobody told us whose it should be; replacing would not end
    return old == f"container:{ids.get(service)}"


def _field_differences(name: str, old: Json, new: Json) -> Iterator[Difference]:
    """One difference, or one per key of a map of variables or labels."""
    if name not in _BY_KEY:
        yield Difference(name, old, new)
        return
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and key not in _NOT_COMPARED_LABELS:
            yield Difference(f"{name}.{key}", old.get(key), new.get(key))


def _endpoint_differences(wanted: ContainerSpec, actual: ContainerSpec) -> Iterator[Difference]:
    """Each wanted membership must be there; further ones are no difference, nor are aliases that
    somebody added (the planner leaves surplus networks by itself)."""
    present = {end.network: end for end in actual.endpoints}
    for end in wanted.endpoints:
        old, where = present.get(end.network), f"Networks.{end.network}"
        if old is None:
            yield Difference(where, None, list(end.aliases))
            continue
        if not set(end.aliases) <= set(old.aliases):
            yield Difference(f"{where}.Aliases", list(old.aliases), list(end.aliases))
        if end.driver_opts and end.driver_opts != old.driver_opts:
            yield Difference(f"{where}.DriverOpts", dict(old.driver_opts), dict(end.driver_opts))
        for part in ("ipv4", "ipv6", "link_local"):
            before, after = getattr(old, part), getattr(end, part)
            if before != after:
                yield Difference(f"{where}.{part}", before, after)
