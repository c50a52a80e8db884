"""A scripted cloud: token service, delta server and registry in one server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from balena_agent.core.access import CloudAccess

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """One request: path, query as pairs, and who asks (the Authorization header)."""

    path: str
    query: tuple[tuple[str, str], ...]
    who: str


Answer = Callable[[Asked], tuple[int, Document | None]]


class Cloud:
    """Answers by path; what has none is 404. `with_token` makes the registry ask for a token."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {"/auth/v1/token": lambda asked: (200, {"token": "T"})}
        self.asked: list[Asked] = []
        self.with_token = False
        self.hold = threading.Event()
        """Set by a test to let requests to `/slow...` go on."""
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                cloud.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the test speaks."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.realm = f"http://{self.host}/auth/v1/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def access(self, **more: str) -> CloudAccess:
        url = f"http://{self.host}"
        return CloudAccess(
            **{"api": url, "deltas": url, "username": "d_1", "password": "SECRET", **more}
        )

    def serve_image(
        self, repository: str, version: str, config: str, sizes: tuple[int, ...] = (10,),
        layers: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """An image in the registry: the digest of its configuration, and its layers."""
        manifest = {"config": {"digest": config}, "layers": [{"size": size} for size in sizes]}
        top = f"/v2/{repository}"
        self.answers[f"{top}/manifests/{version}"] = lambda asked: (200, manifest)
        if layers:
            said = {"rootfs": {"diff_ids": list(layers)}}
            self.answers[f"{top}/blobs/{config}"] = lambda asked: (200, said)

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        who = request.headers.get("Authorization", "")
        asked = Asked(url.path, tuple(parse_qsl(url.query)), who)
        self.asked.append(asked)
        status, document = self._answer(asked)
        text = b"" if document is None else json.dumps(document).encode()
        try:
            request.send_response(status)
            if status == 401:
                realm = f'Bearer realm="{self.realm}",service="s",scope="a b"'
                request.send_header("WWW-Authenticate", realm)
            if 300 <= status < 400 and document:
                request.send_header("Location", str(document["to"]))
            request.send_header("Content-Length", str(len(text)))
            request.end_headers()
            request.wfile.write(text)
        except OSError:
            request.close_connection = True

    def _answer(self, asked: Asked) -> tuple[int, Document | None]:
        if asked.path.startswith("/v2/") and self.with_token and asked.who != "Bearer T":
            return 401, None
        known = self.answers.get(asked.path)
        return known(asked) if known else (404, None)

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
