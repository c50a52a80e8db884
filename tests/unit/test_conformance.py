"""The table of cases: from names of tests and junit reports to results, gaps and disagreements."""

from __future__ import annotations

from pathlib import Path

import conformance
import pytest

CASES = """\
# a comment

A1 the first
B02 the second | with a bar
C3 the third | later: needs a moon
D4 the fourth
"""


def report(*tests: str) -> str:
    """A junit report: `name`, `name=failure` or `name=skipped:type:reason`."""
    lines = []
    for test in tests:
        name, _, what = test.partition("=")
        kind, _, more = what.partition(":")
        sort, _, reason = more.partition(":")
        inside = f'<{kind} type="{sort}" message="{reason}"/>' if kind else ""
        lines.append(f'<testcase classname="t" name="{name}" time="0.1">{inside}</testcase>')
    return f"<testsuites><testsuite name='pytest'>{''.join(lines)}</testsuite></testsuites>"


def rows(**reports: str) -> dict[str, conformance.Row]:
    cases = conformance.read_cases(CASES)
    found = [one for name, text in reports.items() for one in conformance.read_report(name, text)]
    return {row.case.id: row for row in conformance.table(cases, found)}


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("test_X11_X12_a_lock", {"X11", "X12"}),
        ("test_x11_y02_small_letters_in_the_name", {"X11", "Y02"}),
        ("test_case[test_Y29]", {"Y29"}),
        ("test_case[rich-Y07-2]", {"Y07"}),
        ("test_case[x1-y2]", set()),
        ("test_sha256_is_no_case", set()),
        ("test_X1234_ax11_x11b", set()),
    ],
)
def test_ids_in_names(name: str, ids: set[str]) -> None:
    assert conformance.ids_of(name) == ids


def test_the_list_of_cases() -> None:
    found = conformance.read_cases(CASES)
    assert [case.id for case in found] == ["A1", "B02", "C3", "D4"]
    assert found[1].text == "the second | with a bar"
    assert (found[2].text, found[2].later) == ("the third", "needs a moon")
    for bad in ("A1 one\nA1 again", "no id at all", "A1x y"):
        with pytest.raises(ValueError, match="line"):
            conformance.read_cases(bad)


def test_the_worst_result_of_all_layers_counts_but_a_skip_does_not() -> None:
    found = rows(
        unit=report("test_A1_x", "test_B02_x", "test_D4_x=skipped:pytest.skip:no root"),
        contract=report("test_A1_y=skipped:pytest.skip:no engine", "test_other"),
        e2e=report("test_B02_y=skipped:pytest.xfail:not so yet", "test_A1_z"),
    )
    assert (found["A1"].result, found["A1"].layers) == ("pass", ("unit", "contract", "e2e"))
    assert (found["B02"].result, found["B02"].reason) == ("expected failure", "not so yet")
    assert (found["D4"].result, found["D4"].reason) == ("skipped", "no root")
    assert (found["C3"].result, found["C3"].reason) == ("no test", "needs a moon")
    failed = rows(unit=report("test_A1_x"), e2e=report("test_A1_y=failure"))
    assert failed["A1"].result == "failed"


def test_gaps_and_marks_that_are_out_of_date() -> None:
    found = rows(unit=report("test_C3_x"))
    assert {name for name, row in found.items() if row.missing} == {"A1", "B02", "D4"}
    assert {name for name, row in found.items() if row.outdated} == {"C3"}


def test_the_table_can_be_read_back() -> None:
    found = rows(unit=report("test_A1_x", "test_B02_x=skipped:pytest.xfail:a | b\n c"))
    text = conformance.markdown(list(found.values()))
    assert "4 cases: 1 expected failure, 1 pass, 2 no test." in text
    assert conformance.read_table(text) == {
        "A1": "pass",
        "B02": "expected failure",
        "C3": "no test",
        "D4": "no test",
    }


def test_what_disagrees_with_the_table() -> None:
    found = rows(unit=report("test_A1_x", "test_B02_x=skipped:pytest.skip:no device")).values()
    same = {"A1": "pass", "B02": "pass", "C3": "no test", "D4": "no test"}
    assert not list(conformance.disagreements(same, found))
    wrong = {"A1": "expected failure", "B02": "no test", "D4": "skipped", "E5": "pass"}
    said = list(conformance.disagreements(wrong, found))
    assert [line.partition(":")[0] for line in said] == ["A1", "B02", "C3", "D4", "E5"]


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    (tmp_path / "cases").write_text("A1 the first\nB2 the second | later: not yet\n")
    for layer in conformance.LAYERS:
        (tmp_path / f"{layer}.xml").write_text(report("test_A1_x"))
    words = {"artefacts": ".", "cases": "cases", "table": "table.md"}
    return [f"--{name}={tmp_path / path}" for name, path in words.items()]


def test_the_program_writes_and_later_only_compares(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conformance.main([*where, "--check", "--keep"]) == 1
    assert conformance.main([*where, "--check"]) == 0
    assert "2 cases: 1 pass, 1 no test" in capsys.readouterr().out
    written = (tmp_path / "table.md").read_text()
    assert conformance.main([*where, "--check", "--keep"]) == 0
    for layer in conformance.LAYERS:
        (tmp_path / f"{layer}.xml").write_text(report("test_B2_x"))
    assert conformance.main([*where, "--keep"]) == 1
    out = capsys.readouterr().out
    assert "A1: the table says pass, this run no test" in out and "B2 has a test now" in out
    assert (tmp_path / "table.md").read_text() == written
    assert conformance.main([*where, "--check"]) == 1
    assert "A1 has no test: the first" in capsys.readouterr().out


def test_a_report_that_is_missing_or_broken_is_a_failure(where: list[str], tmp_path: Path) -> None:
    (tmp_path / "e2e.xml").write_text("<testsuites>")
    assert conformance.main(where) == 1
    (tmp_path / "e2e.xml").unlink()
    assert conformance.main(where) == 1


def test_the_list_in_the_repository_is_well_formed_and_whole() -> None:
    path = Path(conformance.__file__).parent / "data/cases.txt"
    found = [case.id for case in conformance.read_cases(path.read_text())]
    wanted = [f"S{n:02d}" for n in range(1, 61)] + [f"M{n:02d}" for n in range(1, 99)]
    assert [name for name in found if name[0] in "SM"] == wanted
