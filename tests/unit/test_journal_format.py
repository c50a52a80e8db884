"""What reaches the journal: fields, no secrets, no floods."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from balena_agent.host import journal
from balena_agent.host.journal import JournalHandler, Repeats, line_sender, without_secrets

KEY = "0123456789abcdef0123456789abcdef"


class Sent(list[dict[str, str]]):
    def __call__(self, **fields: str) -> None:
        self.append(fields)


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def log(sent: Sent) -> Iterator[logging.Logger]:
    logger = logging.getLogger("balena_agent.test")
    handler = JournalHandler(sent)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.removeHandler(handler)


def test_fields_of_a_record(log: logging.Logger, sent: Sent) -> None:
    log.info("created %s", "web", extra={"fields": {"APP": 7, "SERVICE": "web", "CAUSE": "new"}})
    (entry,) = sent
    assert entry["MESSAGE"] == "created web" and entry["PRIORITY"] == "6"
    assert (entry["APP"], entry["SERVICE"], entry["CAUSE"]) == ("7", "web", "new")
    assert entry["SYSLOG_IDENTIFIER"] == "balena-agent" and entry["LOGGER"] == "balena_agent.test"
    assert entry["CODE_FILE"].endswith("test_journal_format.py") and int(entry["CODE_LINE"]) > 0
    assert entry["CODE_FUNC"] == "test_fields_of_a_record"
    assert all(isinstance(value, str) for value in entry.values())


def test_impossible_fields_are_left_out(log: logging.Logger, sent: Sent) -> None:
    wrong: dict[Any, Any] = {
        "lower": 1, "_TRUSTED": 1, "A=B": 1, 5: 1, "EMPTY": "", "NONE": None, "MESSAGE": "forged",
        "PRIORITY": "0", "ZERO": 0, "NUL": "a\0b",
    }  # fmt: skip
    log.info("m", extra={"fields": wrong})
    log.info("m", extra={"fields": "not a mapping"})
    assert sent[0]["MESSAGE"] == "m" and sent[0]["PRIORITY"] == "6"
    assert sent[0]["ZERO"] == "0" and sent[0]["NUL"] == "ab"
    assert not {"lower", "_TRUSTED", "A=B", "EMPTY", "NONE"} & set(sent[0])


@pytest.mark.parametrize(
    ("level", "number"),
    [(logging.DEBUG, "7"), (logging.INFO, "6"), (logging.WARNING, "4"), (logging.ERROR, "3"),
     (logging.CRITICAL, "2"), (25, "6")],
)  # fmt: skip
def test_priorities(log: logging.Logger, sent: Sent, level: int, number: str) -> None:
    log.log(level, "m")
    assert sent[0]["PRIORITY"] == number


def test_a_stack_is_part_of_the_message(log: logging.Logger, sent: Sent) -> None:
    try:
        raise ValueError(f"apikey={KEY}")
    except ValueError:
        log.exception("failed")
    assert sent[0]["MESSAGE"].startswith("failed\nTraceback")
    assert sent[0]["ERROR"] == "ValueError" and KEY not in sent[0]["MESSAGE"]


@pytest.mark.parametrize(
    "text",
    [
        f"GET /v1/device?apikey={KEY}&x=1",
        f"GET /v1/device?apikey={KEY[:9]}",
        f"Authorization: Bearer {KEY}",
        f"{{'authorization': 'ApiKey {KEY}'}}",
        f"sent Bearer {KEY[:20]}.{KEY}-x_y",
        f"key {KEY}",
        f"the new key is {KEY}",
        f'"deviceApiKey": "{KEY}{KEY}"',
        f"BALENA_API_KEY={KEY}",
        f"SUPERVISOR_API_KEY={KEY[:10]}zz",
        f"password={KEY}",
        f"https://user:{KEY}@host/path",
    ],
)
def test_secrets_are_hidden(log: logging.Logger, sent: Sent, text: str) -> None:
    log.warning("%s", text, extra={"fields": {"CAUSE": text}})
    for name in ("MESSAGE", "CAUSE"):
        assert "<hidden>" in sent[0][name]
        assert KEY[:9] not in sent[0][name]


@pytest.mark.parametrize(
    "text",
    [f"release {KEY} settled", f"image x@sha256:{KEY}{KEY}", "tokens are read", "monkey 5",
     "key missing", "http://host:80/path", "keyboard"],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_a_wrong_log_call_still_leaves_a_line(sent: Sent) -> None:
    JournalHandler(sent).handle(
        logging.LogRecord("some.where", logging.INFO, "p", 1, "%d things", ("five",), None)
    )
    assert sent[0]["MESSAGE"].startswith("log record of some.where: ")


def test_a_journal_that_fails_never_harms_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(**_: str) -> None:
        raise OSError("no journal")

    record = logging.LogRecord("n", logging.INFO, "p", 1, "still %s", ("told",), None)
    JournalHandler(broken).handle(record)
    assert capsys.readouterr().err == "<6>still told\n"


def test_lines_for_people() -> None:
    stream = io.StringIO()
    handler = JournalHandler(line_sender(stream))
    record = logging.LogRecord("n", logging.WARNING, "p", 1, "two\nlines", (), None)
    record.fields = {"APP": 7}
    handler.handle(record)
    assert stream.getvalue() == "<4>two\n<4>lines [APP=7]\n"


def test_repeats_are_counted_and_told_once_a_minute(sent: Sent) -> None:
    now = [0.0]
    handler = JournalHandler(sent)
    handler.addFilter(Repeats(lambda: now[0]))

    def say(text: str, level: int = logging.WARNING) -> None:
        handler.handle(logging.LogRecord("n", level, "p", 1, text, (), None))

    for second in range(0, 130, 10):
        now[0] = float(second)
        say("engine does not answer")
    say("engine does not answer", logging.ERROR)
    say("another")
    assert [entry["MESSAGE"] for entry in sent] == [
        "engine does not answer",
        "engine does not answer (and 5 times before)",
        "engine does not answer (and 5 times before)",
        "engine does not answer",
        "another",
    ]


def test_events_are_told_each_time(sent: Sent) -> None:
    handler = JournalHandler(sent)
    handler.addFilter(Repeats(lambda: 0.0))
    for _ in range(3):
        handler.handle(logging.LogRecord("n", logging.INFO, "p", 1, "Starting service", (), None))
    assert [entry["MESSAGE"] for entry in sent] == ["Starting service"] * 3


def test_the_memory_for_repeats_is_bounded() -> None:
    repeats = Repeats(lambda: 0.0)
    for number in range(3 * journal.REMEMBERED):
        repeats.filter(logging.LogRecord("n", 30, "p", 1, f"m{number}", (), None))
    assert len(repeats._seen) == journal.REMEMBERED


@pytest.fixture
def loggers() -> Iterator[None]:
    """The loggers of the process are afterwards as they were."""
    root, ours = logging.getLogger(), logging.getLogger("balena_agent")
    kept = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = kept[0]
    root.setLevel(kept[1])
    ours.setLevel(kept[2])
    logging.captureWarnings(False)


@pytest.mark.parametrize("by_systemd", [True, False])
def test_who_runs_the_agent_by_hand_sees_what_the_journal_is_told(
    loggers: None, monkeypatch: pytest.MonkeyPatch, by_systemd: bool
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(journal, "journal_sender", lambda: lambda **f: sent.append(f["MESSAGE"]))
    monkeypatch.setitem(os.environ, "JOURNAL_STREAM", "8:1")
    if not by_systemd:
        monkeypatch.delitem(os.environ, "JOURNAL_STREAM")
    stream = io.StringIO()
    journal.start("info", stream)
    logging.getLogger("balena_agent").error("Port in use, token=hunter2")
    assert sent == ["Port in use, token=<hidden>"]
    assert stream.getvalue() == ("" if by_systemd else sent[0] + "\n")


def test_starting_installs_one_handler_and_levels() -> None:
    root, ours = logging.getLogger(), logging.getLogger("balena_agent")
    kept = root.handlers[:], root.level, ours.level
    try:
        stream = io.StringIO()
        handler = journal.start("debug", stream)
        assert root.handlers == [handler] and ours.level == logging.DEBUG
        assert root.level == logging.WARNING
        journal.set_level("nonsense")
        assert ours.level == logging.INFO
        journal.set_level("error")
        assert (root.level, ours.level) == (logging.ERROR, logging.ERROR)
    finally:
        root.handlers[:] = kept[0]
        root.setLevel(kept[1])
        ours.setLevel(kept[2])
        logging.captureWarnings(False)
