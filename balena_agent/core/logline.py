"""Log lines: what a journal entry says to those who follow a device's logs, and its form as NDJSON.

Theory: an entry of the journal is a mapping of raw fields. `LineReader` turns entries into lines:
it knows whose container wrote an entry (told from outside), joins the pieces into which the engine
cuts long lines, and shortens what is longer than anybody reads (spec 30 §15.2). What the agent
itself did, and what the journal threw away, are system lines.

Invariants: lines of one container and stream come out in the order in which they went in; at most
`_OPEN` lines are under construction. Nothing here looks at a clock: the time comes with the entry.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring as _quoted
from typing import NamedTuple

Fields = Mapping[str, bytes]
"""The fields of a journal entry as they are stored."""

CONTAINER = "CONTAINER_ID_FULL"
DROPPED_ID = "a596d6fe7bfa4994828e72309e95d61e"
"""MESSAGE_ID of journald's own remark that it has suppressed messages of a unit."""

FOLLOWED = "SYSTEM_LOG"
TELL: Mapping[str, Mapping[str, str]] = {"fields": {FOLLOWED: "yes"}}
"""What a log call of ours is given as `extra` when those who follow the device's logs shall hear
it. What has a STEP they hear anyway."""

TEXT_LIMIT = 10_000
"""Characters of a line that are kept (case H52)."""

_CUT = "[...]"
_PIECE = 16 * 1024
"""Bytes after which the engine cuts a line. A shorter piece is the end of what was written."""

_OPEN = 64
_ERROR = 3
_SUPPRESSED = re.compile(r"Suppressed (\d+) messages from (\S+)")


class LogLine(NamedTuple):
    """One line. `time` is wall time in ms; a system line has no service."""

    time: int
    text: str
    stderr: bool = False
    service: str = ""
    service_id: int = 0
    app_id: int = 0

    @property
    def system(self) -> bool:
        return not self.service


class Source(NamedTuple):
    """Whose container it is."""

    service: str
    service_id: int = 0
    app_id: int = 0


def ndjson(line: LogLine) -> bytes:
    """The line as `GET /v2/local/logs` sends it (spec 10 §8.26)."""
    if line.system:
        error = ',"isStdErr":true' if line.stderr else ""
        text = (
            f'{{"message":{_quoted(line.text)},"isSystem":true,"timestamp":{line.time}{error}}}\n'
        )
    else:
        text = (
            f'{{"serviceName":{_quoted(line.service)},"message":{_quoted(line.text)},'
            f'"isStdErr":{"true" if line.stderr else "false"},"timestamp":{line.time},'
            f'"serviceId":{line.service_id}}}\n'
        )
    return text.encode("utf-8", "replace")


def lost(count: int, time: int) -> LogLine:
    """What stands where lines of a reader that was too slow are missing."""
    return LogLine(time, f"{count} log lines were lost: they were read too slowly", True)


def gap(time: int) -> LogLine:
    """What stands where the journal has thrown away what had not been read yet."""
    return LogLine(time, "Log lines were lost: the journal was cleared meanwhile", True)


def shortened(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT] + _CUT


def decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def system_line(entry: Fields, time: int) -> LogLine | None:
    """A line about an entry that is no container's: what the agent did (its entries name a STEP) or
    wants followers to hear, what journald suppressed, or what a unit of the host said. None for the
    agent's other talk."""
    text = decoded(entry.get("MESSAGE", b""))
    if entry.get("MESSAGE_ID", b"") == DROPPED_ID.encode():
        found = _SUPPRESSED.search(text)
        if found is None:
            return None
        return LogLine(time, f"{found[1]} log lines were lost: {found[2]} wrote too many", True)
    if entry.get("SYSLOG_IDENTIFIER") == b"balena-agent":
        if "STEP" not in entry and FOLLOWED not in entry:
            return None
        return LogLine(time, shortened(text), _priority(entry) <= _ERROR + 1)
    return LogLine(time, shortened(text), _priority(entry) <= _ERROR)


def _priority(entry: Fields) -> int:
    raw = entry.get("PRIORITY", b"6")
    return int(raw) if len(raw) == 1 and raw.isdigit() else 6


@dataclass(slots=True)
class _Pieces:
    """A line under construction, in bytes: the engine cuts in the middle of characters, too."""

    source: Source
    raw: bytes
    time: int
    stderr: bool

    def line(self) -> LogLine:
        return _line(self.source, decoded(self.raw), self.time, self.stderr)


@dataclass(slots=True)
class LineReader:
    """Makes lines of the entries of containers; keeps what it has not finished."""

    _open: dict[bytes, _Pieces] = field(default_factory=dict)

    def read(self, source: Source, entry: Fields, time: int) -> LogLine | None:
        """The line that this entry completes, if it completes one."""
        raw = entry.get("MESSAGE", b"")
        stderr = entry.get("PRIORITY") == b"3"
        partial = entry.get("CONTAINER_PARTIAL_MESSAGE") == b"true"
        if not partial and not self._open:
            return _line(source, decoded(raw), time, stderr)
        # Engines of old number no pieces: there the container and its stream tell them apart.
        plain = entry.get(CONTAINER, b"") + entry.get("PRIORITY", b"")
        key = entry.get("CONTAINER_PARTIAL_ID") or plain
        pieces = self._open.get(key)
        if pieces is None:
            pieces = self._open[key] = _Pieces(source, b"", time, stderr)
        if len(pieces.raw) <= 4 * TEXT_LIMIT:  # UTF-8 has at most four bytes per character
            pieces.raw += raw
        last = entry.get("CONTAINER_PARTIAL_LAST") == b"true"
        if not partial or last or len(raw) < _PIECE:
            return self._open.pop(key).line()
        return None

    @property
    def unfinished(self) -> bool:
        return bool(self._open)

    def overdue(self, before: int, behind: int = sys.maxsize) -> Iterator[LogLine]:
        """Give up on lines begun before `before` (ms) and on the oldest of too many: they are
        handed out as they are. A container may end just where the engine has cut. What was begun
        behind `behind` bears the time of a clock that has been set back since."""
        surplus = max(0, len(self._open) - _OPEN)
        for place, (key, pieces) in enumerate(list(self._open.items())):
            if place < surplus or not before <= pieces.time <= behind:
                del self._open[key]
                yield pieces.line()


def _line(source: Source, text: str, time: int, stderr: bool) -> LogLine:
    return LogLine(time, shortened(text), stderr, *source)
