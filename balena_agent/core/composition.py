"""One service of the target as a canonical container: the compilation of its composition.

Theory: a `ContainerSpec` is made of the defaults, then of what the image brings, then of the
composition, field by field through one table of readers, then of the rules that span fields: what
the engine would refuse for ever in some combination is left out (spec 21 §1-§9). Unusable values
are left out and noted on the service; what cannot be left out safely raises a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .attachments import (
    Attachment,
    Surroundings,
    attachment,
    ipc_mode,
    mac_address,
    pid_mode,
    supervisor_endpoint,
)
from .canonical import DEFAULTS, canonical
from .dependencies import dependencies
from .desired import HANDOVER_SECONDS, DesiredService
from .environment import environment, labels
from .features import Features, enabled, features, of_image
from .fields import (
    LARGEST,
    Notes,
    Reader,
    boolean,
    camel,
    integer,
    integer_within,
    memory,
    nano_cpus,
    one_of,
    strings,
    text,
    text_map,
    whole_and_positive,
)
from .isolation import (
    cgroup_parent,
    extra_hosts,
    hostname,
    is_network_sysctl,
    security_options,
    sysctls,
    ulimits,
)
from .jsonread import Json
from .mounts import (
    ServiceVolumes,
    check_targets,
    devices,
    distinct_binds,
    distinct_mounts,
    lock_binds,
    service_volumes,
    tmpfs,
)
from .names import HANDOVER_TIMEOUT, STRATEGY, ContainerName, current_labels
from .observed import HostFacts, Image, ImageConfig
from .process import (
    canonical_healthcheck,
    clean_path,
    grace_period,
    healthcheck,
    restart_policy,
    stop_signal,
    words,
    working_dir,
)
from .published import port_bindings
from .spec import ContainerSpec, shared_service
from .target import App, Release, Service

STRATEGIES: Final = (
    "download-then-kill",
    "kill-then-download",
    "delete-then-download",
    "hand-over",
)

_MILLISECONDS: Final = integer_within(1, LARGEST)

_FIELDS: Final[Mapping[str, tuple[str, Reader]]] = MappingProxyType(
    {
        "command": ("Cmd", words),
        "entrypoint": ("Entrypoint", words),
        "tty": ("Tty", boolean),
        "hostname": ("Hostname", hostname),
        "domainname": ("Domainname", text),
        "user": ("User", text),
        "working_dir": ("WorkingDir", working_dir),
        "stop_signal": ("StopSignal", stop_signal),
        "stop_grace_period": ("StopTimeout", grace_period),
        "mac_address": ("MacAddress", mac_address),
        "init": ("HostConfig.Init", boolean),
        "read_only": ("HostConfig.ReadonlyRootfs", boolean),
        "privileged": ("HostConfig.Privileged", boolean),
        "cap_add": ("HostConfig.CapAdd", strings),
        "cap_drop": ("HostConfig.CapDrop", strings),
        "devices": ("HostConfig.Devices", devices),
        "dns": ("HostConfig.Dns", strings),
        "dns_search": ("HostConfig.DnsSearch", strings),
        "dns_opt": ("HostConfig.DnsOptions", strings),
        "extra_hosts": ("HostConfig.ExtraHosts", extra_hosts),
        "group_add": ("HostConfig.GroupAdd", strings),
        "pids_limit": ("HostConfig.PidsLimit", whole_and_positive),
        "userns_mode": ("HostConfig.UsernsMode", one_of("host")),
        "cgroup_parent": ("HostConfig.CgroupParent", cgroup_parent),
        "security_opt": ("HostConfig.SecurityOpt", security_options),
        "sysctls": ("HostConfig.Sysctls", sysctls),
        "ulimits": ("HostConfig.Ulimits", ulimits),
        "restart": ("HostConfig.RestartPolicy", restart_policy),
        "cpu_shares": ("HostConfig.CpuShares", integer_within(0, LARGEST)),
        "cpu_quota": ("HostConfig.CpuQuota", integer),
        "oom_score_adj": ("HostConfig.OomScoreAdj", integer_within(-1000, 1000)),
        "oom_kill_disable": ("HostConfig.OomKillDisable", boolean),
        "cpus": ("HostConfig.NanoCpus", nano_cpus),
        "cpuset": ("HostConfig.CpusetCpus", text),
        "mem_limit": ("HostConfig.Memory", memory),
        "mem_reservation": ("HostConfig.MemoryReservation", memory),
        "shm_size": ("HostConfig.ShmSize", memory),
        "tmpfs": ("HostConfig.Tmpfs", tmpfs),
        "ports": ("HostConfig.PortBindings", port_bindings),
    }
)
_OTHER_FIELDS: Final = frozenset(
    {"image", "running", "environment", "labels", "networks", "network_mode", "volumes",
     "healthcheck", "depends_on", "pid", "ipc", "contract"}
)  # fmt: skip
_KNOWN: Final = _OTHER_FIELDS | _FIELDS.keys()
_SNAKE: Final = MappingProxyType({camel(name): name for name in _KNOWN if "_" in name})

_NOT_IN_SERVICE_MODE: Final = (
    ("Hostname", "hostname"),
    ("Domainname", "domainname"),
    ("MacAddress", "mac_address"),
    ("HostConfig.Dns", "dns"),
    ("HostConfig.ExtraHosts", "extra_hosts"),
    ("HostConfig.PortBindings", "ports"),
)
_NO_IMAGE: Final = ImageConfig()


@dataclass(frozen=True, slots=True)
class Scope:
    """What all services of one app are compiled against."""

    app: App
    release: Release
    images: Callable[[str], Image | None]
    facts: HostFacts
    service_key: Callable[[int, str], str]
    around: Surroundings
    injected: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A service, and what the app has to know of it besides."""

    service: DesiredService
    volumes: tuple[str, ...] = ()
    wants_api: bool = False


def compiled_service(service: Service, scope: Scope, notes: Notes) -> Compiled:
    """One service (spec 21). Raises InvalidInput for what cannot be left out safely."""
    app, facts = scope.app, scope.facts
    asked = _known_fields(service.composition, notes)
    image = scope.images(service.image)
    config = image.config if image else _NO_IMAGE
    networks = attachment(asked, service.name, scope.around, notes)
    all_labels = labels(service, app, asked.get("labels"), config.labels, notes)
    for entry in config.not_variables:
        rule = "expecting NAME=VALUE"
        notes.ignored(f"environment of image {service.image}", entry, rule)
    names = enabled(all_labels, notes)
    if names and config.labels:
        _tell_inherited(service, asked.get("labels"), names, config.labels, notes)
    key = scope.service_key(app.app_id, service.name) if "supervisor-api" in names else ""
    extras = features(names, facts, networks.mode == "host", key)
    volumes = service_volumes(asked.get("volumes"), app.app_id, notes)
    fields, at_create = _fields(asked, config, networks, scope, notes)
    below = {**config.environment, **scope.injected}
    fields["Env"] = environment(service, asked.get("environment"), below, extras.environment, notes)
    fields["Labels"] = all_labels
    _add_mounts(fields, app.app_id, service.name, config, volumes, extras, notes)
    _settle_conflicts(fields, asked, facts, notes)
    endpoints = networks.endpoints
    if extras.supervisor_api and networks.joinable:
        endpoints = (*endpoints, supervisor_endpoint())
    spec = ContainerSpec(image.id if image else service.image, fields, endpoints, at_create)
    return Compiled(
        _desired(service, asked, scope, spec, image is not None, notes),
        tuple(volumes.names),
        extras.supervisor_api,
    )


def _tell_inherited(
    service: Service,
    composed: Json,
    names: frozenset[str],
    image: Mapping[str, str],
    notes: Notes,
) -> None:
    """A feature gives a container power over the host: one that only its image asks for is told
    (spec 21 §4)."""
    own = {**text_map(composed, "labels", Notes(""), null=""), **service.labels}
    if brought := of_image(names, current_labels(image), current_labels(own)):
        notes.say(f"labels of image {service.image} switch on: {', '.join(brought)}")


def _desired(
    service: Service,
    asked: Mapping[str, Json],
    scope: Scope,
    spec: ContainerSpec,
    image_present: bool,
    notes: Notes,
) -> DesiredService:
    release = scope.release
    modes = (spec.fields[f"HostConfig.{kind}Mode"] for kind in ("Network", "Pid", "Ipc"))
    shared = filter(None, map(shared_service, modes))
    depends_on = dependencies(asked.get("depends_on"), shared, scope.around.services, notes)
    strategy = spec.fields["Labels"].get(STRATEGY, "")
    patience = _handover_timeout(spec.fields["Labels"].get(HANDOVER_TIMEOUT), notes)
    return DesiredService(
        app_uuid=scope.app.uuid,
        app_id=scope.app.app_id,
        name=service.name,
        container_name=ContainerName(
            service.name, service.image_id, release.release_id, release.commit
        ),
        service_id=service.service_id,
        image=service.image,
        image_present=image_present,
        running=service.running,
        spec=spec,
        depends_on=depends_on,
        strategy=strategy if strategy in STRATEGIES else STRATEGIES[0],
        handover_timeout=patience,
        warnings=tuple(notes.lines),
    )


def _handover_timeout(label: str | None, notes: Notes) -> float:
    """Seconds; the label is a positive whole number of milliseconds (spec 20 §15.3)."""
    found = None if label is None else _MILLISECONDS(label, HANDOVER_TIMEOUT, notes)
    return HANDOVER_SECONDS if found is None else float(found) / 1000


def _known_fields(composition: Mapping[str, Json], notes: Notes) -> dict[str, Json]:
    """The fields that we know and that have a value, in snake_case (spec 21 §1)."""
    found: dict[str, Json] = {}
    unknown: list[str] = []
    for key, value in composition.items():
        name = _SNAKE.get(key, key)
        if value is None or (name != key and composition.get(name) is not None):
            continue
        if name in _KNOWN:
            found[name] = value
        else:
            unknown.append(key)
    if unknown:
        notes.say(f"Ignoring unsupported or unknown compose fields: {', '.join(unknown)}")
    return found


def _fields(
    asked: Mapping[str, Json],
    image: ImageConfig,
    networks: Attachment,
    scope: Scope,
    notes: Notes,
) -> tuple[dict[str, Json], dict[str, Json]]:
    """Compared fields, and what is sent in the user's spelling instead of the canonical one."""
    fields = {**DEFAULTS, **_from_image(image), "HostConfig.NetworkMode": networks.mode}
    at_create: dict[str, Json] = {}
    if networks.mac:
        fields["MacAddress"] = networks.mac
    for name, value in asked.items():
        known = _FIELDS.get(name)
        found = known[1](value, name, notes) if known else None
        if known and found is not None:
            fields[known[0]] = canonical(known[0], found)
            if name in ("cap_add", "cap_drop") and sorted(found) != fields[known[0]]:
                at_create[known[0]] = found
    if "healthcheck" in asked:
        check = healthcheck(asked["healthcheck"], image.healthcheck, "healthcheck", notes)
        fields["Healthcheck"] = check
    if "pid" in asked:
        fields["HostConfig.PidMode"] = pid_mode(asked["pid"], scope.around, notes) or ""
    if "ipc" in asked and (mode := ipc_mode(asked["ipc"], scope.around, notes)):
        fields["HostConfig.IpcMode"] = mode
    if not fields["Entrypoint"] and not fields["Cmd"]:
        fields["Cmd"] = list(image.command)  # what the engine does with an empty command line
    return fields, at_create


def _from_image(image: ImageConfig) -> dict[str, Json]:
    """What a container inherits unless the composition says otherwise (spec 21 §4)."""
    found: dict[str, Json] = {
        "Cmd": list(image.command),
        "Entrypoint": list(image.entrypoint),
        "User": image.user,
        "WorkingDir": clean_path(image.working_dir),
    }
    if image.stop_signal:
        found["StopSignal"] = image.stop_signal
    if image.healthcheck:
        found["Healthcheck"] = canonical_healthcheck(image.healthcheck)
    return found


def _add_mounts(
    fields: dict[str, Json],
    app_id: int,
    service: str,
    image: ImageConfig,
    volumes: ServiceVolumes,
    extras: Features,
    notes: Notes,
) -> None:
    binds = distinct_binds((*volumes.binds, *lock_binds(app_id, service), *extras.binds))
    mounts = distinct_mounts((*volumes.mounts, *(dict(mount) for mount in extras.mounts)))
    check_targets(binds, mounts, fields["HostConfig.Tmpfs"], notes)
    fields["HostConfig.Binds"] = canonical("HostConfig.Binds", binds)
    fields["HostConfig.Mounts"] = canonical("HostConfig.Mounts", mounts)
    fields["HostConfig.DeviceRequests"] = [dict(request) for request in extras.device_requests]
    fields["Volumes"] = sorted({*image.volumes, *volumes.anonymous})


def _settle_conflicts(
    fields: dict[str, Json], asked: Mapping[str, Json], facts: HostFacts, notes: Notes
) -> None:
    """Leave out what the engine would refuse for ever in this combination (D6)."""
    mode = fields["HostConfig.NetworkMode"]
    if mode == "host":
        _settle_host_mode(fields, asked, facts, notes)
    elif owner := shared_service(mode):
        for engine, name in _NOT_IN_SERVICE_MODE:
            if fields[engine] != DEFAULTS[engine]:
                notes.ignored(name, asked.get(name), f"it belongs to the network of {owner}")
                fields[engine] = DEFAULTS[engine]
    if fields["HostConfig.NanoCpus"] and "HostConfig.NanoCpus" in facts.engine_lacks:
        # Unlike other limits, which the engine drops with a warning, this one it refuses.
        notes.ignored("cpus", asked.get("cpus"), "the kernel has no CPU quota")
        fields["HostConfig.NanoCpus"] = 0
    if fields["HostConfig.NanoCpus"] and fields["HostConfig.CpuQuota"]:
        notes.ignored("cpu_quota", asked.get("cpu_quota"), "cpus is set as well")
        fields["HostConfig.CpuQuota"] = 0


def _settle_host_mode(
    fields: dict[str, Json], asked: Mapping[str, Json], facts: HostFacts, notes: Notes
) -> None:
    fields["Hostname"] = fields["Hostname"] or facts.hostname
    if fields["MacAddress"]:
        notes.ignored("mac_address", asked.get("mac_address"), "the network is the host's")
        fields["MacAddress"] = ""
    settings = fields["HostConfig.Sysctls"]
    kept = {name: value for name, value in settings.items() if not is_network_sysctl(name)}
    if len(kept) < len(settings):
        dropped = sorted(settings.keys() - kept.keys())
        notes.ignored("sysctls", dropped, "the network is the host's")
        fields["HostConfig.Sysctls"] = kept
