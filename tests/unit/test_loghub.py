"""The fan-out of log lines: bounded, in order, and never held up by one who does not read."""

from __future__ import annotations

import threading
import time

import pytest
from waiting import until

from balena_agent.core.errors import Unavailable
from balena_agent.core.logline import LogLine
from balena_agent.runtime import loghub
from balena_agent.runtime.loghub import Batch, Deliver, LogHub, Subscription


class Journal:
    """A reader whose lines a test makes up."""

    def __init__(self) -> None:
        self.deliver: Deliver | None = None
        self.opened = 0
        self.closed = 0
        self.broken = False

    def open(self, deliver: Deliver) -> Journal:
        if self.broken:
            raise Unavailable("no journal")
        self.opened += 1
        self.deliver = deliver
        return self

    def close(self) -> None:
        self.closed += 1

    def say(self, *texts: str) -> None:
        assert self.deliver is not None
        lines = tuple(LogLine(i, text, False, "web") for i, text in enumerate(texts))
        self.deliver(Batch(lines, "cursor"))


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def hub(journal: Journal) -> LogHub:
    return LogHub(journal.open)


def listen(hub: LogHub) -> Subscription:
    return hub.subscribe(lambda: None)


def texts(subscription: Subscription) -> list[str]:
    return [line.text for line in subscription.take()]


def test_the_journal_is_read_only_while_somebody_listens(hub: LogHub, journal: Journal) -> None:
    assert journal.opened == 0
    first, second = listen(hub), listen(hub)
    assert journal.opened == 1
    first.close()
    first.close()
    assert journal.closed == 0
    second.close()
    assert journal.closed == 1
    listen(hub)
    assert journal.opened == 2


def test_without_a_journal_nobody_is_subscribed(hub: LogHub, journal: Journal) -> None:
    journal.broken = True
    with pytest.raises(Unavailable):
        listen(hub)
    journal.broken = False
    listen(hub).close()
    assert journal.closed == 1  # the failed one does not count as a listener


def test_everybody_gets_every_line_in_order(hub: LogHub, journal: Journal) -> None:
    one, two = listen(hub), listen(hub)
    journal.say("a", "b")
    journal.say("c")
    assert texts(one) == ["a", "b", "c"] and texts(two) == ["a", "b", "c"]
    assert texts(one) == []


def test_whoever_reads_too_slowly_loses_his_own_lines_and_is_told(
    hub: LogHub, journal: Journal
) -> None:
    slow, quick = listen(hub), listen(hub)
    count = loghub.QUEUED_LINES + 500
    seen: list[str] = []
    for start in range(0, count, 100):
        journal.say(*(str(n) for n in range(start, min(start + 100, count))))
        seen += texts(quick)
    assert seen == [str(n) for n in range(count)]
    marker, *rest = slow.take(loghub.QUEUED_LINES)
    assert marker.system and marker.text.startswith("500 log lines were lost")
    assert [line.text for line in rest] == [str(n) for n in range(500, count)]
    journal.say("next")
    assert texts(slow) == ["next"]


def test_long_lines_fill_a_queue_sooner(hub: LogHub, journal: Journal) -> None:
    slow = listen(hub)
    size = loghub.QUEUED_SIZE // 4
    journal.say(*("x" * size for _ in range(6)))
    marker, *rest = slow.take()
    assert marker.text.startswith("3 log lines were lost") and len(rest) == 3


def test_a_reader_waits_for_a_queue_that_is_being_emptied(
    hub: LogHub, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loghub, "PATIENCE", 60.0)
    subscription, lines = listen(hub), ["x"] * loghub.QUEUED_LINES
    reader = threading.Thread(target=journal.say, args=lines)
    reader.start()
    until(lambda: len(subscription._lines) == loghub.QUEUED_LINES, "the queue is full")
    reader.join(0.3)
    assert reader.is_alive()
    assert len(subscription.take()) == loghub.QUEUED_LINES
    reader.join(10)
    assert not reader.is_alive()


def test_a_queue_that_nobody_empties_is_waited_for_once(hub: LogHub, journal: Journal) -> None:
    listen(hub)
    journal.say(*("x" for _ in range(loghub.QUEUED_LINES)))
    began = time.monotonic()
    for _ in range(100):
        journal.say("y")
    assert time.monotonic() - began < 100 * loghub.PATIENCE / 2


def test_a_listener_is_woken(hub: LogHub, journal: Journal) -> None:
    woken: list[int] = []
    hub.subscribe(lambda: woken.append(1))
    journal.say("a")
    assert woken == [1]
