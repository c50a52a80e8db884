"""How a request is framed: its header lines, and the chunks of its body, read strictly.

Theory: where a request ends must not be a matter of opinion, or the end of one can pass for the
beginning of the next (RFC 9112 §11). Cheroot takes the last of two lengths, forgives blanks before
a colon, reads the line with a chunk's size without a limit and a chunk as a whole, and leaves what
follows the last chunk on the wire, where it looks like the next request. So both are read here.

Invariant: neither holds more in memory than its limit or than what was asked for.
"""

from __future__ import annotations

import re
from typing import Any

from .library import cheroot

TRAILER_LIMIT = 16 * 1024

_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0\r\n]*)\r\n")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[^\0\r\n]*)?\r\n")
_SIZE_LINE = 256
_END = b"\r\n"
_JOINED = frozenset(cheroot.server.comma_separated_headers)  # type: ignore[attr-defined]
_LENGTH = b"Content-Length"


class Headers(cheroot.server.HeaderReader):
    """Header lines up to the empty one. ValueError for what is no header line, a folded one
    included, and for more than one length."""

    def __call__(self, rfile: Any, hdict: Any = None) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {} if hdict is None else hdict
        while (line := rfile.readline()) != _END:
            header = _HEADER.fullmatch(line)
            if header is None:
                raise ValueError("Illegal header line")
            name, value = header[1].title(), header[2].rstrip()
            if name in found:
                if name == _LENGTH:
                    raise ValueError("More than one length")
                value = b", ".join((found[name], value)) if name in _JOINED else value
            found[name] = value
        return found


class Chunks:
    """A chunked body of at most `limit` bytes as a file. `closed` when its end has been read, the
    lines behind the last chunk included; what follows is another request."""

    def __init__(self, rfile: Any, limit: int) -> None:
        self.closed = False
        self._rfile = rfile
        self._room = limit
        self._left = 0
        self._damaged = False

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end. ValueError: this is no chunked body, or it is too
        long. OSError: the client does not go on."""
        pieces: list[bytes] = []
        if self._damaged:
            raise ValueError("The chunked body is damaged")
        self._damaged = True
        while size > 0 and not self.closed:
            if not self._left:
                self._begin_chunk()
                continue
            piece = self._rfile.read(min(size, self._left))
            if not piece:
                raise ValueError("A chunk is cut short")
            pieces.append(piece)
            size -= len(piece)
            self._left -= len(piece)
            if not self._left and self._rfile.read(len(_END)) != _END:
                raise ValueError("A chunk has another size than it says")
        self._damaged = False
        return b"".join(pieces)

    def _begin_chunk(self) -> None:
        line = _SIZE.fullmatch(self._rfile.readline(_SIZE_LINE))
        if line is None:
            raise ValueError("Not the size of a chunk")
        self._left = int(line[1], 16)
        self._room -= self._left
        if self._room < 0:
            raise ValueError("The chunked body is too long")
        if not self._left:
            self._read_trailer()
            self.closed = True

    def _read_trailer(self) -> None:
        """Lines like those of the header; nobody here wants to know them."""
        left = TRAILER_LIMIT
        while (line := self._rfile.readline(left)) != _END:
            left -= len(line)
            if not line.endswith(_END) or left <= 0:
                raise ValueError("The chunked body has no end")
