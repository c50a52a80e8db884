"""What the services have logged, and what they log from now on, as one feed of NDJSON lines.

Theory: the past comes from a journalctl that ends, the present from the hub, which is asked first.
So nothing is missing between the two, and what both know is sent once: the lines that the past has
shown since the hub was asked are left out of the present. Following the hub means following a
service, whichever container it runs in; the past is that of its present containers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Protocol

from ..core.jsonread import Json
from ..core.logline import CONTAINER, LineReader, LogLine, Source, ndjson
from .streams import Feed

FIELDS = ("MESSAGE", "PRIORITY", CONTAINER, "CONTAINER_PARTIAL_MESSAGE", "CONTAINER_PARTIAL_ID",
          "CONTAINER_PARTIAL_LAST")  # fmt: skip
"""The journal's fields that a line is made of."""

_LINES = 512


class Subscription(Protocol):
    """What the hub gives."""

    def take(self, limit: int) -> list[LogLine]: ...

    def close(self) -> None: ...


class ServiceFeed:
    """`past` prints JSON entries and ends; `present` is None where nobody wants to follow. Only
    lines of `service` count ("": all). `since` is the wall time in ms at which the hub was asked.
    """

    def __init__(
        self,
        past: Feed,
        present: Subscription | None,
        owner: Callable[[str], Source | None],
        service: str,
        since: int,
    ) -> None:
        self._past: Feed | None = past
        self._present = present
        self._owner = owner
        self._service = service
        self._since = since
        self._rest = b""
        self._pieces = LineReader()
        self._shown: set[LogLine] = set()

    @property
    def ended(self) -> bool:
        return self._past is None and self._present is None

    def fileno(self) -> int:
        return self._past.fileno() if self._past else -1

    def read(self, limit: int) -> bytes:
        if self._past is not None:
            return self._read_past(self._past, limit)
        while self._present and (lines := self._present.take(_LINES)):
            wanted = [line for line in lines if self._counts(line) and line not in self._shown]
            if wanted:
                return b"".join(map(ndjson, wanted))
        return b""

    def close(self) -> None:
        past, self._past = self._past, None
        present, self._present = self._present, None
        if past is not None:
            past.close()
        if present is not None:
            present.close()

    def _counts(self, line: LogLine) -> bool:
        return self._service in ("", line.service)

    def _read_past(self, past: Feed, limit: int) -> bytes:
        data = b""
        while not data and (raw := past.read(limit)):
            *whole, self._rest = (self._rest + raw).split(b"\n")
            data = b"".join(map(ndjson, self._lines(whole)))
        if past.ended:
            past.close()
            self._past = None
            data += b"".join(map(ndjson, self._lines([self._rest])))
            data = data or self.read(limit)
        return data

    def _lines(self, entries: list[bytes]) -> Iterator[LogLine]:
        for raw in filter(None, entries):
            entry = json.loads(raw)
            source = self._owner(str(entry.get(CONTAINER)))
            if source is None or "__REALTIME_TIMESTAMP" not in entry:
                continue
            fields = {name: _bytes(entry[name]) for name in FIELDS if name in entry}
            line = self._pieces.read(source, fields, int(entry["__REALTIME_TIMESTAMP"]) // 1000)
            if line is not None and self._counts(line):
                if line.time >= self._since:
                    self._shown.add(line)
                yield line


def _bytes(value: Json) -> bytes:
    """A field as journalctl spells it: a text, or a list of bytes where it is no text."""
    return bytes(value) if isinstance(value, list) else str(value or "").encode()
