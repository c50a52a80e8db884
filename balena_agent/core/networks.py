"""Networks and volumes of an app: wanted, as sent to the engine, and as the engine shows them.

Theory: definition and inspect answer meet in `NetworkSpec` and `VolumeSpec` (spec 20 §19, 21 §14).
Our own labels are not part of a spec; a subnet that the engine chose by itself is none that anyone
asked for and is left out, which is what the label `io.balena.private.ipam.config` tells apart. So
equality is plain equality of specs, but for the driver of a config-only network, and for what the
engine adds to the addresses that were asked for: see `_same_addresses`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Final

from .canonical import pruned
from .fields import Notes, boolean, pick, plain, text, text_map
from .jsonread import Json, truth, whole_number
from .names import (
    APP_ID,
    APP_UUID,
    EXTRA_FIRMWARE,
    IPAM_MARK,
    SUPERVISED,
    SUPERVISOR_GATEWAY,
    SUPERVISOR_NETWORK,
    SUPERVISOR_SUBNET,
    current_labels,
    is_nameless_volume,
    is_supervised,
    parse_network_name,
    parse_volume_name,
)
from .observed import NO_APP, Network, Volume
from .spec import Difference, NetworkSpec, VolumeSpec

_NETWORK_FIELDS: Final = frozenset(
    {"driver", "driver_opts", "ipam", "enable_ipv6", "internal", "config_only", "labels"}
)
_VOLUME_FIELDS: Final = frozenset({"driver", "driver_opts", "labels"})
_NETWORK_MARKS: Final = frozenset({SUPERVISED, APP_ID, IPAM_MARK})
_VOLUME_MARKS: Final = frozenset({SUPERVISED, APP_UUID})
_IPAM_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"subnet": "Subnet", "gateway": "Gateway", "ip_range": "IPRange"}
)
_IPAM_FIELDS: Final = frozenset({"driver", "options", "config"})
_POOL_FIELDS: Final = frozenset({*_IPAM_NAMES, "aux_addresses"})
_AUXILIARY: Final = "AuxiliaryAddresses"
_Addresses = tuple[Mapping[str, Json], ...]
_BRIDGE_NAME: Final = "com.docker.network.bridge.name"


def network_spec(definition: Json, name: str, notes: Notes) -> NetworkSpec:
    """A network of the target; null means all defaults. Raises a refusal for a gateway without a
    subnet (spec 20 §19)."""
    where = f"networks.{name}"
    raw = _map(definition, where, notes)
    notes.unknown(where, raw, _NETWORK_FIELDS)
    ipam = _map(raw.get("ipam"), f"{where}.ipam", notes)
    notes.unknown(f"{where}.ipam", ipam, _IPAM_FIELDS)
    return NetworkSpec(
        driver=_driver(raw, "bridge", where, notes),
        driver_opts=_texts(raw, "driver_opts", where, notes),
        ipam_driver=plain(ipam.get("driver")) or "default",
        ipam_options=_texts(ipam, "options", f"{where}.ipam", notes),
        ipam_config=_ipam_config(ipam.get("config"), f"{where}.ipam.config", notes),
        enable_ipv6=_flag(raw, "enable_ipv6", where, notes),
        internal=_flag(raw, "internal", where, notes),
        config_only=_flag(raw, "config_only", where, notes),
        labels=_user_labels(raw, _NETWORK_MARKS, where, notes),
    )


def volume_spec(definition: Json, name: str, notes: Notes) -> VolumeSpec:
    """A volume of the target; null means all defaults."""
    where = f"volumes.{name}"
    raw = _map(definition, where, notes)
    notes.unknown(where, raw, _VOLUME_FIELDS)
    return VolumeSpec(
        driver=_driver(raw, "local", where, notes),
        driver_opts=_texts(raw, "driver_opts", where, notes),
        labels=_user_labels(raw, _VOLUME_MARKS, where, notes),
    )


def _map(value: Json, where: str, notes: Notes) -> Mapping[str, Json]:
    if isinstance(value, Mapping):
        return value
    if value is not None:
        notes.ignored(where, value, "expecting a map")
    return {}


def _driver(raw: Mapping[str, Json], standard: str, where: str, notes: Notes) -> str:
    """`default` is a word of compose, not a plugin of the engine."""
    value = raw.get("driver")
    found = text(value, f"{where}.driver", notes) if value is not None else None
    return standard if found in (None, "default") else str(found)


def _texts(raw: Mapping[str, Json], key: str, where: str, notes: Notes) -> dict[str, str]:
    value = pick(raw, key)
    return text_map(value, f"{where}.{key}", notes, null="") if value is not None else {}


def _user_labels(
    raw: Mapping[str, Json], marks: frozenset[str], where: str, notes: Notes
) -> dict[str, str]:
    found = current_labels(_texts(raw, "labels", where, notes))
    return {key: value for key, value in found.items() if key not in marks}


def _flag(raw: Mapping[str, Json], key: str, where: str, notes: Notes) -> bool:
    value = pick(raw, key)
    return value is not None and bool(boolean(value, f"{where}.{key}", notes))


def _ipam_config(value: Json, where: str, notes: Notes) -> tuple[dict[str, Json], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        notes.ignored(where, value, "expecting a list")
        return ()
    found = [_ipam_entry(entry, f"{where}[{at}]", notes) for at, entry in enumerate(value)]
    return tuple(entry for entry in found if entry)


def _ipam_entry(entry: Json, where: str, notes: Notes) -> dict[str, Json]:
    if not isinstance(entry, Mapping):
        notes.ignored(where, entry, "expecting a map")
        return {}
    notes.unknown(where, entry, _POOL_FIELDS)
    found: dict[str, Json] = {
        engine: content
        for key, engine in _IPAM_NAMES.items()
        if (content := plain(pick(entry, key)))
    }
    if auxiliary := _texts(entry, "aux_addresses", where, notes):
        found[_AUXILIARY] = auxiliary
    if "Gateway" in found and "Subnet" not in found:
        raise notes.refusal(where, found["Gateway"], "a gateway needs a subnet")
    if found and "Subnet" not in found:  # the engine refuses it for ever
        raise notes.refusal(where, entry, "ip_range and aux_addresses need a subnet")
    return found


def network_body(engine_name: str, app_id: int, spec: NetworkSpec) -> dict[str, Json]:
    """The create body of a network of ours (spec 21 §14)."""
    marks = {APP_ID: str(app_id), SUPERVISED: "true"}
    if spec.ipam_config:
        marks[IPAM_MARK] = "true"
    return {
        "Name": engine_name,
        "Driver": spec.driver,
        "IPAM": {
            "Driver": spec.ipam_driver,
            "Config": [dict(entry) for entry in spec.ipam_config],
            "Options": dict(spec.ipam_options),
        },
        "EnableIPv6": spec.enable_ipv6,
        "Internal": spec.internal,
        "Options": dict(spec.driver_opts),
        "CheckDuplicate": True,
        "ConfigOnly": spec.config_only,
        "Labels": {**spec.labels, **marks},
    }


def volume_body(engine_name: str, app_uuid: str, spec: VolumeSpec) -> dict[str, Json]:
    """The create body of a volume of ours (spec 21 §14)."""
    return {
        "Name": engine_name,
        "Driver": spec.driver,
        "DriverOpts": dict(spec.driver_opts),
        "Labels": {**spec.labels, SUPERVISED: "true", APP_UUID: app_uuid},
    }


def supervisor_network_body() -> dict[str, Json]:
    """The create body of the network on which containers reach our API. It bears no labels."""
    return {
        "Name": SUPERVISOR_NETWORK,
        "IPAM": {
            "Driver": "default",
            "Config": [{"Subnet": SUPERVISOR_SUBNET, "Gateway": SUPERVISOR_GATEWAY}],
        },
        "Options": {_BRIDGE_NAME: SUPERVISOR_NETWORK},
        "CheckDuplicate": True,
    }


SUPERVISOR_SPEC: Final = NetworkSpec(
    driver_opts={_BRIDGE_NAME: SUPERVISOR_NETWORK},
    ipam_config=({"Subnet": SUPERVISOR_SUBNET, "Gateway": SUPERVISOR_GATEWAY},),
)
"""What `supervisor_network_body` asks for, as far as it is compared."""


def supervisor_network_from_inspect(inspect: Mapping[str, Json]) -> Network | None:
    """A live network of that name, right or wrong; None for any other. It bears no labels, and its
    addresses are always asked for."""
    if inspect.get("Name") != SUPERVISOR_NETWORK:
        return None
    spec = _live_network_spec(inspect, {IPAM_MARK: "true"})
    name = SUPERVISOR_NETWORK
    return Network(str(inspect.get("Id") or ""), name, "", 0, name, spec)


def supervisor_differences(actual: NetworkSpec) -> tuple[Difference, ...]:
    """In what a network of that name is not as specified: the name of its bridge, its subnet, its
    gateway (spec 20 §13.1). Whatever else it may be is left as it is."""
    found: list[Difference] = []
    bridge = actual.driver_opts.get(_BRIDGE_NAME)
    if bridge != SUPERVISOR_NETWORK:
        found.append(Difference(f"Options.{_BRIDGE_NAME}", bridge, SUPERVISOR_NETWORK))
    (wanted,) = SUPERVISOR_SPEC.ipam_config
    if not any(wanted.items() <= entry.items() for entry in actual.ipam_config):
        found.append(Difference("IPAM.Config", list(actual.ipam_config), [wanted]))
    return tuple(found)


def firmware_volume_body() -> dict[str, Json]:
    """The create body of the device's volume for extra firmware; it belongs to no app."""
    return {"Name": EXTRA_FIRMWARE, "Driver": "local", "Labels": {SUPERVISED: "true"}}


def is_supervisor_network(inspect: Mapping[str, Json]) -> bool:
    """Whether a live network is the one of `supervisor_network_body` (spec 20 §13.1)."""
    network = supervisor_network_from_inspect(inspect)
    return network is not None and not supervisor_differences(network.spec)


def network_from_inspect(inspect: Mapping[str, Json]) -> Network | None:
    """A live network of ours, or None for one that is not, or whose app cannot be told."""
    labels = current_labels(inspect.get("Labels") or {})
    engine_name = str(inspect.get("Name") or "")
    parsed = parse_network_name(engine_name)
    if not is_supervised(labels) or parsed is None:
        return None
    app, name = parsed
    app_id = whole_number(labels.get(APP_ID))
    if app_id is None:
        app_id = whole_number(app)
    if app_id is None:
        return None
    spec = _live_network_spec(inspect, labels)
    return Network(str(inspect.get("Id") or ""), engine_name, app, app_id, name, spec)


def _live_network_spec(inspect: Mapping[str, Json], labels: Mapping[str, str]) -> NetworkSpec:
    ipam = inspect.get("IPAM") or {}
    asked_for = truth(labels.get(IPAM_MARK))
    config = (pruned(entry) for entry in (ipam.get("Config") or ())) if asked_for else ()
    return NetworkSpec(
        driver=str(inspect.get("Driver") or ""),
        driver_opts=dict(inspect.get("Options") or {}),
        ipam_driver=str(ipam.get("Driver") or "default"),
        ipam_options=dict(ipam.get("Options") or {}),
        ipam_config=tuple(config),
        enable_ipv6=bool(inspect.get("EnableIPv6")),
        internal=bool(inspect.get("Internal")),
        config_only=bool(inspect.get("ConfigOnly")),
        labels={key: value for key, value in labels.items() if key not in _NETWORK_MARKS},
    )


def volume_from_inspect(
    inspect: Mapping[str, Json], known_apps: frozenset[int] = frozenset()
) -> Volume | None:
    """A live volume of ours: one with our label, or, for those that old releases made without,
    one that is named after an app that we know (spec 20 §10)."""
    labels = current_labels(inspect.get("Labels") or {})
    engine_name = str(inspect.get("Name") or "")
    parsed = parse_volume_name(engine_name)
    if engine_name == EXTRA_FIRMWARE:
        parsed = NO_APP, engine_name
        known_apps = frozenset({NO_APP})
    if is_nameless_volume(engine_name):
        return Volume(engine_name, NO_APP, "", engine_name, VolumeSpec())
    if parsed is None or not (is_supervised(labels) or parsed[0] in known_apps):
        return None
    spec = VolumeSpec(
        driver=str(inspect.get("Driver") or "local"),
        driver_opts=dict(inspect.get("Options") or {}),
        labels={key: value for key, value in labels.items() if key not in _VOLUME_MARKS},
    )
    return Volume(engine_name, parsed[0], labels.get(APP_UUID, ""), parsed[1], spec)


def network_differences(wanted: NetworkSpec, actual: NetworkSpec) -> tuple[Difference, ...]:
    """What is not as wanted. The engine reports no real driver for a config-only network."""
    ignored = {"driver"} if wanted.config_only else set()
    if _same_addresses(wanted.ipam_config, actual.ipam_config):
        ignored.add("ipam_config")
    return _differences(wanted, actual, ignored)


def _same_addresses(wanted: _Addresses, actual: _Addresses) -> bool:
    """Whether a live network has the addresses that were asked for. The engine lists IPv4 before
    IPv6, adds a subnet of its own for IPv4 where only one for IPv6 was asked for, and since its
    own next start it tells the gateway that it chose itself."""
    if not wanted:
        return not actual
    families = {_is_ipv6(entry) for entry in wanted}
    live = [entry for entry in actual if _is_ipv6(entry) in families]
    ordered = sorted(wanted, key=_is_ipv6)
    return len(live) == len(ordered) and all(map(_as_asked, ordered, live))


def _as_asked(wanted: Mapping[str, Json], live: Mapping[str, Json]) -> bool:
    chosen = {} if "Gateway" in wanted else {"Gateway": live.get("Gateway")}
    return {**pruned(chosen), **wanted} == live


def _is_ipv6(entry: Mapping[str, Json]) -> bool:
    return ":" in str(entry.get("Subnet"))


def volume_differences(wanted: VolumeSpec, actual: VolumeSpec) -> tuple[Difference, ...]:
    return _differences(wanted, actual, set())


def _differences(
    wanted: NetworkSpec | VolumeSpec, actual: NetworkSpec | VolumeSpec, ignored: set[str]
) -> tuple[Difference, ...]:
    if wanted == actual:
        return ()
    names = [item.name for item in fields(wanted) if item.name not in ignored]
    pairs = ((name, getattr(actual, name), getattr(wanted, name)) for name in names)
    return tuple(Difference(name, old, new) for name, old, new in pairs if old != new)
