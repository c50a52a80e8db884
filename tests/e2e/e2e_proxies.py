"""A SOCKS5 and an HTTP CONNECT proxy, and a server to be reached, on the outer machine."""

from __future__ import annotations

import contextlib
import http.server
import select
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from typing import Any

LIMIT = 10.0


class Server(socketserver.ThreadingTCPServer):
    """Counts in `seen`: whom a proxy was asked to connect to, or who asked the server."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, handler: Any) -> None:
        self.seen: list[str] = []
        super().__init__((address, 0), handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is none of our business."""


class Socks5(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        self.request.settimeout(LIMIT)
        _, count = self._take(2)
        methods = self._take(count)
        login = 2 in methods
        self.request.sendall(bytes((5, 2 if login else 0)))
        user = self._login() if login else ""
        _, command, _, kind = self._take(4)
        assert (command, kind) == (1, 1), "a connection to an IPv4 address"
        host = socket.inet_ntoa(self._take(4))
        (port,) = struct.unpack("!H", self._take(2))
        self.server.seen.append(f"{user}{host}:{port}")
        with socket.create_connection((host, port), LIMIT) as there:
            self.request.sendall(b"\x05\x00\x00\x01" + bytes(6))
            pump(self.request, there)

    def _login(self) -> str:
        self._take(1)
        user = self._take(self._take(1)[0])
        password = self._take(self._take(1)[0])
        self.request.sendall(b"\x01\x00")
        return f"{user.decode()}/{password.decode()}@"

    def _take(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            part = self.request.recv(count - len(found))
            if not part:
                raise ConnectionError("the client went away")
            found += part
        return found


class Connect(socketserver.StreamRequestHandler):
    server: Server
    timeout = LIMIT

    def handle(self) -> None:
        method, place, _ = self.rfile.readline().decode().split()
        while self.rfile.readline().strip():
            pass
        assert method == "CONNECT"
        self.server.seen.append(place)
        host, _, port = place.rpartition(":")
        with socket.create_connection((host, int(port)), LIMIT) as there:
            self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            pump(self.connection, there)


class Hello(http.server.BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        self.server.seen.append(self.client_address[0])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def pump(here: socket.socket, there: socket.socket) -> None:
    """Bytes both ways until one side has had enough."""
    while True:
        ready, _, _ = select.select([here, there], [], [], LIMIT)
        if not ready:
            return
        for source in ready:
            data = source.recv(65536)
            if not data:
                return
            (there if source is here else here).sendall(data)


@contextlib.contextmanager
def serving(address: str, handler: Any) -> Iterator[Server]:
    with Server(address, handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
