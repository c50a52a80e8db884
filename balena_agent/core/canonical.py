"""The vocabulary of a container: every engine field that we ask for, with its default and form.

Theory: `DEFAULTS` lists, under flat names (`HostConfig.Memory`), what is sent when a service says
nothing (spec 21 §2). `canonical` brings an engine value into the one form in which it is compared,
`engine_form` brings it back. What compose.py computed and what inspect reports go through the same
`canonical`; so a value that the engine stores in another spelling cannot look like a difference.
`canonical` is idempotent, and null is the default: that also reads specs stored by older agents.

Canonical forms: sets are sorted lists, Env and Labels maps, Volumes a sorted list of paths, Ulimits
a map name -> [soft, hard]; ExposedPorts follow from PortBindings and are not kept at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from .jsonread import Json
from .names import current_labels
from .process import canonical_healthcheck, clean_path

SHM_SIZE: Final = 64 * 1024 * 1024
STOP_TIMEOUT: Final = 10

DEFAULTS: Final[Mapping[str, Json]] = MappingProxyType(
    {
        "Tty": True,
        "Cmd": [],
        "Entrypoint": [],
        "Volumes": [],
        "Env": {},
        "Labels": {},
        "StopSignal": "SIGTERM",
        "StopTimeout": STOP_TIMEOUT,
        "Domainname": "",
        "Hostname": "",
        "MacAddress": "",
        "User": "",
        "WorkingDir": "",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig.CapAdd": [],
        "HostConfig.CapDrop": [],
        "HostConfig.Binds": [],
        "HostConfig.Mounts": [],
        "HostConfig.CgroupParent": "",
        "HostConfig.Devices": [],
        "HostConfig.DeviceRequests": [],
        "HostConfig.Dns": [],
        "HostConfig.DnsOptions": [],
        "HostConfig.DnsSearch": [],
        "HostConfig.PortBindings": {},
        "HostConfig.ExtraHosts": [],
        "HostConfig.GroupAdd": [],
        "HostConfig.NetworkMode": "",
        "HostConfig.PidMode": "",
        "HostConfig.PidsLimit": 0,
        "HostConfig.SecurityOpt": [],
        "HostConfig.Sysctls": {},
        "HostConfig.Ulimits": {},
        "HostConfig.RestartPolicy": {"Name": "always", "MaximumRetryCount": 0},
        "HostConfig.CpuShares": 0,
        "HostConfig.CpuQuota": 0,
        "HostConfig.CpusetCpus": "",
        "HostConfig.Memory": 0,
        "HostConfig.MemoryReservation": 0,
        "HostConfig.OomKillDisable": False,
        "HostConfig.OomScoreAdj": 0,
        "HostConfig.Privileged": False,
        "HostConfig.ReadonlyRootfs": False,
        "HostConfig.ShmSize": SHM_SIZE,
        "HostConfig.Tmpfs": {},
        "HostConfig.UsernsMode": "",
        "HostConfig.NanoCpus": 0,
        "HostConfig.IpcMode": "shareable",
        "HostConfig.Init": None,
    }
)

DEVICE_NAME_VARIABLES: Final = ("RESIN_DEVICE_NAME_AT_INIT", "BALENA_DEVICE_NAME_AT_INIT")
"""Sent when a container is made and never compared: a device may be renamed (spec 21 §8)."""


def canonical(name: str, value: Json) -> Json:
    """The canonical form of an engine value; null means the default."""
    if value is None:
        return DEFAULTS[name]
    form = _FORMS.get(name)
    return form(value) if form else value


def engine_form(name: str, value: Json) -> Json:
    """The spelling in which a canonical value is sent to the engine."""
    if name == "Env":
        return [f"{key}={content}" for key, content in value.items()]
    if name == "Volumes":
        return {path: {} for path in value}
    if name == "HostConfig.Ulimits":
        return [{"Name": key, "Soft": soft, "Hard": hard} for key, (soft, hard) in value.items()]
    return value


def environment_map(entries: Iterable[str]) -> dict[str, str]:
    """`K=V` lines as a map. Without `=` or name they mean nothing to us; device names neither."""
    found: dict[str, str] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if key and equals:
            found[key] = value
    return without_device_name(found)


def not_variables(entries: Iterable[str]) -> tuple[str, ...]:
    """The entries that `environment_map` skips, but for what may be the value of one."""
    parts = ((entry.partition("=")) for entry in entries)
    return tuple(f"{name}{equals}" for name, equals, _ in parts if not (name and equals))


def without_device_name(environment: dict[str, str]) -> dict[str, str]:
    for name in DEVICE_NAME_VARIABLES:
        environment.pop(name, None)
    return environment


def capability(name: str) -> str:
    """`cap_net_admin` and `NET_ADMIN` are the same (spec 21 §2)."""
    upper = name.upper()
    return upper[4:] if upper.startswith("CAP_") else upper


def is_selinux_label(option: str) -> bool:
    """Options that we never set and never compare: the engine adds them by itself."""
    return "label=" in option or option.startswith("label:")


def pruned(value: Json) -> Json:
    """A value without members that are null, empty, 0 or false: the engine's way to say unset."""
    if not isinstance(value, Mapping):
        return value
    members = {key: pruned(item) for key, item in value.items()}
    return {key: item for key, item in members.items() if item}


def _sorted(value: Json) -> Json:
    return sorted(value)


def _environment(value: Json) -> Json:
    if isinstance(value, Mapping):
        return without_device_name(dict(value))
    return environment_map(value)


def _capabilities(value: Json) -> Json:
    return sorted(capability(name) for name in value)


def _security(value: Json) -> Json:
    return sorted(option for option in value if not is_selinux_label(option))


def _mounts(value: Json) -> Json:
    return sorted((pruned(mount) for mount in value), key=lambda m: str(m.get("Target")))


def _devices(value: Json) -> Json:
    parts = ("PathOnHost", "PathInContainer", "CgroupPermissions")
    return sorted(
        ({part: device.get(part) or "" for part in parts} for device in value),
        key=lambda device: tuple(device.values()),
    )


def _device_requests(value: Json) -> Json:
    return [
        {
            "Driver": request.get("Driver") or "",
            "Count": request.get("Count") or 0,
            "DeviceIDs": request.get("DeviceIDs") or [],
            "Capabilities": request.get("Capabilities") or [],
            "Options": request.get("Options") or {},
        }
        for request in value
    ]


def _ports(value: Json) -> Json:
    return {port: _hosts(bindings) for port, bindings in sorted(value.items()) if bindings}


def _hosts(bindings: Json) -> list[dict[str, str]]:
    pairs = {(item.get("HostIp") or "", item.get("HostPort") or "") for item in bindings}
    chosen_by_engine = {"0": ""}
    return [
        {"HostIp": address, "HostPort": port}
        for address, port in sorted((a, chosen_by_engine.get(p, p)) for a, p in pairs)
    ]


def _ulimits(value: Json) -> Json:
    if isinstance(value, Mapping):
        return value
    return {item["Name"]: [item.get("Soft", 0), item.get("Hard", 0)] for item in value}


def _restart(value: Json) -> Json:
    name = value.get("Name") or "no"
    return {"Name": name, "MaximumRetryCount": value.get("MaximumRetryCount") or 0}


_FORMS: Final[Mapping[str, Callable[[Json], Json]]] = MappingProxyType(
    {
        "Volumes": _sorted,
        "Env": _environment,
        "Labels": current_labels,
        "StopSignal": lambda value: value or DEFAULTS["StopSignal"],
        "WorkingDir": clean_path,
        "Healthcheck": canonical_healthcheck,
        "HostConfig.CapAdd": _capabilities,
        "HostConfig.CapDrop": _capabilities,
        "HostConfig.Binds": _sorted,
        "HostConfig.Mounts": _mounts,
        "HostConfig.Devices": _devices,
        "HostConfig.DeviceRequests": _device_requests,
        "HostConfig.DnsOptions": _sorted,
        "HostConfig.PortBindings": _ports,
        "HostConfig.ExtraHosts": _sorted,
        "HostConfig.GroupAdd": _sorted,
        "HostConfig.PidsLimit": lambda value: max(0, value),
        "HostConfig.SecurityOpt": _security,
        "HostConfig.Ulimits": _ulimits,
        "HostConfig.RestartPolicy": _restart,
        "HostConfig.ShmSize": lambda value: value or SHM_SIZE,
    }
)
