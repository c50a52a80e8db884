"""Feature labels: `io.balena.features.*` and what each adds to a container (spec 21 §7.3).

Theory: a feature is a label whose value is true. It brings variables, binds, mounts or a device
request, chosen by facts about the host. Image labels count too. A variable whose value is not
known (no device key on an unmanaged device) is left out, never sent as an empty or invented text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from .environment import both_prefixes
from .fields import Notes
from .jsonread import Json, truth
from .observed import HostFacts

PREFIX: Final = "io.balena.features."

_BINDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "journal-logs": (
            "/var/log/journal:/var/log/journal:ro",
            "/run/log/journal:/run/log/journal:ro",
            "/etc/machine-id:/etc/machine-id:ro",
        ),
        "dbus": ("/run/dbus:/host/run/dbus",),
        "kernel-modules": ("/lib/modules:/lib/modules",),
        "firmware": ("/lib/firmware:/lib/firmware",),
        "sysfs": ("/sys:/sys",),
        "procfs": ("/proc:/proc",),
    }
)
_OTHERS: Final = frozenset(
    {"balena-socket", "balena-api", "supervisor-api", "gpu", "host-os.board-rev", "extra-firmware"}
)
_FALSE: Final = frozenset({"", "0", "false", "off", "no"})
_SOCKET_IN_CONTAINER: Final = "/host/run/balena-engine.sock"
_OLD_SOCKET: Final = "/var/run/balena.sock"
_GPU: Final[Mapping[str, Json]] = MappingProxyType(
    {"Driver": "", "Count": 1, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}
)

_LABEL_OF_PATH: Final[Mapping[str, str]] = MappingProxyType(
    {
        "/run/dbus": "dbus",
        "/sys": "sysfs",
        "/proc": "procfs",
        "/lib/modules": "kernel-modules",
        "/lib/firmware": "firmware",
        "/var/log/journal": "journal-logs",
        "/run/log/journal": "journal-logs",
        "/etc/machine-id": "journal-logs",
        "/var/run/docker.sock": "balena-socket",
        "/run/docker.sock": "balena-socket",
        "/var/run/balena.sock": "balena-socket",
        "/var/run/balena-engine.sock": "balena-socket",
        "/run/balena-engine.sock": "balena-socket",
    }
)


@dataclass(frozen=True, slots=True)
class Features:
    """What the feature labels of one service add to it."""

    environment: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[str, ...] = ()
    mounts: tuple[Mapping[str, Json], ...] = ()
    device_requests: tuple[Mapping[str, Json], ...] = ()
    supervisor_api: bool = False


def enabled(labels: Mapping[str, str], notes: Notes) -> frozenset[str]:
    """Short names of the features that the labels switch on; doubtful values are noted."""
    found: set[str] = set()
    for label, value in labels.items():
        if not label.startswith(PREFIX):
            continue
        name = label[len(PREFIX) :]
        if truth(value):
            found.add(name)
        elif (name in _BINDS or name in _OTHERS) and value.lower() not in _FALSE:
            notes.ignored(f"label {label}", value, "expecting 1, true, on or 0, false, off")
    return frozenset(found)


def of_image(names: frozenset[str], image: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Those features that nobody has asked for but the image; all labels with today's names."""
    brought = (n for n in names if PREFIX + n in image and PREFIX + n not in own)
    return sorted(n for n in brought if n in _BINDS or n in _OTHERS)


def features(names: frozenset[str], facts: HostFacts, host_mode: bool, key: str) -> Features:
    """The additions of the named features. `key` is the service's API key, "" if there is none."""
    if not names:
        return Features()
    return Features(
        environment=_environment(names, facts, host_mode, key),
        binds=tuple(_binds(names, facts)),
        mounts=tuple(_mounts(names, facts)),
        device_requests=(_GPU,) if "gpu" in names else (),
        supervisor_api="supervisor-api" in names,
    )


def label_for_path(path: str) -> str:
    """The label that gives a container this host path, or "" if there is none."""
    name = _LABEL_OF_PATH.get(path.rstrip("/") or "/")
    return PREFIX + name if name else ""


def _binds(names: frozenset[str], facts: HostFacts) -> Iterator[str]:
    for name, binds in _BINDS.items():
        missing = (name == "kernel-modules" and not facts.has_modules) or (
            name == "firmware" and not facts.has_firmware
        )
        if name in names and not missing:
            yield from binds


def _mounts(names: frozenset[str], facts: HostFacts) -> Iterator[Mapping[str, Json]]:
    """The socket as Mounts: a missing one is then an error at once, where a bind would silently
    make a directory of its name."""
    if "balena-socket" in names:
        socket = facts.engine_socket
        for target in dict.fromkeys((_SOCKET_IN_CONTAINER, socket, _OLD_SOCKET)):
            yield {"Type": "bind", "Source": socket, "Target": target}
    if "extra-firmware" in names:
        yield {"Type": "volume", "Source": "extra-firmware", "Target": "/extra-firmware"}


def _environment(
    names: frozenset[str], facts: HostFacts, host_mode: bool, key: str
) -> dict[str, str]:
    known: dict[str, str] = {}
    if "balena-api" in names:
        known |= {"API_KEY": facts.device_api_key, "API_URL": facts.api_endpoint}
    if "supervisor-api" in names:
        known |= _supervisor_api(facts, host_mode, key)
    if "host-os.board-rev" in names:
        known |= {"HOST_OS_BOARD_REV": facts.board_rev, "HOST_OS_BUILD": facts.board_rev}
    found = both_prefixes({name: value for name, value in known.items() if value})
    if "balena-socket" in names:
        found["DOCKER_HOST"] = f"unix://{_SOCKET_IN_CONTAINER}"
    return found


def _supervisor_api(facts: HostFacts, host_mode: bool, key: str) -> dict[str, str]:
    host = "127.0.0.1" if host_mode else facts.supervisor_gateway
    return {
        "SUPERVISOR_API_KEY": key,
        "SUPERVISOR_PORT": str(facts.api_port),
        "SUPERVISOR_HOST": host,
        "SUPERVISOR_ADDRESS": f"http://{host}:{facts.api_port}",
    }
