"""One HTTP client: its connection, its requests, and the way of an answer, on Cheroot's classes.

Theory: Cheroot reads requests and writes answers, but not always as the contract says. The header
limit is answered with 431, garbage and a length that is none with 400 and no explanation. While a
worker waits for its client, the connection is counted as such, so that the server can tell who is
slow (hearing.py). A stream takes the socket over once its head has been sent.

Invariant: a request whose body has an unclear end never reaches the application.
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import time
from functools import partial
from typing import Any

from .body import BODY_LIMIT, TOO_LARGE
from .exchange import JSON_TYPE, compact
from .framing import Chunks, Headers
from .http import HEARD, LEFT, LISTEN, STREAM
from .library import cheroot
from .streams import Stream

_KEPT = ((b"Connection", b"keep-alive"), (b"Keep-Alive", b"timeout=5"))
"""What the peer says, too. Pools of clients go by it: it is less than the time after which we close
an idle connection, so that no request ever meets its end."""

_PIECE = 32 * 1024
"""Bytes of an answer that are handed to the kernel at one time: most answers are shorter."""

_LINGER = 0.5


class Request(cheroot.server.HTTPRequest):
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


class Connection(cheroot.server.HTTPConnection):
    """Counts, while a request is being read or an answer sent, as one that a worker waits for."""

    RequestHandlerClass = Request
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

    def left(self) -> bool:
        """Whether the client has ended the connection, or its half of it, as if nobody there would
        read an answer."""
        poll = select.poll()
        try:
            poll.register(self.socket, select.POLLRDHUP)
        except ValueError:
            return True
        return bool(poll.poll(0))

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


class Gateway(cheroot.wsgi.Gateway_10):
    """Adds the address at which the client reached us, SERVER_ADDR, and the callbacks of http.py;
    hands clients over to streams."""

    def __init__(self, req: Any) -> None:
        if req.chunked_read:
            req.rfile = Chunks(req.conn.rfile, req.server.max_request_body_size)
        super().__init__(req)
        self.env[HEARD] = req.conn.heard
        self.env[LISTEN] = partial(req.conn.await_client, select.POLLIN)
        self.env[LEFT] = req.conn.left
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
