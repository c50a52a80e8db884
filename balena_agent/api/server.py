"""The socket and the threads under the HTTP API: Cheroot, tamed.

Theory: Cheroot gives an acceptor thread and a fixed pool of workers. What it lacks is added here:
the header limit is answered as the contract says (431), garbage without an explanation (400), idle
wake-ups are rare, and stopping always ends. Its workers ignore a stop while a handler runs, so the
whole server lives in daemon threads (a thread inherits that from its creator), everything that
waits is woken first, and the stop itself runs beside a deadline.

Invariant: after `stop` nobody is served any more, and no thread of the server keeps the process.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import queue
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from ..core.errors import AgentError, Broken, Unavailable
from .body import BODY_LIMIT, TOO_LARGE
from .exchange import JSON_TYPE, compact
from .framing import Chunks, Headers
from .hearing import WAITING_CONNECTIONS, Heads, Slow, shut_oldest
from .http import HEARD, STREAM, Application
from .library import cheroot
from .streams import Stream

_log = logging.getLogger(__name__)

WORKERS = 12
BACKLOG = 128
HEADER_LIMIT = 16 * 1024
KEPT_CONNECTIONS = 64
"""Idle connections that are kept open; with more, answers close theirs."""

_KEPT = ((b"Connection", b"keep-alive"), (b"Keep-Alive", b"timeout=5"))
"""What the peer says, too. Pools of clients go by it: it is less than the time after which we close
an idle connection, so that no request ever meets its end."""

_SWEEP = 10.0
"""Seconds between looks for idle connections: the server's only wake-up without a reason."""

Admits = Callable[[str], bool]
"""Whether clients may come in at one of our own addresses."""

_PIECE = 32 * 1024
"""Bytes of an answer that are handed to the kernel at one time: most answers are shorter."""

_LINGER = 0.5
_PROBE = (
    b"GET /ping HTTP/1.1\r\nHost: localhost\r\nUser-Agent: balena-agent-probe\r\n"
    b"Connection: close\r\n\r\n"
)


class _Request(cheroot.server.HTTPRequest):
    """A request whose faults are answered as the contract says (spec 10 §1).

    Absolute request lines (`GET http://host/path`) are accepted, as RFC 9112 demands.
    """

    header_reader = Headers()

    def __init__(self, server: Any, conn: Any) -> None:
        super().__init__(server, conn, proxy_mode=True)

    def read_request_line(self) -> bool:
        """A path such as `//[` is an error of the library's parser; it is the client's. What
        follows two slashes is a path, not the name of a host."""
        try:
            if not super().read_request_line():  # type: ignore[no-untyped-call]
                return False
        except ValueError:
            self.simple_response("400 Bad Request")
            return False
        if self.uri.startswith(b"//"):
            self.path = self.uri.partition(b"?")[0]
        return True

    def read_request_headers(self) -> bool:
        """Also refuse a length that is none: what would be taken for a request without a body
        could be a reboot that nobody asked for."""
        if not super().read_request_headers():  # type: ignore[no-untyped-call]
            return False
        length = self.inheaders.get(b"Content-Length")
        if length is not None and (not length.isdigit() or b"Transfer-Encoding" in self.inheaders):
            self.simple_response("400 Bad Request")
            return False
        said = self.inheaders.get(b"Connection", b"").lower().split(b",")
        wishes = {wish.strip() for wish in said}
        old = self.response_protocol == "HTTP/1.0"
        self.close_connection = b"close" in wishes or (old and b"keep-alive" not in wishes)
        return True

    def simple_response(self, status: Any, msg: str = "") -> None:
        """Cheroot calls this for everything that never becomes a request of the application."""
        code, body, kind = str(status), b"", ""
        if code[:3] in ("413", "414"):
            code = "431 Request Header Fields Too Large"
            if self._declared_length() > BODY_LIMIT:
                code, kind = "503 Service Unavailable", JSON_TYPE
                body = compact({"status": "failed", "message": TOO_LARGE})
        self.close_connection = True
        lines = [f"HTTP/1.1 {code}", "Connection: close", f"Content-Length: {len(body)}"]
        lines += [f"Content-Type: {kind}"] if kind else []
        with contextlib.suppress(OSError):
            self.conn.wfile.write("\r\n".join((*lines, "", "")).encode("latin-1") + body)
            _linger(self.conn.socket)

    def send_headers(self) -> None:
        """The application has read what there was of the body. A client that still owes some was
        too slow: nothing more can be read from it, so its connection ends with the answer."""
        self.conn.await_client(select.POLLOUT)
        chunks_left = self.chunked_read and not self.rfile.closed
        if chunks_left or getattr(self.rfile, "remaining", 0) > 0:
            self.close_connection = True
        if not self.close_connection and self.server.can_add_keepalive_connection:
            self.outheaders += _KEPT
        super().send_headers()

    def _declared_length(self) -> int:
        text = self.inheaders.get(b"Content-Length", b"")
        return int(text) if text.isdigit() else 0


class _Connection(cheroot.server.HTTPConnection):
    """Counts, while a request is being read or an answer sent, as one that a worker waits for."""

    RequestHandlerClass = _Request
    handed_over = False
    awaited = select.POLLIN
    head_seen = 0
    last_used: float | None = None
    own_address = ""
    """At which the client reached us; asked for once, when the connection is fresh."""

    def communicate(self) -> bool:
        self.await_client(select.POLLIN)
        self.server.slow.watch()
        try:
            return bool(super().communicate())  # type: ignore[no-untyped-call]
        finally:
            self.heard()

    def await_client(self, event: int) -> None:
        """From now on a worker waits for the client: to send (POLLIN), to receive (POLLOUT)."""
        self.awaited = event
        self.server.slow.heard_since[self] = time.monotonic()

    def heard(self) -> None:
        self.server.slow.heard_since.pop(self, None)

    def stalls(self) -> bool:
        """Whether the client lets a worker wait, and not the other way round."""
        poll = select.poll()
        try:
            poll.register(self.socket, self.awaited)
        except ValueError:
            return False  # it has been closed meanwhile
        return not poll.poll(0)

    def hand_over(self, stream: Stream, chunked: bool) -> None:
        """Give the client to a stream: what follows is not this worker's matter any more."""
        self.handed_over = True
        stream.attach(self.socket.dup(), chunked)

    def close(self) -> None:
        """Free at once: Cheroot ties each connection to itself, and the collector comes late."""
        super().close()
        for name in ("resolve_peer_creds", "get_peer_creds"):
            vars(self).pop(name, None)

    def _close_kernel_socket(self) -> None:
        """Cheroot would end the connection for everybody who holds it."""
        if not self.handed_over:
            super()._close_kernel_socket()  # type: ignore[misc]


class _Gateway(cheroot.wsgi.Gateway_10):
    """Adds the address at which the client reached us, SERVER_ADDR, and the callback HEARD; hands
    clients over to streams."""

    def __init__(self, req: Any) -> None:
        if req.chunked_read:
            req.rfile = Chunks(req.conn.rfile, req.server.max_request_body_size)
        super().__init__(req)
        self.env[HEARD] = req.conn.heard
        self.env["SERVER_ADDR"] = req.conn.own_address

    def start_response(self, status: Any, headers: Any, exc_info: Any = None) -> Any:
        if STREAM in self.env:
            self.req.close_connection = True  # and the client is told so
        self.req.conn.await_client(select.POLLIN)  # what is left of the body
        return super().start_response(status, headers, exc_info)

    def write(self, chunk: bytes) -> None:
        """In pieces, because there are copies of each as long as the client does not read it."""
        for start in range(0, len(chunk), _PIECE):
            self._write_piece(chunk[start : start + _PIECE])

    def _write_piece(self, chunk: bytes) -> None:
        """The head leaves together with what follows it: one call to the kernel less, and the
        client wakes up once."""
        if self.req.sent_headers:
            super().write(chunk)
            return
        conn, joined = self.req.conn, io.BytesIO()
        wire, conn.wfile = conn.wfile, joined
        try:
            super().write(chunk)
        finally:
            conn.wfile = wire
            wire.write(joined.getvalue())

    def respond(self) -> None:
        try:
            super().respond()
        except BaseException:
            if STREAM in self.env:
                self.env[STREAM].close()
            raise
        if (stream := self.env.get(STREAM)) is not None:
            self._go_on(stream)

    def _go_on(self, stream: Stream) -> None:
        """The head has been sent; the stream's thread sends the rest, its end included."""
        chunked, self.req.chunked_write = self.req.chunked_write, False
        if self.req.method == b"HEAD":
            stream.close()
        else:
            self.req.conn.hand_over(stream, chunked)


class _Server(cheroot.wsgi.Server):
    ConnectionClass = _Connection
    max_request_header_size = HEADER_LIMIT
    # The application itself answers what is moderately too large, and reads it to its end.
    max_request_body_size = 4 * BODY_LIMIT
    expiration_interval = _SWEEP
    keep_alive_conn_limit = KEPT_CONNECTIONS
    slow: Slow
    heads: Heads
    admits: Admits
    _connections: Any
    bind_error: OSError | None = None
    """Why the last address could not be bound; Cheroot itself only keeps the words."""

    def process_conn(self, conn: Any) -> None:
        """Called by the acceptor for each connection that is new or has something to read, and by
        workers for those that have sent more than one request at once."""
        fresh = conn.last_used is None
        if fresh:
            conn.own_address = _own_address(conn.socket)
            if not self.admits(conn.own_address):
                conn.close()
                return
        self.slow.relieve()
        if fresh or not (conn.rfile.has_data() or self.heads.ready(conn)):
            self._let_wait(conn)
        else:
            super().process_conn(conn)

    def crowd(self) -> float | None:
        """How many requests wait for each worker; None while one is free."""
        return None if self.requests.idle else self.requests.qsize / self.requests.max

    def _let_wait(self, conn: Any) -> None:
        """Back to the selector, which gives up on it when it is silent for too long."""
        manager = self._connections
        conn.last_used = conn.last_used or time.time()
        manager._selector.register(conn.socket.fileno(), selectors.EVENT_READ, data=conn)
        if len(manager._selector) > WAITING_CONNECTIONS:
            shut_oldest([c for _, c in manager._selector.connections if c is not self])

    def _serve_unservicable(self) -> None:
        """Cheroot's thread for connections beyond its limit; it gives it no name."""
        threading.current_thread().name = "http-overload"
        super()._serve_unservicable()  # type: ignore[misc]

    def bind(self, family: Any, type: Any, proto: int = 0) -> Any:
        try:
            return super().bind(family, type, proto)
        except OSError as error:
            self.bind_error = error
            raise

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        _log.log(level, "http server: %s", msg, exc_info=traceback)


class HttpServer:
    """Serves `app` on `port` (0: any free one). `host` "" means every address, IPv6 and IPv4."""

    def __init__(
        self,
        app: Application,
        port: int,
        host: str = "",
        workers: int = WORKERS,
        idle_seconds: int = 10,
        admits: Admits = lambda address: True,
    ) -> None:
        self._app = app
        self._admits = admits
        self._asked = (host, port)
        self._workers = workers
        self._idle = idle_seconds
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port in use; the one that was asked for while the server does not run."""
        return int(self._server.bind_addr[1]) if self._server else self._asked[1]

    def start(self) -> None:
        """Listen and serve; returns when connections are accepted.

        Unavailable, in words for people, when the port is taken or may not be used.
        """
        outcome: queue.SimpleQueue[AgentError | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, args=(outcome.put,), name="http", daemon=True
        )
        self._thread.start()
        error = outcome.get()
        if error:
            self._thread.join()
            raise error

    def _run(self, started: Callable[[AgentError | None], None]) -> None:
        """The acceptor thread: workers are its children and inherit that they are daemons."""
        try:
            self._server = self._listen()
        except AgentError as error:
            started(error)
            return
        except Exception as error:
            _log.exception("the http server cannot start")
            started(Broken(f"The HTTP server cannot start: {error}"))
            return
        started(None)
        try:
            self._server.serve()
        except Exception:
            _log.exception("the http server has ended")

    def _listen(self) -> _Server:
        host, port = self._asked
        failures: list[OSError] = []
        for candidate in (host,) if host else ("::", "0.0.0.0"):
            server = self._prepared(candidate, port)
            try:
                server.prepare()
                _name_workers()
                return server
            except OSError as error:
                failures.append(server.bind_error or error)
                if failures[-1].errno == errno.EADDRINUSE:
                    break
        raise _problem(failures[-1], port) from failures[-1]

    def _prepared(self, host: str, port: int) -> _Server:
        server = _Server(
            (host, port),
            self._app,
            numthreads=self._workers,
            max=self._workers,
            server_name="balena-agent",
            request_queue_size=BACKLOG,
            timeout=self._idle,
            shutdown_timeout=1,
        )
        server.gateway = _Gateway
        server.slow = Slow(server.crowd)
        server.heads = Heads(HEADER_LIMIT)
        server.admits = self._admits
        return server

    def probe(self, timeout: float) -> bool:
        """Whether `GET /ping` through the listening socket is answered with 200 in time."""
        deadline = time.monotonic() + timeout
        try:
            with socket.create_connection((self._own_address(), self.port), timeout) as wire:
                wire.sendall(_PROBE)
                wire.settimeout(max(0.01, deadline - time.monotonic()))
                return wire.recv(64).startswith(b"HTTP/1.1 200 ")
        except OSError:
            return False

    def stop(self, timeout: float = 2.0) -> bool:
        """End everything: True when all threads have ended within `timeout` seconds. False when a
        handler does not return; it then ends with the process, which it cannot hold up."""
        server, thread = self._server, self._thread
        self._app.close()
        if server is None or thread is None:
            return True
        stopper = threading.Thread(target=server.stop, name="http-stop", daemon=True)
        stopper.start()
        deadline = time.monotonic() + timeout
        while thread.is_alive() and time.monotonic() < deadline:
            self._nudge()
            thread.join(0.02)
        stopper.join(max(0.0, deadline - time.monotonic()))
        return not (thread.is_alive() or stopper.is_alive())

    def _nudge(self) -> None:
        """Wake the acceptor, which looks for a stop only between two connections."""
        with contextlib.suppress(OSError):
            socket.create_connection((self._own_address(), self.port), 0.1).close()

    def _own_address(self) -> str:
        host = self._asked[0]
        return "127.0.0.1" if host in ("", "::", "0.0.0.0") else host


def _own_address(wire: socket.socket) -> str:
    """The address at which a client has reached us; "" when it has left already."""
    try:
        return str(wire.getsockname()[0])
    except OSError:
        return ""


def _name_workers() -> None:
    """Names by which the workers can be told apart in a stack dump."""
    fresh = [t for t in threading.enumerate() if t.name.startswith("CP Server")]
    for number, thread in enumerate(fresh, 1):
        thread.name = f"http-worker-{number}"


def _problem(error: OSError, port: int) -> Unavailable:
    """Why we cannot listen, for people."""
    if error.errno == errno.EADDRINUSE:
        return Unavailable(f"Port {port} is in use by another program")
    if error.errno == errno.EACCES:
        return Unavailable(f"Port {port} may only be used with more privileges")
    return Unavailable(f"Cannot listen on port {port}: {error.strerror or error}")


def _linger(wire: socket.socket) -> None:
    """Say that we have finished and read on for a moment: closing at once with unread data would
    destroy the answer before the client has seen it."""
    deadline = time.monotonic() + _LINGER
    with contextlib.suppress(OSError):
        wire.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            wire.settimeout(left)
            if not wire.recv(65536):
                return
