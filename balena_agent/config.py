"""The agent's own settings: `/etc/balena-agent/agent.conf`, an INI file, as frozen values.

Theory: a settings file must never keep the agent from running. Whatever is wrong in it - a value
against its rule, an unknown name, a line that does not parse, a file that cannot be read -
becomes a line in `problems`, and the default takes its place. The rules and defaults stand once,
in `RULES`; `units/agent.conf` shows them to the administrator, and a test compares the two.

Order: the peer's environment variables win over the file, the file wins over the defaults
(spec 30 §1). `BALENA_AGENT_CONF` names another file.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .core.jsonread import Json, shown

CONF = "/etc/balena-agent/agent.conf"
CONF_VARIABLE = "BALENA_AGENT_CONF"
SOCKETS = ("/var/run/balena-engine.sock", "/var/run/docker.sock")
"""Where `socket = auto` looks; the last one is taken when none is there yet."""

Section = Mapping[str, tuple[str, str]]
"""A key's rule in the words of configobj's validator, and its default as it stands in the file."""

RULES: Mapping[str, Section] = {
    "paths": {
        "root": ("path", "/"),
        "boot": ("path", "/mnt/boot"),
        "state": ("path", "/mnt/state"),
        "data": ("path", "/mnt/data"),
        "store": ("path", "/var/lib/balena-agent"),
        "run": ("path", "/run/balena-agent"),
        "locks": ("path", "/tmp/balena-supervisor/services"),
    },
    "engine": {
        "socket": ("auto_path", "auto"),
        "api_version": ("version", "1.41"),
        "keep_images": ("option('auto', 'yes', 'no')", "auto"),
        "cleanup_peer_supervisor_images": ("boolean", "no"),
    },
    "api": {
        "port": ("integer(1, 65535)", "48484"),
        "address": ("address", "all"),
        "open_in_local_mode": ("option('always', 'dev', 'never')", "dev"),
        "workers": ("integer(5, 64)", "12"),
        "streams": ("integer(1, 256)", "16"),
        "compat_version": ("string(1, 64)", "19.0.5"),
    },
    "agent": {
        "profile": ("option('auto', 'balenaos', 'generic')", "auto"),
        "log_level": ("option('debug', 'info', 'warning', 'error')", "info"),
        "stop_services_on_shutdown": ("boolean", "yes"),
        "workers": ("integer(1, 32)", "8"),
        "pullers": ("integer(1, 8)", "3"),
    },
    "host": {
        "config_json": ("auto_path", "auto"),
        "device_type_json": ("auto_path", "auto"),
        "os_release": ("path", "/etc/os-release"),
        "hostname": ("path", "/etc/hostname"),
        "led": ("path", "/sys/class/leds/led0/brightness"),
        "firewall": ("boolean", "yes"),
        "announce": ("boolean", "no"),
        "proxy_rollback": ("boolean", "yes"),
        "proxy_rollback_after": ("integer(5, 86400)", "300"),
    },
}

WORDS = {
    "path": "an absolute path",
    "auto_path": "auto, or an absolute path",
    "address": "all, or an IP address",
    "version": "a version like 1.41",
    "boolean": "yes or no",
}
"""What a rule asks for, for people; the other rules speak for themselves."""

ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "ROOT_MOUNTPOINT": ("paths", "root"),
    "BOOT_MOUNTPOINT": ("paths", "boot"),
    "STATE_MOUNTPOINT": ("paths", "state"),
    "DATA_MOUNTPOINT": ("paths", "data"),
    "CONFIG_MOUNT_POINT": ("host", "config_json"),
    "HOST_OS_VERSION_PATH": ("host", "os_release"),
    "LED_FILE": ("host", "led"),
    "DOCKER_SOCKET": ("engine", "socket"),
    "LISTEN_PORT": ("api", "port"),
}
"""The peer's environment variables that still count, and what they set."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Directories. boot, state, data and locks are under `root`; store and run are not."""

    root: str
    boot: str
    state: str
    data: str
    store: str
    run: str
    locks: str


@dataclass(frozen=True, slots=True)
class Engine:
    """`keep_images`: whether images that no target names are left alone; `auto`: without a cloud;
    `cleanup_peer_supervisor_images`: whether those of the peer may go too."""

    socket: str
    api_version: str
    keep_images: str
    cleanup_peer_supervisor_images: bool


@dataclass(frozen=True, slots=True)
class Api:
    """`address` is "" for all; `listenPort` in config.json wins over `port`."""

    port: int
    address: str
    open_in_local_mode: str
    workers: int
    streams: int
    compat_version: str


@dataclass(frozen=True, slots=True)
class Agent:
    """`workers` run steps, `pullers` download images."""

    profile: str
    log_level: str
    stop_services_on_shutdown: bool
    workers: int
    pullers: int


@dataclass(frozen=True, slots=True)
class Host:
    """Files of the host that facts are read from; whether the agent keeps firewall rules, and
    announces itself by mDNS; whether a change of the proxy is taken back when the cloud is out of
    reach for so many seconds."""

    config_json: str
    device_type_json: str
    os_release: str
    hostname: str
    led: str
    firewall: bool
    announce: bool
    proxy_rollback: bool
    proxy_rollback_after: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the administrator may set. Paths are ready for use: `root` is in them."""

    paths: Paths
    engine: Engine
    api: Api
    agent: Agent
    host: Host
    problems: tuple[str, ...] = ()


Raw = dict[str, dict[str, Json]]


def load(path: str = "", environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in force. Never raises: what is wrong is in `problems`.

    No file at the usual place is fine; a file that was asked for by name must be there.
    """
    asked = path or environment.get(CONF_VARIABLE, "")
    name = asked or CONF
    try:
        text = Path(name).read_bytes().decode()
    except FileNotFoundError:
        missing = (f"{name}: no such file; defaults are used",) if asked else ()
        return settings_from("", name, environment, missing)
    except OSError as error:
        unread = f"{name}: cannot be read ({error.strerror}); defaults are used"
        return settings_from("", name, environment, (unread,))
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        garbled = f"{name}: line {number} is not UTF-8 text; defaults are used"
        return settings_from("", name, environment, (garbled,))
    return settings_from(text, name, environment)


def settings_from(
    text: str,
    name: str = CONF,
    environment: Mapping[str, str] = MappingProxyType({}),
    problems: tuple[str, ...] = (),
) -> Settings:
    """The settings that a file's text and the environment make; `name` is for problem lines."""
    found = list(problems)
    raw = _parse(text, name, found)
    validator = _validator()
    values: Raw = {section: {} for section in RULES}
    for section, key in _names():
        value = _accepted(validator, section, key, raw.get(section, {}).get(key), name, found)
        values[section][key] = value
    for variable, (section, key) in ENVIRONMENT.items():
        if environment.get(variable):
            value = environment[variable]
            kept = values[section][key]
            values[section][key] = _accepted(
                validator, section, key, value, f"environment {variable}", found, kept
            )
    return _settings(values, tuple(found))


def rule_of(section: str, key: str) -> str:
    """A rule as people read it: `a whole number from 1 to 65535`, `one of auto, yes, no`."""
    name, _, rest = RULES[section][key][0].partition("(")
    parts = [part.strip(" '") for part in rest.rstrip(")").split(",")]
    if name == "integer":
        return f"a whole number from {parts[0]} to {parts[1]}"
    if name == "string":
        return f"a text of {parts[0]} to {parts[1]} characters"
    return "one of " + ", ".join(parts) if name == "option" else WORDS[name]


def _names() -> Iterator[tuple[str, str]]:
    return ((section, key) for section, keys in RULES.items() for key in keys)


def _parse(text: str, name: str, problems: list[str]) -> Raw:
    """The known sections of the text. Everything unknown, or all of a garbled text, is told."""
    from configobj import ConfigObj, ConfigObjError  # 1 MB that most modules do without

    try:
        conf = ConfigObj(text.splitlines(), interpolation=False, raise_errors=True)
    except ConfigObjError as error:
        reason = str(error).rsplit(" at line", 1)[0].rstrip(".")
        problems.append(f"{name}: line {error.line_number}: {reason}; defaults are used")
        return {}
    problems += (f"{name}: {key} stands before any [section]; ignored" for key in conf.scalars)
    for section in conf.sections:
        if section not in RULES:
            problems.append(f"{name}: unknown section [{section}]; ignored{_hint(section, RULES)}")
            continue
        for key in conf[section]:
            if key not in RULES[section]:
                hint = _hint(key, RULES[section])
                problems.append(f"{name}: [{section}] unknown setting {key}; ignored{hint}")
    return {section: dict(conf[section]) for section in conf.sections if section in RULES}


def _hint(name: str, known: Mapping[str, object]) -> str:
    import difflib  # for typing errors only

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def _accepted(
    validator: Any,
    section: str,
    key: str,
    value: Json,
    where: str,
    problems: list[str],
    fallback: Json = None,
) -> Json:
    """The value in its type if it keeps the rule; else a problem and the fallback or default."""
    rule, default = RULES[section][key]
    try:
        if value is not None:
            return validator.check(rule, value)
    except _refusals():
        used = default if fallback is None else shown(fallback)
        wanted = rule_of(section, key)
        problems.append(
            f"{where}: [{section}] {key} = {shown(value)}: must be {wanted}; using {used}"
        )
    return validator.check(rule, default) if fallback is None else fallback


def _settings(values: Raw, problems: tuple[str, ...]) -> Settings:
    """Words like `auto` and `all` turned into what they stand for, paths put under the root."""
    paths, host, engine, api = (dict(values[s]) for s in ("paths", "host", "engine", "api"))
    root = paths["root"].rstrip("/")
    for key in ("boot", "state", "data", "locks"):
        paths[key] = root + paths[key]
    for key, name in (("config_json", "config.json"), ("device_type_json", "device-type.json")):
        host[key] = f"{paths['boot']}/{name}" if host[key] == "auto" else root + host[key]
    for key in ("os_release", "hostname", "led"):
        host[key] = root + host[key]
    if engine["socket"] == "auto":
        engine["socket"] = next(filter(os.path.exists, SOCKETS), SOCKETS[-1])
    api["address"] = "" if api["address"] == "all" else api["address"]
    return Settings(
        Paths(**paths), Engine(**engine), Api(**api), Agent(**values["agent"]), Host(**host),
        problems,
    )  # fmt: skip


def _validate_module() -> Any:
    try:
        return importlib.import_module("configobj.validate")
    except ImportError:  # before 5.0.7 it stood beside configobj
        return importlib.import_module("validate")


def _refusals() -> type[Exception]:
    refused: type[Exception] = _validate_module().ValidateError
    return refused


def _validator() -> Any:
    """configobj's validator with the rules that are ours."""
    refused = _refusals()

    def matching(pattern: str) -> Callable[[Json], str]:
        def check(value: Json) -> str:
            if isinstance(value, str) and re.fullmatch(pattern, value):
                return value
            raise refused(value)

        return check

    def address(value: Json) -> str:
        try:
            return "all" if value == "all" else str(ipaddress.ip_address(value))
        except ValueError as error:
            raise refused(value) from error

    absolute = r"/[^\0\n]*"
    return _validate_module().Validator(
        {
            "path": matching(absolute),
            "auto_path": matching(f"auto|{absolute}"),
            "version": matching(r"[0-9]+\.[0-9]+"),
            "address": address,
        }
    )
