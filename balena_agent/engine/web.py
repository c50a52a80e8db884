"""Short requests over HTTP and HTTPS, to a registry and to the cloud, on a puller's thread.

Theory: what the engine cannot be asked - how big an image is, whether there is a delta - is asked
from the servers themselves, with the standard library, because these requests are few and small.
One deadline covers all of a request, its redirects and the reading of its answer; another thread
can end it at any moment, as it can end a pull. Credentials go to the host that they are for and
to no other: a redirect to another host is followed without them.

Invariants: no proxy or login file of the machine has a say; an answer is never longer than asked
for; an error names the host and the reason, never a header or a query.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from ..core.errors import Cancelled, DeadlineExceeded, Unavailable
from ..core.ticket import Ticket
from ..openssl import TlsConnection, client_context
from .client import Deadline

CONNECT_LIMIT = 8.0
"""Seconds for one connection attempt: a host that is not there must not cost more."""
ANSWER_LIMIT = 4 << 20
_CHUNK = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Now = Callable[[], float]


class Unreachable(Unavailable):
    """Nobody answers at that host: no such name, nobody listens, the connection broke."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whatever its status; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """The document, or {} where it is no JSON object."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


def basic(username: str, password: str) -> str:
    """An Authorization header's value."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def get(
    url: str,
    headers: Mapping[str, str],
    seconds: float,
    ticket: Ticket | None = None,
    redirects: int = 0,
    now: Now = time.monotonic,
) -> Reply:
    """GET. Unreachable, DeadlineExceeded, Cancelled; every HTTP status is an answer."""
    deadline = Deadline(seconds, now)
    sent = dict(headers)
    for _ in range(redirects + 1):
        parts = urlsplit(url)
        with _Request(parts, deadline, ticket) as request:
            reply = request.get(sent)
        where = reply.headers.get("location")
        if reply.status not in _REDIRECTS or not where or not redirects:
            return reply
        url = urljoin(url, where)
        if urlsplit(url).netloc != parts.netloc:
            sent.pop("Authorization", None)
    return reply


class _Request:
    """One connection, whose end may come from another thread."""

    def __init__(self, parts: SplitResult, deadline: Deadline, ticket: Ticket | None) -> None:
        self._host = parts.netloc.rpartition("@")[2]
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._deadline = deadline
        self._ticket = ticket
        try:
            self._connection = _connection(parts, deadline.left(CONNECT_LIMIT))
        except (ValueError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._host} is no host: {error}") from error
        self._socket: socket.socket | None = None

    def __enter__(self) -> _Request:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket = None
        self._connection.close()

    def get(self, headers: Mapping[str, str]) -> Reply:
        self._check()
        try:
            self._connection.connect()
            self._socket = self._connection.sock
            if self._ticket:
                self._ticket.on_cancel(self._break_off)
            return self._ask(headers)
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._check()
            if isinstance(error, TimeoutError) and self._socket is not None:
                raise DeadlineExceeded(f"no answer from {self._host} in time") from error
            reason = getattr(error, "strerror", "") or type(error).__name__
            raise Unreachable(f"{self._host} does not answer: {reason}") from error

    def _ask(self, headers: Mapping[str, str]) -> Reply:
        self._bound()
        self._connection.request("GET", self._target, headers=dict(headers))
        answer = self._connection.getresponse()
        body = b""
        while len(body) < ANSWER_LIMIT:
            self._bound()
            part = answer.read1(_CHUNK)
            if not part:
                break
            body += part
        known = {name.lower(): value for name, value in answer.getheaders()}
        self._check()
        return Reply(answer.status, known, body)

    def _bound(self) -> None:
        """What is left of the time is the limit of the next wait."""
        left = self._deadline.left(float("inf"))
        if self._socket is not None:
            self._socket.settimeout(left)

    def _check(self) -> None:
        if self._ticket and self._ticket.cancelled:
            raise Cancelled(f"the request to {self._host} was given up")

    def _break_off(self) -> None:
        known = self._socket
        if known is not None:
            try:
                known.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended by itself


def _connection(parts: SplitResult, limit: float) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, parts.port, timeout=limit)
    return TlsConnection(host, parts.port, client_context(), limit)
