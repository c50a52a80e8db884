"""One thread that reads the journal as it grows, and makes log lines of it (spec 30 §15.2).

Theory: only trusted fields decide. A container's line is an entry that the engine's unit sent
(`_SYSTEMD_UNIT`, which nobody can forge) with a container's id; whose container that is, is asked
for (`resolve`). An id that nobody knows yet is kept for a moment: a container may write before the
agent has looked at it. System lines come from the agent's own unit, from some units of the host,
and from journald itself.

The cursor of the last entry is kept. When the journal breaks, or its directory is another one
(persistent instead of volatile), it is opened anew behind that cursor: no gap, no double. Rotation
and a restart of journald are followed by the library; the files to which journald writes are read
to their end before it looks for others, deleted ones too (host/journal_files.py). What is lost all
the same is told in its place. The library keeps every part of the files mapped that it has ever
read; so the journal is opened anew also in the first quiet moment after some reading, and after
much of it; and when a file was cut off while it was read (host/sigbus.py). Where the kernel has no
inotify instance left, of which containers take one each, the journal is looked at every second.

Invariants: `deliver` is called in the reader's thread only, and no more after `close`. The library
is imported with the first reader, not before.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..core.errors import AgentError, Unavailable
from ..core.logline import (
    CONTAINER,
    DROPPED_ID,
    Fields,
    LineReader,
    LogLine,
    Source,
    gap,
    system_line,
)
from .journal_files import DIRECTORIES, MOVED, ORPHANED, LiveFiles
from .sigbus import BusErrors, Reading

_log = logging.getLogger(__name__)

ENGINE_UNITS = ("balena.service", "docker.service")
HOST_UNITS = ("os-power-mode.service", "os-fan-profile.service", "nvpmodel.service",
              "jetson-qspi-manager.service", "os-update.service")  # fmt: skip
OWN_UNIT = "balena-agent.service"

BATCH = 1024
"""Entries that are read before their lines are handed on."""

OPEN_SECONDS = 10.0
LOOK_SECONDS = 10.0
"""How long the journal may be silent before its directories are looked at."""

QUIET_SECONDS = 10.0
MUCH = 8192
"""The journal is opened anew when nothing has been read for so long, or so many entries have been:
some MB of memory, which the library frees only then."""

_HOLD_SECONDS = 10.0
_HOLD_LOOK = 0.2
_HELD = 4096
_REMEMBERED = 2048
_PIECE_MS = 2000
_RETRY_SECONDS = (1.0, 30.0)
_ORPHANED_LOOK = 0.2
_BLIND_LOOK = 1.0
_NONE_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOSPC)
_INVALIDATE = 2
"""The library's word that it has found or dropped files."""

Deliver = Callable[[tuple[LogLine, ...], str, bool], None]
"""Lines, the cursor behind them, and whether older entries have all been read. The cursor is ""
while entries before it are kept back: who went on behind it would miss them. That nothing is kept
back any more, and that the last older entry has been read, is told also without a line."""

Resolve = Callable[[str], "Source | None"]
"""Whose container an id is; None as long as nobody knows."""


class JournalReader:
    """Made by `open`."""

    def __init__(
        self,
        deliver: Deliver,
        resolve: Resolve,
        after: str,
        beat: Callable[[], None],
        ended: Callable[[], None],
        look: float,
        since: float,
        bus_errors: BusErrors,
    ) -> None:
        self._deliver = deliver
        self._bus_errors = bus_errors
        self._reading = Reading()
        self._consumed = 0
        self._since = since
        self._look = look
        self._beat = beat
        self._ended = ended
        self._owners = _Owners(resolve)
        self._pieces = LineReader()
        self._cursor = after
        self._sure = bool(after)
        self._live = not (after or since)
        self._journal: Any = None
        self._pending = False
        self._behind = False
        self._placeless = False
        self._blind = False
        self._places: tuple[object, ...] = ()
        self._files = LiveFiles()
        self._since_opened, self._last_read = 0, 0.0
        self._closed = False
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._started: queue.SimpleQueue[AgentError | None] = queue.SimpleQueue()

    @classmethod
    def open(
        cls,
        deliver: Deliver,
        resolve: Resolve,
        after: str = "",
        beat: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
        look: float = LOOK_SECONDS,
        since: float = 0.0,
        *,
        bus_errors: BusErrors,
    ) -> JournalReader:
        """Read on behind the cursor `after`; without one what was written since a time (s, UTC),
        or from now on. Returns when the place is fixed.
        `beat` is called whenever the thread has done a turn, every `look` seconds at the latest;
        `ended` at its end.

        Unavailable where there is no journal, or no library for it.
        """
        reader = cls(deliver, resolve, after, beat, ended, look, since, bus_errors)
        reader.thread.start()
        try:
            problem = reader._started.get(timeout=OPEN_SECONDS)
        except queue.Empty:
            problem = Unavailable("The journal cannot be opened in time")
        if problem is not None:
            reader.close()
            raise problem
        return reader

    def close(self) -> None:
        """End the thread; waits for it a moment."""
        self._closed = True
        with contextlib.suppress(OSError):
            os.write(self._woken, b"x")
        self.thread.join(2.0)
        if not self.thread.is_alive():
            os.close(self._wake)
            os.close(self._woken)

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        with self._bus_errors.reading() as self._reading:
            try:
                self._open_journal()
            except AgentError as error:
                self._started.put(error)
            else:
                self._started.put(None)
                self._work()
            self._close_journal()
        self._files.close()
        self._ended()

    def _work(self) -> None:
        pause, longest = _RETRY_SECONDS
        while not self._closed:
            try:
                if self._journal is None:
                    self._open_journal()
                self._read_all()
                self._wait()
                pause = _RETRY_SECONDS[0]
            except (OSError, ValueError, AgentError) as error:
                _log.warning("Cannot read the journal: %s", error)
                self._close_journal()
                self._sleep(pause)
                pause = min(2 * pause, longest)

    def _open_journal(self) -> None:
        """Open it at our place: behind the cursor, or at its end."""
        try:
            from systemd import _reader
        except ImportError as error:
            raise Unavailable("This host has no library for the journal") from error
        try:
            self._places = _places()
            self._files.take()
            self._since_opened, self._reading.struck = 0, False
            self._journal = journal = _reader._Reader()
            self._have_growth_noticed(journal)
            if self._cursor:
                self._pending = self._seek(journal)
            elif self._since:
                _add_matches(journal)
                journal.seek_realtime(int(self._since * 1_000_000))
            else:
                self._seek_end(journal)
                _add_matches(journal)
            self._step_over(journal)
        except (OSError, ValueError) as error:
            raise Unavailable(f"The journal cannot be opened: {error}") from error

    def _have_growth_noticed(self, journal: Any) -> None:
        """From now on. It also makes the library look for files that have come meanwhile."""
        blind, self._blind = self._blind, False
        try:
            journal.fileno()
        except OSError as error:
            if error.errno not in _NONE_LEFT:
                raise
            self._blind = True
            if not blind:
                _log.warning("The journal is looked at every second: no inotify is left: %s", error)

    def _seek(self, journal: Any) -> bool:
        """Go behind our cursor; whether the entry at which the journal stands is still unread."""
        _add_matches(journal)
        try:
            journal.seek_cursor(self._cursor)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _log.warning("The place in the journal that was noted is none: it is read from now on")
            self._cursor, self._sure = "", False
            self._seek_end(journal)
            return False
        more = bool(journal._next())
        if more and journal.test_cursor(self._cursor):
            return False
        if self._sure:
            self._sure = False  # it is told once
            time_ms = journal._get_realtime() // 1000 if more else int(time.time() * 1000)
            self._deliver((gap(time_ms),), self._cursor, self._live)
        return more

    def _seek_end(self, journal: Any) -> None:
        journal.seek_tail()
        # Without this step the end is only looked for when the first match has come.
        if journal._previous():
            self._cursor = journal._get_cursor()
        else:
            journal.seek_head()

    def _step_over(self, journal: Any) -> None:
        """Pass by what was read behind our place before the journal broke."""
        for _ in range(self._consumed):
            if not self._pending and not journal._next():
                break
            self._pending = False

    def _close_journal(self) -> None:
        journal, self._journal = self._journal, None
        self._pending = False
        if journal is not None:
            with contextlib.suppress(OSError):
                journal.close()

    def _read_all(self) -> None:
        """Hand on everything that is there, in batches."""
        more = True
        while more and not self._closed:
            lines, more = self._batch()
            caught_up = not (self._live or more)
            self._live = self._live or not more
            place = self._place()
            if lines or caught_up or (place and self._placeless):
                self._deliver(tuple(lines), place, self._live)
                self._placeless = not place
            if self._reading.struck:
                raise OSError(errno.EIO, "a file was cut off while it was read")
            self._beat()

    def _place(self) -> str:
        """Where another reader could go on without missing anything."""
        return "" if self._owners.holding or self._pieces.unfinished else self._cursor

    def _batch(self) -> tuple[list[LogLine], bool]:
        """At most `BATCH` entries as lines, and whether there may be more."""
        journal, lines, count = self._journal, list(self._late()), 0
        reading = self._reading
        step, fields, stamp = journal._next, journal._get_all, journal._get_realtime
        while count < BATCH:
            try:
                if not (self._pending or step()):
                    break
            except OSError:
                if not count:
                    raise
                break  # what was read is handed on first; it would be read again
            entry, time_ms = None, 0
            try:
                entry, time_ms = fields(), stamp() // 1000
            except (OSError, ValueError) as error:
                # Of a damaged file. Whoever stopped here would stop here for ever.
                if not reading.struck:
                    _log.warning("An entry of the journal cannot be read: %s", error)
            if reading.struck:
                break  # it may be another entry than it seems
            self._pending = False
            count += 1
            if entry is not None:
                self._read(entry, time_ms, lines)
        if reading.struck:
            self._consumed += count
            return lines, True
        if count:
            self._cursor, self._sure, self._consumed = journal._get_cursor(), True, 0
            self._since_opened, self._last_read = self._since_opened + count, time.monotonic()
        self._behind = count == BATCH
        return lines, self._behind

    def _read(self, entry: Fields, time_ms: int, lines: list[LogLine]) -> None:
        """One entry: nothing, a line, or an entry to be kept for later."""
        raw_id = entry.get(CONTAINER)
        if raw_id is None:
            line = None if _is_engine(entry) else system_line(entry, time_ms)
        else:
            source = self._owners.of(raw_id, entry, time_ms)
            line = self._pieces.read(source, entry, time_ms) if source else None
        if line is not None:
            lines.append(line)

    def _late(self) -> Iterator[LogLine]:
        """What was kept and is clear by now."""
        for source, entry, time_ms in self._owners.late():
            line = self._pieces.read(source, entry, time_ms)
            if line is not None:
                yield line
        if self._pieces.unfinished:
            now = int(time.time() * 1000)
            # What is read late is old, but its rest may be the next entry.
            oldest, newest = (
                (0, sys.maxsize) if self._behind else (now - _PIECE_MS, now + _PIECE_MS)
            )
            yield from self._pieces.overdue(oldest, newest)

    def _wait(self) -> None:
        """Until the journal has grown, `close`, or it is time to look after what is kept."""
        journal = self._journal
        if self._files.state == ORPHANED:
            self._sleep(_ORPHANED_LOOK)
        elif self._blind:
            self._sleep(_BLIND_LOOK)
            self._have_growth_noticed(journal)
        else:
            poll = select.poll()
            poll.register(journal.fileno(), journal.get_events())
            poll.register(self._wake, select.POLLIN)
            poll.poll(self._patience(journal.get_timeout_ms()))
        now = self._files.look()
        if now == ORPHANED:
            return  # what is written until journald notices is in no other file
        if now == MOVED:
            self._leave_behind()
        if journal.process() == _INVALIDATE:
            self._files.look(dropped=True)
        if _places() != self._places or (self._blind and now == MOVED):
            self._close_journal()
        elif self._is_large():
            self._renew()

    def _is_large(self) -> bool:
        """Whether the library may have mapped more than it needs to wait for what is new."""
        quiet = time.monotonic() - self._last_read >= QUIET_SECONDS
        return self._since_opened >= MUCH or (self._since_opened > 0 and quiet)

    def _renew(self) -> None:
        """Open the journal anew. That our place may have been deleted means nothing here: all that
        was behind it had been read a moment ago."""
        self._close_journal()
        sure, self._sure = self._sure, False
        try:
            self._open_journal()
        finally:
            self._sure = sure

    def _leave_behind(self) -> None:
        """journald writes to other files now: read what is left in the old ones."""
        self._read_all()
        if self._files.lost():
            self._deliver((gap(int(time.time() * 1000)),), self._place(), self._live)
        if self._files.deleted():
            self._sure = False  # our place may be gone with them, which is no loss
        self._files.take()

    def _patience(self, asked_ms: int) -> int:
        busy = self._owners.holding or self._pieces.unfinished
        own_ms = int((min(_HOLD_LOOK, self._look) if busy else self._look) * 1000)
        return own_ms if asked_ms < 0 else min(asked_ms, own_ms)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._closed:
            select.select([self._wake], [], [], min(left, self._look))
            self._beat()


class _Owners:
    """Whose container an id is, with the entries of those that nobody knows yet."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._known: dict[bytes, Source | None] = {}
        self._held: dict[bytes, list[tuple[Fields, int]]] = {}
        self._until: dict[bytes, float] = {}

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def of(self, raw_id: bytes, entry: Fields, time_ms: int) -> Source | None:
        """The owner; None for a stranger's entry, and for one that was kept."""
        if raw_id in self._known:
            return self._known[raw_id]
        if raw_id not in self._held:
            source = self._ask(raw_id)
            left = _HOLD_SECONDS - (time.time() - time_ms / 1000)
            if source is not None or left <= 0:  # it has had its time to become known
                return source
            self._until[raw_id] = time.monotonic() + min(left, _HOLD_SECONDS)
        kept = self._held.setdefault(raw_id, [])
        if len(kept) < _HELD:
            kept.append((entry, time_ms))
        return None

    def late(self) -> Iterator[tuple[Source, Fields, int]]:
        """Kept entries whose owner is known by now; those of strangers are forgotten."""
        for raw_id in list(self._held):
            source = self._ask(raw_id)
            if source is None and time.monotonic() < self._until[raw_id]:
                continue
            entries = self._held.pop(raw_id)
            del self._until[raw_id]
            if source is None:
                self._remember(raw_id, None)
            else:
                yield from ((source, entry, time_ms) for entry, time_ms in entries)

    def _ask(self, raw_id: bytes) -> Source | None:
        source = self._resolve(raw_id.decode("ascii", "replace"))
        if source is not None:
            self._remember(raw_id, source)
        return source

    def _remember(self, raw_id: bytes, source: Source | None) -> None:
        self._known[raw_id] = source
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]


def _is_engine(entry: Fields) -> bool:
    return entry.get("_SYSTEMD_UNIT", b"").decode("utf-8", "replace") in ENGINE_UNITS


def _add_matches(journal: Any) -> None:
    """What is read at all. Alternatives of one field stand beside each other, groups are parted."""
    for unit in ENGINE_UNITS:
        journal.add_match(f"_SYSTEMD_UNIT={unit}")
    journal.add_match("_TRANSPORT=journal")
    journal.add_disjunction()
    journal.add_match(f"_SYSTEMD_UNIT={OWN_UNIT}")
    journal.add_match("SYSLOG_IDENTIFIER=balena-agent")
    journal.add_disjunction()
    journal.add_match("_TRANSPORT=driver")
    journal.add_match(f"MESSAGE_ID={DROPPED_ID}")
    journal.add_disjunction()
    for unit in HOST_UNITS:
        journal.add_match(f"_SYSTEMD_UNIT={unit}")


def _places() -> tuple[object, ...]:
    """Which directories there are for the journals of machines, as paths and inodes."""
    found: list[object] = []
    for top in DIRECTORIES:
        with contextlib.suppress(OSError):  # not there, or going away just now
            found += ((path.path, path.inode()) for path in os.scandir(top))
    return tuple(sorted(found, key=str))
