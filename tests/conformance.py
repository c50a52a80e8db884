#!/usr/bin/env python3
"""Which case of the specification is proved by which layer of tests: a table of all of them.

Theory: tests carry the ids of the cases that they are about in their names (`test_S11_S12_...`,
`test_m55_...`, a parameter `[M55]`). This program reads the junit reports of a run and the list of
cases, and writes tests/CONFORMANCE.md. The list (tests/data/cases.txt) has one case per line:

    S31  a missing image holds back the whole release | later: needs the cloud

`later:` says why a case has no test yet; every other case must have one (`--check`). With `--keep`
the table is left as it is and compared instead: a case that had a test must have one still, with
the same result, but for tests that this machine has to skip.
"""

from __future__ import annotations

import argparse
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
LAYERS = ("unit", "contract", "e2e")

PASS, EXPECTED, SKIPPED, FAILED, NONE = (
    "pass",
    "expected failure",
    "skipped",
    "failed",
    "no test",
)
_WORST_FIRST = (FAILED, EXPECTED, PASS, SKIPPED)

_ID = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]\d{1,3})(?![A-Za-z0-9])")
_CASE = re.compile(r"([A-Z]\d{1,3})\s+(.*?)(?:\s*\|\s*later:\s*(.+))?")
_ROW = re.compile(r"\| ([A-Z]\d{1,3}) \| .*? \| (" + "|".join((*_WORST_FIRST, NONE)) + r")\b")

_HEAD = """\
# Conformance

Every numbered case of the specification, and what the last run of `tests/run` said about it. A case
passes when all its tests pass, in every layer that has one. Written by `tests/conformance.py`.

"""


@dataclass(frozen=True, slots=True)
class Case:
    """`later` says why there is no test yet; "" where there has to be one."""

    id: str
    text: str
    later: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one test said about one case."""

    layer: str
    result: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A case, the layers that have a test of it, and the result over all of these."""

    case: Case
    layers: tuple[str, ...] = ()
    result: str = NONE
    reason: str = ""

    @property
    def missing(self) -> bool:
        return self.result == NONE and not self.case.later

    @property
    def outdated(self) -> bool:
        return self.result != NONE and bool(self.case.later)


def read_cases(text: str) -> list[Case]:
    """The list of cases. ValueError names a line that is none, or an id that comes twice."""
    cases: dict[str, Case] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _CASE.fullmatch(line.strip())
        if found is None or found[1] in cases:
            raise ValueError(f"line {number} is no case or comes twice: {line}")
        cases[found[1]] = Case(found[1], found[2], found[3] or "")
    return list(cases.values())


def ids_of(name: str) -> set[str]:
    """The ids in a test's name: in any case in the function's, as written in its parameters."""
    function, _, parameters = name.partition("[")
    return {i.upper() for i in _ID.findall(function)} | {
        i for i in _ID.findall(parameters) if i[0].isupper()
    }


def read_report(layer: str, text: str) -> Iterator[tuple[str, Finding]]:
    """(case id, finding) for every test of a junit report that names a case."""
    for test in ET.fromstring(text).iter("testcase"):
        found = _finding(layer, test)
        for case in sorted(ids_of(test.get("name", ""))):
            yield case, found


def _finding(layer: str, test: ET.Element) -> Finding:
    if test.find("failure") is not None or test.find("error") is not None:
        return Finding(layer, FAILED)
    skipped = test.find("skipped")
    if skipped is None:
        return Finding(layer, PASS)
    kind = EXPECTED if "xfail" in skipped.get("type", "") else SKIPPED
    return Finding(layer, kind, skipped.get("message", ""))


def table(cases: Iterable[Case], findings: Iterable[tuple[str, Finding]]) -> list[Row]:
    by_case: dict[str, list[Finding]] = {}
    for case_id, finding in findings:
        by_case.setdefault(case_id, []).append(finding)
    return [_row(case, by_case.get(case.id, [])) for case in cases]


def _row(case: Case, found: Sequence[Finding]) -> Row:
    if not found:
        return Row(case, reason=case.later)
    result = min((f.result for f in found), key=_WORST_FIRST.index)
    layers = tuple(name for name in LAYERS if any(f.layer == name for f in found))
    reasons = sorted({f.reason for f in found if f.result == result and f.reason})
    return Row(case, layers, result, "; ".join(reasons))


def summary(rows: Sequence[Row]) -> str:
    count = Counter(row.result for row in rows)
    parts = [f"{count[name]} {name}" for name in (*_WORST_FIRST, NONE) if count[name]]
    return f"{len(rows)} cases: {', '.join(parts)}"


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| case | what it is | layers | result |", "|---|---|---|---|"]
    for row in rows:
        reason = f": {row.reason}" if row.reason else ""
        cells = (row.case.id, row.case.text, ", ".join(row.layers), row.result + reason)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return _HEAD + summary(rows) + ".\n\n" + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def read_table(text: str) -> dict[str, str]:
    """id -> result, as a written table has it."""
    found = (_ROW.match(line) for line in text.splitlines())
    return {row[1]: row[2] for row in found if row}


def disagreements(written: Mapping[str, str], rows: Iterable[Row]) -> Iterator[str]:
    """Where the table in the repository does not say what this run has shown."""
    now = {row.case.id: row.result for row in rows}
    for case_id in sorted({*written, *now}):
        was, found = written.get(case_id, "not listed"), now.get(case_id, "not listed")
        skipped = SKIPPED in (was, found) and not {NONE, "not listed"} & {was, found}
        if was != found and not skipped:
            yield f"{case_id}: the table says {was}, this run {found}"


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    try:
        cases = read_cases(options.cases.read_text())
        rows = table(cases, _reports(options.artefacts))
    except (OSError, ValueError, ET.ParseError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 1
    complaints = [f"{row.case.id} has no test: {row.case.text}" for row in rows if row.missing]
    complaints = complaints if options.check else []
    if options.keep:
        written = options.table.read_text() if options.table.exists() else ""
        complaints += disagreements(read_table(written), rows)
    else:
        options.table.write_text(markdown(rows))
    for row in rows:
        if row.outdated:
            print(f"{row.case.id} has a test now, its `later:` can go")
    print(*complaints, summary(rows), sep="\n")
    return 1 if complaints else 0


def _reports(directory: Path) -> Iterator[tuple[str, Finding]]:
    for layer in LAYERS:
        yield from read_report(layer, (directory / f"{layer}.xml").read_text())


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Writes the table of cases and their results.")
    parser.add_argument("--artefacts", type=Path, default=HERE / "artefacts", metavar="DIR")
    parser.add_argument("--cases", type=Path, default=HERE / "data/cases.txt", metavar="FILE")
    parser.add_argument("--table", type=Path, default=HERE / "CONFORMANCE.md", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="fail for a case without a test")
    parser.add_argument("--keep", action="store_true", help="compare the table, do not write it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
