"""Readers of single compose values: text, numbers, booleans, lists, maps, memory and durations.

Theory: a composition is JSON that nobody has checked. A reader takes one value and returns it in
the engine's spelling, or None when the value is unusable; then the field keeps its default and the
`Notes` of the service carry a line that names field, value and rule (spec 21 §1, §3). Only where
ignoring a value would change the meaning of a service dangerously does a reader raise
`Notes.refusal`; whoever compiles the app turns that into the app's problem. A value that is not
valid is never passed on to fail later, and never taken for "unlimited" in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from .errors import InvalidInput
from .jsonread import Json, shown, whole_number

if TYPE_CHECKING:
    from decimal import Decimal

_MEMORY = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *(?:([kmgt])(?:i)?)?b?\Z", re.IGNORECASE)
_MEMORY_STEPS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

_BARE_NUMBER = re.compile(r"\d+(\.\d*)?\Z|\.\d+\Z")
_DURATION = re.compile(r"(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h|d|w))+\Z")
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w)")
_SECOND: Final = 1_000_000_000
_NANOSECONDS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": _SECOND,
    "m": 60 * _SECOND,
    "h": 3_600 * _SECOND,
    "d": 86_400 * _SECOND,
    "w": 604_800 * _SECOND,
}

_LONGEST_NUMBER: Final = 40
LARGEST: Final = 2**63 - 1

_FALSE_TEXTS: Final = frozenset({"false", "no", "off", "0", ""})


@dataclass(slots=True)
class Notes:
    """What was ignored while one thing was compiled. `where` names it: app and service."""

    where: str
    lines: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.lines.append(f"{self.where}: {text}")

    def ignored(self, name: str, value: Json, rule: str) -> None:
        self.say(f"{name}: {shown(value)} is ignored: {rule}")

    def unknown(self, where: str, entry: Mapping[str, Json], known: Collection[str]) -> None:
        """Name what a map below `where` says that nobody here reads: it would be missed in silence.
        `known` are names in snake_case; both spellings count, and null counts as absent."""
        spelled = {*known, *map(camel, known)}
        unread = [
            f"{where}.{key}" for key in entry if entry[key] is not None and key not in spelled
        ]
        if unread:
            self.say(f"Ignoring unsupported or unknown compose fields: {', '.join(unread)}")

    def refusal(self, name: str, value: Json, rule: str) -> InvalidInput:
        """The error to raise where ignoring the value would be dangerous."""
        return InvalidInput(f"{self.where}: {name}: {shown(value)} is not usable: {rule}")


Reader = Callable[[Json, str, Notes], Json]
"""(value, field name, notes) -> value in the engine's spelling, or None if it is ignored."""


def camel(name: str) -> str:
    """`start_period` -> `startPeriod`: the other spelling that old targets use (spec 21 §1.1)."""
    first, *others = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in others)


def pick(entry: Mapping[str, Json], name: str) -> Json:
    """A value under its snake_case name or, failing that, its camelCase name."""
    value = entry.get(name)
    return entry.get(camel(name)) if value is None and "_" in name else value


def plain(value: Json) -> str | None:
    """The text of a scalar as an engine wants it: `5`, `0.5`, `true`; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value) if isinstance(value, int) else None


def text(value: Json, name: str, notes: Notes) -> str | None:
    """A text or a number; an explicit empty text counts as absent (D18)."""
    found = None if isinstance(value, bool) else plain(value)
    if found is None:
        notes.ignored(name, value, "expecting a text")
    return found or None


def boolean(value: Json, name: str, notes: Notes) -> bool | None:
    """A boolean of compose: a text is false for false, no, off, 0 and "" (spec 21 §3.3)."""
    if isinstance(value, str):
        return value.strip().lower() not in _FALSE_TEXTS
    if isinstance(value, (bool, int, float)):
        return bool(value)
    notes.ignored(name, value, "expecting true or false")
    return None


def whole(value: Json) -> int | None:
    """`whole_number` for strangers: Python refuses to read texts of thousands of digits."""
    return None if isinstance(value, str) and len(value) > _LONGEST_NUMBER else whole_number(value)


def integer(value: Json, name: str, notes: Notes) -> int | None:
    found = whole(value)
    if found is None or abs(found) > LARGEST:
        notes.ignored(name, value, "expecting a whole number")
        return None
    return found


def integer_within(low: int, high: int) -> Reader:
    """A reader of whole numbers from low to high, both included."""

    def read(value: Json, name: str, notes: Notes) -> int | None:
        found = integer(value, name, notes)
        if found is None or low <= found <= high:
            return found
        notes.ignored(name, value, f"expecting {low} to {high}")
        return None

    return read


def one_of(*allowed: str) -> Reader:
    """A reader of texts that are one of `allowed`."""

    def read(value: Json, name: str, notes: Notes) -> str | None:
        if value == "" or (isinstance(value, str) and value in allowed):
            return value or None
        notes.ignored(name, value, "expecting one of " + ", ".join(allowed))
        return None

    return read


def strings(value: Json, name: str, notes: Notes) -> list[str] | None:
    """A list of texts; a lone text is a list of one, numbers become texts, nulls are left out."""
    if isinstance(value, str):
        return [value] if value else []
    if not isinstance(value, list):
        notes.ignored(name, value, "expecting a list")
        return None
    found = [plain(item) for item in value if item is not None]
    if None in found:
        notes.ignored(name, value, "expecting a list of texts")
        return None
    return [item for item in found if item is not None]


def text_map(value: Json, name: str, notes: Notes, null: str | None = None) -> dict[str, str]:
    """A map of texts, or the list form `K=V` (D2). `null` stands for a missing value; with None
    such an entry is left out. Values are never shown: they may be secrets."""
    if isinstance(value, list):
        return _text_map_of_list(value, name, notes, null)
    if not isinstance(value, Mapping):
        if value is not None:
            notes.ignored(name, type(value).__name__, "expecting a map or a list of K=V")
        return {}
    found: dict[str, str] = {}
    for key, item in value.items():
        content = item if isinstance(item, str) else null if item is None else plain(item)
        if content is not None:
            found[str(key)] = content
        elif item is not None:
            notes.say(f"{name}.{key} is ignored: expecting a text")
    return found


def _text_map_of_list(
    value: list[Json], name: str, notes: Notes, null: str | None
) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in value:
        key, equals, content = item.partition("=") if isinstance(item, str) else ("", "", "")
        if key and equals:
            found[key] = content
        elif key and null is not None:
            found[key] = null
        else:
            notes.say(f"{name}: entry {_entry(item)} is ignored: expecting NAME=VALUE")
    return found


def _entry(item: Json) -> str:
    """An entry that is no NAME=VALUE, without what may be its value."""
    if isinstance(item, Mapping):  # `- NAME: VALUE`, a common slip
        return "with " + ", ".join(f"{key}:" for key in item)
    return shown(item.partition("=")[0]) if isinstance(item, str) else f"of type {_kind(item)}"


def _kind(value: Json) -> str:
    return "null" if value is None else type(value).__name__


def memory(value: Json, name: str, notes: Notes) -> int | None:
    """Bytes: a number, or a text such as `64m`, `1.5g`, `2 GiB`, in steps of 1024 (spec 21 §3.1).
    What does not parse is noted: the limit that the user wanted is then missing."""
    content = plain(value) if not isinstance(value, bool) else None
    found = _MEMORY.match(content.strip()) if content is not None else None
    if not found:
        notes.ignored(name, value, "expecting an amount of memory such as 64m; NO limit is set")
        return None
    step = _MEMORY_STEPS[(found[2] or "").lower()]
    return _within_engine(_exact(found[1]) * 1024**step, value, name, notes)


def duration(value: Json, name: str, notes: Notes) -> int | None:
    """Nanoseconds of `1m30s`, `1.5h`, or a bare number of seconds (spec 21 §3.2)."""
    content = "" if isinstance(value, bool) else (plain(value) or "").strip()
    if _BARE_NUMBER.match(content):
        return _within_engine(_exact(content) * _SECOND, value, name, notes)
    if _DURATION.match(content):
        parts = _DURATION_PART.findall(content)
        total = sum((_exact(amount) * _NANOSECONDS[u] for amount, u in parts), _exact("0"))
        return _within_engine(total, value, name, notes)
    notes.ignored(name, value, "expecting a duration such as 1m30s")
    return None


def nano_cpus(value: Json, name: str, notes: Notes) -> int | None:
    """Billionths of a CPU from `cpus`, a number or a numeric text."""
    found = _exact("" if isinstance(value, bool) else plain(value) or "")
    if not found.is_finite() or found < 0:
        notes.ignored(name, value, "expecting a number of CPUs such as 0.5")
        return None
    return _within_engine((found * _SECOND).to_integral_value(), value, name, notes)


def _exact(text: str) -> Decimal:
    """The number, not a binary neighbour of it; NaN for what is none."""
    from decimal import Decimal, InvalidOperation  # 0.3 MB that most targets do without

    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("nan")


def _within_engine(amount: Decimal, value: Json, name: str, notes: Notes) -> int | None:
    """The whole part of an amount, unless it is more than the engine's 64 bits hold."""
    if amount > LARGEST:
        notes.ignored(name, value, "too large")
        return None
    return int(amount)


def whole_and_positive(value: Json, name: str, notes: Notes) -> int | None:
    """A whole number where everything below 0 means "no limit", which the engine spells 0."""
    found = integer(value, name, notes)
    return None if found is None else max(0, found)
