"""A journal whose files are damaged, cut short or taken away while they are read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from balena_agent.core.logline import CONTAINER, LogLine, Source
from balena_agent.host import journal_reader
from balena_agent.host.journal_reader import JournalReader
from balena_agent.host.sigbus import BusErrors

GOOD, DAMAGED, GONE, STRUCK = "good", "damaged", "gone", "struck"


class Journal:
    """What the library shows of a journal: each entry is good or damaged, or its file is gone."""

    def __init__(self, *entries: str) -> None:
        self._entries: Iterator[tuple[int, str]] = iter(enumerate(entries))
        self._now = (-1, "")

    def _next(self) -> bool:
        found = next(self._entries, None)
        if found and found[1] == GONE:
            raise OSError(116, "Stale file handle")
        self._now = found or self._now
        return found is not None

    def _get_all(self) -> dict[str, bytes]:
        if self._now[1] == DAMAGED:
            raise OSError(74, "Bad message")
        return {"MESSAGE": b"line %d" % self._now[0], CONTAINER: b"c", "PRIORITY": b"6"}

    def _get_realtime(self) -> int:
        return self._now[0] * 1_000_000

    def _get_cursor(self) -> str:
        return f"s={self._now[0]}"

    def close(self) -> None: ...


def reader(*entries: str) -> JournalReader:
    def owner(_: str) -> Source:
        return Source("web", 7, 1)

    made = JournalReader(
        lambda *_: None, owner, "s=old", lambda: None, lambda: None, 1.0, 0.0, BusErrors()
    )
    given: Any = Journal(*entries)
    made._journal = given
    return made


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_a_damaged_entry_is_passed_by(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    found = reader(GOOD, DAMAGED, GOOD)
    lines, more = found._batch()
    assert (texts(lines), more, found._cursor) == (["line 0", "line 2"], False, "s=2")
    assert "An entry of the journal cannot be read" in caplog.text


def test_what_was_read_is_handed_on_before_the_error_is_told() -> None:
    found = reader(GOOD, GOOD, GONE, GONE)
    lines, _ = found._batch()
    assert texts(lines) == ["line 0", "line 1"]
    with pytest.raises(OSError, match="Stale"):
        found._batch()


def test_a_line_in_pieces_that_is_read_late_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause of the agent: the entries are old, and a batch ends between the pieces."""
    monkeypatch.setattr(journal_reader, "BATCH", 1)

    class Cut(Journal):
        def _get_all(self) -> dict[str, bytes]:
            last = b"true" if self._now[0] else b"false"
            more = {"CONTAINER_PARTIAL_MESSAGE": b"true", "CONTAINER_PARTIAL_ID": b"p"}
            text = b"x" * (16 * 1024) if last == b"false" else b"end"
            return {**super()._get_all(), **more, "MESSAGE": text, "CONTAINER_PARTIAL_LAST": last}

    found = reader()
    found._journal = Cut(GOOD, GOOD)
    assert found._batch() == ([], True)
    lines, _ = found._batch()
    assert len(lines) == 1 and not found._pieces.unfinished


def test_a_noted_place_that_is_none_does_not_stop_the_reader() -> None:
    class Strict(Journal):
        def add_match(self, _: str) -> None: ...
        def add_disjunction(self) -> None: ...
        def seek_tail(self) -> None: ...

        def seek_cursor(self, _: str) -> None:
            raise OSError(22, "Invalid argument")

        def _previous(self) -> bool:
            return self._next()

    found = reader()
    assert found._seek(Strict(GOOD)) is False
    assert (found._cursor, found._sure) == ("s=0", False)


@pytest.mark.parametrize("answer", [True, False])
def test_a_file_that_is_cut_off_under_the_reader_costs_no_line_and_doubles_none(
    answer: bool,
) -> None:
    """The library may make an entry of the zeros, or believe that there are no more."""

    class Cut(Journal):
        def _next(self) -> bool:
            more = super()._next()
            if self._now[1] == STRUCK:
                found._reading.struck = True
                return answer
            return more

    found, heard = reader(), []
    found._deliver = lambda lines, cursor, live: heard.append((texts(list(lines)), cursor, live))
    found._live = False
    found._journal = Cut(GOOD, GOOD, STRUCK, GOOD)
    with pytest.raises(OSError, match="cut off"):
        found._read_all()
    assert heard == [(["line 0", "line 1"], "s=old", False)]
    anew: Any = Journal(GOOD, GOOD, GOOD, GOOD)
    found._reading.struck = False
    found._journal = anew
    found._step_over(anew)
    found._read_all()
    assert heard[1:] == [(["line 2", "line 3"], "s=3", True)]
    assert found._consumed == 0


def test_a_file_that_is_cut_off_again_before_anything_was_read_of_it() -> None:
    """What was read before the first time is still passed by; it ends in a pause, not in a hot
    loop."""
    found = reader(GOOD, GOOD)
    found._deliver = lambda *_: None
    found._consumed = 7
    found._reading.struck = True
    with pytest.raises(OSError, match="cut off"):
        found._read_all()
    assert found._consumed == 7
