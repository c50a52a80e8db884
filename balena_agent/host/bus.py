"""The bus thread: one asyncio loop, two connections to the system bus, calls from any thread.

Theory: the library is asyncio, the rest of the agent is threads. `Bus` owns the only loop. Other
threads come in through `run` and the methods built on it, always with a deadline: after the
connection is lost the library lets new calls hang for ever, and a service may never answer. The
first connection carries our exported objects; descriptors in messages to us are closed at once,
those in our answers when they are written. A second, nameless one is made for calls that return
some.

Losing the bus is final: everything pending fails with BusUnavailable, `on_lost` is told once, and
the process is expected to end and be started again.

Invariant: connections, pending calls and subscriptions are touched only in the bus thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ..core.errors import AgentError, Broken, BusUnavailable, DeadlineExceeded, Refused
from .connection import Connection
from .subscriptions import SignalCallback, Subscriptions
from .wire import (
    DAEMON,
    DAEMON_PATH,
    FAILED,
    PEER,
    PROPERTIES,
    BusRefusal,
    Call,
    Match,
    Message,
    MessageFlag,
    MessageType,
    call_from,
    clean,
    close_fds,
    give_fds,
    plain,
    signal_from,
    take_fds,
)
from .wire import Variant as Variant

T = TypeVar("T")
Reply = tuple[str, Sequence[Any]]
"""Signature and body of an answer."""
Handler = Callable[[Call], Awaitable[Reply]]

_log = logging.getLogger(__name__)

_MARGIN = 2.0
_DO_NOT_QUEUE = 4
_OWNED = (1, 4)
_MACHINE_ID = "/etc/machine-id"


class _NothingHere(Refused):
    dbus_name = "org.freedesktop.DBus.Error.UnknownObject"


class Bus:
    """The agent's end of the system bus. `address` is for tests; "" means the system bus.

    `on_lost(reason)` runs in the bus thread when the bus goes away by itself, never after `close`.
    """

    def __init__(
        self, address: str = "", on_lost: Callable[[str], None] = lambda reason: None
    ) -> None:
        self._address = address
        self._on_lost = on_lost
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_unexpected)
        self._thread = threading.Thread(target=self._main, name="bus", daemon=True)
        self._service: Connection | None = None
        self._passing: Connection | None = None
        self._opening = asyncio.Lock()
        self._handler: Handler = _nothing_here
        self._subscriptions = Subscriptions(self._daemon)
        self._tasks: set[asyncio.Task[None]] = set()
        self._names: tuple[str, ...] = ()
        self._closing = False
        self._silent = False

    # -- life ---------------------------------------------------------------------------------

    def start(self, timeout: float = 10.0) -> None:
        """Start the thread and connect. BusUnavailable, DeadlineExceeded."""
        self._thread.start()
        try:
            self.run(self._open(), timeout)
        except AgentError:
            self.close()
            raise

    def close(self, timeout: float = 1.0) -> None:
        """Send what is still to be sent, leave the bus and end the thread. Never raises."""
        self._closing = True
        if not self._thread.is_alive():
            return
        with contextlib.suppress(AgentError):
            self.run(self._leave(timeout / 2), timeout)
        self.post(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    @property
    def lost(self) -> bool:
        return self._service is None or self._service.lost

    @property
    def unique_name(self) -> str:
        """The name that the bus gave us. BusUnavailable while there is none."""
        return self._need().unique_name

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the bus thread, for those whose work lives in it."""
        return self._loop

    # -- from other threads -------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run a coroutine in the bus thread and wait for it, at most `timeout` seconds.

        DeadlineExceeded, BusUnavailable (thread gone), or whatever the coroutine raises.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise Broken("the bus thread must not wait for itself")
        if not self._thread.is_alive():
            coroutine.close()
            raise BusUnavailable("the bus thread is not running")
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError as error:
            coroutine.close()
            raise BusUnavailable("the bus thread has ended") from error
        try:
            return future.result(timeout)
        except (concurrent.futures.TimeoutError, asyncio.TimeoutError) as error:
            future.cancel()
            raise DeadlineExceeded(f"no answer from the bus within {timeout:g} s") from error
        except concurrent.futures.CancelledError as error:
            raise BusUnavailable("the bus is being closed") from error

    def post(self, action: Callable[..., None], *args: Any) -> None:
        """Have the bus thread run `action` soon; silently nothing once the thread has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(action, *args)

    def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        timeout: float = 25.0,
        with_fds: bool = False,
        interactive: bool = False,
    ) -> list[Any]:
        """Call a method and return the body of the answer, Variants and all (see wire.plain).

        With `with_fds` the top-level descriptors of the answer are the caller's to close;
        `interactive` lets the service ask the user for a password.

        BusUnavailable: no bus, or nobody has that name. DeadlineExceeded. BusRefusal (a
        RefusedByHost): the service's own error. Broken: the body does not fit the signature.
        """
        request = self.call_async(
            destination, path, interface, member, signature, body, timeout, with_fds, interactive
        )
        return self.run(request, timeout + _MARGIN)

    def get_property(
        self, destination: str, path: str, interface: str, name: str, timeout: float = 25.0
    ) -> Any:
        """One property as a plain value. Errors as for `call`."""
        body = (interface, name)
        return plain(self.call(destination, path, PROPERTIES, "Get", "ss", body, timeout)[0])

    def subscribe(self, match: Match, callback: SignalCallback, timeout: float = 25.0) -> None:
        """Have `callback` called, in the bus thread, for every signal that matches: be quick."""
        self.run(self.subscribe_async(match, callback), timeout)

    def request_name(self, name: str, timeout: float = 10.0) -> None:
        """Own a name on the bus. BusRefusal when another process has it, or policy forbids it."""
        self.run(self._request_name(name), timeout)

    def probe(self, timeout: float = 5.0) -> str:
        """Prove that the bus thread works, by a ping through the bus to our own connection; what
        came of it. A bus that does not answer is the world's trouble and no failure of the thread
        that noticed it in time.

        DeadlineExceeded: the bus thread itself is stuck. BusUnavailable.
        """
        return self.run(self._ping(timeout), timeout + _MARGIN)

    # -- in the bus thread --------------------------------------------------------------------

    def serve(self, handler: Handler) -> None:
        """Have `handler` answer every method call but org.freedesktop.DBus.Peer.

        An AgentError becomes an error reply under its D-Bus name. Any other exception is a defect:
        the stack goes to the journal, a plain sentence to the caller.
        """
        self._handler = handler

    def emit(
        self, path: str, interface: str, member: str, signature: str = "", body: Sequence[Any] = ()
    ) -> None:
        """Broadcast a signal; nothing while the bus is lost."""
        if not self.lost:
            message = Message.new_signal(path, interface, member, signature, clean(body))
            self._need().send(message)

    async def call_async(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        timeout: float = 25.0,
        with_fds: bool = False,
        interactive: bool = False,
    ) -> list[Any]:
        """`call` for coroutines of the bus thread."""
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
        try:
            message = Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=clean(body),
                flags=flags,
            )
        except Exception as error:
            raise Broken(f"not a call that D-Bus knows: {interface}.{member}") from error
        connection = await self._fd_connection() if with_fds else self._need()
        reply = await connection.call(message, timeout)
        return take_fds(reply) if with_fds else list(reply.body)

    async def subscribe_async(self, match: Match, callback: SignalCallback) -> None:
        """`subscribe` for coroutines of the bus thread."""
        await self._subscriptions.add(match, callback)

    # -- inside -------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(_cancel_all())
            self._loop.close()

    async def _open(self) -> None:
        self._service = await Connection.open(
            self._address, self._received, self._disconnected, with_fds=True
        )

    async def _fd_connection(self) -> Connection:
        async with self._opening:
            if self._passing is None or self._passing.lost:
                self._need()
                self._passing = await Connection.open(self._address, with_fds=True)
            return self._passing

    async def _leave(self, timeout: float) -> None:
        for connection in (self._service, self._passing):
            if connection is not None:
                await connection.leave(timeout)

    def _need(self) -> Connection:
        if self._service is None or self._service.lost:
            raise BusUnavailable("not connected to the system bus")
        return self._service

    async def _daemon(self, member: str, signature: str, *body: Any) -> list[Any]:
        return await self.call_async(DAEMON, DAEMON_PATH, DAEMON, member, signature, body, 10.0)

    async def _ping(self, timeout: float) -> str:
        name = self._names[0] if self._names else self.unique_name
        before, self._silent = self._silent, False
        try:
            await self.call_async(name, "/", PEER, "Ping", timeout=timeout)
        except DeadlineExceeded:
            self._silent = True
        if before != self._silent:
            _log.warning("The system bus %s", "is silent" if self._silent else "answers again")
        return "the bus is silent" if self._silent else "ping came back"

    async def _request_name(self, name: str) -> None:
        (answer,) = await self._daemon("RequestName", "su", name, _DO_NOT_QUEUE)
        if answer not in _OWNED:
            raise BusRefusal(FAILED, f"the bus name {name} is taken by {await self._owner(name)}")
        self._names = (*self._names, name)

    async def _owner(self, name: str) -> str:
        try:
            (pid,) = await self._daemon("GetConnectionUnixProcessID", "s", name)
        except AgentError:
            return "another process"
        return f"process {pid}"

    def _disconnected(self, reason: str) -> None:
        if not self._closing:
            self._on_lost(reason)

    def _received(self, message: Any) -> None:
        """Everything that is not an answer to a call of ours."""
        if message.message_type is MessageType.SIGNAL:
            self._subscriptions.deliver(signal_from(message))
        elif message.message_type is MessageType.METHOD_CALL:
            task = self._loop.create_task(self._answer(message))
            self._tasks.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Any) -> None:
        try:
            signature, body = await self._handled(call_from(message))
            given, fds = give_fds(signature, body)
            reply = Message.new_method_return(message, signature, clean(given), fds)
            self._reply(message, reply)
        except AgentError as error:
            self._refuse(message, error.dbus_name, error.message)
        except Exception:
            _log.exception("%s.%s failed", message.interface, message.member)
            self._refuse(message, FAILED, "internal error; the agent's journal has the details")

    async def _handled(self, call: Call) -> Reply:
        """Peer is answered here, so that a probe works whatever is exported."""
        if call.interface == PEER and call.member == "Ping":
            return "", ()
        if call.interface == PEER and call.member == "GetMachineId":
            with open(_MACHINE_ID, encoding="ascii") as file:  # noqa: ASYNC230 - 33 bytes
                return "s", (file.read().strip(),)
        return await self._handler(call)

    def _refuse(self, message: Any, name: str, words: str) -> None:
        self._reply(message, Message.new_error(message, name, clean(words)))

    def _reply(self, message: Any, reply: Any) -> None:
        unwanted = message.flags & MessageFlag.NO_REPLY_EXPECTED
        if unwanted or self.lost:
            close_fds(reply)
        else:
            self._need().send(reply)


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def _nothing_here(call: Call) -> Reply:
    raise _NothingHere(f"nothing at {call.path}")


def _unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's last resort: one line of ours instead of the root logger's noise."""
    _log.error("bus thread: %s", context.get("message"), exc_info=context.get("exception"))
