"""One request whose body has no end yet: log lines go up, compressed, over one connection.

Theory (spec 31 §8): the body is one gzip stream in chunks, and every `send` ends in a place up to
which the cloud can read. The cloud says nothing as long as all is well; whatever it answers before
the end means that it takes no more, so who sends has to look for that now and then (`answer`). Our
kernel knows what the other host's has confirmed (`landed`); a connection of which nothing comes
back is given up by it.

Invariants: every call ends in bounded time, `answer` and `landed` at once; no key is ever part of
an error's text.
"""

from __future__ import annotations

import fcntl
import io
import select
import socket
import struct
import time
import zlib
from http.client import HTTPConnection, HTTPException, parse_headers

from ..core.errors import InvalidInput, Unavailable
from . import client

OPEN_SECONDS = 30.0
SEND_SECONDS = 60.0
"""A piece that nobody has taken by then never will be."""

_SILENT_MS = 60_000
_PROBES = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
_UNSENT = 0x5411
"""SIOCOUTQ of tcp(7): how many bytes the other side has not confirmed yet."""

_LARGEST_HEAD = 64 * 1024
_GZIP = 31
_LAST_CHUNK = b"0\r\n\r\n"


class Upload:
    """Made by `open`. For one thread."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection
        self._wire: socket.socket = connection.sock
        self._packer = zlib.compressobj(wbits=_GZIP)
        self._head = b""

    @classmethod
    def open(cls, endpoint: str, key: str, path: str, lookup: client.Lookup = str) -> Upload:
        """Send the head of the request. Unavailable, InvalidInput: no such URL, or an odd key."""
        connection = client.connect(endpoint, OPEN_SECONDS, lookup)
        try:
            connection.sock.settimeout(SEND_SECONDS)
            _watch(connection.sock)
            connection.putrequest("POST", path, skip_accept_encoding=True)
            for name, value in _headers(key).items():
                connection.putheader(name, value)
            connection.endheaders()
        except OSError as error:
            connection.close()
            raise Unavailable(f"The cloud cannot be reached: {client.reason(error)}") from error
        except (ValueError, HTTPException):  # its text may show the key
            connection.close()
            raise InvalidInput("The device's key or uuid has odd characters") from None
        return cls(connection)

    def send(self, data: bytes) -> None:
        """Hand lines to our kernel, at most `SEND_SECONDS` for each piece that TLS makes of them.
        Unavailable."""
        packed = self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH)
        self._write(_chunk(packed))

    def answer(self) -> client.Reply | None:
        """What the cloud has answered, without its body; None as long as it has not. Unavailable
        when it has gone."""
        try:
            self._wire.settimeout(0)
            while piece := self._wire.recv(4096):
                self._head += piece
                if b"\r\n\r\n" in self._head or len(self._head) > _LARGEST_HEAD:
                    return self._read_head()
        except OSError as error:
            if not _nothing_yet(error):
                raise _gone(error) from error
            return None
        finally:
            self._wire.settimeout(SEND_SECONDS)
        raise Unavailable("The cloud has closed the connection")

    def landed(self) -> bool:
        """Whether the other host has confirmed every byte that was sent."""
        try:
            raw = fcntl.ioctl(self._wire.fileno(), _UNSENT, struct.pack("i", 0))
        except OSError:
            return False
        return bool(struct.unpack("i", raw)[0] == 0)

    def finish(self, seconds: float) -> client.Reply:
        """End the body, and wait so long for the answer. Unavailable."""
        until = time.monotonic() + seconds
        self._write(_chunk(self._packer.flush()) + _LAST_CHUNK)
        while (rest := until - time.monotonic()) > 0:
            select.select([self._wire], [], [], rest)
            reply = self.answer()
            if reply is not None:
                return reply
        raise Unavailable("The cloud does not answer the end of the log stream")

    def close(self) -> None:
        self._connection.close()

    def _write(self, data: bytes) -> None:
        try:
            self._wire.sendall(data)
        except OSError as error:
            raise _gone(error) from error

    def _read_head(self) -> client.Reply:
        lines = io.BytesIO(self._head)
        try:
            status = int(lines.readline().split()[1])
            found = parse_headers(lines)
        except (ValueError, IndexError, HTTPException) as error:
            raise Unavailable("The cloud's answer is not HTTP") from error
        return client.Reply(status, {k.lower(): v for k, v in found.items()}, b"")


def _headers(key: str) -> dict[str, str]:
    """The type is compared as it is written here, without a charset."""
    return {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/x-ndjson",
        "Content-Encoding": "gzip",
        "Transfer-Encoding": "chunked",
    }


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _watch(wire: socket.socket) -> None:
    """Have the kernel find out that the other side is not there any more."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (*_PROBES, (socket.TCP_USER_TIMEOUT, _SILENT_MS)):
        wire.setsockopt(socket.IPPROTO_TCP, option, value)


def _nothing_yet(error: OSError) -> bool:
    """TLS has an error of its own for it, and its own bytes make a connection readable, too."""
    return isinstance(error, BlockingIOError) or type(error).__name__ == "SSLWantReadError"


def _gone(error: OSError) -> Unavailable:
    if isinstance(error, TimeoutError):
        return Unavailable("The cloud does not take log lines")
    return Unavailable(f"The connection to the cloud broke: {client.reason(error)}")
