"""A registry in front of the registry: one that can be slow, broken and counted."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REGISTRY = "127.0.0.1:5000"
TOKEN = "a-token-of-the-front"


class Front:
    """Stands before the registry. `pace` limits each download to so many bytes a second (0: no
    limit), `without_layers` answers 404 for every layer, `requests` counts what the engine asks.
    With `with_token` it asks for a token, which its own token service gives to those who say the
    `name` (an Authorization); `names` are what was said there."""

    def __init__(self) -> None:
        self.pace = 0
        self.without_layers = False
        self.with_token = False
        self.name = ""
        self.names: list[str] = []
        self.requests = 0
        self.sent = 0
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                front.answer(self)

            def do_HEAD(self) -> None:
                front.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the test speaks."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="front")
        self._thread.start()

    def through(self, reference: str) -> str:
        """The reference as seen through this front."""
        return reference.replace(REGISTRY, self.address)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests += 1
        who = request.headers.get("Authorization", "")
        if request.path.startswith("/token"):
            self._give_token(request, who)
            return
        if self.with_token and who != f"Bearer {TOKEN}":
            realm = f'Bearer realm="http://{self.address}/token",service="front"'
            self._say(request, 401, b"", ("WWW-Authenticate", realm))
            return
        behind = HTTPConnection(REGISTRY, timeout=10)
        headers = {k: v for k, v in request.headers.items() if k.lower() != "host"}
        behind.request(request.command, request.path, headers=headers)
        got = behind.getresponse()
        content = got.read()
        if self.without_layers and "/blobs/" in request.path and len(content) > 4096:
            request.send_error(404)
            return
        request.send_response(got.status)
        for name in ("Content-Type", "Docker-Content-Digest", "Docker-Distribution-Api-Version"):
            if value := got.headers.get(name):
                request.send_header(name, value)
        request.send_header("Content-Length", got.headers.get("Content-Length", "0"))
        request.end_headers()
        self._send(request, content)
        behind.close()

    def _give_token(self, request: BaseHTTPRequestHandler, who: str) -> None:
        self.names.append(who)
        text = json.dumps({"token": TOKEN}).encode()
        self._say(request, 200 if who == self.name else 401, text)

    def _say(
        self, request: BaseHTTPRequestHandler, status: int, text: bytes, *headers: tuple[str, str]
    ) -> None:
        request.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(text)))):
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(text)

    def _send(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        chunk = 64 * 1024
        try:
            for start in range(0, len(content), chunk):
                part = content[start : start + chunk]
                request.wfile.write(part)
                self.sent += len(part)
                if self.pace and len(content) > chunk:
                    time.sleep(len(part) / self.pace)
        except OSError:
            request.close_connection = True

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def registry_answers() -> bool:
    host, _, port = REGISTRY.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True
