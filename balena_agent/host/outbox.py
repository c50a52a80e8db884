"""What waits to be written to the bus.

Theory: the library writes message after message until there is none left, and takes a socket that
has no room as the loss of the bus. On a slow device a busy bus has no room for a moment when the
states of a hundred services change at once. Here whatever does not fit waits until it does.

Invariants: messages leave whole and in order; what waits is bounded: a bus that takes nothing for
so long counts as lost after all.
"""

from __future__ import annotations

import array
import asyncio
import socket
from collections import deque
from dataclasses import dataclass
from typing import Any

MOST = 8 << 20
"""Bytes that wait at most."""


@dataclass(slots=True)
class _Letter:
    """A message as bytes; `rest` is what has not been written of it yet."""

    rest: memoryview
    fds: list[int]
    written: asyncio.Future[None] | None


class Outbox:
    """Takes the place of the library's writer (`bus._writer`). For the bus thread."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus
        self._letters: deque[_Letter] = deque()
        self._waiting = 0

    def schedule_write(
        self, message: Any = None, written: asyncio.Future[None] | None = None
    ) -> None:
        """Queue it and see to its being written, once the bus has let us in. The library's
        exceptions where the body does not fit its signature."""
        bus = self._bus
        if message is not None:
            passes_fds = bus._negotiate_unix_fd
            raw = memoryview(message._marshall(negotiate_unix_fd=passes_fds))
            fds = list(message.unix_fds or ()) if passes_fds else []
            self._letters.append(_Letter(raw, fds, written))
            self._waiting += len(raw)
        if self._waiting > MOST:
            problem = BlockingIOError(f"it has left more than {MOST >> 20} MiB unread")
            bus._loop.call_soon(bus._finalize, problem)
        elif bus.unique_name:
            bus._loop.add_writer(bus._fd, self._write)

    def _write(self) -> None:
        """There is room in the socket."""
        try:
            while self._letters:
                self._write_some(self._letters[0])
            self._bus._loop.remove_writer(self._bus._fd)
        except BlockingIOError:
            return  # until there is again
        except Exception as error:
            written = self._letters[0].written
            if written is not None and not written.done():
                written.set_exception(error)
            self._bus._finalize(error)

    def _write_some(self, letter: _Letter) -> None:
        wire: socket.socket = self._bus._sock
        if letter.fds:
            rights = array.array("i", letter.fds)
            sent = wire.sendmsg([letter.rest], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            letter.fds = []
        else:
            sent = wire.send(letter.rest)
        letter.rest = letter.rest[sent:]
        self._waiting -= sent
        if not letter.rest:
            self._letters.popleft()
            if letter.written is not None and not letter.written.done():
                letter.written.set_result(None)
