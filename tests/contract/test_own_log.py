"""host/journal.py against the real journal: fields arrive, secrets do not."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest

from balena_agent.host import journal

pytestmark = pytest.mark.skipif(
    os.environ.get("BALENA_AGENT_TEST_DEVICE") != "1",
    reason="needs a virtual device with journald: set BALENA_AGENT_TEST_DEVICE=1 inside one",
)

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Logging as the agent sets it up under systemd, whose error output is the journal; the stream
    gets what the journal would not take."""
    monkeypatch.setenv(journal.JOURNAL_STREAM, "8:1")
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    stream = io.StringIO()
    journal.start("info", stream)
    yield stream
    root.handlers[:] = kept[0]
    root.setLevel(kept[1])
    logging.captureWarnings(False)


def entries(mark: str) -> list[dict[str, str]]:
    command = ["journalctl", "--sync"], ["journalctl", "-o", "json", f"CAUSE={mark}"]
    until = time.monotonic() + 10
    while time.monotonic() < until:
        subprocess.run(command[0], check=False)
        said = subprocess.run(command[1], capture_output=True, text=True, check=True).stdout
        if said:
            return [json.loads(line) for line in said.splitlines()]
        time.sleep(0.1)
    return []


def test_a_record_becomes_an_entry_with_fields(stream: io.StringIO) -> None:
    mark = uuid.uuid4().hex
    fields = {"APP": 7, "SERVICE": "wëb", "STEP": "create", "CAUSE": mark}
    logging.getLogger("balena_agent.probe").warning(
        "two lines\nwith apikey=%s", KEY, extra={"fields": fields}
    )
    (entry,) = entries(mark)
    assert entry["MESSAGE"] == "two lines\nwith apikey=<hidden>"
    assert (entry["APP"], entry["SERVICE"], entry["STEP"]) == ("7", "wëb", "create")
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("4", "balena-agent")
    assert entry["_TRANSPORT"] == "journal" and entry["LOGGER"] == "balena_agent.probe"
    assert entry["CODE_FUNC"] == "test_a_record_becomes_an_entry_with_fields"
    assert stream.getvalue() == ""


def test_who_runs_it_by_hand_sees_the_message_too(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(journal.JOURNAL_STREAM)
    journal.start("info", stream)
    mark = uuid.uuid4().hex
    logging.getLogger("balena_agent.probe").error(
        "apikey=%s", KEY, extra={"fields": {"CAUSE": mark}}
    )
    assert len(entries(mark)) == 1
    assert stream.getvalue() == "apikey=<hidden>\n"


def test_an_entry_larger_than_a_datagram_arrives(stream: io.StringIO) -> None:
    mark = uuid.uuid4().hex
    logging.getLogger("balena_agent.probe").info("x" * 500_000, extra={"fields": {"CAUSE": mark}})
    assert len(entries(mark)) == 1
