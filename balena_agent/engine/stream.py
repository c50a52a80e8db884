"""A long answer of the engine, line by line, that another thread can end at any time.

Theory: pulls and events last for minutes or for ever. The library's stream of a pull cannot be
ended from outside, and its other streams tell neither "ended" from "broken off" nor let go of the
connection before it is collected (spec 60 §4.3). So a stream has a connection of its own, opened
here: one socket, known from the first moment, that `close` shuts down in whatever state it is -
connecting, waiting for the first byte, or reading.

Invariants: after `close`, reading ends without an error and `closed` is true; who reads owns the
descriptor and frees it on leaving the `with` block; an engine's error status becomes EngineFailed
before the first line.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from ..core.errors import AgentError, Cancelled
from .client import Link, Params
from .failures import refused, translated

LINE_LIMIT = 1 << 20
"""The engine's lines are short; one beyond this is not understood, not stored."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, limit: float) -> None:
        super().__init__("localhost", timeout=limit)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Stream:
    """One long answer. `opening` limits the wait for its start, `silence` (None: no limit) the
    wait for each further line."""

    def __init__(
        self,
        link: Link,
        method: str,
        path: str,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        opening: float = 60.0,
        silence: float | None = None,
    ) -> None:
        query = f"?{urlencode(params)}" if params else ""
        self._target = f"/v{link.version}{path}{query}"
        self._method = method
        self._headers = dict(headers or {})
        self._silence = silence
        self._connection = _UnixConnection(link.socket, opening)
        self._answer: http.client.HTTPResponse | None = None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.closed = False

    def __enter__(self) -> Stream:
        """Send the request and wait for the answer to start. EngineFailed, EngineUnavailable,
        DeadlineExceeded; Cancelled when `close` came first."""
        try:
            with translated(f"{self._method} {self._target}"):
                self._open()
        except AgentError as error:
            self._release()
            if self.closed:
                raise Cancelled("the stream was closed") from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The JSON objects of the stream. It ends when the engine ends it, when the engine dies
        or on `close`; DeadlineExceeded after too long a silence."""
        try:
            while line := self._line():
                yield self._object(line)
        except AgentError:
            if not self.closed:
                raise

    def close(self) -> None:
        """End the stream from any thread; the reader leaves within milliseconds."""
        with self._lock:
            self.closed = True
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has ended by itself

    def _open(self) -> None:
        with self._lock:
            if self.closed:
                raise Cancelled("the stream was closed")
            self._connection.connect()
            self._socket = self._connection.sock
        self._connection.request(self._method, self._target, headers=self._headers)
        self._answer = self._connection.getresponse()
        if self._answer.status >= 400:
            raise refused(self._answer.status, self._answer.read())
        self._socket.settimeout(self._silence)

    def _line(self) -> bytes:
        assert self._answer is not None, "a stream is read inside its with block"
        with translated(f"{self._method} {self._target}"):
            line = self._answer.readline(LINE_LIMIT)
            while line and not line.strip():
                line = self._answer.readline(LINE_LIMIT)
        return line

    @staticmethod
    def _object(line: bytes) -> dict[str, Any]:
        """The object of a line; a line that is none reads as an empty object."""
        try:
            said = json.loads(line)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    def _release(self) -> None:
        with self._lock:
            self._socket = None
        if self._answer is not None:
            self._answer.close()
        self._connection.close()
