"""Typed reading of untrusted JSON, without a schema library.

Theory: a reader never raises on bad data. It notes a problem (path, value, rule) in the `Problems`
it was given and returns a harmless default, so that one pass finds *every* fault of a document
(spec 20 §4) and the caller decides at the end. Values in problems are cut short: a document may
hold secrets or megabytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidInput

Json = Any
"""Whatever `json.loads` returns: None, bool, int, float, str, list, dict."""

_SHOWN = 60
_INTEGER = re.compile(r"-?[0-9]{1,18}(\.0*)?\Z")
_SECRET_KEYS = re.compile(r"(?i)(key|token|secret|passw|credential)")
_SECRET_PLACES = re.compile(r"\.env(ironment)?\.")
"""Whatever a variable of a service is called, its value may be a secret."""


def shown(value: Json) -> str:
    """A value as it may appear in an error: JSON, at most 60 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    except RecursionError:
        text = "(nested too deeply to be shown)"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


@dataclass(slots=True)
class Problems:
    """What is wrong with one document, in reading order."""

    lines: list[str] = field(default_factory=list)

    def add(self, path: str, value: Json, rule: str) -> None:
        name = path.rsplit(".", 1)[-1]
        is_the_name = isinstance(value, str) and path.endswith(f".{value}")
        secret = _SECRET_KEYS.search(name) or (_SECRET_PLACES.search(path) and not is_the_name)
        seen = "(not shown)" if secret else shown(value)
        self.lines.append(f"Expecting {rule} at {path} but instead got: {seen}")

    def __bool__(self) -> bool:
        return bool(self.lines)


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a document together with its path, e.g. `$.local.apps.1.name`."""

    value: Json
    path: str
    problems: Problems

    def child(self, key: str) -> Node:
        value = self.value.get(key) if isinstance(self.value, Mapping) else None
        return Node(value, f"{self.path}.{key}", self.problems)

    def has(self, key: str) -> bool:
        return isinstance(self.value, Mapping) and self.value.get(key) is not None

    def bad(self, rule: str) -> None:
        self.problems.add(self.path, self.value, rule)

    def mapping(self, required: bool = False) -> dict[str, Json]:
        """An object; missing or null is `{}` unless required."""
        if isinstance(self.value, dict):
            return self.value
        if self.value is not None or required:
            self.bad("object")
        return {}

    def items(self, required: bool = False) -> Iterator[tuple[str, Node]]:
        for key in self.mapping(required):
            yield key, self.child(key)

    def text(self, rule: str = "string of 1 to 255 characters", default: str | None = None) -> str:
        if self.value is None and default is not None:
            return default
        if isinstance(self.value, str) and 0 < len(self.value) <= 255:
            return self.value
        self.bad(rule)
        return default or ""

    def matching(self, pattern: re.Pattern[str], rule: str) -> str:
        if isinstance(self.value, str) and len(self.value) <= 255 and pattern.match(self.value):
            return self.value
        self.bad(rule)
        return ""

    def number(self, default: int | None = None) -> int:
        """A whole number ≥ 0, also as text (`"1"`, `"01"`, `"1.0"`)."""
        if self.value is None and default is not None:
            return default
        found = whole_number(self.value)
        if found is None or not 0 <= found <= _LARGEST:
            self.bad("whole number of at least 0")
            return default or 0
        return found

    def boolean(self, default: bool) -> bool:
        if self.value is None:
            return default
        if isinstance(self.value, bool):
            return self.value
        self.bad("true or false")
        return default

    def one_of(self, allowed: tuple[str, ...], default: str) -> str:
        if self.value is None:
            return default
        if self.value in allowed and isinstance(self.value, str):
            return self.value
        self.bad("one of " + ", ".join(allowed))
        return default


_LARGEST = 10**18 - 1
"""Names and labels of the engine's objects are read back with no more digits (names.py)."""
_DIGITS = 64
"""More characters than any number of ours has: Python refuses to read very long ones."""


def whole_number(value: Json) -> int | None:
    """The integer meant by a JSON number or a numeric text, else None (spec 10 §4)."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and len(value) <= _DIGITS and _INTEGER.match(value):
        return int(value.split(".")[0])
    return None


def truth(value: Json) -> bool:
    """The API's and the labels' idea of true: true, 1, "1", "true", "on" (spec 10 §4)."""
    if isinstance(value, str):
        return value.lower() in ("1", "true", "on")
    return value is True or (value == 1 and not isinstance(value, bool) and value is not None)


def parse_object(raw: bytes | str, what: str) -> dict[str, Json]:
    """The JSON object in `raw`, or InvalidInput that says what is wrong with it."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} is not JSON: {error}", "$") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{what} must be an object but is {shown(found)}", "$")
    return found
