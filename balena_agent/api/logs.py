"""What streams: `GET /v2/local/logs`, `POST /v2/journal-logs` (spec 10 §8.25-26), D-Bus OpenLog.

Theory: an endpoint opens a feed and answers with a stream (streams.py); what is wrong with the
request is found before that and has an ordinary answer. Log lines come from the hub, the formatted
journal from a journalctl of its own.

Outside local mode, and with SUPERVISOR_LOG_CONTROL off, a listener of the log lines gets nothing
but the first line; the moment this changes, it gets what is written from then on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..core.errors import InvalidInput, NotFound, Unavailable
from ..core.journalquery import JournalQuery, read_query
from ..core.jsonread import Json
from ..core.logline import Source, ndjson
from ..core.lookup import container_source
from ..core.snapshot import Snapshot
from ..core.status import local_mode
from .exchange import Answer, Endpoint, Request, query_failure
from .log_feeds import FIELDS, ServiceFeed, Subscription
from .streams import Feed, OpenFeed, Streams

FIRST_LINE = b'{"message":"Streaming logs","isSystem":true}\n'

FORMATTERS = 5
"""Children that may run at once (spec 30 §15.1)."""

PIPE_OPTIONS = ("follow", "count", "since", "until", "unit", "service", "format")

_NOBODY = "none"
"""Matches no container: without any match the journal would be shown whole."""

_LINES = 512
"""Lines that are taken at one time."""


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

    def open_pipe(self, options: Mapping[str, Json]) -> int:
        """The read end of a pipe with the log that the options ask for (D-Bus OpenLog); the
        caller's to close. With a `unit` or a `format` it is the host's journal as journalctl
        prints it, else the services' lines as NDJSON. InvalidInput, NotFound, Unavailable."""
        opener = self._opener(options)
        stream = self._streams.open(opener)
        out, into = os.pipe2(os.O_CLOEXEC)
        stream.attach(into, chunked=False)
        return out

    def _opener(self, options: Mapping[str, Json]) -> OpenFeed:
        for name in options:
            if name not in PIPE_OPTIONS:
                raise InvalidInput(f"{name}: no such option, only {', '.join(PIPE_OPTIONS)}")
        service = str(options.get("service") or "")
        raw = bool(options.get("unit") or options.get("format"))
        query = read_query({"format": "json", **options, "all": True})
        if raw and service:
            raise InvalidInput("service: neither a unit nor a format goes with it")
        if raw:
            return lambda wake: self.journal_feed(query)
        containers = _containers(self._snapshot(), service)
        past = replace(query, follow=False, containers=containers, fields=FIELDS)
        return lambda wake: self._service_feed(wake, past, query.follow, service)

    def _service_feed(
        self, wake: Callable[[], None], past: JournalQuery, follow: bool, service: str
    ) -> Feed:
        since = int(time.time() * 1000)
        present = self._subscribe(wake) if follow else None
        try:
            child = self.journal_feed(past)
        except BaseException:
            if present is not None:
                present.close()
            raise
        return ServiceFeed(child, present, self._owner, service, since)

    def _owner(self, container_id: str) -> Source | None:
        return container_source(self._snapshot(), container_id)

    def _line_feed(self, wake: Callable[[], None]) -> Feed:
        return LineFeed(self._subscribe(wake), lambda: lines_wanted(self._snapshot()))


def lines_wanted(snapshot: Snapshot) -> bool:
    """Whether the local log stream is on (spec 10 §8.26)."""
    return local_mode(snapshot) and snapshot.settings.log_control


def _containers(snapshot: Snapshot, service: str) -> tuple[str, ...]:
    """The containers of a service, or of all ("")."""
    known = snapshot.observed.containers.values()
    found = tuple(each.id for each in known if service in ("", each.service))
    if service and not found:
        raise NotFound(f"service {service!r} has no container")
    return found or (_NOBODY,)


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
