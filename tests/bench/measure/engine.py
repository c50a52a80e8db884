"""The engine of a device, called from outside with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

VERSION = "v1.41"
T = TypeVar("T")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, limit: float | None) -> None:
        super().__init__("engine", timeout=limit)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """Bare calls, one kept connection per thread."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path
        self._local = threading.local()

    def call(self, method: str, target: str, body: Any = None, **params: str) -> Any:
        """One call; its JSON, or None for an empty answer. RuntimeError when it is refused."""
        wire = getattr(self._local, "wire", None)
        if wire is None:
            wire = self._local.wire = _Connection(self._path, 60.0)
        query = f"?{urlencode(params)}" if params else ""
        data = None if body is None else json.dumps(body)
        headers = {} if data is None else {"Content-Type": "application/json"}
        wire.request(method, f"/{VERSION}{quote(target)}{query}", data, headers)
        answer = wire.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {target}: {answer.status} {content.decode()}")
        return json.loads(content) if content.strip() else None

    def containers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", "/containers/json", all="1")
        return found

    def events(self) -> Events:
        return Events(self._path)


class Events:
    """Container events with the time at which they were seen; a thread reads them."""

    def __init__(self, socket_path: str) -> None:
        self._seen: list[tuple[float, str, str]] = []
        self._news = threading.Condition()
        wire = _Connection(socket_path, None)
        filters = json.dumps({"type": ["container"], "event": ["start", "die", "destroy"]})
        wire.request("GET", f"/{VERSION}/events?{urlencode({'filters': filters})}")
        self._answer = wire.getresponse()
        threading.Thread(target=self._read, name="events", daemon=True).start()

    def _read(self) -> None:
        while line := self._answer.readline():
            event, now = json.loads(line), time.monotonic()
            name = event["Actor"]["Attributes"].get("name", "")
            with self._news:
                self._seen.append((now, event["Action"], name))
                self._news.notify_all()

    def mark(self) -> int:
        """Where the story is now."""
        with self._news:
            return len(self._seen)

    def when(self, mark: int, action: str, count: int, limit: float = 120.0) -> float:
        """When the `count`-th such event after `mark` was seen (monotonic); waits for it."""

        def times() -> list[float]:
            return [at for at, what, _ in self._seen[mark:] if what == action]

        with self._news:
            if not self._news.wait_for(lambda: len(times()) >= count, limit):
                raise RuntimeError(f"{len(times())} of {count} {action} events in {limit} s")
            return times()[count - 1]


def side_by_side(workers: int, action: Callable[[T], object], items: Iterable[T]) -> None:
    """Do it to all of them with so many threads; fails if one fails."""
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(action, items):
            pass


class Fleet:
    """The bare engine doing what the agent does: N containers from given creation bodies."""

    def __init__(self, engine: Engine, workers: int, bodies: Mapping[str, Any]) -> None:
        self._engine = engine
        self._workers = workers
        self.bodies = dict(bodies)
        self._ids: dict[str, str] = {}

    def start(self) -> float:
        """Create and start all; seconds."""
        return self._timed(self._up)

    def change(self) -> float:
        """Stop, remove, create and start all; seconds."""

        def replace(name: str) -> None:
            self._down(name)
            self._up(name)

        return self._timed(replace)

    def remove(self) -> float:
        """Stop and remove all; seconds."""
        return self._timed(self._down)

    def _timed(self, action: Callable[[str], None]) -> float:
        began = time.monotonic()
        side_by_side(self._workers, action, self.bodies)
        return time.monotonic() - began

    def _up(self, name: str) -> None:
        made = self._engine.call("POST", "/containers/create", self.bodies[name], name=name)
        self._ids[name] = made["Id"]
        self._engine.call("POST", f"/containers/{made['Id']}/start")

    def _down(self, name: str) -> None:
        which = self._ids.pop(name)
        self._engine.call("POST", f"/containers/{which}/stop", t="10")
        self._engine.call("DELETE", f"/containers/{which}", v="1")
