"""HTTP over the engine's Unix socket, with connections that are kept for the next call.

Theory: of HTTP the engine asks no more than the standard library can do; what is added here is the
socket and the keeping. docker's client and what it needs (`requests`, `urllib3`) would do the same
for 5 MB of memory, a tenth of what the whole agent may use, and five times the CPU time.

Invariants: a connection serves one call at a time; what failed in any way, or was cut off by a
time limit, is closed and never used again; one that the engine has closed meanwhile is not taken.
Any number of threads call at once, only so many connections are kept afterwards.
"""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections.abc import Mapping


class UnixConnection(http.client.HTTPConnection):
    """A connection to the socket at `path`; each wait on it ends after `limit` seconds."""

    def __init__(self, path: str, limit: float) -> None:
        super().__init__("localhost", timeout=limit)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def limit(self, seconds: float) -> None:
        """From now on."""
        self.timeout = seconds
        if self.sock is not None:
            self.sock.settimeout(seconds)


class Connections:
    """At most `kept` idle connections to the socket at `path`."""

    def __init__(self, path: str, kept: int) -> None:
        self._path = path
        self._kept = kept
        self._idle: list[UnixConnection] = []
        self._lock = threading.Lock()

    def call(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str],
        limit: float,
    ) -> tuple[int, bytes]:
        """Status and body of the answer; `limit` (s) bounds each wait for the engine. OSError and
        `http.client.HTTPException` as they come."""
        connection = self._take(limit)
        try:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            said = answer.read()
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return answer.status, said

    def close(self) -> None:
        """Those that are idle. Calls that are under way end as they would have."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self, limit: float) -> UnixConnection:
        """The connection that was used last, so that the others can be seen to be too many."""
        while (connection := self._last()) is not None:
            if _usable(connection):
                connection.limit(limit)
                return connection
            connection.close()
        return UnixConnection(self._path, limit)

    def _last(self) -> UnixConnection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _keep(self, connection: UnixConnection) -> None:
        if connection.sock is None:  # the engine wanted it to end with the answer
            return
        with self._lock:
            if len(self._idle) < self._kept:
                self._idle.append(connection)
                return
        connection.close()


def _usable(connection: UnixConnection) -> bool:
    """Nothing can be read from an idle connection but its end."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return not poll.poll(0)
