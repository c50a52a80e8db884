"""One request to the cloud: JSON in, JSON out, with the device's key and a deadline.

Theory: what is asked rarely needs no pool of connections; each request has its own and leaves
nothing behind, in memory neither: the libraries are imported by the first request. Redirects are
not followed, because the key would go with them.

Invariant: no key, body or query is ever part of an error's text.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..core.errors import AgentError, InvalidInput, Unavailable
from ..core.jsonread import Json

if TYPE_CHECKING:
    from http.client import HTTPConnection

LIMIT = 30.0
_CONNECT = 15.0
_LARGEST = 1 << 20
_CHUNK = 64 * 1024


class RefusedByCloud(AgentError):
    """The cloud answered and said no; `status` is its HTTP status."""

    http_status = 500

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def request(
    endpoint: str, key: str, method: str, path: str, body: Json = None, limit: float = LIMIT
) -> Json:
    """What the cloud answers; None for an answer that is not JSON. Of `endpoint`, a URL, scheme,
    host and port count. Unavailable when nobody answers in `limit` seconds, RefusedByCloud."""
    import http.client

    until = time.monotonic() + limit
    connection = _connection(endpoint, min(_CONNECT, limit))
    headers = {"Accept": "application/json", "Authorization": f"Bearer {key}"}
    sent = None if body is None else json.dumps(body).encode()
    if sent is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.connect()
        connection.sock.settimeout(limit)
        connection.request(method, path, sent, headers)
        answer = connection.getresponse()
        raw = _read(answer, connection, until)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"The cloud cannot be reached: {_reason(error)}") from error
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise RefusedByCloud(f"The cloud answered with status {answer.status}", answer.status)
    if not (answer.headers.get_content_type() == "application/json" and raw.strip()):
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Unavailable("The cloud's answer is not JSON") from error


def _connection(endpoint: str, limit: float) -> HTTPConnection:
    import http.client

    parts = urlsplit(endpoint)
    try:
        if parts.scheme == "https" and parts.hostname:
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=limit)
        if parts.scheme == "http" and parts.hostname:
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=limit)
    except ValueError as error:
        raise InvalidInput("The cloud's address has no valid port") from error
    raise InvalidInput("The cloud's address is not an http or https URL")


def _read(answer: object, connection: HTTPConnection, until: float) -> bytes:
    """The whole body. A cloud that drips is cut off at the deadline."""
    pieces: list[bytes] = []
    left = _LARGEST
    while left > 0:
        rest = until - time.monotonic()
        if rest <= 0:
            raise TimeoutError("it took too long")
        if connection.sock is not None:
            connection.sock.settimeout(rest)
        piece: bytes = answer.read1(min(_CHUNK, left))  # type: ignore[attr-defined]
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        left -= len(piece)
    raise OSError("its answer is too long")


def _reason(error: Exception) -> str:
    """The system's words, without addresses that could hold more than a host."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
