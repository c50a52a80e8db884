"""The HTTP server on a real socket of the loopback interface."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import device_states
import pytest
from waiting import until

from balena_agent.api import hearing
from balena_agent.api import server as server_module
from balena_agent.api.auth import Auth
from balena_agent.api.connection import Connection
from balena_agent.api.framing import Chunks
from balena_agent.api.hearing import Slow, is_whole
from balena_agent.api.http import Application, Settings, build
from balena_agent.api.ours import OPENAPI
from balena_agent.api.server import HEADER_LIMIT, WORKERS, HttpServer
from balena_agent.core.errors import Unavailable
from balena_agent.core.intent import Command
from balena_agent.core.scopes import EVERYTHING, Scope
from balena_agent.core.snapshot import NOT_ASKED
from balena_agent.runtime.state import Published

KEY = "a" * 32

Answer = tuple[int, dict[str, str], bytes]


class FixedKeys:
    def global_key(self) -> str:
        return KEY

    def service_key(self, app_id: int, service: str) -> str:
        return KEY

    def scopes_of(self, key: str) -> Scope | None:
        return EVERYTHING if key == KEY else None


class Asked:
    """A reconciler that never answers."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def submit(self, _: Command) -> Future[str]:
        self.event.set()
        return Future()


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def app(asked: Asked) -> Application:
    return build(Published(device_states.m1()), asked.submit, Auth(FixedKeys()))


@pytest.fixture
def server(app: Application) -> Iterator[HttpServer]:
    running = HttpServer(app, 0)
    running.start()
    yield running
    running.stop()


class Client:
    """A bare HTTP/1.1 client that keeps its connection."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.wire = socket.create_connection((host, port), 10)
        self._rest = b""

    def send(self, head: str, body: bytes = b"", **headers: str) -> None:
        lines = [f"{head} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.wire.sendall("\r\n".join((*lines, "", "")).encode() + body)

    def receive(self) -> Answer:
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers.get("content-length", "0"))
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return int(status.split()[1]), headers, body

    def _more(self) -> None:
        data = self.wire.recv(65536)
        if not data:
            raise ConnectionError("closed")
        self._rest += data

    def ask(self, head: str, body: bytes = b"", **headers: str) -> Answer:
        self.send(head, body, **headers)
        return self.receive()

    @property
    def closed(self) -> bool:
        """Whether the server ends the connection (waits for it, at most ten seconds)."""
        try:
            return self.wire.recv(1) == b""
        except ConnectionResetError:
            return True


Connect = Callable[..., Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens connections, and closes them when the test is over."""
    clients: list[Client] = []

    def opened(port: int, host: str = "127.0.0.1") -> Client:
        clients.append(Client(port, host))
        return clients[-1]

    yield opened
    for client in clients:
        client.wire.close()


def test_requests_share_a_connection(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    for _ in range(3):
        status, headers, body = client.ask("GET /v2/version")
        assert status == 200
        assert json.loads(body)["version"] == "19.0.5"
        assert headers.get("connection") != "close"
    assert headers["content-type"] == "application/json; charset=utf-8"


def test_a_connection_that_is_kept_says_so_as_pools_of_clients_read_it(
    server: HttpServer, connect: Connect
) -> None:
    client = connect(server.port)
    for head in ("GET /ping", "GET /v2/version", "POST /v1/update"):
        _, headers, _ = client.ask(head)
        assert (headers["connection"], headers["keep-alive"]) == ("keep-alive", "timeout=5")


@pytest.mark.parametrize(
    ("version", "wish", "kept"),
    [
        ("1.1", "", True),
        ("1.1", "close", False),
        ("1.1", "Close", False),
        ("1.1", "TE, close", False),
        ("1.1", "keep-alive", True),
        ("1.0", "", False),
        ("1.0", "keep-alive", True),
        ("1.0", "Keep-Alive, TE", True),
    ],
)
def test_whether_a_connection_is_kept_is_the_clients_wish(
    server: HttpServer, connect: Connect, version: str, wish: str, kept: bool
) -> None:
    client = connect(server.port)
    named = f"Connection: {wish}\r\n" if wish else ""
    client.wire.sendall(f"GET /ping HTTP/{version}\r\n{named}\r\n".encode())
    status, headers, body = client.receive()
    assert (status, body) == (200, b"OK")
    assert (headers.get("connection") == "keep-alive") is kept
    if not kept:
        client.wire.settimeout(5)
        assert client.closed


def test_pipelined_requests_are_answered_in_order(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    client.send("GET /ping")
    client.send("GET /v2/version")
    client.send("GET /nosuch")
    assert [client.receive()[0] for _ in range(3)] == [200, 200, 404]


def test_head_and_body_leave_together(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    client.send("GET /ping")
    assert client.wire.recv(4096).partition(b"\r\n\r\n")[2] == b"OK"


def test_a_long_answer_arrives_whole(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    for _ in range(2):
        assert client.ask("GET /v2/openapi.json")[2] == OPENAPI.read_bytes()


def test_no_worker_remembers_an_old_state(asked: Asked, connect: Connect) -> None:
    class Told(str):
        """A text of which it can be seen whether it is still there."""

    state = device_states.m1()
    published = Published(replace(state, source=Told(state.source)))
    old = weakref.ref(published.current.source)
    running = HttpServer(build(published, asked.submit, Auth(FixedKeys())), 0)
    running.start()
    try:
        assert connect(running.port).ask("GET /v2/applications/state")[0] == 200
        published.publish(state)
        until = time.monotonic() + 5
        while old() is not None and time.monotonic() < until:
            gc.collect()
            time.sleep(0.01)
        assert old() is None
    finally:
        running.stop()


def test_eight_clients_at_once(server: HttpServer, connect: Connect) -> None:
    def visit(_: int) -> set[int]:
        client = connect(server.port)
        return {client.ask("GET /v2/applications/state")[0] for _ in range(25)}

    with ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(visit, range(8))) == {200}


def test_every_thread_has_a_name_with_a_meaning(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    client.send("GET /ping")
    assert client.receive()[0] == 200
    unnamed = [t.name for t in threading.enumerate() if re.match(r"Thread-\d|CP Server", t.name)]
    assert unnamed == []


def test_both_address_families(server: HttpServer, connect: Connect) -> None:
    assert connect(server.port).ask("GET /ping")[0] == 200
    try:
        client = connect(server.port, "::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    assert client.ask("GET /ping")[0] == 200


def test_without_ipv6_it_listens_on_ipv4(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def no_ipv6(family: int = -1, *more: int, **named: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *more, **named)

    running = HttpServer(app, 0)
    with monkeypatch.context() as patch:
        patch.setattr("cheroot.server.socket.socket", no_ipv6)
        running.start()
    try:
        assert running.probe(5)
    finally:
        running.stop()


def test_absolute_request_lines(server: HttpServer, connect: Connect) -> None:
    assert connect(server.port).ask("GET http://0123.balena:48484/ping")[0] == 200


def test_two_slashes_are_no_host(server: HttpServer, connect: Connect) -> None:
    assert connect(server.port).ask("GET //x/ping")[0] == 404


def test_oversized_header(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    status, headers, body = client.ask("GET /ping", X_Long="x" * HEADER_LIMIT * 2)
    assert (status, body, headers["connection"]) == (431, b"", "close")
    assert client.closed


def test_oversized_request_line(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    assert client.ask("GET /" + "x" * HEADER_LIMIT * 2)[0] == 431


def test_a_header_just_below_the_limit(server: HttpServer, connect: Connect) -> None:
    assert connect(server.port).ask("GET /ping", X_Long="x" * (HEADER_LIMIT - 300))[0] == 200


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\r\n\r\n",
        b"GET /ping FTP/1.1\r\n\r\n",
        b"\x16\x03\r\n",
        b"GET //[ HTTP/1.1\r\n\r\n",
    ],
)
def test_garbage(server: HttpServer, line: bytes, connect: Connect) -> None:
    client = connect(server.port)
    client.wire.sendall(line)
    status, headers, body = client.receive()
    assert (status, body, headers["connection"]) == (400, b"", "close")


@pytest.mark.parametrize("length", ["-5", "1_0", "x", "", "+1", "5\r\nTransfer-Encoding: chunked"])
def test_a_length_that_is_none(
    server: HttpServer, asked: Asked, connect: Connect, length: str
) -> None:
    client = connect(server.port)
    client.wire.sendall(f"POST /v1/reboot HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
    assert client.receive()[0] == 400
    assert not asked.event.is_set()


@pytest.mark.parametrize(
    "headers",
    [
        " Content-Type: application/json",
        "\tfolded",
        "A: b\r\n folded",
        "Content-Length : 2",
        "Content-Length: 2\r\nContent-Length: 0",
        "Content-Length: 2\r\ncontent-length: 2",
        "A\0: b",
        "A: b\0",
        "A: b\rContent-Length: 2",
        ": b",
        "A b: c",
    ],
)
def test_header_lines_that_are_none(
    server: HttpServer,
    asked: Asked,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    headers: str,
) -> None:
    """Whoever stands between us and the client may read them in another way."""
    client = connect(server.port)
    head = f"POST /v1/reboot HTTP/1.1\r\n{headers}\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    client.wire.sendall(head.encode() + b"{}")
    status, answer, body = client.receive()
    assert (status, body, answer["connection"]) == (400, b"", "close")
    assert not asked.event.is_set()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("sent", [b"", b"{}", b"force=1"])
def test_a_body_that_is_cut_off_is_no_request(
    server: HttpServer, asked: Asked, connect: Connect, kind: str, sent: bytes
) -> None:
    """A client that dies behind its head must not have asked for what an empty body means: an
    empty local target, for one."""
    client = connect(server.port)
    client.send("POST /v1/reboot", Content_Type=kind, Content_Length="20")
    client.wire.sendall(sent)
    client.wire.shutdown(socket.SHUT_WR)
    status, _, body = client.receive()
    assert (status, "before its time" in body.decode()) == (503, True)
    assert not asked.event.is_set()


def test_oversized_body_leaves_the_connection_usable(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    kind = {"Content_Type": "application/json"}
    status, _, body = client.ask("POST /v1/reboot", b"x" * (11 << 20), **kind)
    assert (status, json.loads(body)["status"]) == (503, "failed")
    assert client.ask("GET /ping")[0] == 200


def test_a_monstrous_body_is_refused_by_its_announcement(
    server: HttpServer, connect: Connect
) -> None:
    client = connect(server.port)
    client.send("POST /v1/reboot", Content_Type="application/json", Content_Length=str(1 << 40))
    status, _, body = client.receive()
    assert (status, json.loads(body)["message"]) == (503, "request entity too large")


def test_chunked_bodies(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    client.send(
        "POST /v2/local/target-state",
        Transfer_Encoding="chunked",
        Content_Type="application/json",
    )
    client.wire.sendall(b"2\r\n{}\r\n0\r\n\r\n")
    status, _, body = client.receive()
    assert (status, "local mode" in body.decode()) == (400, True)
    assert client.ask("GET /ping")[0] == 200


@pytest.mark.parametrize("trailer", [b"", b"X-Sum: 5\r\nX-More: 6\r\n"])
def test_behind_a_chunked_body_there_is_the_next_request(
    server: HttpServer, connect: Connect, trailer: bytes
) -> None:
    client = connect(server.port)
    head = f"POST /v2/state/plan HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n"
    for _ in range(2):
        client.wire.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        client.wire.sendall(b"2;a=b\r\n{}\r\n0\r\n" + trailer + b"\r\n")
        assert client.receive()[0] == 200
    assert client.ask("GET /ping")[0] == 200


def test_an_idle_client_that_sent_chunks_holds_no_worker(
    server: HttpServer, connect: Connect
) -> None:
    client = connect(server.port)
    client.wire.sendall(b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert client.receive()[0] == 401
    assert server._server is not None
    deadline = time.monotonic() + 8  # less than an idle client is waited for
    while server._server.requests.idle < WORKERS and time.monotonic() < deadline:
        time.sleep(0.005)
    assert server._server.requests.idle == WORKERS


@pytest.mark.parametrize(
    "chunks",
    [b"-2\r\n", b"0x2\r\n{}\r\n0\r\n\r\n", b"+2\r\n", b"2 2\r\n{}\r\n", b"\r\n",
     b"2" * 1000, b"2;" + b"x" * 100_000, b"2\r\n{}xx0\r\n\r\n", b"ffffffffffffff\r\n",
     b"0\r\n" + b"X: y\r\n" * 5000],
)  # fmt: skip
def test_chunks_that_are_none(
    server: HttpServer, asked: Asked, connect: Connect, caplog: pytest.LogCaptureFixture,
    chunks: bytes,
) -> None:  # fmt: skip
    """Refused at once: nobody waits for the end of a line that has none."""
    client = connect(server.port)
    client.wire.settimeout(5)
    client.send("POST /v1/reboot", Transfer_Encoding="chunked", Content_Type="application/json")
    client.wire.sendall(chunks)
    status, headers, _ = client.receive()
    assert (status, headers["connection"]) == (503, "close")
    assert not asked.event.is_set()
    assert "Traceback" not in caplog.text


def test_a_great_chunk_is_never_held_whole() -> None:
    class Wire:
        """A body of one chunk; notes the largest piece that was asked for."""

        largest = 0

        def readline(self, _: int) -> bytes:
            return b"2000000\r\n"

        def read(self, size: int) -> bytes:
            self.largest = max(self.largest, size)
            return b"x" * size

    wire = Wire()
    body = Chunks(wire, 1 << 30)
    assert sum(len(body.read(65536)) for _ in range(400)) == 400 * 65536
    assert wire.largest == 65536


def test_probe(server: HttpServer) -> None:
    assert server.probe(5)
    port = server.port
    assert server.stop()
    assert not server.probe(0.5)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_probe_does_not_wait_for_ever(app: Application) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        running = HttpServer(app, silent.getsockname()[1])
        assert not running.probe(0.05)


@pytest.mark.parametrize("taken_by", ["127.0.0.1", "0.0.0.0"])
def test_port_in_use(app: Application, taken_by: str) -> None:
    with socket.create_server((taken_by, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Unavailable, match=f"^Port {port} is in use by another program$"):
            HttpServer(app, port).start()


def http_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("http")]


def idle(client: Client, _: Asked) -> None:
    """A connection that is kept open after a request."""
    assert client.ask("GET /ping")[0] == 200


def half_a_request(client: Client, _: Asked) -> None:
    client.wire.sendall(b"GET /ping HTTP/1.1\r\nHost")


def half_a_body(client: Client, _: Asked) -> None:
    client.send("POST /v1/reboot", Content_Type="application/json", Content_Length="1000")


def waiting_for_its_command(client: Client, asked: Asked) -> None:
    client.send("POST /v1/reboot", b"{}")
    assert asked.event.wait(10)


@pytest.mark.parametrize("hold", [idle, half_a_request, half_a_body, waiting_for_its_command])
def test_stop_ends_though_a_client_holds_on(
    server: HttpServer, connect: Connect, asked: Asked, hold: Callable[[Client, Asked], None]
) -> None:
    client = connect(server.port)
    hold(client, asked)
    assert server.stop(8.0)  # less than an idle client is waited for
    with contextlib.suppress(ConnectionError):
        while not client.closed:
            pass
    until(lambda: not http_threads(), "no thread is left")


def ping_in_time(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    client.send("GET /ping")
    assert client.receive()[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /ping HTTP/1.1\r\nX-Slow: ", b"GET /pi"])
def test_unfinished_heads_hold_no_worker(server: HttpServer, connect: Connect, sent: bytes) -> None:
    slow = [connect(server.port) for _ in range(2 * WORKERS)]
    for client in slow:
        client.wire.sendall(sent)
    ping_in_time(server, connect)
    assert server._server is not None
    assert len(server._server.slow.heard_since) < 2, "the ping at most"
    for part in (b"a\r\n", b"\r", b"\n"):
        slow[-1].wire.sendall(part if sent.endswith(b": ") else b"")
        ping_in_time(server, connect)
    if sent.endswith(b": "):
        assert slow[-1].receive()[0] == 200


def test_a_head_that_ends_early_costs_nothing(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    client.wire.sendall(b"GET /ping HTTP/1.1\r\nHo")
    ping_in_time(server, connect)
    client.wire.shutdown(socket.SHUT_WR)
    client.wire.settimeout(5)
    client.wire.recv(1000)  # an answer or an end, but at once


def test_a_head_in_single_bytes_is_understood(server: HttpServer, connect: Connect) -> None:
    client = connect(server.port)
    for _ in range(2):
        for byte in b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n":
            client.wire.sendall(bytes([byte]))
        assert client.receive()[0] == 200


def test_too_many_waiting_connections_cost_the_oldest(
    server: HttpServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "WAITING_CONNECTIONS", 5)
    many = [connect(server.port) for _ in range(8)]
    assert many[0].wire.recv(1) == b""
    ping_in_time(server, connect)


@pytest.mark.parametrize(
    ("head", "whole"),
    [
        (b"", True),
        (b"GET / HTTP/1.1", False),
        (b"GET / HTTP/1.1\r\n", False),
        (b"GET / HTTP/1.1\r\nA: b\r\n", False),
        (b"GET / HTTP/1.1\r\nA: b\r\n\r\n", True),
        (b"GET / HTTP/1.1\n", True),
        (b"nonsense\r\n", True),
        (b"\r\n", True),
        (b"\x16\x03\x01", False),
        (b"x" * 100, True),
    ],
)
def test_what_a_worker_can_deal_with(head: bytes, whole: bool) -> None:
    assert is_whole(head, 100) is whole


def test_slow_bodies_cannot_hold_all_workers(
    server: HttpServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they have every worker; whoever comes then shuts them out."""
    monkeypatch.setattr(hearing, "PRESSED_LIMIT", 2.0)  # until all of them are there
    slow = [connect(server.port) for _ in range(WORKERS)]
    for client in slow:
        client.wire.sendall(b"POST /v1/update HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    assert server._server is not None
    heard = server._server.slow.heard_since
    deadline = time.monotonic() + 20
    while len(heard) < WORKERS and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(heard) == WORKERS
    monkeypatch.setattr(hearing, "PRESSED_LIMIT", 0.05)
    ping_in_time(server, connect)


def test_many_slow_bodies_take_no_longer_than_a_few(server: HttpServer, connect: Connect) -> None:
    """They need no key for that: what is left of a body is read after its answer is known."""
    for _ in range(10 * WORKERS):
        client = connect(server.port)
        client.wire.sendall(b"POST /v1/update HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    assert server._server is not None
    deadline = time.monotonic() + 20
    while server._server.requests.qsize < 8 * WORKERS and time.monotonic() < deadline:
        time.sleep(0.005)
    began = time.monotonic()
    ping_in_time(server, connect)
    assert time.monotonic() - began < 8


def test_a_client_that_waits_for_a_busy_worker_is_not_shut_out() -> None:
    """Only who stalls is: on a slow machine reading a request may take longer than the limit."""

    class Connection:
        def __init__(self, stalls: bool) -> None:
            self.socket, self.far = socket.socketpair()
            self.stalls = lambda: stalls

    slow, quick = Connection(True), Connection(False)
    crowd: list[float | None] = [1000.0]
    clients = Slow(lambda: crowd[0])
    clients.heard_since = dict.fromkeys((slow, quick), time.monotonic() - 0.1)
    clients.watch()  # as the one does who takes the last worker
    slow.far.settimeout(5)
    assert slow.far.recv(1) == b""
    quick.far.setblocking(False)
    with pytest.raises(BlockingIOError):
        quick.far.recv(1)
    crowd[0] = None


def test_connections_that_have_ended_are_freed_at_once(
    server: HttpServer, connect: Connect
) -> None:
    """Thousands of them would else wait in memory for the collector."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            client = connect(server.port)
            assert client.ask("GET /ping", Connection="close")[0] == 200
            assert client.closed
        left = [each for each in gc.get_objects() if isinstance(each, Connection)]
        assert len(left) <= WORKERS + 1  # each worker remembers its last request
    finally:
        gc.enable()


def arrived(clients: list[Client]) -> int:
    """Bytes that wait to be read."""
    return sum(len(client.wire.recv(1 << 22, socket.MSG_PEEK)) for client in clients)


def test_clients_that_do_not_take_their_answers_cannot_hold_all_workers(
    server: HttpServer, connect: Connect
) -> None:
    """They ask again and again and read nothing, until no worker can send on."""
    assert server._server is not None
    server._server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    deaf = [connect(server.port) for _ in range(WORKERS)]
    for client in deaf:
        for _ in range(30):
            client.send("GET /v2/openapi.json")
    before, deadline = -1, time.monotonic() + 5
    while before != (before := arrived(deaf)) and time.monotonic() < deadline:
        time.sleep(0.1)
    began = time.monotonic()
    ping_in_time(server, connect)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    "body",
    ["Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n5\r\n{",
     "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"],
)  # fmt: skip
def test_a_body_that_never_ends_ends_the_connection(
    server: HttpServer, connect: Connect, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    assert server._server is not None
    server._server.timeout = 0.1
    client = connect(server.port)
    head = f"POST /v1/update HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n"
    client.wire.sendall(f"{head}Content-Type: application/json\r\n{body}".encode())
    status, headers, answer = client.receive()
    assert (status, headers["connection"]) == (503, "close")
    assert b"ended before its time" in answer
    assert client.closed
    ping_in_time(server, connect)
    assert "Traceback" not in caplog.text


def test_a_request_that_was_heard_may_take_its_time(
    server: HttpServer, asked: Asked, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "HEARING_LIMIT", 0.0)
    patient = connect(server.port)
    waiting_for_its_command(patient, asked)
    other = connect(server.port)
    other.send("GET /ping")
    assert other.receive()[0] == 200
    patient.wire.settimeout(0.1)
    with pytest.raises(TimeoutError):
        patient.wire.recv(1)  # neither answered nor shut out


def test_who_waits_for_the_agent_is_not_shut_out(
    asked: Asked, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its first look at the engine, or for what it thinks of its health."""
    monkeypatch.setattr(hearing, "HEARING_LIMIT", 0.0)
    inside, free = threading.Event(), threading.Event()

    def healthy() -> bool:
        inside.set()
        return free.wait(10)

    published = Published(replace(device_states.m1(), engine_error=NOT_ASKED, version=1))
    looks = published.newer_than
    looking = threading.Event()

    def newer_than(*asked: Any) -> Any:
        looking.set()
        return looks(*asked)

    monkeypatch.setattr(published, "newer_than", newer_than)
    server = HttpServer(build(published, asked.submit, Auth(FixedKeys()), healthy), 0)
    server.start()
    try:
        early = connect(server.port)
        early.send("POST /v1/update", b"{}")
        assert looking.wait(10)
        ill = connect(server.port)
        ill.send("GET /v1/healthy")
        assert inside.wait(10)
        ping_in_time(server, connect)
        published.publish(replace(device_states.m1(), version=2))
        free.set()
        assert ill.receive()[0] == 200
        assert early.receive()[0] in (202, 204)
    finally:
        server.stop()


def test_the_place_of_a_client_that_has_left_goes_to_the_next(
    asked: Asked, connect: Connect
) -> None:
    settings = Settings(held_requests=1)
    app = build(Published(device_states.m1()), asked.submit, Auth(FixedKeys()), settings=settings)
    server = HttpServer(app, 0)
    server.start()
    head, body = "POST /v2/applications/1011/start-service", b'{"serviceName":"main"}'
    try:
        for _ in range(3):
            asked.event.clear()
            client = connect(server.port)
            client.send(head, body, Content_Type="application/json")
            assert asked.event.wait(10)
            late = connect(server.port).ask(head, body, Content_Type="application/json")
            assert late[0] == 503, "who is still there keeps the place"
            client.wire.shutdown(socket.SHUT_WR)
    finally:
        server.stop()


def test_a_stuck_handler_does_not_hold_up_the_stop(asked: Asked, connect: Connect) -> None:
    free = threading.Event()
    inside = threading.Event()

    def healthy() -> bool:
        inside.set()
        free.wait(30)
        return True

    app = build(Published(device_states.m1()), asked.submit, Auth(FixedKeys()), healthy)
    running = HttpServer(app, 0)
    running.start()
    client = connect(running.port)
    client.send("GET /v1/healthy")
    assert inside.wait(10)
    assert not running.stop(0.2)
    stuck = http_threads()
    assert stuck
    assert all(thread.daemon for thread in stuck)
    free.set()
    for thread in stuck:
        thread.join(10)


def test_stop_twice_and_before_start(app: Application) -> None:
    running = HttpServer(app, 0)
    assert running.stop()
    running = HttpServer(app, 0)
    running.start()
    assert running.stop()
    assert running.stop()
