"""config.json as values: typed reading, and changes that touch nothing else.

Theory: the file belongs to many (image builder, os-config, the OS's own units), so reading never
fails, and a change is made to the newest text: only the keys that are changed are changed, every
other one survives, also those that nobody has heard of. No value of a key that may be a secret
stands in a problem line.

Source: spec 30 §2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from .jsonread import Json, shown
from .variables import FALSE, TRUE

T = TypeVar("T")
KeyPath = tuple[str, ...]
"""A key and those below it: ("os", "power", "mode")."""
Changes = Mapping[KeyPath, Json]
"""New values; None takes a key away."""

_SECRETS = frozenset({"apiKey", "deviceApiKey", "deviceApiKeys", "os"})
_INTEGER = re.compile(r"\s*([+-]?[0-9]{1,18})(?![0-9])")  # Python reads no endless ones


class ConfigFault(ValueError):
    """A text that is no configuration; `str` says why."""


@dataclass(slots=True)
class ConfigJson:
    """The device's configuration with typed getters; `problems` collects what they met."""

    values: Mapping[str, Json] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def text(self, key: str, default: str = "") -> str:
        value = self.values.get(key)
        if isinstance(value, str):
            return value
        return default if value is None else self._bad(key, "text", default)

    def number(self, key: str, default: int) -> int:
        """A number, or the leading integer of a text (`"42abc"` is 42)."""
        value = self.values.get(key)
        found = _INTEGER.match(value) if isinstance(value, str) else None
        if found:
            return int(found[1])
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
            return int(value)
        return default if value is None else self._bad(key, "a number", default)

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        word = value.lower() if isinstance(value, str) else value
        if word is True or word == 1 or word in TRUE:
            return True
        if word is None or word is False or word == 0 or word in FALSE:
            return False
        return self._bad(key, "true or false", False)

    def at(self, path: KeyPath) -> Json:
        """The value at a path; None where there is none."""
        found: Json = self.values
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def _bad(self, key: str, rule: str, default: T) -> T:
        seen = "(not shown)" if key in _SECRETS else shown(self.values[key])
        self.problems.append(f"config.json: {key} must be {rule} but is {seen}; ignored")
        return default


def parse(raw: bytes | str) -> dict[str, Json]:
    """The configuration in a text. ConfigFault."""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigFault(f"is not valid JSON (line {getattr(error, 'lineno', 1)})") from error
    if not isinstance(values, dict):
        raise ConfigFault("must hold a JSON object")
    return values


def merged(raw: bytes, changes: Changes) -> bytes:
    """The text with these changes, indented like the old one; the old one if it says all already.

    A value that should be an object to hold a key, and is none, is replaced by one. ConfigFault.
    """
    before = parse(raw)
    after: dict[str, Json] = before
    for path, value in changes.items():
        after = _changed(after, path, value)
    if after == before:
        return raw
    text = raw.decode("utf-8-sig", "replace")
    indented = text.lstrip().removeprefix("{")[:2].strip(" \t\r").startswith("\n")
    end = "\n" if raw.endswith(b"\n") else ""
    try:
        return (_written(after, indented, ascii_only=False) + end).encode()
    except UnicodeEncodeError:  # half a character, which no other program could read as UTF-8
        return (_written(after, indented, ascii_only=True) + end).encode()


def _written(values: Json, indented: bool, ascii_only: bool) -> str:
    if indented:
        return json.dumps(values, ensure_ascii=ascii_only, indent=2)
    return json.dumps(values, ensure_ascii=ascii_only, separators=(",", ":"))


def _changed(values: Mapping[str, Json], path: KeyPath, value: Json) -> dict[str, Json]:
    key, rest = path[0], path[1:]
    if not rest:
        left = dict(values)
        if value is None:
            left.pop(key, None)
        else:
            left[key] = value
        return left
    inner = values.get(key)
    known = inner if isinstance(inner, dict) else {}
    below = _changed(known, rest, value)
    if value is None and (below == known or not below):
        # Nothing was there, or nothing is left: no empty object stays behind.
        return dict(values) if below == known else _changed(values, (key,), None)
    return {**values, key: below}


def changed_keys(before: Mapping[str, Json], after: Mapping[str, Json]) -> frozenset[str]:
    """The top-level keys whose values differ."""
    return frozenset(k for k in {*before, *after} if before.get(k) != after.get(k))


def first_identity(values: Mapping[str, Json], known_uuid: str, key: str) -> dict[KeyPath, Json]:
    """What a configuration lacks at the agent's first start (spec 30 §2.2): the device's uuid, and
    on a managed device its API key. Nothing that is there is ever made anew."""
    config = ConfigJson(values)
    changes: dict[KeyPath, Json] = {}
    if not values.get("uuid"):
        changes["uuid",] = known_uuid
    if config.text("apiEndpoint") and not values.get("deviceApiKey"):
        changes["deviceApiKey",] = key
    return changes
