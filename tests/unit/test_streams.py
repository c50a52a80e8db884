"""Endless answers through the real server: they hold no worker, and end when they should."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator

import device_states
import pytest
from waiting import until

from balena_agent.api import streams as streams_module
from balena_agent.api.auth import Auth
from balena_agent.api.exchange import Answer, Endpoint, query_failure
from balena_agent.api.http import build
from balena_agent.api.server import HttpServer
from balena_agent.api.streams import Streams
from balena_agent.core.errors import Cancelled, Unavailable
from balena_agent.core.scopes import EVERYTHING, Scope
from balena_agent.runtime.state import Published

LIMIT = 4


class Keys:
    def global_key(self) -> str:
        return "k"

    def service_key(self, app_id: int, service: str) -> str:
        return "k"

    def scopes_of(self, key: str) -> Scope | None:
        return EVERYTHING


class Feed:
    """What a test puts into it."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.parts: deque[bytes] = deque()
        self.endless = b""
        self.given = 0
        self.ended = False
        self.closed = threading.Event()

    def fileno(self) -> int:
        return -1

    def put(self, data: bytes) -> None:
        self.parts.append(data)
        self.wake()

    def end(self) -> None:
        self.ended = True
        self.wake()

    def read(self, limit: int) -> bytes:
        data = self.parts.popleft() if self.parts else self.endless
        self.given += len(data)
        return data

    def close(self) -> None:
        assert not self.closed.is_set(), "closed twice"
        self.closed.set()


class PipeFeed(Feed):
    """A feed that is polled, like a child's output."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__(wake)
        self.out, self.into = os.pipe2(os.O_NONBLOCK)

    def fileno(self) -> int:
        return self.out

    def read(self, limit: int) -> bytes:
        try:
            data = os.read(self.out, limit)
        except BlockingIOError:
            return b""
        self.ended = not data
        return data

    def close(self) -> None:
        super().close()
        os.close(self.out)


class Rig:
    """A server whose GET /stream is a stream."""

    def __init__(self) -> None:
        self.streams = Streams(LIMIT)
        self.feeds: list[Feed] = []
        self.kind: type[Feed] = Feed
        endpoint = Endpoint("GET", "/stream", lambda _: self._answer(), query_failure)
        app = build(
            Published(device_states.m1()), lambda _: pytest.fail("asked"), Auth(Keys()),
            more=(endpoint,),
        )  # fmt: skip
        self.server = HttpServer(app, 0, workers=5)
        self.server.start()

    def _answer(self) -> Answer:
        return Answer(200, self.streams.open(self._open))

    def _open(self, wake: Callable[[], None]) -> Feed:
        feed = self.kind(wake)
        self.feeds.append(feed)
        return feed

    def ask(self, head: str = "GET /stream HTTP/1.1") -> Client:
        return Client(self.server.port, head)

    def stop(self) -> None:
        self.streams.close()
        assert self.server.stop(10)


class Client:
    def __init__(self, port: int, head: str) -> None:
        self.wire = socket.create_connection(("127.0.0.1", port), 10)
        self.wire.sendall(f"{head}\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n".encode())
        self.file = self.wire.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        lines = iter(self.file.readline, b"\r\n")
        self.headers = dict(line.decode().strip().lower().split(": ", 1) for line in lines)

    def chunk(self) -> bytes:
        size = int(self.file.readline(), 16)
        data = self.file.read(size)
        assert self.file.read(2) == b"\r\n"
        return data

    def rest(self) -> bytes:
        return self.file.read()

    def leave(self) -> None:
        self.file.close()
        self.wire.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.stop()


def running() -> bool:
    return any(thread.name == "streams" for thread in threading.enumerate())


@pytest.mark.parametrize("kind", [Feed, PipeFeed])
def test_a_stream_goes_on_and_ends_properly(rig: Rig, kind: type[Feed]) -> None:
    rig.kind = kind
    client = rig.ask()
    assert client.status == 200 and client.headers["transfer-encoding"] == "chunked"
    assert "content-type" not in client.headers and "content-length" not in client.headers
    (feed,) = rig.feeds
    if isinstance(feed, PipeFeed):
        os.write(feed.into, b"one\n")
        assert client.chunk() == b"one\n"
        os.close(feed.into)
    else:
        feed.put(b"one\n")
        assert client.chunk() == b"one\n"
        feed.end()
    assert client.rest() == b"0\r\n\r\n"
    assert feed.closed.wait(10)
    until(lambda: not running())


def test_an_old_client_gets_the_bytes_as_they_are(rig: Rig) -> None:
    client = rig.ask("GET /stream HTTP/1.0")
    rig.feeds[0].put(b"one\n")
    rig.feeds[0].put(b"two\n")
    until(lambda: not rig.feeds[0].parts)
    rig.feeds[0].end()
    assert client.rest() == b"one\ntwo\n"


def test_a_head_of_a_stream_opens_none(rig: Rig) -> None:
    client = rig.ask("HEAD /stream HTTP/1.1")
    assert client.status == 200 and client.rest() == b""
    assert rig.feeds[0].closed.wait(10)


def test_streams_hold_no_worker(rig: Rig) -> None:
    """The server has five workers, some of which only wait for the others."""
    stuck = [rig.ask() for _ in range(LIMIT)]
    for feed in rig.feeds:
        feed.endless = b"x" * 65536
        feed.wake()
    for _ in range(20):
        assert rig.ask("GET /ping HTTP/1.1").status == 200
    for client in stuck:
        client.leave()


def test_beyond_the_quota_the_answer_is_clear(rig: Rig) -> None:
    clients = [rig.ask() for _ in range(LIMIT)]
    refused = rig.ask()
    assert refused.status == 503 and int(refused.headers["retry-after"]) > 0
    said = json.loads(refused.file.read(int(refused.headers["content-length"])))
    assert said["status"] == "failed" and f"({LIMIT})" in said["message"]
    clients[0].leave()
    assert rig.feeds[0].closed.wait(10)
    until(lambda: rig.ask().status == 200)


def test_a_client_that_takes_nothing_gives_way(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [rig.ask() for _ in range(LIMIT)]
    rig.feeds[2].endless = b"x" * 65536
    rig.feeds[2].wake()
    _wait_until_stuck(rig, rig.feeds[2])
    monkeypatch.setattr(streams_module, "STUCK_SECONDS", 0.0)
    newcomer = rig.ask()
    assert newcomer.status == 200
    assert rig.feeds[2].closed.wait(10)
    assert [feed.closed.is_set() for feed in rig.feeds] == [False, False, True, False, False]
    assert len(clients) == LIMIT


def _wait_until_stuck(rig: Rig, feed: Feed) -> None:
    """Until the client owes something, and has taken nothing of it for a while."""
    (stream,) = (one for one in rig.streams._open if one.feed is feed)

    def stuck() -> bool:
        return stream.idle > 0.3 and not select.select([], [stream.wire], [], 0)[1]

    until(stuck, "the client is stuck")


def test_from_a_client_that_does_not_read_the_feed_is_not_read(rig: Rig) -> None:
    slow, quick = rig.ask(), rig.ask()
    rig.feeds[0].endless = b"x" * 65536
    rig.feeds[0].wake()
    _wait_until_stuck(rig, rig.feeds[0])
    # The feed's last pieces, and what the kernel holds on both sides. It took 4 MB when asked.
    assert rig.feeds[0].given < 1536 * 1024
    rig.feeds[1].put(b"still served")
    assert quick.chunk() == b"still served"
    slow.leave()
    assert rig.feeds[0].closed.wait(10)


def test_a_client_that_leaves_ends_its_feed(rig: Rig) -> None:
    client = rig.ask()
    rig.feeds[0].put(b"one")
    client.chunk()
    client.leave()
    assert rig.feeds[0].closed.wait(10)


def test_what_a_client_sends_into_a_stream_is_ignored(rig: Rig) -> None:
    client = rig.ask()
    client.wire.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    rig.feeds[0].put(b"one")
    assert client.chunk() == b"one"


def test_when_the_agent_stops_all_streams_end(rig: Rig) -> None:
    clients = [rig.ask() for _ in range(3)]
    rig.feeds[2].endless = b"x" * 65536
    rig.feeds[2].wake()
    _wait_until_stuck(rig, rig.feeds[2])
    rig.streams.close()
    assert clients[0].rest() == b"0\r\n\r\n" and clients[1].rest() == b"0\r\n\r\n"
    assert all(feed.closed.is_set() for feed in rig.feeds) and not running()
    with pytest.raises(Cancelled):
        rig.streams.open(Feed)


def test_a_feed_that_cannot_be_opened_leaves_no_place_taken(rig: Rig) -> None:
    def broken(wake: Callable[[], None]) -> Feed:
        raise Unavailable("no journal")

    for _ in range(2 * LIMIT):
        with contextlib.suppress(Unavailable):
            rig.streams.open(broken)
    assert rig.ask().status == 200


def test_a_pipe_takes_the_place_of_a_client(rig: Rig) -> None:
    out, into = os.pipe()
    stream = rig.streams.open(Feed)
    feed = stream.feed
    assert isinstance(feed, Feed)
    stream.attach(into, chunked=False)
    feed.put(b"one\n")
    assert os.read(out, 100) == b"one\n"
    os.close(out)
    assert feed.closed.wait(10)
