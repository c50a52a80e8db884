"""How the process of a container is started, watched, stopped and started again.

Theory: command, entrypoint, working directory, signal, grace period, health check and restart
policy (spec 21 §2, §3.4, §3.5). A command string is split like the peer splits it: quotes and
backslashes count, `$` stays as it is, and shell operators become arguments of their own, since no
shell is involved. That way existing fleets get the same argument lists.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Final

from .fields import LARGEST, Notes, boolean, duration, integer, pick, strings, text, whole
from .jsonread import Json

_TOKEN = re.compile(
    r"""(?P<operator>\|\||&&|;;|\|&|<\(|<<<|>>|>&|<&|[&;()|<>])
      | (?P<word>(?:\\.|'[^']*'|"(?:\\.|[^"\\])*"|[^\s'"\\;<>|&()])+)
      | (?P<stray>['"\\])""",
    re.VERBOSE | re.DOTALL,
)
_UNCLEAN = re.compile(r"/(?:/|\.|$)")
_QUOTED = re.compile(r"""\\(.)|'([^']*)'|"((?:\\.|[^"\\])*)\"""", re.DOTALL)
_ESCAPED_IN_QUOTES = re.compile(r"""\\(["\\$`])""")

_SIGNALS: Final = frozenset(
    {"ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
     "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
     "TTIN", "TTOU", "UNUSED", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN",
     "RTMAX"}
    | {f"RTMIN+{offset}" for offset in range(1, 16)}
    | {f"RTMAX-{offset}" for offset in range(1, 15)}
)  # fmt: skip

_LAST_SIGNAL: Final = 64
_RESTART_NAMES: Final = frozenset({"no", "always", "on-failure", "unless-stopped"})
_MILLISECOND: Final = 1_000_000
_SECOND: Final = 1_000_000_000

_HEALTH_KINDS: Final = ("NONE", "CMD", "CMD-SHELL")
_HEALTH_FIELDS: Final = (
    "test", "interval", "timeout", "retries", "start_period", "start_interval", "disable",
)  # fmt: skip
HEALTH_NUMBERS: Final = ("Interval", "Timeout", "StartPeriod", "Retries")


def split_command(line: str) -> tuple[list[str], bool]:
    """The arguments of a command line, and whether its quotes were balanced (spec 21 §3.4)."""
    words: list[str] = []
    balanced = True
    for found in _TOKEN.finditer(line.replace("\\\n", " ")):
        if found.lastgroup == "stray":
            balanced = False
        else:
            token = found[0]
            words.append(token if found.lastgroup == "operator" else _unquoted(token))
    return words, balanced


def _unquoted(word: str) -> str:
    return _QUOTED.sub(_content, word) if "\\" in word or "'" in word or '"' in word else word


def _content(found: re.Match[str]) -> str:
    escaped, single, double = found.groups()
    if double is not None:
        return _ESCAPED_IN_QUOTES.sub(r"\1", double)
    return str(escaped if escaped is not None else single)


def words(value: Json, name: str, notes: Notes) -> list[str] | None:
    """Command or entrypoint: a list as it is, or a line to split; "" is the empty list."""
    if not isinstance(value, str):
        return strings(value, name, notes)
    found, balanced = split_command(value)
    if not balanced:
        notes.say(f"{name}: unbalanced quote or backslash taken for a blank")
    return found


def clean_path(path: str) -> str:
    """An absolute path in the engine's spelling: no doubled slashes, `.`, `..`, slash at the end.
    Relative texts stay as they are."""
    if not path.startswith("/") or not _UNCLEAN.search(path):
        return path
    return "/" + posixpath.normpath(path).lstrip("/")


def working_dir(value: Json, name: str, notes: Notes) -> str | None:
    found = text(value, name, notes)
    if found and not found.startswith("/"):
        raise notes.refusal(name, value, "the path must be absolute")
    return clean_path(found) if found else None


def stop_signal(value: Json, name: str, notes: Notes) -> str | None:
    """A signal by name (with or without SIG) or number, in the user's spelling."""
    found = text(value, name, notes)
    if not found:
        return None
    number = whole(found)
    known = _signal_name(found) in _SIGNALS if number is None else 0 < number <= _LAST_SIGNAL
    if not known:
        notes.ignored(name, value, "no such signal")
    return found if known else None


def _signal_name(signal: str) -> str:
    upper = signal.upper()
    return upper[3:] if upper.startswith("SIG") else upper


def grace_period(value: Json, name: str, notes: Notes) -> int | None:
    """Whole seconds. A part of a second counts as one, since 0 would mean to kill at once."""
    found = duration(value, name, notes)
    return None if found is None else max(found // _SECOND, 1 if found else 0)


def restart_policy(value: Json, name: str, notes: Notes) -> dict[str, Json]:
    """The engine's policy; whatever is not understood means `always`, as the peer has it."""
    if isinstance(value, bool):
        return _policy("always" if value else "no")
    wanted = value.strip().lower() if isinstance(value, str) else ""
    if wanted in _RESTART_NAMES:
        return _policy(wanted)
    kind, _, count = wanted.partition(":")
    retries = whole(count)
    if kind == "on-failure" and retries is not None and 0 <= retries <= LARGEST:
        return _policy(kind, retries)
    if wanted or not isinstance(value, str):
        notes.ignored(name, value, "no such restart policy; `always` is used")
    return _policy("always")


def _policy(name: str, retries: int = 0) -> dict[str, Json]:
    return {"Name": name, "MaximumRetryCount": retries}


def healthcheck(value: Json, image: Mapping[str, Json], name: str, notes: Notes) -> dict[str, Json]:
    """The health check of a service laid over that of its image, field by field (spec 21 §3.5)."""
    if not isinstance(value, Mapping):
        notes.ignored(name, value, "expecting a map")
        return canonical_healthcheck(image)
    notes.unknown(name, value, _HEALTH_FIELDS)
    overlay = _health_fields(value, name, notes)
    if boolean(value.get("disable", False), f"{name}.disable", notes):
        overlay["Test"] = ["NONE"]
    if (interval := pick(value, "start_interval")) is not None:
        notes.ignored(f"{name}.start_interval", interval, "the engine does not know it")
    return canonical_healthcheck({**image, **overlay})


def _health_fields(value: Mapping[str, Json], name: str, notes: Notes) -> dict[str, Json]:
    found: dict[str, Json] = {
        "Test": _health_test(value.get("test"), f"{name}.test", notes),
        "Interval": _health_time(value, "interval", name, notes),
        "Timeout": _health_time(value, "timeout", name, notes),
        "StartPeriod": _health_time(value, "start_period", name, notes),
        "Retries": _health_retries(value.get("retries"), f"{name}.retries", notes),
    }
    return {key: content for key, content in found.items() if content}


def _health_test(value: Json, name: str, notes: Notes) -> list[str] | None:
    if isinstance(value, str):
        return ["CMD-SHELL", value] if value else None
    found = strings(value, name, notes) if value is not None else None
    if not found or found == ["NONE"]:
        return found
    if found[0] not in _HEALTH_KINDS:
        notes.ignored(name, value, "expecting NONE, CMD or CMD-SHELL as its first word")
        return None
    if len(found) == 1:  # at the first try of a CMD without words the engine itself dies
        notes.ignored(name, value, "it has no command")
        return None
    return found


def _health_time(value: Mapping[str, Json], key: str, name: str, notes: Notes) -> int | None:
    raw = pick(value, key)
    if raw is None:
        return None
    found = duration(raw, f"{name}.{key}", notes)
    if found and found < _MILLISECOND:
        notes.ignored(f"{name}.{key}", raw, "the engine wants at least 1ms")
        return None
    return found


def _health_retries(value: Json, name: str, notes: Notes) -> int | None:
    found = integer(value, name, notes) if value is not None else None
    if found is not None and found < 0:
        notes.ignored(name, value, "expecting at least 0")
        return None
    return found


def canonical_healthcheck(raw: Mapping[str, Json]) -> dict[str, Json]:
    """Only what is set: 0 means unset to the engine, and a check without a test is none."""
    numbers = {key: raw[key] for key in HEALTH_NUMBERS if raw.get(key)}
    return {"Test": list(raw.get("Test") or ["NONE"]), **numbers}
