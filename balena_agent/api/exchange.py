"""One HTTP exchange as values: what an endpoint gets, what it gives, and how its errors look.

Theory: an endpoint is a function `Request -> Answer` that raises `AgentError`s. The contract has
several shapes for one error (spec 10 §1.3), so each endpoint names the shape of its family:

    query_failure    v2 queries             {"status": "failed", "message": ...}
    action_failure   v2 actions             text where the caller can change something, else JSON
    single_failure   v1 start and stop      the same, but a key out of scope is told as text, too
    text_failure     PATCH of host-config   text, whatever it is
    server_failure   what the cloud answers the shape of queries, always with 500
    go_failure       reboot, shutdown       {"Data": "", "Error": ...}

Invariant: a text answer holds only characters that the cloud's proxy lets through (spec 10 §9).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..core.errors import (
    AccessDenied,
    AgentError,
    InvalidInput,
    Locked,
    NoSuchApp,
    Refused,
    RefusedByHost,
    Unavailable,
)
from ..core.jsonread import Json, truth, whole_number
from ..core.scopes import EVERYTHING, Scope
from ..core.snapshot import Snapshot
from .patience import stays
from .streams import Stream

JSON_TYPE = "application/json; charset=utf-8"
HTML_TYPE = "text/html; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"

RETRY_AFTER = 5
"""Seconds after which a caller may try again what the world did not allow now."""

_NOT_PROXIED = re.compile(r"[^A-Za-z0-9\s:'.?!,/-]")
_DECORATION = re.compile(r"\$\.|\{ | \}")
"""What says nothing: the root of a path, and braces."""

_NO_NAME = ("", "null", "undefined")


@dataclass(frozen=True, slots=True)
class Request:
    """What an endpoint may know. `snapshot` was taken when the request came in; `who` describes
    the caller for the journal; `path` holds the parameters of the path. `key` is the key that came
    along, good or not. `listed` tells that the body was an array; `left`, whether the caller has
    gone."""

    snapshot: Snapshot
    scope: Scope = EVERYTHING
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, list[str]] = field(default_factory=dict)
    body: Mapping[str, Json] = field(default_factory=dict)
    who: str = ""
    key: str | None = field(default=None, repr=False)
    listed: bool = False
    left: Callable[[], bool] = field(default=stays, repr=False)

    def flag(self, name: str) -> bool:
        """A boolean of the body (spec 10 §4)."""
        return truth(self.body.get(name))

    def number(self, name: str) -> int | None:
        """A whole number of the body (spec 10 §4)."""
        return whole_number(self.body.get(name))

    def text(self, name: str) -> str | None:
        """A string of the body; what clients send for "none" is None (spec 10 §4)."""
        value = self.body.get(name)
        return value if isinstance(value, str) and value not in _NO_NAME else None


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is the whole answer, or a stream that goes on after its head."""

    status: int
    body: bytes | Stream = b""
    content_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()


Failure = Callable[[AgentError], Answer]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`rule` is a path in Bottle's notation, in lower case and without a trailing slash."""

    method: str
    rule: str
    run: Callable[[Request], Answer]
    failure: Failure


def compact(document: Json) -> bytes:
    """JSON in UTF-8 without blanks. Half characters, which JSON can spell, become `?`."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def json_answer(document: Json, status: int = 200) -> Answer:
    return Answer(status, compact(document), JSON_TYPE)


def text_answer(text: str, status: int = 200, content_type: str = HTML_TYPE) -> Answer:
    return Answer(status, proxied(text).encode(), content_type)


def proxied(text: str) -> str:
    """A text as it passes the cloud's proxy, which refuses whole answers for one character."""
    return _NOT_PROXIED.sub("?", _DECORATION.sub("", text))


def failed(message: str, status: int) -> Answer:
    return json_answer({"status": "failed", "message": message}, status)


def query_failure(error: AgentError) -> Answer:
    return _retry_later(failed(error.message, _status(error)), error)


def action_failure(error: AgentError) -> Answer:
    status = _status(error)
    if isinstance(error, (AccessDenied, Locked)) or status == 503:
        return _retry_later(failed(error.message, status), error)
    return text_answer(error.message, status)


def single_failure(error: AgentError) -> Answer:
    if isinstance(error, AccessDenied):
        return text_answer(error.message, 401)
    if isinstance(error, NoSuchApp):
        return text_answer(error.message, 400)
    return action_failure(error)


def text_failure(error: AgentError) -> Answer:
    return _retry_later(text_answer(error.message, _status(error)), error)


def server_failure(error: AgentError) -> Answer:
    status = 400 if isinstance(error, InvalidInput) else 500
    return failed(error.message, status)


def go_failure(error: AgentError) -> Answer:
    status = 423 if error.http_status == Locked.http_status else 500
    return json_answer({"Data": "", "Error": error.message}, status)


def _status(error: AgentError) -> int:
    """The caller's matters have their own status, everything else is 503 (spec 10 §1.3)."""
    callers = isinstance(error, Refused) and not isinstance(error, RefusedByHost)
    return error.http_status if callers else 503


def _retry_later(answer: Answer, error: AgentError) -> Answer:
    if not isinstance(error, Unavailable):
        return answer
    retry = ("Retry-After", str(RETRY_AFTER))
    return Answer(answer.status, answer.body, answer.content_type, (retry,))
