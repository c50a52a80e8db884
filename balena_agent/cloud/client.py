"""One request to the cloud: JSON in, JSON out, with the device's key and a deadline.

Theory: what is asked rarely needs no pool of connections; each request has its own and leaves
nothing behind. OpenSSL is loaded by the first one over TLS. Redirects are not followed, because the
key would go with them. `exchange` gives the whole answer, whatever the cloud said; `request` is for
those who want its JSON or an error.

Invariants: no key, body or query is ever part of an error's text. A request ends at its deadline,
whoever sends bytes and however slowly: a timer shuts the connection down. Only the resolver cannot
be hurried; who counts on an end has to give it time (`RESOLVER`).
"""

from __future__ import annotations

import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..core.errors import AgentError, InvalidInput, Unavailable
from ..core.jsonread import Json
from ..core.observed import HostFacts
from ..openssl import TlsConnection, client_context

if TYPE_CHECKING:
    from ssl import SSLContext

LIMIT = 30.0
RESOLVER = 120.0
"""Seconds that looking up a name may add to a request's limit: three servers that are silent are
asked more than once, and for more than one name."""

_CONNECT = 15.0
_SILENCE = 59.0
"""Seconds for which a cloud that has accepted a connection may say nothing."""

_LARGEST = 1 << 20
_CHUNK = 64 * 1024
_TOO_LONG = "it took too long"
_NOT_NOW = frozenset({9, 10})
"""What OpenSSL says of a certificate that is not yet valid, or not any more."""


class RefusedByCloud(AgentError):
    """The cloud answered and said no; `status` is its HTTP status."""

    http_status = 500

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class CertificateOutOfTime(Unavailable):
    """The cloud's certificate is not valid today, if the clock is right."""


Lookup = Callable[[str], str]
"""What a host's name is looked up by: its address, or the name itself for the resolver. The name
stays what TLS and the request say."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the cloud answered; names of headers in lower case. A body that came compressed is not
    compressed any more."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def request(
    endpoint: str,
    key: str,
    method: str,
    path: str,
    body: Json = None,
    limit: float = LIMIT,
    lookup: Lookup = str,
) -> Json:
    """What the cloud answers; None for an answer that is not JSON. Of `endpoint`, a URL, scheme,
    host and port count. Unavailable when nobody answers in `limit` seconds, RefusedByCloud."""
    answer = exchange(endpoint, key, method, path, body, limit, lookup=lookup)
    if not 200 <= answer.status < 300:
        raise RefusedByCloud(f"The cloud answered with status {answer.status}", answer.status)
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind == "application/json" and answer.body.strip()):
        return None
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise Unavailable("The cloud's answer is not JSON") from error


def exchange(
    endpoint: str,
    key: str,
    method: str,
    path: str,
    body: Json = None,
    limit: float = LIMIT,
    headers: Mapping[str, str] | None = None,
    largest: int = _LARGEST,
    lookup: Lookup = str,
) -> Reply:
    """Whatever the cloud answers, up to `largest` bytes. Unavailable, InvalidInput: no such URL."""
    until = time.monotonic() + limit
    connection = _connection(endpoint)
    sent = None if body is None else json.dumps(body).encode()
    try:
        with _connected(connection, until, lookup):
            connection.request(method, path, sent, _headers(key, sent, headers or {}))
            answer = connection.getresponse()
            raw = _read(answer, until, largest)
        coding = answer.headers.get("Content-Encoding", "").strip().lower()
        plain = _unpacked(raw, largest) if coding in ("gzip", "x-gzip") else raw
    except (OSError, zlib.error, HTTPException) as error:
        raise _unreached(error, until) from error
    except ValueError:  # its text, and its cause's, may show the key
        raise InvalidInput("The cloud's address or the device's key has odd characters") from None
    finally:
        connection.close()
    found = {name.lower(): value for name, value in answer.headers.items()}
    return Reply(answer.status, found, plain)


def connect(endpoint: str, limit: float, lookup: Lookup = str) -> HTTPConnection:
    """An open connection, for a request that is made bit by bit; the caller's to close.
    Unavailable, InvalidInput: no such URL."""
    until = time.monotonic() + limit
    connection = _connection(endpoint)
    try:
        sock = _dialled(lookup(connection.host), connection.port, until)
        try:
            with _ended_at(until, sock):
                _speak(connection, sock)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise _unreached(error, until) from error
    except ValueError:
        raise InvalidInput("The cloud's address has odd characters") from None
    return connection


def user_agent(facts: HostFacts, version: str) -> str:
    """Clouds and dashboards read the first part; `version` is the agent's own (spec 31 §1)."""
    variant = f"; {facts.os_variant}" if facts.os_variant else ""
    text = f"Supervisor/{facts.compat_version} (Linux; {facts.os_name}{variant})"
    told = f"{text} balena-agent/{version}"
    return "".join(char if " " <= char <= "~" else "?" for char in told)


def _headers(key: str, sent: bytes | None, more: Mapping[str, str]) -> dict[str, str]:
    found = {"Accept": "application/json", "Authorization": f"Bearer {key}", **more}
    return found if sent is None else {**found, "Content-Type": "application/json"}


def _unpacked(raw: bytes, largest: int) -> bytes:
    """A gzip stream that is whole and not larger than that."""
    unpacker = zlib.decompressobj(wbits=31)
    plain = unpacker.decompress(raw, largest)
    if unpacker.unconsumed_tail:
        raise OSError("its answer is too long")
    if not unpacker.eof:
        raise OSError("its answer ends in the middle")
    return plain


def _connection(endpoint: str) -> HTTPConnection:
    """Not connected yet."""
    parts = urlsplit(endpoint)
    try:
        if parts.scheme == "https" and parts.hostname:
            return TlsConnection(parts.hostname, parts.port, _context())
        if parts.scheme == "http" and parts.hostname:
            return HTTPConnection(parts.hostname, parts.port)
    except ValueError as error:
        raise InvalidInput("The cloud's address has no valid port") from error
    raise InvalidInput("The cloud's address is not an http or https URL")


def _context() -> SSLContext:
    context = client_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


@contextmanager
def _connected(connection: HTTPConnection, until: float, lookup: Lookup) -> Iterator[None]:
    """Connected, until the deadline at the latest."""
    with _dialled(lookup(connection.host), connection.port, until) as sock, _ended_at(until, sock):
        _speak(connection, sock)
        yield


@contextmanager
def _ended_at(until: float, sock: socket.socket) -> Iterator[None]:
    """Shuts the connection down when the block lasts too long. The timer has a descriptor of its
    own, so that it can never shut down what somebody else has opened since."""
    with sock.dup() as held:
        timer = threading.Timer(max(0.0, until - time.monotonic()), _shut_down, (held,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _dialled(host: str, port: int, until: float) -> socket.socket:
    """A connection to the first of the host's addresses that takes it before the deadline."""
    failure = OSError("the host has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        rest = until - time.monotonic()
        if rest <= 0:
            raise TimeoutError(_TOO_LONG)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(min(_CONNECT, rest))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise failure


def _speak(connection: HTTPConnection, sock: socket.socket) -> None:
    """Have `connection` use the socket, with TLS if that is what it speaks."""
    wrapped = connection.secured(sock) if isinstance(connection, TlsConnection) else sock
    wrapped.settimeout(_SILENCE)
    connection.sock = wrapped


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):  # the other side was faster
        sock.shutdown(socket.SHUT_RDWR)


def _read(answer: object, until: float, largest: int) -> bytes:
    """The whole body. One that ends because time is up is not whole."""
    pieces: list[bytes] = []
    left = largest
    while left > 0:
        piece: bytes = answer.read1(min(_CHUNK, left))  # type: ignore[attr-defined]
        if time.monotonic() >= until:
            raise TimeoutError(_TOO_LONG)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        left -= len(piece)
    raise OSError("its answer is too long")


def _out_of_time(error: Exception) -> bool:
    return getattr(error, "verify_code", 0) in _NOT_NOW


def _unreached(error: Exception, until: float) -> Unavailable:
    """The error of an attempt that had time until then."""
    told = _TOO_LONG if time.monotonic() >= until else reason(error)
    kind = CertificateOutOfTime if _out_of_time(error) else Unavailable
    return kind(f"The cloud cannot be reached: {told}")


def reason(error: Exception) -> str:
    """The system's words, without addresses that could hold more than a host."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
