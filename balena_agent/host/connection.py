"""One connection to the bus, lived in by the bus thread only.

Theory: the library's own bookkeeping of pending calls forgets nothing after a deadline and hangs
after a break, so we keep ours: a serial number and a future per call. Whoever waits gets an answer,
its deadline, or the loss of the connection, whichever comes first. The library's service side
never sees a message, because our handler takes every one.

Invariants: `lost` never turns back; when it turns, all pending calls have failed. A descriptor
that arrives with a message nobody waits for is closed, late answers included.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from ..core.errors import AgentError, Broken, BusUnavailable, DeadlineExceeded
from .outbox import Outbox
from .wire import (
    DAEMON,
    DAEMON_PATH,
    BusType,
    Message,
    MessageBus,
    MessageType,
    close_fds,
    error_from,
)

Received = Callable[[Any], None]
Lost = Callable[[str], None]

_CONNECT_LIMIT = 10.0


class Connection:
    """Made by `open`. `on_message` gets every message that is not an answer to our calls."""

    def __init__(self, bus: Any, on_message: Received, on_lost: Lost) -> None:
        self._bus = bus
        self._on_message = on_message
        self._on_lost = on_lost
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self.lost = False
        bus.add_message_handler(self._handle)
        self._watch = asyncio.ensure_future(self._watch_end())

    @classmethod
    async def open(
        cls,
        address: str,
        on_message: Received = lambda message: None,
        on_lost: Lost = lambda reason: None,
        with_fds: bool = False,
    ) -> Connection:
        """Connect; "" is the system bus. BusUnavailable, with the reason."""
        try:
            bus = MessageBus(address or None, BusType.SYSTEM, negotiate_unix_fd=with_fds)
            bus._writer = Outbox(bus)
        except Exception as error:
            raise BusUnavailable(f"cannot reach the system bus: {error}") from error
        try:  # a bus that never answers Hello would keep the library waiting for ever
            await asyncio.wait_for(bus.connect(), _CONNECT_LIMIT)
        except Exception as error:
            _close_socket(bus)
            raise BusUnavailable(f"cannot reach the system bus: {error!r}") from error
        return cls(bus, on_message, on_lost)

    @property
    def unique_name(self) -> str:
        return str(self._bus.unique_name)

    def send(self, message: Any) -> None:
        """Queue a message; the library raises here when the body does not fit its signature. Its
        descriptors are closed when it is written."""
        try:
            written = self._bus.send(message)
        except BaseException:
            close_fds(message)
            raise
        written.add_done_callback(lambda future: _written(future, message))

    async def call(self, message: Any, timeout: float) -> Any:
        """Send a call and wait for the reply. Errors as for Bus.call."""
        if self.lost:
            raise BusUnavailable("not connected to the system bus")
        message.serial = self._bus.next_serial()
        future = asyncio.get_running_loop().create_future()
        self._pending[message.serial] = future
        try:
            self._post(message)
            return await asyncio.wait_for(future, timeout)
        except asyncio.TimeoutError as error:
            what = f"{message.interface}.{message.member} of {message.destination}"
            raise DeadlineExceeded(f"{what} did not answer within {timeout:g} s") from error
        finally:
            self._pending.pop(message.serial, None)

    async def leave(self, timeout: float) -> None:
        """Flush and disconnect. A round trip proves that the bus has read what we sent before; a
        system bus refuses a Ping, and tells the journal so."""
        with contextlib.suppress(AgentError):
            ask = Message(destination=DAEMON, path=DAEMON_PATH, interface=DAEMON, member="GetId")
            await self.call(ask, timeout)
        if not self.lost:
            self._bus.disconnect()
            await asyncio.wait([self._watch], timeout=timeout)
        _close_socket(self._bus)

    def _post(self, message: Any) -> None:
        try:
            self.send(message)
        except Exception as error:
            raise Broken(f"cannot write {message.interface}.{message.member}: {error}") from error

    def _handle(self, message: Any) -> bool:
        if message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR):
            future = self._pending.get(message.reply_serial)
            if future is None or future.done():
                close_fds(message)
            elif message.message_type is MessageType.ERROR:
                future.set_exception(error_from(message))
            else:
                future.set_result(message)
        else:
            close_fds(message)
            try:
                self._on_message(message)
            except Exception:  # the library would send the traceback to the caller
                logging.getLogger(__name__).exception("cannot handle a message from the bus")
        return True

    async def _watch_end(self) -> None:
        reason = "closed"
        try:
            await self._bus.wait_for_disconnect()
        except Exception as error:
            reason = repr(error)
        self.lost = True
        for future in self._pending.values():
            if not future.done():
                future.set_exception(BusUnavailable("the connection to the system bus is lost"))
        self._on_lost(f"the system bus has gone away ({reason})")


def _written(future: asyncio.Future[Any], message: Any) -> None:
    """Look at a send's result, so that a break does not end in "exception never retrieved"."""
    close_fds(message)
    if not future.cancelled():
        future.exception()


def _close_socket(bus: Any) -> None:
    """The library leaves its socket to the garbage collector."""
    for name in ("_stream", "_sock"):
        with contextlib.suppress(Exception):
            getattr(bus, name).close()
