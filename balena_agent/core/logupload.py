"""What goes up to the cloud of the log lines, in which form, and how far it is certain.

Theory (spec 31 §8): the journal is the large buffer. What is in memory is the little that is on its
way, and how far the lines have come is told by cursors of the journal. Lines that a device has
written while its cloud was away come as a backlog, of which the newest of each service are kept;
afterwards a service that talks without end is held back, so that the others are heard. What is left
out is counted, and told in its place.

The cloud acknowledges nothing while a stream lasts. Lines have `arrived` when the other host's
kernel has them, and are `certain` when the connection has outlived that by `SETTLED` seconds, or
when the stream has been ended and answered. A connection that breaks is followed by another one
behind what is certain; a process that was killed is followed by another one behind what had
arrived, because its kernel had nothing left to send.

Invariants: the lines of a service keep their order; a cursor is handed out only with or after all
lines before it. Times called `now` are monotonic seconds; those of lines are wall time in ms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import merge
from json.encoder import encode_basestring as _quoted
from typing import Final, NamedTuple

from .cloudanswer import DENIED, UNTIMED, Outcome
from .logline import LogLine

LINE_LIMIT: Final = 10_000
"""Characters of a message, its mark of having been cut included."""

OFFLINE_LINES: Final = 1000
"""Lines per service that are sent of what was written while nobody could send."""

RATE, BURST = 200.0, 1000.0
"""Lines per second that a service may write for long, and lines that it may write at once."""

QUEUED: Final = 1 << 20
"""Bytes that wait at most."""

PORTION: Final = 32 * 1024
"""Bytes that are taken at once: even a slow line has carried them in a minute."""

SETTLED: Final = 10.0
MARKER_PAUSE: Final = 1.0
GRACE: Final = 5.0
"""A stream that has lived for so long was not refused."""

FIRST_RETRY, LONGEST_RETRY, UNTIMED_RETRY = 5.0, 300.0, 15.0

_CUT = "[...]"
_OVERHEAD = 100
_JITTER = 0.2
_MOST_DOUBLINGS = 20


def record(line: LogLine) -> bytes:
    """The line as the cloud's log stream takes it. A member that is not true is left out, and so
    is the service of a system line: null would make the cloud drop it."""
    text = line.text
    if len(text) > LINE_LIMIT:
        text = text[: LINE_LIMIT - len(_CUT)] + _CUT
    members = f'"message":{_quoted(text)}'
    if line.system:
        members += ',"isSystem":true'
    members += f',"timestamp":{line.time}'
    if line.stderr:
        members += ',"isStdErr":true'
    if not line.system:
        members += f',"serviceId":{line.service_id}'
    return f"{{{members}}}\n".encode("utf-8", "replace")


def reopen_after(outcome: Outcome, failures: int, chance: float) -> float:
    """Seconds from the beginning of an attempt that failed to the next one; `failures` in a row
    came before it: 5 s, 10 s, 20 s ... 300 s. A key that is refused again will be for long."""
    if outcome.retry_after is not None:
        return outcome.retry_after * (1 + _JITTER * chance)
    if outcome.kind == UNTIMED:
        nominal = UNTIMED_RETRY
    elif outcome.kind == DENIED and failures:
        nominal = LONGEST_RETRY
    else:
        nominal = min(LONGEST_RETRY, FIRST_RETRY * float(1 << min(failures, _MOST_DOUBLINGS)))
    return nominal * (1 + _JITTER * chance)


def uploadable(line: LogLine, levels: Mapping[int, str]) -> bool:
    """The cloud can only place lines of services that it knows by a number, and their owner may
    want fewer of them: `levels` are those of `lookup.log_levels`."""
    if line.system:
        return True
    level = levels.get(line.service_id)
    return line.service_id > 0 and (level is None or (line.stderr and level != "none"))


def _marker(count: int, why: str, like: LogLine) -> LogLine:
    """What stands where lines of a service (or of the system) are missing."""
    return like._replace(text=f"Warning: Suppressed {count} message(s) {why}", stderr=True)


class Portion(NamedTuple):
    """Lines in the cloud's form, and the last cursor that they reach ("": none)."""

    data: bytes
    cursor: str


class Backlog:
    """The newest lines of every service, bounded in number and in size."""

    def __init__(self, lines: int = OFFLINE_LINES, size: int = QUEUED) -> None:
        self._lines = lines
        self._limit = size
        self._size = 0
        self._count = 0
        self._kept: dict[int, deque[tuple[int, LogLine]]] = {}
        self._missing: dict[int, int] = {}

    def add(self, line: LogLine) -> None:
        self._count += 1
        kept = self._kept.setdefault(line.service_id, deque())
        kept.append((self._count, line))
        self._size += len(line.text) + _OVERHEAD
        if len(kept) > self._lines:
            self._drop(kept)
        while self._size > self._limit:
            self._drop(max(self._kept.values(), key=len))

    def lines(self) -> list[LogLine]:
        """All that is kept, in order, with a marker before the first line of a service of which
        older ones are missing."""
        found: list[LogLine] = []
        for _, line in merge(*self._kept.values()):
            if count := self._missing.pop(line.service_id, 0):
                found.append(_marker(count, "while offline", line))
            found.append(line)
        return found

    def _drop(self, kept: deque[tuple[int, LogLine]]) -> None:
        _, line = kept.popleft()
        self._size -= len(line.text) + _OVERHEAD
        self._missing[line.service_id] = self._missing.get(line.service_id, 0) + 1


@dataclass(slots=True)
class _Share:
    """What a service may still write, and what was left out of it since the last marker."""

    tokens: float
    at: float
    count: int = 0
    like: LogLine | None = None
    told: float = float("-inf")


@dataclass(slots=True)
class Intake:
    """Lines on their way to the cloud. Not for two threads at once."""

    rate: float = RATE
    burst: float = BURST
    limit: int = QUEUED
    _backlog: Backlog | None = field(default_factory=Backlog)
    _queue: deque[bytes] = field(default_factory=deque)
    _size: int = 0
    _added: int = 0
    _taken: int = 0
    _cursors: deque[tuple[int, str]] = field(default_factory=deque)
    _shares: dict[int, _Share] = field(default_factory=dict)

    def add(self, lines: Iterable[LogLine], cursor: str, live: bool, now: float) -> None:
        """A batch of the journal, those lines of it that are wanted. `cursor` stands behind it, ""
        where it is no place to go on from; `live` is False while older entries are being read."""
        if self._backlog is not None:
            for line in lines:
                self._backlog.add(line)
            if not live:
                return
            kept, self._backlog = self._backlog.lines(), None
            for line in kept:
                self._put(line, now)
        else:
            for line in lines:
                self._admit(line, now)
        if cursor:
            if self._cursors and self._cursors[-1][0] == self._added:
                self._cursors.pop()
            self._cursors.append((self._added, cursor))

    @property
    def waiting(self) -> bool:
        """Whether there is something to send."""
        return bool(self._queue) or any(share.count for share in self._shares.values())

    def take(self, now: float, limit: int = PORTION) -> Portion:
        """The next lines, at most about `limit` bytes of them."""
        self._tell(now)
        pieces: list[bytes] = []
        while self._queue and limit > 0:
            pieces.append(self._queue.popleft())
            limit -= len(pieces[-1])
        data = b"".join(pieces)
        self._size -= len(data)
        self._taken += len(pieces)
        cursor = ""
        while self._cursors and self._cursors[0][0] <= self._taken:
            cursor = self._cursors.popleft()[1]
        return Portion(data, cursor)

    def _admit(self, line: LogLine, now: float) -> None:
        """Take a line on, or count it."""
        share = self._shares.get(line.service_id)
        if share is None:
            share = self._shares[line.service_id] = _Share(self.burst, now)
        share.tokens = min(self.burst, share.tokens + (now - share.at) * self.rate)
        share.at = now
        if not line.system and share.tokens < 1:
            self._leave_out(share, line)
        else:
            share.tokens -= 0 if line.system else 1
            self._put(line, now)

    def _put(self, line: LogLine, now: float) -> None:
        data = record(line)
        if self._size + len(data) > self.limit:
            share = self._shares.setdefault(line.service_id, _Share(self.burst, now))
            self._leave_out(share, line)
            return
        self._append(data)

    def _append(self, data: bytes) -> None:
        self._queue.append(data)
        self._size += len(data)
        self._added += 1

    def _leave_out(self, share: _Share, line: LogLine) -> None:
        share.count += 1
        share.like = line

    def _tell(self, now: float) -> None:
        """Markers for what was left out; of each service one per second."""
        for share in self._shares.values():
            if share.count and share.like and now - share.told >= MARKER_PAUSE:
                self._append(record(_marker(share.count, "due to high load", share.like)))
                share.count, share.like, share.told = 0, None, now


class Delivery:
    """How far the lines of one stream after the other have come, as cursors."""

    def __init__(self, certain: str = "") -> None:
        self.certain = certain
        """The cloud has what stands before it."""

        self.arrived = certain
        """The kernel of the other host has."""

        self._flushed = ""
        self._settling: deque[tuple[float, str]] = deque()

    @property
    def under_way(self) -> bool:
        """Whether anything that was sent has not arrived yet."""
        return bool(self._flushed)

    def passed(self, cursor: str) -> None:
        """There was nothing to send before the cursor, and nothing is under way."""
        if cursor:
            self.certain = self.arrived = cursor

    def flushed(self, cursor: str) -> None:
        """Everything before the cursor has been handed to our own kernel."""
        self._flushed = cursor or self._flushed

    def landed(self, now: float) -> None:
        """Our kernel has nothing left to send."""
        if self._flushed:
            self.arrived, self._flushed = self._flushed, ""
            self._settling.append((now, self.arrived))

    def settle(self, now: float) -> None:
        while self._settling and now - self._settling[0][0] >= SETTLED:
            self.certain = self._settling.popleft()[1]

    def acknowledged(self) -> None:
        """The cloud has answered the end of a stream well."""
        self.certain = self.arrived = self._flushed or self.arrived
        self._flushed = ""
        self._settling.clear()

    def broken(self) -> None:
        """Whatever was not certain may be lost."""
        self.arrived, self._flushed = self.certain, ""
        self._settling.clear()

    def settled_at(self) -> float | None:
        """When `settle` has something to do next."""
        return self._settling[0][0] + SETTLED if self._settling else None
