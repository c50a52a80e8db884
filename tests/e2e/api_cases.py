#!/usr/bin/env python3
"""The cases of the device API, and a runner that can be pointed at any implementation of it.

  python tests/e2e/api_cases.py --base http://192.0.2.7:48484 --fixture M1 --key G=0123...

Runs the cases of one fixture in their order and prints those that did not come out as written; exit
status 1 if there are any. The device must be what the fixture says (spec 10, part B). Cases that
need something to be done to the device first (`setup`) are left out, unless `--setup WORD` says
that it has been done; so are cases for which no key was given. Standard library only.

`expect` has one of
    text          the whole body
    text_matches  a regular expression that is found in the body
    text_lacks    a word that must not be in it
    json          the whole document; a dictionary with the member "..." may have more members
    stream        the first line of an endless answer, as JSON
    any           nothing is expected of the body
and within `json` the placeholders below stand for values of a kind.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

DATA = Path(__file__).parents[1] / "data" / "api-cases.json"
_LARGE = {"@9MiB": 9 << 20, "@11MiB": 11 << 20}
"""Bodies that are too long to be written down, and how long their one text is."""

Json = dict[str, Any]


def _matching(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


PLACEHOLDERS: dict[str, Callable[[Any], bool]] = {
    "<str>": lambda value: isinstance(value, str),
    "<int>": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "<obj>": lambda value: isinstance(value, dict),
    "<bool>": lambda value: isinstance(value, bool),
    "<empty>": lambda value: value in (None, ""),
    "<hex64>": _matching(r"[0-9a-f]{64}"),
    "<iso>": _matching(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"),
    "<semver>": _matching(r"\d+\.\d+\.\d+(\+.+)?"),
    "<key>": _matching(r"\w{32,64}"),
    "<len1>": lambda value: len(value) == 1,
    "<len2>": lambda value: len(value) == 2,
}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


def load(path: Path = DATA) -> list[Json]:
    """All cases: the numbered ones, then the table of endpoints."""
    data = json.loads(path.read_text())
    return [*data["cases"], *data["table"]]


def filled(value: Any, keys: Mapping[str, str]) -> Any:
    """Strings with the keys in the places of $G, $A and $B."""
    if isinstance(value, str):
        for name, key in keys.items():
            value = value.replace(f"${name}", key)
    return value


def sent(case: Json, keys: Mapping[str, str]) -> tuple[str, bytes | None, dict[str, str]]:
    """Path, body and headers of a case's request."""
    headers = {name: filled(value, keys) for name, value in case.get("headers", {}).items()}
    if case.get("auth"):
        headers["Authorization"] = f"Bearer {keys.get(case['auth'], 'badkey')}"
    raw = case.get("raw")
    body = _large(raw) if raw in _LARGE else raw.encode() if raw else None
    if "body" in case:
        body = json.dumps(case["body"]).encode()
        headers["Content-Type"] = "application/json"
    return filled(case["path"], keys), body, headers


def _large(raw: str) -> bytes:
    return b'{"x":"' + b"x" * _LARGE[raw] + b'"}'


def problems(case: Json, reply: Reply) -> Iterator[str]:
    """What is not as the case says; secrets do not occur in it but for what the device sent."""
    if reply.status not in case["status"]:
        yield f"status {reply.status}, not {case['status']}"
    kind = reply.headers.get("Content-Type", "")
    if not kind.startswith(case.get("type", "")):
        yield f"content type {kind!r}, not {case['type']!r}"
    yield from _of_body(case["expect"], reply)


def _of_body(expect: Json, reply: Reply) -> Iterator[str]:
    text = reply.text
    if "text" in expect and not _alike_text(text, expect["text"]):
        yield f"body {text[:300]!r}, not {expect['text']!r}"
    if "text_matches" in expect and not re.search(expect["text_matches"], text):
        yield f"body {text[:300]!r}, not like {expect['text_matches']!r}"
    if "text_lacks" in expect and expect["text_lacks"] in text:
        yield f"{expect['text_lacks']!r} is in the body"
    if "json" in expect or "stream" in expect:
        wanted = expect.get("json", expect.get("stream"))
        try:
            found = json.loads(text)
        except ValueError:
            yield f"body {text[:300]!r} is not JSON"
            return
        if not alike(found, wanted):
            yield f"body {text[:1000]}, not {json.dumps(wanted)}"


def _alike_text(found: str, wanted: str) -> bool:
    return PLACEHOLDERS[wanted](found) if wanted in PLACEHOLDERS else found == wanted


def alike(found: Any, wanted: Any) -> bool:
    """Whether a document is as wanted, placeholders and `...` considered."""
    if isinstance(wanted, str) and wanted in PLACEHOLDERS:
        return PLACEHOLDERS[wanted](found)
    if isinstance(wanted, dict):
        names = set(wanted) - {"..."}
        if not isinstance(found, dict) or (set(found) - names and "..." not in wanted):
            return False
        return all(name in found and alike(found[name], wanted[name]) for name in names)
    if isinstance(wanted, list):
        same = isinstance(found, list) and len(found) == len(wanted)
        return same and all(map(alike, found, wanted))
    return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)


def ask(connection: http.client.HTTPConnection, case: Json, keys: Mapping[str, str]) -> Reply:
    """One request over a connection of its own. Of a stream the first line is the body."""
    path, body, headers = sent(case, keys)
    with closing(connection):
        connection.request(case["method"], path, body, headers)
        answer = connection.getresponse()
        raw = answer.readline() if "stream" in case["expect"] else answer.read()
        return Reply(answer.status, dict(answer.getheaders()), raw)


def chosen(cases: Iterable[Json], fixture: str, setups: set[str], keys: set[str]) -> list[Json]:
    """The cases of a fixture that can be run with these keys, after these setups."""

    def can_run(case: Json) -> bool:
        needed = {name for name in "GAB" if f"${name}" in json.dumps(case)}
        needed |= {case["auth"]} & set("GAB") if case.get("auth") else set()
        return needed <= keys and set(case.get("setup", ())) <= setups

    return [case for case in cases if case["fx"] == fixture and can_run(case)]


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    base = urlsplit(options.base)
    keys = dict(pair.split("=", 1) for pair in options.key)
    cases = chosen(load(options.data), options.fixture, set(options.setup), set(keys))
    cases = [case for case in cases if not options.only or case["id"] in options.only]
    failures = 0
    for case in cases:
        connection = http.client.HTTPConnection(base.hostname or "", base.port, timeout=60)
        try:
            found = list(problems(case, ask(connection, case, keys)))
        except (OSError, http.client.HTTPException) as error:
            found = [repr(error)]
        failures += bool(found)
        for problem in found:
            print(f"{case['id']} {case['method']} {case['path']}: {problem}")
        if options.verbose and not found:
            print(f"{case['id']} ok")
    print(f"{len(cases)} cases, {failures} not as written")
    return 1 if failures else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", required=True, metavar="URL", help="where the API is")
    parser.add_argument("--fixture", default="M1", help="what the device is: M1, M2, U or L")
    parser.add_argument("--key", action="append", default=[], metavar="NAME=KEY")
    parser.add_argument("--setup", action="append", default=[], metavar="WORD")
    parser.add_argument("--only", action="append", default=[], metavar="ID")
    parser.add_argument("--data", type=Path, default=DATA, metavar="FILE")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
