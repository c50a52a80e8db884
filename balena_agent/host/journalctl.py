"""`journalctl` as a child whose output is a stream (spec 10 §8.25).

Theory: the child writes into a pipe as fast as the pipe is read, so a slow client slows its own
child and nobody else. Words are handed over as a list, never through a shell. Times are the one
kind of value that only journalctl itself can judge: it is asked first, for no lines at all.

Invariant: a child that was opened has ended when `close` has returned.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

from ..core.errors import DeadlineExceeded, InvalidInput, Unavailable
from ..core.journalquery import JournalQuery, arguments, times
from .journal_reader import ENGINE_UNITS

PROGRAM = "journalctl"
_CHECK_SECONDS = 10.0


class Journalctl:
    """Opens children; `program` is another one in tests."""

    def __init__(self, program: str = PROGRAM) -> None:
        self._program = program

    def open(self, query: JournalQuery) -> Child:
        """Start one. InvalidInput for a time that journalctl does not understand; Unavailable
        where it cannot be started."""
        self._check_times(query)
        words = [self._program, *arguments(query, ENGINE_UNITS)]
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise Unavailable(f"journalctl cannot be started: {error.strerror}") from error
        return Child(process)

    def _check_times(self, query: JournalQuery) -> None:
        if not (asked := times(query)):
            return
        words = [self._program, "--no-pager", "--quiet", "--lines=0", *asked]
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_CHECK_SECONDS,
                check=False,
            )
        except OSError as error:
            raise Unavailable(f"journalctl cannot be started: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded("journalctl did not answer in time") from error
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip() or "journalctl refuses the times"
            raise InvalidInput(said.splitlines()[-1])


class Child:
    """A running journalctl. `read` never blocks."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._process = process
        self._output = process.stdout
        self.ended = False
        os.set_blocking(self._output.fileno(), False)

    def fileno(self) -> int:
        """The pipe that can be polled for output."""
        return self._output.fileno()

    def read(self, limit: int) -> bytes:
        """What is there, at most `limit` bytes; b"" for nothing yet, or when it has `ended`."""
        try:
            data = os.read(self._output.fileno(), limit)
        except BlockingIOError:
            return b""
        self.ended = not data
        return data

    def close(self) -> None:
        """Kill it if it still runs, and take leave of it."""
        self.ended = True
        with contextlib.suppress(OSError):
            self._process.kill()
        self._output.close()
        self._process.wait()
