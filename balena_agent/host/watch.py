"""What others may change on the host, its files above all: told when it is time to look.

Theory: a program that writes safely puts a new file in the place of the old one, so it is the
directories that are watched, by inotify; who hears of another change says `soon`. What is said is
only "look again": after half a second of quiet, and twice a minute anyway. So nothing is lost where
nobody can see, as in a directory that something is mounted over.

The standard library has no inotify; libc has it in two calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator

_log = logging.getLogger(__name__)

QUIET_SECONDS = 0.5
LONGEST_SECONDS = 3.0
"""A file that is written again and again is looked at all the same."""

LOOK_SECONDS = 30.0
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _DELETE = 0x8, 0x40, 0x80, 0x200
_EVENTS = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE
_HEADER = struct.Struct("iIII")


class Inotify:
    """One inotify descriptor. OSError where the kernel has none to give."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._handle < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def fileno(self) -> int:
        return int(self._handle)

    def watch(self, directory: str) -> bool:
        """Watch a directory, or go on watching it; False where there is none."""
        path = os.fsencode(directory)
        return bool(self._libc.inotify_add_watch(self._handle, path, _EVENTS) >= 0)

    def names(self) -> Iterator[str]:
        """The names in the events that have come in; "" for an event without one."""
        try:
            raw = os.read(self._handle, 65536)
        except BlockingIOError:
            return
        at = 0
        while at < len(raw):
            *_, length = _HEADER.unpack_from(raw, at)
            at += _HEADER.size
            yield os.fsdecode(raw[at : at + length].rstrip(b"\0"))
            at += length

    def close(self) -> None:
        os.close(self._handle)


class FileWatch:
    """A thread that calls `look` when something in `directories` changes. Names that begin with a
    dot are on their way to another one and do not count."""

    def __init__(self, directories: Iterable[str], look: Callable[[], None]) -> None:
        self._directories = tuple(directories)
        self._look = look
        self._ears, self._mouth = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._closed = False
        self._pause = 0.0
        self._thread = threading.Thread(target=self._run, name="files", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; it is not waited for longer than a look takes."""
        self._closed = True
        self.soon()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def soon(self) -> None:
        """Look, for a reason of the caller's. From any thread, and it never waits."""
        with contextlib.suppress(BlockingIOError):  # full: it has been said often enough
            os.write(self._mouth, b"\0")

    def _run(self) -> None:
        try:
            inotify: Inotify | None = Inotify()
        except OSError as error:
            _log.warning("Files are looked at twice a minute only: %s", error.strerror)
            inotify = None
        while self._wait(inotify):
            try:
                self._look()
            except Exception:
                _log.exception("defect in a look at the host's files")
        if inotify:
            inotify.close()

    def _wait(self, inotify: Inotify | None) -> bool:
        """Until it is time to look; False when it is time to end."""
        for directory in self._directories if inotify else ():
            with contextlib.suppress(OSError):
                assert inotify
                inotify.watch(directory)
        # What happened before the first watch was in place is looked for at once.
        pause, self._pause = self._pause, LOOK_SECONDS
        due, latest = time.monotonic() + pause, 0.0
        while (left := due - time.monotonic()) > 0:
            sources: list[int | Inotify] = [self._ears, *([inotify] if inotify else [])]
            heard, _, _ = select.select(sources, [], [], left)
            told = self._ears in heard and bool(os.read(self._ears, 4096))
            if self._closed:
                return False
            if told or (inotify in heard and inotify and _count(inotify.names())):
                now = time.monotonic()
                latest = latest or now + LONGEST_SECONDS
                due = min(now + QUIET_SECONDS, latest)
        return True


def _count(names: Iterable[str]) -> int:
    return sum(1 for name in names if not name.startswith("."))
