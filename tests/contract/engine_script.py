"""A scripted engine: an HTTP server on a Unix socket, a table of answers, a record of requests."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

Answer = Callable[["Handler"], None]


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    script: Script


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def address_string(self) -> str:
        return "engine"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test speaks."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.script.handle(self, body)

    do_POST = do_DELETE = do_GET  # noqa: N815

    def say(self, status: int, content: Any = None) -> None:
        text = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def stream(self, *lines: Any) -> None:
        """The beginning of a chunked answer; `end` ends it properly."""
        if not getattr(self, "streaming", False):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.streaming = True
        for line in lines:
            text = json.dumps(line).encode() + b"\r\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class Script:
    """Answers by `METHOD /path` without version and query; the record keeps their order."""

    def __init__(self, where: Path) -> None:
        self.socket = str(where)
        self.answers: dict[str, Answer] = {
            "GET /_ping": lambda to: to.say(200, "OK"),
            "GET /version": lambda to: to.say(200, {"Engine": "balena-engine"}),
            "GET /images/json": lambda to: to.say(200, []),
        }
        self.otherwise: Answer = _unknown
        self.record: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.over = threading.Event()
        self._server = Server(self.socket, Handler)
        self._server.script = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def handle(self, request: Handler, body: bytes) -> None:
        _, _, rest = request.path.partition("/v1.41")
        name = f"{request.command} {rest.partition('?')[0]}"
        self.record.append(f"{request.command} {rest}")
        self.bodies.append(body)
        self.headers.append(request.headers)
        answer = self.answers.get(name, self.otherwise)
        try:
            answer(request)
        except OSError:
            request.close_connection = True

    def hang(self, to: Handler) -> None:
        self.over.wait(30)
        to.close_connection = True

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _unknown(to: Handler) -> None:
    to.say(404, {"message": "page not found"})
