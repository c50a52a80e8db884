"""The endpoints that stream: `GET /v2/local/logs` and `POST /v2/journal-logs` (spec 10 §8.25-26).

Theory: an endpoint opens a feed and answers with a stream (streams.py); what is wrong with the
request is found before that and has an ordinary answer. Log lines come from the hub, the formatted
journal from a journalctl of its own.

Outside local mode, and with SUPERVISOR_LOG_CONTROL off, a listener of the log lines gets nothing
but the first line; the moment this changes, it gets what is written from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from ..core.errors import Unavailable
from ..core.journalquery import JournalQuery, read_query
from ..core.jsonread import truth
from ..core.logline import LogLine, ndjson
from ..core.snapshot import Snapshot
from ..core.status import device_config, local_mode
from .exchange import Answer, Endpoint, Request, query_failure
from .streams import Feed, Streams

FIRST_LINE = b'{"message":"Streaming logs","isSystem":true}\n'

FORMATTERS = 5
"""Children that may run at once (spec 30 §15.1)."""

_LINES = 512
"""Lines that are taken at one time."""


class Subscription(Protocol):
    """What the hub gives."""

    def take(self, limit: int) -> list[LogLine]: ...

    def close(self) -> None: ...


Subscribe = Callable[[Callable[[], None]], Subscription]
"""Follow the log lines from now on; the argument is called when there are some."""

OpenJournal = Callable[[JournalQuery], Feed]
"""Start a formatter. InvalidInput, Unavailable."""


class LogStreams:
    """`snapshot` gives the current state."""

    def __init__(
        self,
        streams: Streams,
        subscribe: Subscribe,
        open_journal: OpenJournal,
        snapshot: Callable[[], Snapshot],
    ) -> None:
        self._streams = streams
        self._subscribe = subscribe
        self._open_journal = open_journal
        self._snapshot = snapshot
        self._places = threading.BoundedSemaphore(FORMATTERS)

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("GET", "/v2/local/logs", self.logs, query_failure),
            Endpoint("POST", "/v2/journal-logs", self.journal, query_failure),
        )

    def logs(self, request: Request) -> Answer:
        """NDJSON: the first line at once, then every line that is written, without an end."""
        return Answer(200, self._streams.open(self._line_feed))

    def journal(self, request: Request) -> Answer:
        """What journalctl prints; 400 names a wrong option."""
        query = read_query(request.body)
        return Answer(200, self._streams.open(lambda wake: self.journal_feed(query)))

    def journal_feed(self, query: JournalQuery) -> Feed:
        """One of the few formatters. Unavailable when all are taken."""
        if not self._places.acquire(blocking=False):
            raise Unavailable(f"The journal is being read {FORMATTERS} times already, try again")
        try:
            return _Formatter(self._open_journal(query), self._places)
        except BaseException:
            self._places.release()
            raise

    def _line_feed(self, wake: Callable[[], None]) -> Feed:
        return LineFeed(self._subscribe(wake), lambda: lines_wanted(self._snapshot()))


def lines_wanted(snapshot: Snapshot) -> bool:
    """Whether the local log stream is on (spec 10 §8.26)."""
    control = device_config(snapshot).get("SUPERVISOR_LOG_CONTROL") or "true"
    return local_mode(snapshot) and truth(control)


class LineFeed:
    """Lines of the hub as NDJSON, after the first line."""

    ended = False

    def __init__(self, subscription: Subscription, wanted: Callable[[], bool]) -> None:
        self._subscription = subscription
        self._wanted = wanted
        self._first = FIRST_LINE

    def fileno(self) -> int:
        return -1

    def read(self, limit: int) -> bytes:
        if first := self._first:
            self._first = b""
            return first
        while lines := self._subscription.take(_LINES):
            if self._wanted():
                return b"".join(map(ndjson, lines))
        return b""

    def close(self) -> None:
        self._subscription.close()


class _Formatter:
    """A feed that gives its place back when it is closed."""

    def __init__(self, feed: Feed, places: threading.Semaphore) -> None:
        self._feed = feed
        self._places = places
        self.fileno = feed.fileno
        self.read = feed.read

    @property
    def ended(self) -> bool:
        return self._feed.ended

    def close(self) -> None:
        self._feed.close()
        self._places.release()
