"""Journal entries become log lines, and log lines become NDJSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from balena_agent.core.logline import (
    CONTAINER,
    DROPPED_ID,
    TELL,
    TEXT_LIMIT,
    LineReader,
    LogLine,
    Source,
    gap,
    lost,
    ndjson,
    system_line,
)

WEB = Source("web", 7, 1)
CUT = 16 * 1024


def entry(message: bytes, priority: bytes = b"6", **more: str) -> dict[str, bytes]:
    fields = {"MESSAGE": message, "PRIORITY": priority, CONTAINER: b"c" * 64}
    return fields | {name: value.encode() for name, value in more.items()}


def piece(message: bytes, number: int, last: bool = False, id: str = "p1") -> dict[str, bytes]:
    return entry(
        message, CONTAINER_PARTIAL_MESSAGE="true", CONTAINER_PARTIAL_ID=id,
        CONTAINER_PARTIAL_ORDINAL=str(number), CONTAINER_PARTIAL_LAST="true" if last else "false",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "document"),
    [
        (
            LogLine(5, 'a "quoted"\nlïne \x00', False, "web", 7, 1),
            {"serviceName": "web", "message": 'a "quoted"\nlïne \x00', "isStdErr": False,
             "timestamp": 5, "serviceId": 7},
        ),
        (
            LogLine(5, "oops", True, "web", 7, 1),
            {"serviceName": "web", "message": "oops", "isStdErr": True, "timestamp": 5,
             "serviceId": 7},
        ),
        (LogLine(6, "Starting"), {"message": "Starting", "isSystem": True, "timestamp": 6}),
        (
            LogLine(6, "Failed", True),
            {"message": "Failed", "isSystem": True, "timestamp": 6, "isStdErr": True},
        ),
    ],
)  # fmt: skip
def test_a_line_as_ndjson(line: LogLine, document: dict[str, Any]) -> None:
    raw = ndjson(line)
    assert raw.endswith(b"\n") and raw.count(b"\n") == 1
    assert json.loads(raw) == document
    assert list(json.loads(raw)) == list(document)  # the order of the specification, too


def test_an_entry_is_a_line_of_its_service() -> None:
    reader = LineReader()
    assert reader.read(WEB, entry(b"hello"), 5) == LogLine(5, "hello", False, "web", 7, 1)
    assert reader.read(WEB, entry(b"bad", b"3"), 6) == LogLine(6, "bad", True, "web", 7, 1)


def test_bytes_that_are_no_text_do_not_stop_anything() -> None:
    assert LineReader().read(WEB, entry(b"a\xff\xfeb"), 5) == LogLine(5, "a��b", False, *WEB)


def test_h52_the_pieces_of_a_long_line_are_one_line() -> None:
    reader, text = LineReader(), "0123456789" * 4000
    raw = text.encode()
    pieces = [raw[:CUT], raw[CUT : 2 * CUT], raw[2 * CUT :]]
    made = [
        reader.read(WEB, piece(part, number, last=number == 3), 10 + number)
        for number, part in enumerate(pieces, 1)
    ]
    assert made[:2] == [None, None]
    assert made[2] == LogLine(11, text[:TEXT_LIMIT] + "[...]", False, *WEB)
    assert not reader.unfinished


def test_a_character_may_be_cut_in_the_middle() -> None:
    reader, text = LineReader(), "x" + "ü" * (CUT // 2)
    raw = text.encode()
    assert len(raw) == CUT + 1
    assert reader.read(WEB, piece(raw[:CUT], 1), 1) is None
    line = reader.read(WEB, piece(raw[CUT:], 2, last=True), 2)
    assert line is not None and line.text == text


def test_the_unfinished_tail_of_a_container_is_a_line() -> None:
    line = LineReader().read(WEB, piece(b"no newline", 1), 5)
    assert line == LogLine(5, "no newline", False, *WEB)


def test_two_streams_of_a_container_do_not_mix() -> None:
    reader = LineReader()
    assert reader.read(WEB, piece(b"o" * CUT, 1, id="out"), 1) is None
    assert reader.read(WEB, piece(b"e" * CUT, 1, id="err"), 2) is None
    assert reader.read(WEB, entry(b"between"), 3) == LogLine(3, "between", False, *WEB)
    line = reader.read(WEB, piece(b"!", 2, last=True, id="out"), 4)
    assert line is not None and line.time == 1 and set(line.text[:TEXT_LIMIT]) == {"o"}


def test_pieces_of_an_engine_that_does_not_number_them() -> None:
    reader = LineReader()
    assert reader.read(WEB, entry(b"a" * CUT, CONTAINER_PARTIAL_MESSAGE="true"), 1) is None
    line = reader.read(WEB, entry(b"end"), 2)
    assert line is not None and line.time == 1
    assert reader.read(WEB, entry(b"next"), 3) == LogLine(3, "next", False, *WEB)


def test_what_is_never_finished_is_handed_out_after_a_while() -> None:
    reader = LineReader()
    reader.read(WEB, piece(b"a" * CUT, 1), 1000)
    assert list(reader.overdue(1000)) == []
    (line,) = reader.overdue(1001)
    assert line.time == 1000 and not reader.unfinished


def test_a_clock_that_is_set_back_keeps_no_line_back() -> None:
    reader = LineReader()
    assert reader.read(WEB, piece(b"x" * CUT, 1), 5000) is None
    assert list(reader.overdue(0, 5000)) == []
    (line,) = reader.overdue(0, 4999)
    assert line.text.startswith("xx") and not reader.unfinished


def test_not_more_than_so_many_lines_are_kept_unfinished() -> None:
    reader = LineReader()
    for number in range(80):
        reader.read(WEB, piece(b"a" * CUT, 1, id=f"p{number}"), number)
    assert [line.time for line in reader.overdue(0)] == list(range(16))


def own(message: bytes, priority: bytes = b"6", **more: str) -> dict[str, bytes]:
    fields = {"MESSAGE": message, "PRIORITY": priority, "SYSLOG_IDENTIFIER": b"balena-agent"}
    return fields | {name: value.encode() for name, value in more.items()}


def test_what_the_agent_does_is_a_system_line() -> None:
    assert system_line(own(b"Starting service 'web'", STEP="start"), 5) == LogLine(
        5, "Starting service 'web'"
    )
    failed = system_line(own(b"Failed to start", b"4", STEP="start"), 5)
    assert failed is not None and failed.stderr


def test_what_else_the_agent_says_is_nobodys_log_line() -> None:
    assert system_line(own(b"GET /ping 200 - 0.1 ms"), 5) is None


def test_what_followers_shall_hear_is_a_system_line_without_a_step() -> None:
    fields = TELL["fields"]
    line = system_line(own(b"Could not move to new release: no", b"4", **fields), 5)
    assert line == LogLine(5, "Could not move to new release: no", True)


def test_what_journald_threw_away_is_told() -> None:
    said = b"Suppressed 162532 messages from docker.service"
    line = system_line({"MESSAGE": said, "MESSAGE_ID": DROPPED_ID.encode()}, 5)
    assert line is not None and line.stderr
    assert "162532" in line.text and "docker.service" in line.text


def test_a_unit_of_the_host_is_a_system_line() -> None:
    line = system_line({"MESSAGE": b"updating", "SYSLOG_IDENTIFIER": b"hup"}, 5)
    assert line == LogLine(5, "updating")


@pytest.mark.parametrize("priority", [b"", b"high", b"-1", b"1" * 5000])
def test_a_priority_that_is_none_is_an_ordinary_line(priority: bytes) -> None:
    entry = {"MESSAGE": b"updating", "PRIORITY": priority, "SYSLOG_IDENTIFIER": b"hup"}
    assert system_line(entry, 5) == LogLine(5, "updating")


def test_markers_are_system_lines_that_say_how_many() -> None:
    assert lost(3, 5).system and lost(3, 5).stderr and "3 " in lost(3, 5).text
    assert gap(5).system
