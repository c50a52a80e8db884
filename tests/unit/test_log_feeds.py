"""The past from journalctl and the present from the hub, as one stream of lines."""

from __future__ import annotations

import json
from typing import Any

import device_states
import pytest

from balena_agent.api.log_feeds import ServiceFeed
from balena_agent.api.logs import LogStreams
from balena_agent.api.streams import Streams
from balena_agent.core.errors import InvalidInput, NotFound
from balena_agent.core.logline import CONTAINER, LogLine, Source

OWNERS = {"c1": Source("web", 7, 1), "c2": Source("db", 8, 1)}


def entry(container: str, text: Any, time: int, priority: str = "6", **more: str) -> bytes:
    document = {"MESSAGE": text, "PRIORITY": priority, CONTAINER: container,
                "__REALTIME_TIMESTAMP": str(time * 1000), **more}  # fmt: skip
    return json.dumps(document).encode() + b"\n"


class Past:
    """A child whose output comes in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.ended = False
        self.closed = 0

    def fileno(self) -> int:
        return 99

    def read(self, limit: int) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        self.ended = True
        return b""

    def close(self) -> None:
        self.closed += 1


class Present:
    def __init__(self, *lines: LogLine) -> None:
        self.lines = list(lines)
        self.closed = 0

    def take(self, limit: int) -> list[LogLine]:
        taken, self.lines = self.lines[:limit], self.lines[limit:]
        return taken

    def close(self) -> None:
        self.closed += 1


def feed(past: Past, present: Present | None = None, service: str = "") -> ServiceFeed:
    return ServiceFeed(past, present, OWNERS.get, service, since=1000)


def read(source: ServiceFeed) -> list[tuple[str, str]]:
    data = b""
    while piece := source.read(65536):
        data += piece
    lines = [json.loads(raw) for raw in data.splitlines()]
    return [(line.get("serviceName", ""), line["message"]) for line in lines]


def test_the_past_ends_where_nobody_follows() -> None:
    raw = entry("c1", "one", 1) + entry("c2", "two", 2, "3")
    past = Past(raw[:20], raw[20:])
    source = feed(past)
    assert source.fileno() == 99
    assert read(source) == [("web", "one"), ("db", "two")]
    assert source.ended and past.closed == 1 and source.fileno() == -1
    source.close()
    assert past.closed == 1


def test_the_present_follows_without_a_gap_or_a_double() -> None:
    past = Past(entry("c1", "old", 999), entry("c1", "both", 1001))
    present = Present(
        LogLine(1001, "both", False, *OWNERS["c1"]), LogLine(1002, "new", False, *OWNERS["c1"])
    )
    source = feed(past, present)
    assert read(source) == [("web", "old"), ("web", "both"), ("web", "new")]
    assert not source.ended
    source.close()
    source.close()
    assert present.closed == 1


def test_only_the_service_that_is_asked_for() -> None:
    past = Past(entry("c1", "mine", 1) + entry("c2", "theirs", 2) + entry("c3", "strange", 3))
    present = Present(
        LogLine(5, "Starting service 'web'"),
        LogLine(6, "theirs", False, *OWNERS["c2"]),
        LogLine(7, "mine too", False, *OWNERS["c1"]),
    )
    assert read(feed(past, present, "web")) == [("web", "mine"), ("web", "mine too")]


def test_what_is_no_text_is_read_all_the_same() -> None:
    past = Past(entry("c1", [104, 105, 255], 1) + entry("c1", None, 2))
    assert read(feed(past)) == [("web", "hi\ufffd"), ("web", "")]


def test_a_line_in_pieces_is_one_line() -> None:
    cut = {"CONTAINER_PARTIAL_MESSAGE": "true", "CONTAINER_PARTIAL_ID": "p"}
    past = Past(
        entry("c1", "x" * 16384, 1, CONTAINER_PARTIAL_LAST="false", **cut)
        + entry("c1", "y", 2, CONTAINER_PARTIAL_LAST="true", **cut)
    )
    ((_, text),) = read(feed(past))
    assert text == "x" * 10_000 + "[...]"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"colour": True}, InvalidInput),
        ({"unit": "a.service", "service": "web"}, InvalidInput),
        ({"unit": "a b"}, InvalidInput),
        ({"format": "nonsense"}, InvalidInput),
        ({"service": "nobody"}, NotFound),
    ],
)
def test_options_of_a_pipe_are_checked_before_anything_is_opened(
    options: dict[str, Any], error: type[Exception]
) -> None:
    logs = LogStreams(
        Streams(), lambda wake: pytest.fail("asked"), lambda query: pytest.fail("asked"),
        device_states.m1,
    )  # fmt: skip
    with pytest.raises(error):
        logs.open_pipe(options)
