"""To which networks a service belongs: `networks`, `network_mode`, `pid`, `ipc` (spec 21 §5).

Theory: exactly one network is main: it is the container's NetworkMode and goes into the create
body; further ones are joined before the start. In host, none and service mode there are none at
all, whatever is declared. A service that shares the namespace of another names it symbolically
(`service:x`) up to the moment of creation, because the id of x changes whenever x is recreated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .fields import Notes, camel, plain, strings, text, text_map, whole
from .jsonread import Json
from .names import SUPERVISOR_NETWORK, network_name
from .spec import Endpoint, shared_service

_ENTRY_FIELDS: Final = (
    "aliases", "ipv4_address", "ipv6_address", "link_local_ips", "mac_address", "driver_opts",
    "priority",
)  # fmt: skip
_ENTRY_NAMES: Final = MappingProxyType(
    {spelling: name for name in _ENTRY_FIELDS for spelling in (name, camel(name))}
)
_MAC: Final = re.compile(r"(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}\Z")
_IPC_MODES: Final = ("none", "private", "shareable", "host")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an app declares, as far as a service may refer to it."""

    app_uuid: str
    networks: frozenset[str]
    services: frozenset[str]


@dataclass(frozen=True, slots=True)
class Attachment:
    """`mode` is the engine's NetworkMode, or `service:x`. `mac` comes from the main network."""

    mode: str
    endpoints: tuple[Endpoint, ...] = ()
    mac: str = ""

    @property
    def shared_with(self) -> str:
        return shared_service(self.mode)

    @property
    def joinable(self) -> bool:
        """Whether the container can be a member of networks."""
        return self.mode not in ("host", "none") and not self.shared_with


def attachment(
    composition: Mapping[str, Json], service: str, around: Surroundings, notes: Notes
) -> Attachment:
    """The networks of one service. Raises a refusal for networks and services that are unknown."""
    mode = _mode(composition.get("network_mode"), around, notes)
    declared = _declared(composition.get("networks"), notes)
    if mode in ("host", "none") or shared_service(mode):
        if declared:
            notes.ignored("networks", list(declared), f"network_mode {mode} allows none")
        return Attachment(mode)
    for name in (*declared, *((mode,) if mode and mode != "bridge" else ())):
        if name not in around.networks and name != "default":
            raise notes.refusal("networks", name, "the app does not declare this network")
    main = _main(mode, declared)
    members = {main: declared.get(main, {}), **declared} if main else declared
    endpoints = tuple(_endpoint(name, e, service, around, notes) for name, e in members.items())
    mac = members[main].get("mac_address") if main else None
    if mac is not None:
        mac = mac_address(mac, f"networks.{main}.mac_address", notes)
    engine_mode = network_name(around.app_uuid, main) if main else mode
    return Attachment(engine_mode, endpoints, mac or "")


def mac_address(value: Json, name: str, notes: Notes) -> str | None:
    """An address of six bytes, in the user's spelling."""
    found = text(value, name, notes)
    if found and not _MAC.match(found):
        notes.ignored(name, value, "expecting an address such as 02:42:ac:11:65:43")
        return None
    return found


def _main(mode: str, declared: Mapping[str, Mapping[str, Json]]) -> str:
    """The main network; "" in bridge mode, where the engine's own bridge is it."""
    if mode:
        return "" if mode == "bridge" else mode
    if not declared:
        return "default"
    return max(declared, key=lambda name: whole(declared[name].get("priority")) or 0)


def _mode(value: Json, around: Surroundings, notes: Notes) -> str:
    if value is None:
        return ""
    found = text(value, "network_mode", notes)
    wanted = (found or "").strip()
    kind, colon, name = (part.strip() for part in wanted.partition(":"))
    if kind == "service" and colon:
        return _shared("network_mode", name, value, around, notes)
    if kind == "container" and colon:
        if name in around.services:
            return f"service:{name}"
        notes.ignored("network_mode", value, "only containers of the same app can be shared with")
        return ""
    return wanted


def _shared(field: str, name: str, value: Json, around: Surroundings, notes: Notes) -> str:
    if name not in around.services:
        raise notes.refusal(field, value, f"No container for {field}: 'service: {name}'")
    return f"service:{name}"


def _declared(value: Json, notes: Notes) -> dict[str, Mapping[str, Json]]:
    """Networks in declared order, with entries in snake_case."""
    if value is None:
        return {}
    if isinstance(value, list):
        value = dict.fromkeys(strings(value, "networks", notes) or ())
    if not isinstance(value, Mapping):
        notes.ignored("networks", value, "expecting a list or a map")
        return {}
    found: dict[str, Mapping[str, Json]] = {}
    for name, entry in value.items():
        if entry is not None and not isinstance(entry, Mapping):
            notes.ignored(f"networks.{name}", entry, "expecting a map")
        if name != SUPERVISOR_NETWORK:
            found[name] = (
                _entry(entry, f"networks.{name}", notes)
                if entry and isinstance(entry, Mapping)
                else {}
            )
        else:
            notes.ignored("networks", name, "use label io.balena.features.supervisor-api")
    return found


def _entry(entry: Mapping[str, Json], where: str, notes: Notes) -> dict[str, Json]:
    notes.unknown(where, entry, _ENTRY_FIELDS)
    found: dict[str, Json] = {}
    for key, value in entry.items():
        name = _ENTRY_NAMES.get(key)
        if name and value is not None and (name == key or entry.get(name) is None):
            found[name] = value
    return found


def _endpoint(
    name: str, entry: Mapping[str, Json], service: str, around: Surroundings, notes: Notes
) -> Endpoint:
    network = network_name(around.app_uuid, name)
    if not entry:
        return Endpoint(network, (service,))
    where = f"networks.{name}"
    aliases = strings(entry.get("aliases", []), f"{where}.aliases", notes) or []
    local = strings(entry.get("link_local_ips", []), f"{where}.link_local_ips", notes) or []
    return Endpoint(
        network,
        aliases=tuple(sorted({*aliases, service})),
        ipv4=plain(entry.get("ipv4_address")) or "",
        ipv6=plain(entry.get("ipv6_address")) or "",
        link_local=tuple(sorted(local)),
        driver_opts=text_map(entry.get("driver_opts"), f"{where}.driver_opts", notes),
    )


def supervisor_endpoint() -> Endpoint:
    """Membership in the network on which containers reach our API (spec 21 §5.6)."""
    return Endpoint(SUPERVISOR_NETWORK)


def pid_mode(value: Json, around: Surroundings, notes: Notes) -> str | None:
    """`host` or `service:x`; anything else is ignored (spec 21 §2)."""
    found = text(value, "pid", notes)
    kind, colon, name = (part.strip() for part in (found or "").partition(":"))
    if kind == "service" and colon:
        return _shared("pid", name, value, around, notes)
    if found and found != "host":
        notes.ignored("pid", value, "expecting host or service:<name>")
        return None
    return found


def ipc_mode(value: Json, around: Surroundings, notes: Notes) -> str | None:
    """An IPC mode of the engine, or `service:x`. What the engine would refuse is refused here."""
    found = text(value, "ipc", notes)
    kind, colon, name = (part.strip() for part in (found or "").partition(":"))
    if kind == "service" and colon:
        return _shared("ipc", name, value, around, notes)
    if kind == "container" and colon:
        notes.ignored("ipc", value, "only services of the same app can be shared with")
        return None
    if found and found not in _IPC_MODES:
        raise notes.refusal("ipc", value, "expecting " + ", ".join(_IPC_MODES))
    return found
