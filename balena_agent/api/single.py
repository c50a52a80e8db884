"""The endpoints on an app with a single container: `/v1/apps/:id` (spec 10 §8.9, §8.10).

Theory: these are from before there were services. They know an app by its id alone, so they only
serve apps of which exactly one service has a container; what service that is, they find out.
"""

from __future__ import annotations

import time

from ..core.errors import AccessDenied, InvalidInput, NoSuchApp
from ..core.intent import ServiceKey, StartService, StopService
from ..core.jsonread import whole_number
from ..core.lookup import APP_NOT_FOUND, containers_of, find_service
from ..core.observed import Container
from ..core.report import single_app
from ..core.snapshot import Snapshot
from ..core.status import age
from ..runtime.state import Published
from .checks import NO_SERVICE_NAMED, STOP_MARGIN, engine_needed, grace
from .exchange import (
    Answer,
    Endpoint,
    Request,
    action_failure,
    failed,
    json_answer,
    single_failure,
)
from .patience import Patience

_APP = "/v1/apps/<app_id>"
_FRESH = 1.0
"""Seconds that a met command's effect may take to be published."""


class SingleApp:
    """`limit` is how long a request may wait for its command."""

    def __init__(self, published: Published, patience: Patience, limit: float) -> None:
        self._published = published
        self._patience = patience
        self._limit = limit

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("GET", _APP, self.show, action_failure),
            Endpoint("POST", _APP + "/start", self.start, single_failure),
            Endpoint("POST", _APP + "/stop", self.stop, single_failure),
        )

    def show(self, request: Request) -> Answer:
        """The app and its container. The scope is checked before the app is looked for."""
        app_id = whole_number(request.path["app_id"])
        if app_id is None:
            raise InvalidInput("Missing app id")
        if not request.scope.in_scope(app_id):
            return failed("Application is not available", 401)
        engine_needed(request.snapshot)
        found = containers_of(request.snapshot, app_id)
        if not found:
            raise InvalidInput("App not found")
        if len({container.service for container in found}) > 1:
            raise InvalidInput("Some v1 endpoints are only allowed on single-container apps")
        newest = max(found, key=age)
        return json_answer(single_app(request.snapshot, newest))

    def start(self, request: Request) -> Answer:
        """Start the container; update locks do not matter (spec 10 §5)."""
        key = _only_service(request)
        self._patience.met(StartService(key), self._limit, request.left)
        return json_answer({"containerId": self._container_id(key, running=True)})

    def stop(self, request: Request) -> Answer:
        """Stop the container; answers like /v2's stop-service."""
        key = _only_service(request)
        patience = min(self._limit, grace(request.snapshot, key) + STOP_MARGIN)
        self._patience.ask(StopService(key, request.flag("force")), patience, request.left)
        return json_answer({"containerId": self._container_id(key, running=False)})

    def _container_id(self, key: ServiceKey, running: bool) -> str:
        """The id after the action: a start may have made another container, which is published a
        moment after the command was met."""
        snapshot, until = self._published.current, time.monotonic() + _FRESH
        while not (found := _newest(snapshot, key, running)):
            left = until - time.monotonic()
            newer = self._published.newer_than(snapshot.version, left) if left > 0 else None
            if newer is None:
                found = _newest(snapshot, key, running=False)
                break
            snapshot = newer
        return found.id if found else ""


def _newest(snapshot: Snapshot, key: ServiceKey, running: bool) -> Container | None:
    mine = [c for c in snapshot.observed.containers.values() if c.key == key and c.name]
    return max((c for c in mine if c.running or not running), key=age, default=None)


def _only_service(request: Request) -> ServiceKey:
    """The app's only service: id, scope, engine, app, service, in this order."""
    app_id = whole_number(request.path["app_id"])
    if app_id is None:
        raise InvalidInput("Invalid app id")
    if not request.scope.in_scope(app_id):
        raise AccessDenied("Unauthorized")
    engine_needed(request.snapshot)
    services = {c.service for c in containers_of(request.snapshot, app_id)}
    if not services:
        raise NoSuchApp(APP_NOT_FOUND)
    if len(services) > 1:
        raise InvalidInput(NO_SERVICE_NAMED)
    return find_service(request.snapshot, app_id, services.pop())
