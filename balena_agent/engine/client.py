"""The wire to the engine: one connection pool, one API version, a deadline on every call.

Theory: the engine speaks HTTP over a Unix socket; docker's `APIClient` brings the transport and
the connection pool, and nothing else of it is used. Bodies and answers are the engine's own JSON,
so nothing between us and the API documentation rewrites a field (spec 60 §4.1). The library is
imported at the first call: the agent is up, and its API answers, before that cost is paid.

Invariants: the version is pinned, because asking for it would be a request that a missing engine
never answers; no environment variable, proxy or login file of the machine has a say; a call never
outlasts its time limit; any number of threads use one `Client`.

A socket-activated engine that is down does not refuse calls, they hang (spec 60 §4.3). So whether
it is there at all is asked with `ping`, whose time limit is short.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from ..core.errors import DeadlineExceeded, EngineFailed, EngineUnavailable
from .failures import is_missing, refused, translated
from .library import api_client

API_VERSION = "1.41"
CALL_LIMIT = 60.0
PING_LIMIT = 5.0
WORKERS = 12

BALENA_ENGINES = frozenset({"balena", "balaena", "balena-engine"})

Params = Mapping[str, str]


class Deadline:
    """A point in time that a chain of calls has to keep together."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + seconds

    def left(self, at_most: float) -> float:
        """Seconds that the next call may take. DeadlineExceeded when there are none."""
        left = min(self._end - self._now(), at_most)
        if left <= 0:
            raise DeadlineExceeded("the engine took too long")
        return left


class Link:
    """The socket, and the library's client of it once somebody needs one."""

    def __init__(self, socket: str, version: str = API_VERSION, limit: float = CALL_LIMIT) -> None:
        self.socket = socket
        self.version = version
        self.limit = limit
        self._api: Any = None
        self._lock = threading.Lock()

    def api(self) -> Any:
        with self._lock:
            if self._api is None:
                with translated("connecting"):
                    self._api = self._connected()
            return self._api

    def pool(self) -> Any:
        """The pool of the library's connections: a call through it costs a third of the CPU time
        of one through the library's session, which does nothing more for us."""
        api = self.api()
        return api.get_adapter(api.base_url).get_connection(api.base_url)

    def _connected(self) -> Any:
        api = api_client()(
            base_url=f"unix://{self.socket}",
            version=self.version,
            timeout=self.limit,
            max_pool_size=WORKERS,
        )
        api.trust_env = False
        return api

    def close(self) -> None:
        with self._lock:
            if self._api is not None:
                self._api.close()
            self._api = None


class Client:
    """Calls to the engine. `bounded` gives the same client with a deadline over all its calls."""

    def __init__(self, link: Link, deadline: Deadline | None = None) -> None:
        self.link = link
        self._deadline = deadline

    def bounded(self, seconds: float) -> Client:
        return Client(self.link, Deadline(seconds))

    def request(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        body: Mapping[str, Any] | None = None,
        limit: float | None = None,
    ) -> bytes:
        """One call, the raw answer. EngineFailed, EngineUnavailable, DeadlineExceeded."""
        limit = limit or self.link.limit
        if self._deadline:
            limit = self._deadline.left(limit)
        query = f"?{urlencode(params)}" if params else ""
        target = f"/v{self.link.version}{path}{query}"
        sent = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        with translated(f"{method} {path}"):
            answer = self.link.pool().urlopen(
                method, target, sent, headers, retries=False, redirect=False, timeout=limit
            )
        if answer.status >= 400:
            raise refused(answer.status, answer.data)
        return bytes(answer.data)

    def get(self, path: str, params: Params | None = None, limit: float | None = None) -> Any:
        """A read: the engine's JSON."""
        return self._read(path, self.request("GET", path, params, limit=limit))

    def post(self, path: str, params: Params | None, body: Mapping[str, Any]) -> Any:
        """A change that answers with JSON."""
        return self._read(path, self.request("POST", path, params, body))

    def find(self, path: str, limit: float | None = None) -> Any:
        """A read of something that may be missing: its JSON, or None."""
        try:
            return self.get(path, limit=limit)
        except EngineFailed as error:
            if is_missing(error):
                return None
            raise

    @staticmethod
    def _read(path: str, answer: bytes) -> Any:
        with translated(path):
            return json.loads(answer)

    def ping(self, limit: float = PING_LIMIT) -> None:
        """EngineUnavailable unless the engine answers within `limit` seconds."""
        try:
            self.request("GET", "/_ping", limit=limit)
        except (DeadlineExceeded, EngineFailed) as error:
            raise EngineUnavailable(str(error)) from error

    def engine_kind(self) -> str:
        """ "balena" or "docker" (spec 60 §8)."""
        said = self.get("/version", limit=PING_LIMIT)
        return "balena" if said.get("Engine") in BALENA_ENGINES else "docker"


def path(*parts: str) -> str:
    """An API path of literal and named parts; slashes inside image names stay."""
    return "".join("/" + quote(part, safe="/:@") for part in parts)


def filters(**wanted: list[str]) -> dict[str, str]:
    """The `filters` parameter of the engine's list calls."""
    return {"filters": json.dumps(wanted)}
