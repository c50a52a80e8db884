"""The agent's own log: records to journald with fields, or plain lines where there is no journal.

Theory: log calls are written for people (the message) and for machines (`extra={"fields": {...}}`
with APP, SERVICE, STEP, CAUSE), and journald keeps both. Whatever a call says, no key or token
leaves the process through it. A warning or error that repeats is told once, then at most once a
minute with the number of times it was left out, so that a sick world cannot fill the journal. What
is told below that level has happened anew each time, and is told each time.

Invariant: logging never raises and never waits for more than one datagram.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

IDENTIFIER = "balena-agent"
SOCKET = "/run/systemd/journal/socket"
JOURNAL_STREAM = "JOURNAL_STREAM"
"""systemd sets this variable where the standard error output is the journal itself."""
REPEAT_AFTER = 60.0
REMEMBERED = 512

Send = Callable[..., None]
"""Takes one journal entry as keyword arguments."""

_FIELD = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")
_HIDDEN = "<hidden>"
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?)[^\"'\r\n,}]+"), rf"\1{_HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|apikey)(\s+)[\w.~+/=-]{8,}"), rf"\1\2{_HIDDEN}"),
    (re.compile(r"(?i)((?:api_?key|token|secret|passw(?:or)?d)=)[^&\s\"']+"), rf"\1{_HIDDEN}"),
    (re.compile(r"(?i)(key[\"']?[\s:=]+[\"']?(?:is )?)[0-9a-f]{32,}"), rf"\1{_HIDDEN}"),
    (re.compile(r"(://[^/\s:@]+:)[^/\s@]+@"), rf"\1{_HIDDEN}@"),
)


def start(level: str = "info", stream: Any = None) -> logging.Handler:
    """Send all log records of the process to the journal; returns the handler that does. Who runs
    the agent by hand sees them, too."""
    journal = journal_sender()
    handler = JournalHandler(journal or line_sender(stream or sys.stderr))
    handlers = [handler]
    if journal and JOURNAL_STREAM not in os.environ:
        handlers.append(JournalHandler(plain_sender(stream or sys.stderr)))
    for each in handlers:
        each.addFilter(Repeats())
    root = logging.getLogger()
    root.handlers[:] = handlers
    set_level(level)
    logging.captureWarnings(True)
    return handler


def set_level(level: str) -> None:
    """`debug`, `info`, `warning` or `error`; libraries stay one step quieter than we are."""
    number = logging.getLevelName(level.upper())
    ours = number if isinstance(number, int) else logging.INFO
    logging.getLogger(__name__.partition(".")[0]).setLevel(ours)
    logging.getLogger().setLevel(max(ours, logging.WARNING))


def journal_sender() -> Send | None:
    """journald's own call; None where the library or the journal is missing."""
    try:
        from systemd import journal
    except ImportError:
        return None
    if not os.path.exists(SOCKET):
        return None

    def send(**fields: str) -> None:
        journal.sendv(*(f"{name}={value}" for name, value in fields.items()))

    return send


def plain_sender(stream: Any) -> Send:
    """The messages alone, for a person at a terminal."""

    def send(*, MESSAGE: str, **fields: str) -> None:  # noqa: N803 - journal names
        stream.write(f"{MESSAGE}\n")
        stream.flush()

    return send


def line_sender(stream: Any) -> Send:
    """Lines with systemd's priority prefix: journald understands it, people can live with it."""

    def send(*, MESSAGE: str, PRIORITY: str, **fields: str) -> None:  # noqa: N803 - journal names
        tail = " ".join(f"{k}={v}" for k, v in fields.items() if not k.startswith(_PLUMBING))
        for line in (f"{MESSAGE} [{tail}]" if tail else MESSAGE).splitlines():
            stream.write(f"<{PRIORITY}>{line}\n")
        stream.flush()

    return send


_PLUMBING = ("CODE_", "SYSLOG_IDENTIFIER", "THREAD", "LOGGER", "ERROR")
"""Fields that are of no use in a line."""


def without_secrets(text: str) -> str:
    """The text with keys, tokens and passwords replaced, where their surroundings betray them."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def priority(level: int) -> str:
    """syslog's number for a level of the logging module."""
    known = ((logging.CRITICAL, "2"), (logging.ERROR, "3"), (logging.WARNING, "4"))
    return next((p for limit, p in known if level >= limit), "6" if level >= 20 else "7")


def entry(record: logging.LogRecord) -> dict[str, str]:
    """The journal fields of a record."""
    message = record.getMessage()
    if getattr(record, "left_out", 0):
        message += f" (and {record.left_out} times before)"  # type: ignore[attr-defined]
    fields = {
        "MESSAGE": message,
        "PRIORITY": priority(record.levelno),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
        "THREAD_NAME": record.threadName or "",
        "LOGGER": record.name,
    }
    if record.exc_info and record.exc_info[0]:
        stack = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        fields["MESSAGE"] += "\n" + stack
        fields["ERROR"] = record.exc_info[0].__name__
    fields |= _given(record)
    return {name: without_secrets(value.replace("\0", "")) for name, value in fields.items()}


def _given(record: logging.LogRecord) -> dict[str, str]:
    """Fields of `extra={"fields": ...}`; empty ones and ones with impossible names are left out."""
    given = getattr(record, "fields", None)
    known = given.items() if isinstance(given, Mapping) else ()
    return {
        name: str(value)
        for name, value in known
        if isinstance(name, str) and _FIELD.match(name) and value not in (None, "")
        and name not in ("MESSAGE", "PRIORITY")
    }  # fmt: skip


class JournalHandler(logging.Handler):
    """Hands every record to `send`; where that fails, the standard error output gets a line."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = entry(record)
        except Exception as error:  # wrong arguments of a log call
            fields = {"MESSAGE": f"log record of {record.name}: {error}", "PRIORITY": "4"}
        try:
            self._send(**fields)
        except Exception:  # journald restarting, entry too large: never the caller's matter
            self._last_resort(fields)

    def _last_resort(self, fields: Mapping[str, str]) -> None:
        try:
            sys.stderr.write(f"<{fields['PRIORITY']}>{fields['MESSAGE'][:4096]}\n")
        except Exception:
            pass


class Repeats(logging.Filter):
    """Lets a warning or error through when it is new or a minute has passed, with the count in
    between; everything below is an event and passes."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        try:
            key = (record.name, record.levelno, record.getMessage())
        except Exception:
            return True
        with self._lock:
            told_at, left_out = self._seen.get(key, (float("-inf"), 0))
            if self._now() - told_at < REPEAT_AFTER:
                self._seen[key] = (told_at, left_out + 1)
                return False
            self._seen[key] = (self._now(), 0)
            self._seen.move_to_end(key)
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        record.left_out = left_out
        return True
