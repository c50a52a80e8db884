"""What somebody wants to read of the host's journal, as words for `journalctl` (spec 10 §8.25).

Theory: `journalctl` is the formatter that clients ask for, so their options become its arguments.
Every option is checked by a rule of its own first, and is handed over as one word `--name=value`,
so that no value can be taken for another option.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import InvalidInput
from .jsonread import Json, shown, truth, whole_number

FORMATS = frozenset({
    "short", "short-full", "short-iso", "short-iso-precise", "short-precise", "short-monotonic",
    "short-delta", "short-unix", "verbose", "export", "json", "json-pretty", "json-sse",
    "json-seq", "cat", "with-unit",
})  # fmt: skip
LONGEST = 256

_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TIME = re.compile(r"[A-Za-z0-9+@-][A-Za-z0-9 :.,+_/-]*")
_NONE = ("", "null", "undefined")


@dataclass(frozen=True, slots=True)
class JournalQuery:
    """`count` 0: no limit. `containers` are engine ids; with them only their entries count, among
    those that `engine_units` have sent. "" stands for what was not asked for."""

    all_fields: bool = False
    follow: bool = False
    count: int = 0
    unit: str = ""
    identifier: str = ""
    since: str = ""
    until: str = ""
    format: str = "short"
    containers: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


def read_query(body: Mapping[str, Json]) -> JournalQuery:
    """The query in a request's body. InvalidInput names the option and its value."""
    chosen = _text(body, "format") or "short"
    if chosen not in FORMATS:
        raise InvalidInput(f"format: {shown(chosen)} is none of {', '.join(sorted(FORMATS))}")
    return JournalQuery(
        all_fields=truth(_scalar(body, "all")),
        follow=truth(_scalar(body, "follow")),
        count=max(0, whole_number(_scalar(body, "count")) or 0),
        unit=_matching(body, "unit", _UNIT, "the name of a unit"),
        identifier=_matching(body, "containerId", _IDENTIFIER, "the id of a container"),
        since=_matching(body, "since", _TIME, "a time as journalctl reads it"),
        until=_matching(body, "until", _TIME, "a time as journalctl reads it"),
        format=chosen,
    )


def arguments(query: JournalQuery, engine_units: Iterable[str] = ()) -> tuple[str, ...]:
    """The words behind `journalctl`."""
    words = ["--no-pager", f"--output={query.format}"]
    words += ["--all"] if query.all_fields else []
    words += ["--follow"] if query.follow else []
    words += [f"--lines={query.count}"] if query.count else []
    words += [f"--unit={query.unit}"] if query.unit else []
    words += [f"--identifier={query.identifier}"] if query.identifier else []
    words += times(query)
    words += [f"--output-fields={','.join(query.fields)}"] if query.fields else []
    if query.containers:
        words += [f"_SYSTEMD_UNIT={unit}" for unit in engine_units]
        words += [f"CONTAINER_ID_FULL={each}" for each in query.containers]
    return tuple(words)


def times(query: JournalQuery) -> list[str]:
    """The words that `journalctl` itself has to understand."""
    words = [f"--since={query.since}"] if query.since else []
    return words + ([f"--until={query.until}"] if query.until else [])


def _matching(body: Mapping[str, Json], name: str, rule: re.Pattern[str], wanted: str) -> str:
    text = _text(body, name)
    if text and not (len(text) <= LONGEST and rule.fullmatch(text)):
        raise InvalidInput(f"{name}: {shown(text)} is not {wanted}")
    return text


def _text(body: Mapping[str, Json], name: str) -> str:
    """An option as text; clients send several words for "none" (spec 10 §4)."""
    value = _scalar(body, name)
    text = "" if value is None or isinstance(value, bool) else str(value)
    return "" if text in _NONE else text


def _scalar(body: Mapping[str, Json], name: str) -> Json:
    value = body.get(name)
    if isinstance(value, (dict, list)):
        raise InvalidInput(f"{name}: {shown(value)} is neither a text nor a number")
    return value
