"""The HTTP API as a WSGI application: a Bottle app, and what surrounds every request.

Theory: the order in which a request is judged is part of the contract (spec 10 §1.1): open paths,
then the key, then the body, then the route. So a wrong key is told before a broken body, and that
before a wrong path. All of that happens in Bottle's `before_request` hook; routes
only see requests that passed it. Around Bottle stands `Application`: it turns defects into an
answer without a traceback, reads what is left of the body, and writes the one log line.

Invariants: no key, query or body ever reaches the log; no exception ever reaches a client; every
answer is one of the contract's shapes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs

import bottle

from ..core.errors import AccessDenied, AgentError, Broken, InvalidInput
from ..core.observed import API_TIMEOUT
from ..core.scopes import EVERYTHING, Scope
from ..core.snapshot import NOT_ASKED, Snapshot
from ..runtime.ports import Submit
from ..runtime.state import Published
from .apps import Apps
from .around import Around
from .auth import Auth, Caller, is_local, passed_key
from .body import BODY_LIMIT, drain, read_body
from .device import Device
from .exchange import (
    HTML_TYPE,
    TEXT_TYPE,
    Answer,
    Endpoint,
    Request,
    failed,
    text_answer,
)
from .ours import Ours
from .patience import Patience, stays
from .single import SingleApp
from .streams import Stream
from .v1 import V1, Healthy
from .v2 import V2

_log = logging.getLogger(__name__)

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

_OPEN = frozenset({"/ping", "/v1/healthy"})
_OPEN_LOCALLY = frozenset({"/metrics"})
_BODY_IGNORED = frozenset({"/v1/blink", "/v1/regenerate-api-key"})
_READS = ("GET", "HEAD")
_DEFECT = "An error inside the agent; its journal has the details"
_REQUEST = "balena_agent.request"
FIRST_LOOK_PATIENCE = 2.0
"""Seconds that a request waits for the agent's first look at the engine."""

HEARD = "balena_agent.heard"
LISTEN = "balena_agent.listen"
"""The server's callbacks in the environment: nobody waits for the client now, because its request
has been read or it is not its turn; and now its body is read."""

LEFT = "balena_agent.left"
"""Another one: whether the client is gone."""

STREAM = "balena_agent.stream"
"""The `Stream` in the environment that the server shall connect to the client after the head."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`compat_version` is what /v2/version says. At most `held_requests` requests wait for a
    command at the same time; each waits at most `answer_limit` seconds, by default as long as the
    peer lets them (spec 10 §1)."""

    compat_version: str = "19.0.5"
    held_requests: int = 8
    answer_limit: float = API_TIMEOUT / 1000
    body_limit: int = BODY_LIMIT


def build(
    published: Published,
    submit: Submit,
    auth: Auth,
    healthy: Healthy = lambda: True,
    settings: Settings | None = None,
    more: Iterable[Endpoint] = (),
    around: Around | None = None,
) -> Application:
    """The whole API. `submit` is the reconciler's; `healthy` says whether the agent is well;
    `more` are endpoints that need more than these, `around` is what lies outside of the
    snapshot."""
    chosen, outside = settings or Settings(), around or Around()
    patience = Patience(submit, chosen.held_requests)
    endpoints = (
        *V1(patience, healthy, chosen.answer_limit).endpoints(),
        *SingleApp(published, patience, chosen.answer_limit).endpoints(),
        *Device(outside).endpoints(),
        *V2(patience, chosen.compat_version, chosen.answer_limit).endpoints(),
        *more,
        *Apps(patience, chosen.answer_limit).endpoints(),
        *Ours(outside.version, outside.hardware).endpoints(),
    )
    return Application(published, auth, endpoints, patience, chosen.body_limit)


class Application:
    """A WSGI callable. `close` ends all waiting, so that the server can stop."""

    def __init__(
        self,
        published: Published,
        auth: Auth,
        endpoints: Iterable[Endpoint],
        patience: Patience,
        body_limit: int = BODY_LIMIT,
    ) -> None:
        self._published = published
        self._auth = auth
        self._patience = patience
        self._body_limit = body_limit
        self.bottle = self._routes(endpoints)

    def _routes(self, endpoints: Iterable[Endpoint]) -> Any:
        app = bottle.Bottle()
        app.config.update({"catchall": False, "json.enable": False})
        app.add_hook("before_request", self._admit)
        app.error(404)(_no_route)
        app.error(405)(_no_route)
        for endpoint in endpoints:
            app.route(endpoint.rule, endpoint.method, _callback(endpoint))
        return app

    def close(self) -> None:
        self._patience.close()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        began = time.monotonic()
        method, path = environ.get("REQUEST_METHOD", "GET"), environ.get("PATH_INFO") or "/"
        said: list[str] = []

        def note_status(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            said.append(status)
            if STREAM in environ:  # neither a length nor a type (spec 10 §8.25, §8.26)
                headers = [pair for pair in headers if not pair[0].startswith("Content-")]
            return start_response(status, headers, *more)

        try:
            chunks = self.bottle(environ, note_status)
        except Exception:
            _log.exception("%s %s failed", method, printable(path))
            chunks = _say(failed(_DEFECT, 503), note_status, method)
        # Else the worker's thread remembers this request until its next one, and with it a whole
        # state of the device: there may be one old state for every worker.
        bottle.request.bind({})
        drain(environ)
        _log_request(method, path, said[-1] if said else "", time.monotonic() - began)
        return chunks  # type: ignore[no-any-return]

    def _admit(self) -> None:
        """Before routing: path, key, body. Leaves the `Request` in the environment, or answers."""
        environ: Environ = bottle.request.environ
        method, path = environ["REQUEST_METHOD"], _plain_path(environ["PATH_INFO"])
        environ["PATH_INFO"] = path
        environ.get(HEARD, _nothing)()
        if path in _OPEN and method in _READS:
            environ[_REQUEST] = Request(self._published.current)
            return
        snapshot = self._snapshot()
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        caller = Caller(environ.get("REMOTE_ADDR", ""), environ.get("SERVER_ADDR", ""))
        key = passed_key(query, environ.get("HTTP_AUTHORIZATION", ""))
        local = path in _OPEN_LOCALLY and is_local(caller)
        scope = EVERYTHING if local else self._scope(snapshot, caller, key)
        ignored = path in _BODY_IGNORED and method == "POST"
        environ.get(LISTEN, _nothing)()
        body = {} if ignored else self._body(environ)
        environ.get(HEARD, _nothing)()
        members = body if isinstance(body, dict) else {}
        environ[_REQUEST] = Request(
            snapshot, scope, {}, query, members, _who(caller, scope), key, body is not members,
            environ.get(LEFT, stays),
        )  # fmt: skip

    def _snapshot(self) -> Snapshot:
        """The current state. Just after the start the first look at the engine is waited for, a
        moment: "not answering" would be untrue."""
        snapshot, until = self._published.current, time.monotonic() + FIRST_LOOK_PATIENCE
        while snapshot.engine_error == NOT_ASKED and (left := until - time.monotonic()) > 0:
            snapshot = self._published.newer_than(snapshot.version, left) or snapshot
        return snapshot

    def _scope(self, snapshot: Snapshot, caller: Caller, key: str | None) -> Scope:
        try:
            return self._auth.scope(snapshot, caller, key)
        except AccessDenied as error:
            raise _response(text_answer(error.message, 401, TEXT_TYPE)) from None
        except AgentError as error:
            text = f"Unexpected error: {error.message}"
            raise _response(text_answer(text, 503, HTML_TYPE)) from error

    def _body(self, environ: Mapping[str, Any]) -> dict[str, Any] | list[Any]:
        try:
            return read_body(environ, self._body_limit)
        except InvalidInput as error:
            raise _response(failed(error.message, 503)) from error


def _nothing() -> None:
    """No server behind us: a test's call."""


def _callback(endpoint: Endpoint) -> Callable[..., Any]:
    """A Bottle callback: the endpoint, its errors in the shape of its family."""

    def call(**parameters: str) -> Any:
        admitted: Request = bottle.request.environ[_REQUEST]
        try:
            answer = endpoint.run(replace(admitted, path=parameters) if parameters else admitted)
        except AgentError as error:
            if isinstance(error, Broken):
                _log.error("%s %s failed", endpoint.method, endpoint.rule, exc_info=error)
            answer = endpoint.failure(error)
        except Exception:
            _log.exception("%s %s failed", endpoint.method, endpoint.rule)
            answer = endpoint.failure(Broken(_DEFECT))
        return _response(answer)

    return call


def _no_route(error: Any) -> Any:
    """404 for an unknown path and for a wrong method alike; OPTIONS lists a path's methods."""
    environ = bottle.request.environ
    method, path = environ["REQUEST_METHOD"], environ["bottle.raw_path"]
    if error.status_code == 405 and method == "OPTIONS":
        return _response(_methods(str(error.headers.get("Allow", ""))))
    return _response(text_answer(f"Cannot {method} {printable(path)}", 404, TEXT_TYPE))


def _methods(allowed: str) -> Answer:
    methods = allowed.replace("GET", "GET,HEAD")
    return Answer(200, methods.encode(), HTML_TYPE, (("Allow", methods),))


def _response(answer: Answer) -> Any:
    headers = dict(answer.headers)
    if isinstance(answer.body, Stream):
        bottle.request.environ[STREAM] = answer.body
        return bottle.HTTPResponse(b"", answer.status, headers)
    if answer.content_type:
        headers["Content-Type"] = answer.content_type
    return bottle.HTTPResponse(answer.body, answer.status, headers)


def _say(answer: Answer, start_response: StartResponse, method: str) -> list[bytes]:
    """Answer without Bottle, where Bottle itself has failed."""
    body = answer.body if isinstance(answer.body, bytes) else b""
    headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(body)))]
    start_response("503 Service Unavailable", headers)
    return [] if method == "HEAD" else [body]


def _plain_path(path: str) -> str:
    """Paths match in any case and with one slash more at the end (spec 10 §1)."""
    lower = path.lower()
    return lower[:-1] if len(lower) > 1 and lower.endswith("/") else lower


def _who(caller: Caller, scope: Scope) -> str:
    """The caller, for the journal."""
    key = "" if scope.everything else f" with the key of app {scope.app_id}"
    return f"HTTP client {printable(caller.address) or 'unknown'}{key}"


def printable(text: str) -> str:
    """Text of a client as it may stand in a log line: nothing that could look like another line."""
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _log_request(method: str, path: str, status: str, seconds: float) -> None:
    """One line per request, without the query, which may hold the key (spec 10 §1). What is asked
    every few seconds by watchdogs and monitors is for debugging only."""
    asked_often = _OPEN | _OPEN_LOCALLY
    level = logging.DEBUG if path.lower().rstrip("/") in asked_often else logging.INFO
    if not _log.isEnabledFor(level):
        return
    code, took, shown = status.partition(" ")[0], seconds * 1000, printable(path)
    _log.log(
        level,
        "%s %s %s - %.1f ms",
        printable(method),
        shown,
        code,
        took,
        extra={
            "HTTP_METHOD": printable(method),
            "HTTP_PATH": shown,
            "HTTP_STATUS": code,
            "DURATION_MS": f"{took:.1f}",
        },
    )
