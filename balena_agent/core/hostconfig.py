"""What the host is set to, and the steps that bring it to what the target's variables ask for.

Theory: `HostConfig` is to the host what `Observed` is to the engine: how things are, as frozen
values, read by the host adapter. `plan_host` compares it with the variables of a target. Steps are
independent of the apps': a variable that is wrong never holds up an update (spec 30 §4.1 D).

What needs a reboot leaves a reason; as long as there is one, this boot is not the last word. The
reboot itself is planned elsewhere. For one wish a reboot is asked for once: if the file is found
otherwise again in a later boot, somebody else puts it back. It is written again, for it may hold
after some other reboot, but no reboot is asked for (`Attempt`).

Source: spec 30 §3.2, §4.1, §5.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .boot import Backend, Board, BootFault, difference, listed, readable
from .boot_backends import backends, is_boot_variable
from .configjson import ConfigJson, KeyPath
from .jsonread import Json
from .steps import ChangeConfig, DumpConfig, HostConfigStep, SetBootConfig, SwitchFeature
from .switches import plan_switches
from .variables import KNOWN, VARIABLES, Effective, effective, plain_names, spelled

BALENA_OS, GENERIC = "balenaos", "generic"
CONFIG_JSON = "config.json"
CONFIG_KEYS = frozenset(variable.config_key for variable in VARIABLES if variable.config_key)
"""The keys of config.json that keep variables."""

_NO_SECOND = "{}: different again after the reboot for it; there is no second one"

REBOOT_VARIABLES = frozenset({"SUPERVISOR_PERSISTENT_LOGGING"})
"""Variables that balenaOS reads from config.json only when it boots."""


@dataclass(frozen=True, slots=True)
class BootFile:
    """What one back end holds, as its text. With a `problem` it is out of work."""

    text: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last write of a file: for which wish and in which boot, whether this wish was given a
    reboot that it has not come through yet, whether it has had it, and what the file then held (a
    digest)."""

    wish: str
    boot_id: str
    reboot: bool = False
    spent: bool = False
    held: str = ""


@dataclass(frozen=True, slots=True)
class HostConfig:
    """See the module.

    profile      balenaos or generic
    config       the keys of config.json that keep variables; None while it cannot be written
    boot         by back end; one that the host does not have is not in it
    attempts     by back end, and for config.json
    reboot       why this boot shall end soon: names of variables
    dump         the text that other programs read the target's variables from; None: no place
    switches     the setting of each part of the host that has switches (switches.py)
    vpn_connected  what the VPN's own scripts say
    problems     what is wrong with the files, for people
    absent       what this host does not have, and why; that is no problem
    """

    profile: str = GENERIC
    boot_id: str = ""
    board: Board = field(default_factory=lambda: Board("unknown"))
    config: Mapping[str, Json] | None = None
    boot: Mapping[str, BootFile] = field(default_factory=dict)
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    reboot: tuple[str, ...] = ()
    dump: str | None = None
    switches: Mapping[str, str] = field(default_factory=dict)
    vpn_connected: bool = False
    problems: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What to do, and what to tell once."""

    steps: tuple[HostConfigStep, ...] = ()
    problems: tuple[str, ...] = ()


def plan_host(config: Mapping[str, str], managed: bool, host: HostConfig) -> HostPlan:
    """The steps for a target's variables. Boot files wait for config.json: writing that may have
    the agent started anew (spec 30 §3.2)."""
    wanted = effective(config, managed)
    steps: list[HostConfigStep] = []
    problems = list(wanted.problems)
    if change := _config_change(wanted, host, problems):
        steps.append(change)
    variables = plain_names(config)
    for backend in backends(host.board):
        step = _boot_step(backend, backend.own(variables), host, problems)
        if step and not change:
            steps.append(step)
    steps += plan_switches(
        host.switches,
        wanted.settings,
        variables,
        managed=managed,
        balena_os=host.profile == BALENA_OS,
    )
    text = dump_text(config)
    if host.dump is not None and host.dump != text:
        steps.append(DumpConfig(text, "the target's variables have changed"))
    return HostPlan(tuple(steps), tuple(dict.fromkeys(problems)))


def known_variables(config: Mapping[str, str]) -> dict[str, str]:
    """The variables that mean something, without prefixes; the rest is dropped (spec 30 §3.1)."""
    plain = plain_names(config)
    return {n: value for n, value in plain.items() if n in KNOWN or is_boot_variable(n)}


def boot_variables(host: HostConfig) -> dict[str, str]:
    """What the boot files say, as variables without prefixes; images are left out. In characters
    that every document can hold."""
    found: dict[str, str] = {}
    for backend in backends(host.board):
        known = host.boot.get(backend.name)
        if known is None or known.problem or backend.name == "splash image":
            continue
        try:
            values = backend.parse(known.text)
        except BootFault:
            continue
        found |= {backend.prefix + name: readable(listed(value)) for name, value in values.items()}
    return found


def current_variables(host: HostConfig) -> dict[str, str]:
    """What the host is set to, as variables without prefixes, as far as its files say anything."""
    known = ConfigJson(host.config or {})
    found = boot_variables(host)
    for variable in VARIABLES:
        if known.values.get(variable.config_key) is None:
            continue
        if isinstance(variable.default, bool):
            found[variable.name] = spelled(known.flag(variable.config_key))
        else:
            found[variable.name] = spelled(known.number(variable.config_key, int(variable.default)))
    return found


def dump_text(config: Mapping[str, str]) -> str:
    """The target's variables as the OS's scripts look for them: as they came, and without prefix
    (spec 30 §3.2)."""
    return json.dumps({**plain_names(config), **config}, sort_keys=True, separators=(",", ":"))


def config_keys(variables: Mapping[str, str]) -> dict[KeyPath, Json]:
    """Variables as config.json keeps them."""
    found: dict[KeyPath, Json] = {}
    for variable in VARIABLES:
        if variable.config_key and variable.name in variables:
            found[variable.config_key,] = variable.read(variables[variable.name])
    return found


def wish_name(variables: Mapping[str, str]) -> str:
    """What tells one wish from another."""
    text = json.dumps(dict(variables), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _wish(name: str, variables: Mapping[str, str]) -> str:
    """The wish that gets one reboot. A step about config.json names what differs just now, and
    only some of it needs a reboot: whatever else differs makes no other wish."""
    if name == CONFIG_JSON:
        variables = {n: value for n, value in variables.items() if n in REBOOT_VARIABLES}
    return wish_name(variables)


def after(step: HostConfigStep, host: HostConfig) -> HostConfig:
    """The model of the host: what a step makes of it (see effects.py)."""
    match step:
        case ChangeConfig():
            known = dict(host.config or {})
            known |= {path[0]: value for path, value in config_keys(step.variables).items()}
            changed = replace(host, config=known)
            return _attempted(step, CONFIG_JSON, tuple(step.variables), changed)
        case SetBootConfig():
            return _after_boot(step, host)
        case DumpConfig():
            return replace(host, dump=step.text)
        case SwitchFeature():
            return replace(host, switches={**host.switches, step.switch: step.setting})


def _after_boot(step: SetBootConfig, host: HostConfig) -> HostConfig:
    backend = next(b for b in backends(host.board) if b.name == step.backend)
    found, _ = difference(backend, host.boot[step.backend].text, step.variables)
    if found is None:
        return host
    changed = replace(host, boot={**host.boot, step.backend: BootFile(found.text)})
    return _attempted(step, step.backend, found.names, changed)


def _attempted(
    step: ChangeConfig | SetBootConfig, name: str, names: tuple[str, ...], host: HostConfig
) -> HostConfig:
    reasons = names if step.reboot else ()
    return replace(
        host,
        attempts={**host.attempts, name: attempt(step, name, host)},
        reboot=tuple(dict.fromkeys((*host.reboot, *reasons))),
    )


def attempt(step: ChangeConfig | SetBootConfig, name: str, host: HostConfig) -> Attempt:
    """What is noted of a step that has just been done; `host` is as it has left it."""
    wish, last = _wish(name, step.variables), host.attempts.get(name)
    if last and name == CONFIG_JSON and not REBOOT_VARIABLES.intersection(step.variables):
        return replace(last, held=_held(name, host))  # nothing that a reboot was ever for
    given = step.reboot or (last is not None and last.wish == wish and (last.reboot or last.spent))
    spent = _spent(name, step.variables, host)
    return Attempt(wish, host.boot_id, given, spent, _held(name, host))


def surviving(host: HostConfig) -> Mapping[str, Attempt]:
    """The attempts that still count, when the files are read for the first time in a run. What has
    come through its reboot as it was written counts for one boot more, as spent: who writes the
    file anew in every boot does so after our start. In the boot after that it has done its work."""
    kept: dict[str, Attempt] = {}
    for name, known in host.attempts.items():
        if known.boot_id == host.boot_id or known.held != _held(name, host):
            kept[name] = known
        elif known.reboot:
            kept[name] = replace(known, boot_id=host.boot_id, reboot=False, spent=True)
    return kept


def _held(name: str, host: HostConfig) -> str:
    if name == CONFIG_JSON:
        return wish_name({key: spelled(value) for key, value in (host.config or {}).items()})
    known = host.boot.get(name)
    return wish_name({"": known.text}) if known else ""


def _spent(name: str, variables: Mapping[str, str], host: HostConfig) -> bool:
    """Whether this wish has had its reboot."""
    last = host.attempts.get(name)
    return (
        last is not None
        and last.wish == _wish(name, variables)
        and (last.spent or (last.reboot and last.boot_id != host.boot_id))
    )


def _config_change(wanted: Effective, host: HostConfig, problems: list[str]) -> ChangeConfig | None:
    """The variables that config.json does not hold as they are wanted."""
    if host.config is None:
        return None
    known, changes = ConfigJson(host.config), {}
    for variable in VARIABLES:
        if not variable.config_key:
            continue
        value, default = getattr(wanted.settings, variable.setting), variable.default
        if isinstance(default, bool):
            now: bool | int = known.flag(variable.config_key)
        else:
            now = known.number(variable.config_key, int(default))
        if now != value:
            changes[variable.name] = spelled(value)
    if not changes:
        return None
    reboot = host.profile == BALENA_OS and any(name in REBOOT_VARIABLES for name in changes)
    if reboot and _spent(CONFIG_JSON, changes, host):
        problems.append(_NO_SECOND.format(", ".join(changes)))
        reboot = False
    return ChangeConfig(changes, reboot, "config.json says otherwise: " + ", ".join(changes))


def _boot_step(
    backend: Backend, variables: Mapping[str, str], host: HostConfig, problems: list[str]
) -> SetBootConfig | None:
    known = host.boot.get(backend.name)
    if known is None or known.problem:
        return None  # what the host lacks is no error, a fault is told by the host
    try:
        found, told = difference(backend, known.text, variables)
    except BootFault as fault:
        problems.append(f"{backend.name} is left alone: {fault}")
        return None
    problems += told
    if found is None:
        return None
    names, reboot = ", ".join(found.names), found.reboot
    if reboot and _spent(backend.name, variables, host):
        problems.append(_NO_SECOND.format(names))
        reboot = False
    return SetBootConfig(backend.name, variables, reboot, f"{backend.name} says otherwise: {names}")
