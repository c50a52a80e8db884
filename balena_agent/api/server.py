"""The socket and the threads under the HTTP API: Cheroot, tamed.

Theory: Cheroot gives an acceptor thread and a fixed pool of workers. What it lacks is added: for
single clients in connection.py, for all together here. Idle wake-ups are rare, connections that
wait hold no worker, and stopping always ends. Cheroot's workers ignore a stop while a handler runs,
so the whole server lives in daemon threads (a thread inherits that from its creator), everything
that waits is woken first, and the stop itself runs beside a deadline.

Invariant: after `stop` nobody is served any more, and no thread of the server keeps the process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from ..core.errors import AgentError, Broken, Unavailable
from .body import BODY_LIMIT
from .connection import Connection, Gateway
from .hearing import WAITING_CONNECTIONS, Heads, Slow, shut_oldest
from .http import Application
from .library import cheroot

_log = logging.getLogger(__name__)

WORKERS = 12
BACKLOG = 128
HEADER_LIMIT = 16 * 1024
KEPT_CONNECTIONS = 64
"""Idle connections that are kept open; with more, answers close theirs."""

_SWEEP = 10.0
"""Seconds between looks for idle connections: the server's only wake-up without a reason."""

Admits = Callable[[str], bool]
"""Whether clients may come in at one of our own addresses."""

_PROBE = (
    b"GET /ping HTTP/1.1\r\nHost: localhost\r\nUser-Agent: balena-agent-probe\r\n"
    b"Connection: close\r\n\r\n"
)


class _Server(cheroot.wsgi.Server):
    ConnectionClass = Connection
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
        server.gateway = Gateway
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
        server.slow.close()
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
