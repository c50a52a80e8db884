"""Answers without an end, in a thread of their own.

Theory: a stream may live for days, and its client may stop reading at any time. So it holds no
worker of the HTTP server: the worker sends the head of the answer and hands the connection over.
One thread serves all of them with non-blocking calls: it takes from a `Feed` only when the client
has taken everything before, so a slow client slows down its own feed alone.

So many streams may be open at once (`limit`). When there are more, a client that has taken nothing
for a while gives up its place; else the newcomer is told to come later.

Invariants: everything but `open` and `close` runs in the thread; a feed is closed exactly once; no
thread lives while there is no stream. After `close` there is none, and none can be opened.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ..core.errors import Cancelled, Unavailable
from ..runtime.threads import show_name

_log = logging.getLogger(__name__)

LIMIT = 16
STUCK_SECONDS = 30.0
"""A client that has taken nothing for so long gives way to others."""

DEAD_SECONDS = 300.0
"""A client that has taken nothing for so long is cut off."""

SEND_BUFFER = 128 * 1024
"""What the kernel may hold for one client, in bytes (it doubles it). Left to itself it takes up to
4 MB of its memory for a client that has stalled, and what was lost is told that much later."""

_PIECE = 64 * 1024
_TURNS = 8
_LAST = b"0\r\n\r\n"
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3))


class Feed(Protocol):
    """Where a stream's bytes come from. `wake` is called when there is more, from any thread; a
    feed with a file descriptor (`fileno` not -1) is polled instead."""

    @property
    def ended(self) -> bool: ...

    def fileno(self) -> int: ...

    def read(self, limit: int) -> bytes:
        """What is there, b"" for nothing now. Never blocks."""

    def close(self) -> None: ...


OpenFeed = Callable[[Callable[[], None]], Feed]
"""Makes a feed that calls its argument when there is something to read. May raise AgentErrors."""


class Wire:
    """The client's end: a socket, or a pipe's write end. Owned, non-blocking."""

    def __init__(self, handle: socket.socket | int, chunked: bool) -> None:
        self._socket = handle if isinstance(handle, socket.socket) else None
        self._handle = handle if isinstance(handle, int) else handle.fileno()
        self.chunked = chunked
        os.set_blocking(self._handle, False)
        if self._socket is not None and self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            for option, value in _KEEPALIVE:
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)

    def fileno(self) -> int:
        return self._handle

    def send(self, data: bytes) -> int:
        """How many bytes were taken. OSError when the client is gone."""
        try:
            return os.write(self._handle, data)
        except BlockingIOError:
            return 0

    def gone(self) -> bool:
        """After the poll has said "readable": whether the client has left. What it may have sent
        is dropped. A pipe only ever says that nobody reads it any more."""
        if self._socket is None:
            return True
        try:
            return not self._socket.recv(_PIECE)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.close()
            else:
                os.close(self._handle)


class Stream:
    """A place among the streams, and its feed. Either `attach` or `close` it."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.feed: Feed | None = None
        self.wire: Wire | None = None
        self.unsent = b""
        self.moved_at = time.monotonic()
        self.watched = -1
        self.over = False

    def attach(self, handle: socket.socket | int, chunked: bool) -> None:
        """Give the client's end; it is the stream's from now on."""
        self._streams.begin(self, handle, chunked)

    def close(self) -> None:
        """The stream does not begin after all."""
        self._streams.abandon(self)

    def wake(self) -> None:
        self._streams.ready(self)

    @property
    def idle(self) -> float:
        """For how many seconds the client has left bytes lying; 0 while it owes nothing."""
        return time.monotonic() - self.moved_at if self.unsent else 0.0


class Streams:
    """At most `limit` streams at once."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: set[Stream] = set()
        self._woken: deque[Stream] = deque()
        self._doomed: set[Stream] = set()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._signalled = False
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_in, selectors.EVENT_READ)

    # -- from any thread ------------------------------------------------------------------------

    def open(self, open_feed: OpenFeed) -> Stream:
        """A stream with its feed. Unavailable when too many are open, Cancelled after `close`."""
        stream = Stream(self)
        self._take_place(stream)
        try:
            stream.feed = open_feed(stream.wake)
        except BaseException:
            self._leave(stream)
            raise
        return stream

    def begin(self, stream: Stream, handle: socket.socket | int, chunked: bool) -> None:
        wire = Wire(handle, chunked)
        with self._lock:
            if not self._closed:
                stream.wire = wire
                stream.moved_at = time.monotonic()
                self._woken.append(stream)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="streams", daemon=True)
                    self._thread.start()
        if stream.wire is None:
            wire.close()
            self.abandon(stream)
        self._signal()

    def abandon(self, stream: Stream) -> None:
        if stream.wire is None and stream.feed is not None:
            stream.feed.close()
        self._leave(stream)

    def ready(self, stream: Stream) -> None:
        """The stream's feed has something."""
        self._woken.append(stream)
        self._signal()

    def close(self, timeout: float = 2.0) -> None:
        """End all streams, each with a proper end where its client can take one."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._signal()
        if thread is not None:
            thread.join(timeout)

    def _take_place(self, stream: Stream) -> None:
        with self._lock:
            if self._closed:
                raise Cancelled("The agent is stopping")
            if len(self._open) - len(self._doomed) >= self._limit:
                self._evict()
            self._open.add(stream)

    def _evict(self) -> None:
        """Give up the stream whose client has been stuck for longest, or refuse."""
        stuck = max(self._open - self._doomed, key=lambda one: one.idle)
        if stuck.idle < STUCK_SECONDS:
            raise Unavailable(
                f"Too many streams are open ({self._limit}), try again when one has ended"
            )
        self._doomed.add(stuck)
        self._signal()

    def _leave(self, stream: Stream) -> None:
        with self._lock:
            self._open.discard(stream)
            self._doomed.discard(stream)

    def _signal(self) -> None:
        if not self._signalled:
            self._signalled = True
            with contextlib.suppress(OSError):
                os.write(self._wake_out, b"x")

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        served: set[Stream] = set()
        show_name(threading.current_thread())
        while True:
            self._turn(served)
            with self._lock:
                if not served and not self._woken:
                    self._thread = None
                    return

    def _turn(self, served: set[Stream]) -> None:
        """Wait for something to do, and do it for everybody concerned."""
        concerned = self._concerned(self._selector.select(self._patience(served)))
        served |= {one for one in concerned if one.wire is not None and not one.over}
        for stream in concerned & served:
            try:
                self._serve(stream, served)
            except Exception:
                _log.exception("a stream has failed")
                self._end(stream, served, proper=False)
        with self._lock:
            ending = list(served) if self._closed else list(self._doomed & served)
        ending += [one for one in served if one.idle > DEAD_SECONDS]
        for stream in ending:
            if stream in served:
                self._end(stream, served, proper=True)

    def _patience(self, served: set[Stream]) -> float | None:
        if self._woken or self._closed:
            return 0.0
        return STUCK_SECONDS if any(stream.unsent for stream in served) else None

    def _concerned(self, events: list[tuple[selectors.SelectorKey, int]]) -> set[Stream]:
        found: set[Stream] = set()
        for key, mask in events:
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_in, 4096)
                self._signalled = False
                continue
            stream: Stream = key.data
            assert stream.wire is not None
            readable = key.fd == stream.wire.fileno() and mask & selectors.EVENT_READ
            if readable and stream.wire.gone():
                with self._lock:
                    self._doomed.add(stream)
            found.add(stream)
        while self._woken:
            found.add(self._woken.popleft())
        return found

    def _serve(self, stream: Stream, served: set[Stream]) -> None:
        """Move bytes from the feed to the client, as many as a turn allows."""
        feed, wire = stream.feed, stream.wire
        assert feed is not None and wire is not None
        try:
            for _ in range(_TURNS):
                if not stream.unsent:
                    stream.unsent = _framed(feed.read(_PIECE), wire.chunked)
                    stream.moved_at = time.monotonic()
                if not stream.unsent:
                    break
                sent = wire.send(stream.unsent)
                if sent:
                    stream.unsent = stream.unsent[sent:]
                    stream.moved_at = time.monotonic()
                if stream.unsent:
                    break
            else:
                self._woken.append(stream)
        except OSError:
            self._end(stream, served, proper=False)
            return
        if feed.ended and not stream.unsent:
            self._end(stream, served, proper=True)
        else:
            self._watch(stream, wire, feed)

    def _watch(self, stream: Stream, wire: Wire, feed: Feed) -> None:
        """What to poll: always the client's leaving; its readiness while there are bytes for it;
        else the feed."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if stream.unsent else 0)
        self._poll(wire.fileno(), wanted, stream)
        source = -1 if stream.unsent else feed.fileno()
        if stream.watched not in (-1, source):
            self._forget(stream.watched)
        if source != -1:
            self._poll(source, selectors.EVENT_READ, stream)
        stream.watched = source

    def _poll(self, handle: int, events: int, stream: Stream) -> None:
        known = self._selector.get_map().get(handle)
        if known is None:
            self._selector.register(handle, events, stream)
        elif known.events != events or known.data is not stream:
            self._selector.modify(handle, events, stream)

    def _forget(self, handle: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(handle)

    def _end(self, stream: Stream, served: set[Stream], proper: bool) -> None:
        feed, wire = stream.feed, stream.wire
        assert feed is not None and wire is not None
        self._forget(wire.fileno())
        if stream.watched != -1:
            self._forget(stream.watched)
        if proper and wire.chunked and not stream.unsent:
            with contextlib.suppress(OSError):
                wire.send(_LAST)
        stream.over = True  # its feed may still wake it
        served.discard(stream)
        wire.close()
        feed.close()
        self._leave(stream)


def _framed(data: bytes, chunked: bool) -> bytes:
    """A chunk of an HTTP/1.1 answer; older clients get the bytes as they are."""
    return b"%x\r\n%b\r\n" % (len(data), data) if chunked and data else data
