"""Device variables: what the target's `config` says about the agent and the host (spec 30 §3).

Theory: the target's variables are a flat map of texts. One table knows every variable of ours with
its type and default; `effective` reads a whole map against it, and never fails: a value that breaks
its rule is told and the default takes its place. What comes out is one frozen `DeviceSettings`, a
function of the target alone. So nobody stores settings, and nobody has to be told that they have
changed: who needs one asks the newest snapshot.

Two variables are kept in config.json besides, because the OS reads them there; bringing them there
is a step like any other (hostconfig.py). Variables of boot configuration are boot.py's.

Source: spec 20 §9, spec 30 §2.1 (types) and §3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PREFIXES = ("BALENA_", "RESIN_", "")
"""Of two spellings of one variable the one with the earlier prefix wins."""

TRUE, FALSE = ("1", "true", "on"), ("0", "false", "off")
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,15}\s*\Z")
_ALIASES = {"OVERRIDE_LOCK": "SUPERVISOR_OVERRIDE_LOCK"}
_POLL_FLOOR = 10_000


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What is in force. Times are milliseconds; a `delta_apply_timeout` of 0 is none."""

    poll_interval: int = 900_000
    instant_updates: bool = True
    local_mode: bool = False
    connectivity_check: bool = True
    log_control: bool = True
    api_request_timeout: int = 59_000
    delta: bool = False
    delta_request_timeout: int = 59_000
    delta_apply_timeout: int = 0
    delta_retry_count: int = 30
    delta_retry_interval: int = 10_000
    delta_version: int = 3
    override_lock: bool = False
    persistent_logging: bool = False
    hardware_metrics: bool = True
    vpn_control: bool = True
    firewall_mode: str = "off"
    discoverability: bool = True


@dataclass(frozen=True, slots=True)
class Variable:
    """`name` is without prefix, `setting` the field of DeviceSettings, `told` the peer's name for
    it in log lines. `rule` limits the value further; `config_key` is where config.json keeps it."""

    name: str
    setting: str
    told: str
    rule: Callable[[Any], bool] = lambda value: True
    config_key: str = ""

    @property
    def default(self) -> bool | int | str:
        value: bool | int | str = getattr(DeviceSettings(), self.setting)
        return value

    def read(self, text: str) -> bool | int | str | None:
        """The value in its type; None when the text breaks the rule."""
        kind = type(self.default)
        value: bool | int | str | None = text
        if kind is bool:
            word = text.lower()
            value = True if word in TRUE else False if word in FALSE else None
        elif kind is str:
            value = text.strip().lower()
        elif kind is int:
            value = int(text) if _INTEGER.match(text) else None
            value = None if value is None or value < 0 else value
        return value if value is not None and self.rule(value) else None


VARIABLES = (
    Variable("SUPERVISOR_POLL_INTERVAL", "poll_interval", "appUpdatePollInterval",
             config_key="appUpdatePollInterval"),
    Variable("SUPERVISOR_INSTANT_UPDATE_TRIGGER", "instant_updates", "instantUpdates"),
    Variable("SUPERVISOR_LOCAL_MODE", "local_mode", "localMode"),
    Variable("SUPERVISOR_CONNECTIVITY_CHECK", "connectivity_check", "connectivityCheckEnabled"),
    Variable("SUPERVISOR_LOG_CONTROL", "log_control", "loggingEnabled"),
    Variable("SUPERVISOR_API_REQUEST_TIMEOUT", "api_request_timeout", "apiRequestTimeout"),
    Variable("SUPERVISOR_DELTA", "delta", "delta"),
    Variable("SUPERVISOR_DELTA_REQUEST_TIMEOUT", "delta_request_timeout", "deltaRequestTimeout"),
    Variable("SUPERVISOR_DELTA_APPLY_TIMEOUT", "delta_apply_timeout", "deltaApplyTimeout"),
    Variable("SUPERVISOR_DELTA_RETRY_COUNT", "delta_retry_count", "deltaRetryCount"),
    Variable("SUPERVISOR_DELTA_RETRY_INTERVAL", "delta_retry_interval", "deltaRetryInterval"),
    Variable("SUPERVISOR_DELTA_VERSION", "delta_version", "deltaVersion", lambda n: n in (2, 3)),
    Variable("SUPERVISOR_OVERRIDE_LOCK", "override_lock", "lockOverride"),
    Variable("SUPERVISOR_PERSISTENT_LOGGING", "persistent_logging", "persistentLogging",
             config_key="persistentLogging"),
    Variable("SUPERVISOR_HARDWARE_METRICS", "hardware_metrics", "hardwareMetrics"),
    Variable("SUPERVISOR_VPN_CONTROL", "vpn_control", "vpnControl"),
    Variable("HOST_FIREWALL_MODE", "firewall_mode", "firewallMode",
             lambda word: word in ("on", "off", "auto")),
    Variable("HOST_DISCOVERABILITY", "discoverability", "hostDiscoverability"),
)  # fmt: skip
"""Every variable that means something to the agent itself (spec 30 §3.1)."""

KNOWN = frozenset(variable.name for variable in VARIABLES)


@dataclass(frozen=True, slots=True)
class Effective:
    """What a map of variables comes to. `problems` are log lines, in the peer's words."""

    settings: DeviceSettings = field(default_factory=DeviceSettings)
    problems: tuple[str, ...] = ()


def plain_names(config: Mapping[str, str]) -> dict[str, str]:
    """The variables without prefixes. BALENA_X beats RESIN_X, which beats X."""
    found: dict[str, tuple[int, str]] = {}
    for name, value in config.items():
        rank, plain = next(
            (rank, name[len(prefix) :])
            for rank, prefix in enumerate(PREFIXES)
            if name.startswith(prefix)
        )
        if plain not in found or rank < found[plain][0]:
            found[plain] = (rank, value)
    plain_map = {name: value for name, (_, value) in found.items()}
    for alias, name in _ALIASES.items():
        if alias in plain_map:
            plain_map[name] = plain_map.pop(alias)
    return plain_map


def effective(config: Mapping[str, str], managed: bool) -> Effective:
    """The settings that the target's variables, prefixed or not, make on this device."""
    given = plain_names(config)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for variable in VARIABLES:
        text = given.get(variable.name)
        if text is None:
            continue
        value = variable.read(text)
        if value is None:
            problems.append(_ignored(variable, text))
            value = variable.default
        values[variable.setting] = value
    if not managed:  # without a cloud there is nobody else to take targets from (spec 10 §10)
        values["local_mode"] = True
    values["poll_interval"] = max(
        _POLL_FLOOR, values.get("poll_interval", DeviceSettings().poll_interval)
    )
    return Effective(DeviceSettings(**values), tuple(problems))


def as_variables(settings: DeviceSettings) -> dict[str, str]:
    """The settings as variables without prefixes, every one of them, in the peer's spelling."""
    return {v.name: spelled(getattr(settings, v.setting)) for v in VARIABLES}


def spelled(value: object) -> str:
    """true, false, a decimal number or the text itself."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def changes(before: DeviceSettings, after: DeviceSettings) -> dict[str, str]:
    """The variables in which two settings differ, with their new values."""
    old = as_variables(before)
    return {name: value for name, value in as_variables(after).items() if old[name] != value}


def _ignored(variable: Variable, text: str) -> str:
    shown = text if len(text) <= 60 else text[:59] + "…"
    return (
        "Warning: Ignoring invalid device configuration value for"
        f" {variable.told}, value: '{shown}'. Falling back to default ({spelled(variable.default)})"
    )
