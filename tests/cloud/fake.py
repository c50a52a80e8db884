"""An HTTP server that stands in for the cloud (spec 31): state, tags, registration, log streams.

Theory: a test sets what the cloud knows (`targets`, `tags`, `keys`) and how it behaves (`status`,
`delay`), then looks at `requests`: every one is recorded with its body, its headers and the moment
of its arrival. `stop` and `start` take the cloud away and bring it back under the same address.
Answers have the shapes of the real one; rules that nothing depends on are left out. Reports are
checked as strictly as the real one does (`reports.py`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .logs import BadStream, LogStream, lines, refusal
from .reports import problem

Json = dict[str, Any]
Answer = tuple[int, Any]

_UUID_OF_FILTER = re.compile(r"uuid eq '([0-9a-f]+)'")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request. `at` is monotonic; `headers` have lower-case names."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any
    at: float


@dataclass
class FakeCloud:
    """`keys`: device keys that are accepted, by device uuid. `targets`: what a device shall be, by
    uuid; a text is sent as it is. `tags`: by uuid, each `{"id", "tag_key", "value"}`. `reports`:
    what devices said and the cloud took; `told` is what that makes of each device. `deleted`:
    commits that the cloud knows no more."""

    address: str = "127.0.0.1"
    keys: dict[str, str] = field(default_factory=dict)
    targets: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, list[Json]] = field(default_factory=dict)
    reports: list[Json] = field(default_factory=list)
    told: dict[str, Json] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    requests: list[Recorded] = field(default_factory=list)
    status: int = 0
    """When set, every request is answered with it."""

    statuses: dict[str, int] = field(default_factory=dict)
    """The same for one method, `PATCH` say: that is answered with it."""

    retry_after: str = ""
    """Sent with every refusal that `status` or `statuses` makes."""

    delay: float = 0.0
    streams: list[LogStream] = field(default_factory=list)
    """Requests that brought log lines, oldest first; see `logs`."""

    log_status: int = 0
    """When set, a log stream is answered with it at once."""

    log_cut: int = 0
    """When set, the connection of the next log stream is reset after so many lines."""

    log_deaf: bool = False
    """Log streams are accepted and not read; nor does the kernel take much for them."""

    port: int = 0
    _open: set[socket.socket] = field(default_factory=set)
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    def __enter__(self) -> FakeCloud:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve; a second time does nothing."""
        if self._server is None:
            self._server = _server(self, self.address, self.port)
            self.port = self._server.server_address[1]
            serve = self._server.serve_forever
            threading.Thread(target=serve, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Whoever connects from now on is refused."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        self.cut_off()

    def cut_off(self) -> None:
        """Whatever log streams are under way break."""
        for wire in tuple(self._open):
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    @property
    def logs(self) -> list[Json]:
        """Every line that came, in the order of its arrival."""
        return [line for stream in self.streams for line in stream.lines]

    def messages(self, service_id: int | None = None) -> list[str]:
        """The texts of the lines of one service; without a number those of the system."""
        return [line["message"] for line in self.logs if line.get("serviceId") == service_id]

    def asked(self, method: str, path: str) -> list[Recorded]:
        """The requests to a path (a regular expression), oldest first."""
        return [r for r in self.requests if r.method == method and re.fullmatch(path, r.path)]

    # -- what it answers

    def answer(self, request: Recorded, refused: int) -> Answer:
        """`refused`: the status that it is refused with, whatever it asks for; 0 for none."""
        time.sleep(self.delay)
        if refused:
            return refused, "out of order"
        if request.path == "/device/register" and request.method == "POST":
            return self._register(request.body)
        uuid = self._device(request.headers)
        if uuid is None:
            return 401, "Unauthorized"
        path, method = request.path, request.method
        if method == "GET" and path in (f"/device/v3/{uuid}/state", f"/device/v2/{uuid}/state"):
            return self._state(uuid, request.headers)
        if method == "PATCH" and path == "/device/v3/state":
            return self._report(uuid, request.body)
        if method == "PATCH" and path == "/device/v3/tags":
            return self._set_tags(uuid, request.body)
        if method == "GET" and path == "/v7/device_tag":
            return self._get_tags(request.query)
        return 404, "Not found"

    def _device(self, headers: Json) -> str | None:
        """The device that a request's key belongs to."""
        key = headers.get("authorization", "").removeprefix("Bearer ")
        return next((uuid for uuid, known in self.keys.items() if known == key and key), None)

    def _register(self, body: Any) -> Answer:
        if not isinstance(body, dict) or not body.get("uuid") or not body.get("application"):
            return 400, "uuid and application are needed"
        if body["uuid"] in self.keys:
            return 409, "The device is registered already"
        self.keys[body["uuid"]] = body.get("api_key") or sha256(body["uuid"].encode()).hexdigest()
        return 201, {"id": 1000 + len(self.keys), "uuid": body["uuid"],
                     "api_key": self.keys[body["uuid"]]}  # fmt: skip

    def _state(self, uuid: str, headers: Json) -> Answer:
        """The target, or 304 for a device that has it already (see `_Handler` for the ETag)."""
        target = self.targets.get(uuid)
        if target is None or headers.get("if-none-match") == etag(target):
            return 304, None
        return 200, target

    def _report(self, uuid: str, body: Any) -> Answer:
        if text := problem(body, uuid):
            return 400, text
        named = {c for app in body[uuid].get("apps", {}).values() for c in app["releases"]}
        if named & self.deleted:
            return 401, "Unauthorized"
        self.reports.append(body)
        self.told.setdefault(uuid, {}).update(body[uuid])
        return 200, None

    def take_logs(self, stream: LogStream, path: str, wire: Any, refused: int) -> Answer:
        """Read a log stream to its end; `refused` as for `answer`. OSError: it broke."""
        if refused:
            return refused, "out of order"
        if path != f"/device/v2/{self._device(stream.headers)}/log-stream":
            return 401, "Unauthorized"
        if wrong := refusal(stream.headers):
            stream.problem = wrong[1]
            return wrong
        while self.log_deaf:
            time.sleep(0.02)
        try:
            for line in lines(wire):
                stream.lines.append(line)
                if 0 < self.log_cut <= len(stream.lines):
                    self.log_cut = 0
                    raise ConnectionError("cut")
        except BadStream as error:
            stream.problem = str(error)
            return 400, str(error)
        stream.whole = True
        return 201, None

    def _set_tags(self, uuid: str, body: Any) -> Answer:
        values = body.get(uuid) if isinstance(body, dict) else None
        if not isinstance(values, dict) or not values:
            return 400, "no tags"
        known = self.tags.setdefault(uuid, [])
        for name, value in values.items():
            entry = next((tag for tag in known if tag["tag_key"] == name), None)
            if entry is None:
                known.append({"id": 1 + max((t["id"] for t in known), default=0), "tag_key": name,
                              "value": value})  # fmt: skip
            else:
                entry["value"] = value
        return 200, "OK"

    def _get_tags(self, query: str) -> Answer:
        found = _UUID_OF_FILTER.search(unquote(parse_qs(query).get("$filter", [""])[0]))
        return 200, {"d": self.tags.get(found[1], []) if found else []}


def etag(document: Any) -> str:
    return f'"{sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]}"'


def _server(cloud: FakeCloud, address: str, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            if parts.path.endswith("/log-stream"):
                self.take_logs(parts.path)
                return
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                body = json.loads(raw) if raw else None
            except ValueError:
                body = raw
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Recorded(
                self.command, parts.path, parts.query, headers, body, time.monotonic()
            )
            # Before it is recorded: a test that sees it may change what comes next, and only that.
            refused = cloud.status or cloud.statuses.get(self.command, 0)
            cloud.requests.append(request)
            answer = cloud.answer(request, refused)
            self.say(*answer, "gzip" in headers.get("accept-encoding", ""))

        def take_logs(self, path: str) -> None:
            self.close_connection = True
            headers = {name.lower(): value for name, value in self.headers.items()}
            stream = LogStream(headers, time.monotonic())
            refused = cloud.status or cloud.log_status  # before it is recorded, as above
            cloud.streams.append(stream)
            self.connection.settimeout(None)
            if cloud.log_deaf:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            cloud._open.add(self.connection)
            try:
                self.say(*cloud.take_logs(stream, path, self.rfile, refused))
            except OSError:
                reset = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            finally:
                cloud._open.discard(self.connection)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_any  # noqa: N815

        def say(self, status: int, document: Any, packed: bool = False) -> None:
            text = document if isinstance(document, str) else json.dumps(document)
            body = b"" if document is None else text.encode()
            kind = "text/plain" if isinstance(document, str) else "application/json"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if packed and body:
                body = gzip.compress(body)
                self.send_header("Content-Encoding", "gzip")
            if status in (429, 503) and cloud.retry_after:
                self.send_header("Retry-After", cloud.retry_after)
            self.send_header("Content-Length", str(len(body)))
            if status == 200:
                self.send_header("ETag", etag(document))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, *_: object) -> None:
            """A client that did not wait for its answer is no news."""

    return Server((address, port), Handler)
