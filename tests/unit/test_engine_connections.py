"""engine/connections.py against a socket that says what it is told to."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from balena_agent.engine.connections import Connections

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nlast"
CHUNKS = b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"


class Engine:
    """Every connection gets these answers, one for each request, then it ends; b"": silence."""

    def __init__(self, path: str, *answers: bytes) -> None:
        self.path = path
        self.answers = answers
        self.heads: list[bytes] = []
        self.accepted = 0
        self.over = threading.Event()
        self.gone = threading.Semaphore(0)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                wire, _ = self._socket.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, wire: socket.socket) -> None:
        with wire:
            for answer in self.answers:
                head = wire.recv(65536)
                if not head:
                    break
                self.heads.append(head)
                wire.sendall(answer) if answer else self.over.wait(10)
        self.gone.release()

    def close(self) -> None:
        self.over.set()
        self._socket.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "engine.sock")


@contextlib.contextmanager
def serving(path: str, *answers: bytes) -> Iterator[Engine]:
    engine = Engine(path, *answers)
    yield engine
    engine.close()


def get(connections: Connections, limit: float = 5.0) -> tuple[int, bytes]:
    return connections.call("GET", "/v1.41/x?a=b", None, {}, limit)


def test_a_connection_is_used_again(path: str) -> None:
    with serving(path, OK, CHUNKS, OK) as engine:
        connections = Connections(path, 2)
        assert [get(connections) for _ in range(3)] == [(200, b"OK"), (404, b"abcd"), (200, b"OK")]
        assert engine.accepted == 1
        assert engine.heads[0].startswith(b"GET /v1.41/x?a=b HTTP/1.1\r\nHost: localhost\r\n")
        connections.close()
        assert engine.gone.acquire(timeout=5)


def test_one_that_the_engine_has_closed_meanwhile_is_not(path: str) -> None:
    with serving(path, OK) as engine:
        connections = Connections(path, 2)
        for count in (1, 2, 3):
            assert get(connections) == (200, b"OK")
            assert engine.gone.acquire(timeout=5)
            assert engine.accepted == count
        connections.close()


def test_an_answer_that_ends_with_its_connection(path: str) -> None:
    with serving(path, LAST) as engine:
        connections = Connections(path, 2)
        assert get(connections) == get(connections) == (200, b"last")
        assert engine.accepted == 2


def test_what_was_cut_off_is_never_used_again(path: str) -> None:
    """Else the late answer to one call would be taken for that of the next."""
    with serving(path, b"", OK) as engine:
        connections = Connections(path, 2)
        with pytest.raises(TimeoutError):
            get(connections, 0.05)
        engine.answers = (OK,)
        assert get(connections) == (200, b"OK")
        assert engine.accepted == 2
        connections.close()


@pytest.mark.parametrize("answer", [b"SSH-2.0\r\n", OK[:-1], OK[:9]])
def test_what_is_no_answer_is_an_error_each_time(path: str, answer: bytes) -> None:
    with serving(path, answer) as engine:
        connections = Connections(path, 2)
        for count in (1, 2):
            with pytest.raises((OSError, http.client.HTTPException)):
                get(connections)
            assert engine.accepted == count


def test_each_call_has_its_own_limit(path: str) -> None:
    with serving(path, OK, b"") as engine:
        connections = Connections(path, 2)
        assert get(connections, 60.0) == (200, b"OK")
        with pytest.raises(TimeoutError):
            get(connections, 0.05)
        assert engine.accepted == 1


def test_calls_side_by_side_leave_only_so_many_connections(path: str) -> None:
    with serving(path, OK, OK) as engine:
        connections = Connections(path, 2)
        wires = [connections._take(5.0) for _ in range(4)]
        for wire in wires:
            wire.connect()
        for wire in wires:
            connections._keep(wire)
        assert [wire.sock is not None for wire in wires] == [True, True, False, False]
        connections.close()
        assert all(wire.sock is None for wire in wires)
        assert engine.heads == []


def test_nobody_there(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        get(Connections(path, 1))
