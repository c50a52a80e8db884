"""core/logupload.py: the form of a line, what is left out and told, and how far lines have come."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cloud.logs import _problem as problem

from balena_agent.core.cloudanswer import BUSY, DENIED, OFFLINE, UNTIMED, Outcome
from balena_agent.core.logline import LogLine, shortened
from balena_agent.core.logupload import (
    BURST,
    OFFLINE_LINES,
    QUEUED,
    RATE,
    SETTLED,
    Backlog,
    Delivery,
    Intake,
    record,
    reopen_after,
    uploadable,
)

NOW = 1_766_000_000_123


def line(text: str, service: int = 7, time: int = NOW, stderr: bool = False) -> LogLine:
    return LogLine(time, text, stderr, f"s{service}", service, 1)


def system(text: str, time: int = NOW) -> LogLine:
    return LogLine(time, text)


def numbered(count: int, service: int = 7) -> list[LogLine]:
    return [line(str(n), service, NOW + n) for n in range(count)]


def taken(intake: Intake, now: float = 0.0) -> list[dict[str, Any]]:
    """Everything that waits; each line as strictly as the cloud reads it."""
    found: list[dict[str, Any]] = []
    while data := intake.take(now).data:
        assert data.endswith(b"\n")
        found += map(json.loads, data.splitlines())
    assert [problem(each) for each in found] == [""] * len(found)
    return found


def texts(lines: list[dict[str, Any]]) -> list[str]:
    return [each["message"] for each in lines]


def live(intake: Intake) -> Intake:
    """One that has nothing to catch up with."""
    intake.add((), "", True, 0.0)
    return intake


# -- the form


@pytest.mark.parametrize(
    ("given", "document"),
    [
        (line('a "b"\n\x00'), {"message": 'a "b"\n\x00', "timestamp": NOW, "serviceId": 7}),
        (
            line("bad", stderr=True),
            {"message": "bad", "timestamp": NOW, "isStdErr": True, "serviceId": 7},
        ),
        (system("Starting"), {"message": "Starting", "isSystem": True, "timestamp": NOW}),
    ],
)
def test_C38_C39_the_form_of_a_line(given: LogLine, document: dict[str, Any]) -> None:
    raw = record(given)
    assert raw.endswith(b"\n") and raw.count(b"\n") == 1
    assert json.loads(raw) == document and problem(document) == ""


def test_C44_a_long_message_is_cut_to_ten_thousand_characters() -> None:
    for text in ("x" * 20_000, shortened("x" * 20_000)):
        message = json.loads(record(line(text)))["message"]
        assert message == "x" * 9995 + "[...]"
    assert json.loads(record(line("x" * 10_000)))["message"] == "x" * 10_000


# -- the way through


def test_lines_come_out_in_order_with_the_cursor_that_they_reach() -> None:
    intake = live(Intake())
    intake.add([line("a"), system("b")], "one", True, 0.0)
    intake.add([line("c")], "", True, 0.0)  # something was kept back behind it
    intake.add([line("d")], "two", True, 0.0)
    data, cursor = intake.take(0.0, limit=1)
    assert (json.loads(data)["message"], cursor) == ("a", "")
    data, cursor = intake.take(0.0, limit=1)
    assert (json.loads(data)["message"], cursor) == ("b", "one")
    assert intake.take(0.0, limit=1).cursor == ""
    assert intake.take(0.0, limit=1).cursor == "two"
    assert not intake.waiting and intake.take(0.0) == (b"", "")


def test_a_cursor_needs_no_line() -> None:
    intake = live(Intake())
    intake.add([], "here", True, 0.0)
    assert not intake.waiting and intake.take(0.0) == (b"", "here")


@pytest.mark.parametrize(
    ("level", "out", "err"),
    [("", True, True), ("none", False, False), ("err", False, True), ("error", False, True)],
)
def test_an_owner_may_want_fewer_lines(level: str, out: bool, err: bool) -> None:
    levels = {7: level} if level else {}
    assert uploadable(line("x"), levels) is out
    assert uploadable(line("x", stderr=True), levels) is err
    assert uploadable(line("x", service=8), levels) and uploadable(system("x"), levels)


def test_lines_of_nobody_the_cloud_knows_are_left_out() -> None:
    assert not uploadable(line("local", service=0), {})


def test_C43_who_writes_without_end_is_held_back_and_the_others_are_heard() -> None:
    """A writes 5000 lines a second, B one; ten seconds of that."""
    intake, found = live(Intake()), []
    for tick in range(100):
        now = tick / 10
        talk = [line(str(500 * tick + n), 1, NOW + 100 * tick) for n in range(500)]
        if tick % 10 == 0:
            talk.insert(250, line(f"b{tick}", 2))
        intake.add(talk, str(tick), True, now)
        found += taken(intake, now)
    found += taken(intake, 20.0)
    of_b = [each["message"] for each in found if each["serviceId"] == 2]
    assert of_b == [f"b{tick}" for tick in range(0, 100, 10)]
    of_a = [each for each in found if each["serviceId"] == 1]
    markers = [each for each in of_a if "Suppressed" in each["message"]]
    numbers = [int(each["message"]) for each in of_a if each not in markers]
    assert numbers == sorted(set(numbers)) and BURST <= len(numbers) <= BURST + 10 * RATE
    told = sum(int(each["message"].split()[2]) for each in markers)
    assert told + len(numbers) == 50_000 and 2 <= len(markers) <= 12
    wording = f"Warning: Suppressed {markers[1]['message'].split()[2]} message(s) due to high load"
    assert markers[1]["message"] == wording and markers[1]["isStdErr"] is True


def test_what_nobody_takes_is_bounded_counted_and_told_later() -> None:
    intake = live(Intake(burst=1e9))
    said = [line("x" * 1000, 1)] * 5000
    intake.add([*said, system("I, too" * 500)], "end", True, 0.0)
    found = taken(intake)
    size = sum(len(json.dumps(each, separators=(",", ":"))) + 1 for each in found)
    assert QUEUED - 3000 < size <= QUEUED + 1000
    marks = {each.get("serviceId", 0): each for each in found if "Suppressed" in each["message"]}
    kept = sum("xxx" in each["message"] for each in found)
    assert int(marks[1]["message"].split()[2]) + kept == 5000
    assert marks[0]["isSystem"] and " 1 message(s) " in marks[0]["message"]
    assert not intake.waiting


# -- what was written while nobody could send


def test_a_backlog_is_bounded_per_service_and_its_gaps_are_told_in_place() -> None:
    intake = Intake()
    rare = [line("first", 2, NOW), line("last", 2, NOW + 9000)]
    intake.add([rare[0], *numbered(3000)[:2500]], "one", False, 0.0)
    assert not intake.waiting and intake.take(0.0) == (b"", "")
    intake.add([*numbered(3000)[2500:], rare[1]], "two", True, 0.0)
    found = taken(intake)
    assert texts(found) == [
        "first", "Warning: Suppressed 2000 message(s) while offline",
        *map(str, range(3000 - OFFLINE_LINES, 3000)), "last",
    ]  # fmt: skip
    marker = found[1]
    assert (marker["timestamp"], marker["serviceId"]) == (found[2]["timestamp"], 7)


def test_the_cursor_of_a_backlog_counts_when_all_of_it_is_sent() -> None:
    intake = Intake()
    intake.add(numbered(3), "old", False, 0.0)
    intake.add((), "new", True, 0.0)
    cursors = [intake.take(0.0, limit=1).cursor for _ in range(3)]
    assert cursors == ["", "", "new"]


def test_a_backlog_of_large_lines_is_bounded_by_its_size() -> None:
    backlog = Backlog(size=100_000)
    for number in range(200):
        backlog.add(line("x" * 5000, 1, NOW + number))
        backlog.add(line("y", 2, NOW + number))
    kept = backlog.lines()
    assert sum(len(each.text) for each in kept) < 100_000
    small = [each for each in kept if each.service_id == 2]
    large = [each for each in kept if each.service_id == 1]
    assert len(small) > len(large) > 2 and large[-1].time == NOW + 199
    assert f"Suppressed {200 - len(large) + 1} " in large[0].text


# -- how far they have come


def test_lines_are_certain_some_time_after_they_have_arrived() -> None:
    delivery = Delivery("start")
    delivery.flushed("one")
    assert delivery.under_way and delivery.arrived == "start"
    delivery.settle(1000.0)
    assert delivery.certain == "start"  # nobody has confirmed anything
    delivery.landed(1000.0)
    assert not delivery.under_way and (delivery.arrived, delivery.certain) == ("one", "start")
    delivery.flushed("two")
    delivery.landed(1005.0)
    delivery.settle(1000.0 + SETTLED)
    assert (delivery.arrived, delivery.certain) == ("two", "one")
    delivery.broken()
    assert (delivery.arrived, delivery.certain) == ("one", "one")
    delivery.settle(2000.0)
    assert delivery.certain == "one"


def test_an_acknowledged_end_makes_all_lines_certain() -> None:
    delivery = Delivery()
    for cursor in ("one", "two"):
        delivery.flushed(cursor)
        delivery.landed(1.0)
    delivery.flushed("")  # a portion that reaches no cursor
    delivery.acknowledged()
    assert (delivery.arrived, delivery.certain) == ("two", "two")
    delivery.flushed("three")
    delivery.acknowledged()
    assert delivery.certain == "three" and not delivery.under_way


def test_what_needs_no_sending_is_certain_at_once() -> None:
    delivery = Delivery("one")
    delivery.passed("")
    assert delivery.certain == "one"
    delivery.passed("two")
    assert (delivery.arrived, delivery.certain) == ("two", "two")


# -- when to try again


def test_the_waits_between_attempts() -> None:
    off = Outcome(OFFLINE)
    assert [reopen_after(off, n, 0.0) for n in range(8)] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert reopen_after(off, 0, 1.0) == 6 and reopen_after(off, 10**6, 1.0) == 360
    assert [reopen_after(Outcome(DENIED), n, 0.0) for n in range(3)] == [5, 300, 300]
    assert reopen_after(Outcome(BUSY, "", 120.0), 3, 0.0) == 120
    assert [reopen_after(Outcome(UNTIMED), n, 0.0) for n in range(3)] == [15, 15, 15]
