"""The endpoints under `/v2` (spec 10 §8.14-§8.16, §8.18-§8.20, §8.26), and the plan: ours.

Theory: reads are pages of the published snapshot; actions are commands whose outcome is awaited.
The order in which a request is checked is part of the contract (spec 10 §8.16), because it decides
which of two faults is reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from ..core.describe import plan_state
from ..core.errors import (
    AccessDenied,
    InvalidInput,
    InvalidTarget,
    NotInLocalMode,
)
from ..core.intent import (
    Command,
    RestartService,
    ServiceKey,
    SetTarget,
    StartService,
    StopService,
)
from ..core.jsonread import Json, whole_number
from ..core.lookup import find_service
from ..core.preview import preview, preview_state
from ..core.report import (
    application_state,
    applications_state,
    container_ids,
    local_target_state,
    state_status,
)
from ..core.status import local_mode
from ..core.target import read_local
from .checks import NO_SERVICE_NAMED, STOP_MARGIN, engine_needed, grace
from .exchange import (
    Answer,
    Endpoint,
    Request,
    action_failure,
    failed,
    json_answer,
    query_failure,
    text_answer,
)
from .pages import Pages
from .patience import Patience

NO_SUCH_SERVICE = "Could not find service with that name"
NOT_LOCAL = "Target state can only set when device is in local mode"

NO_LOCAL = (
    "Expecting object at $.local but instead got: nothing (a JSON body needs the header"
    " Content-Type: application/json)"
)

_ACTIONS = "/v2/applications/<app_id>/"


class V2:
    """`version` is the peer's release that this API is compatible with; `limit` is how long a
    request may wait for its command."""

    def __init__(self, patience: Patience, version: str, limit: float) -> None:
        self._patience = patience
        self._limit = limit
        self._version = json_answer({"status": "success", "version": version})
        self._pages = Pages()

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("GET", "/v2/version", lambda _: self._version, query_failure),
            Endpoint("GET", "/v2/applications/state", self.applications, query_failure),
            Endpoint("GET", _ACTIONS + "state", self.application, query_failure),
            Endpoint("GET", "/v2/state/status", self.status, query_failure),
            Endpoint("GET", "/v2/state/plan", self.plan, query_failure),
            Endpoint("POST", "/v2/state/plan", self.preview, query_failure),
            Endpoint("GET", "/v2/containerid", self.container_id, query_failure),
            Endpoint("GET", "/v2/local/target-state", self.target_state, query_failure),
            Endpoint("POST", "/v2/local/target-state", self.set_target_state, query_failure),
            Endpoint("POST", _ACTIONS + "start-service", _in_app(self.start), action_failure),
            Endpoint("POST", _ACTIONS + "stop-service", _in_app(self.stop), action_failure),
            Endpoint("POST", _ACTIONS + "restart-service", _in_app(self.restart), action_failure),
        )

    # -- reads

    def applications(self, request: Request) -> Answer:
        """Target apps by name; 503 without the engine."""
        engine_needed(request.snapshot)
        return self._pages.get(
            "applications", request, lambda now, scope: applications_state(now, scope.in_scope)
        )

    def application(self, request: Request) -> Answer:
        """One app by image ids. An app that the key does not reach does not exist: 409."""
        raw = request.path["app_id"]
        app_id = whole_number(raw)
        if not app_id:
            return failed(f"Invalid application ID: {raw}", 400)
        if request.snapshot.engine_error:
            return failed(f"Unable to retrieve state for application ID: {app_id}", 500)
        shown = request.scope.in_scope(app_id) and application_state(request.snapshot, app_id)
        if not shown:
            return failed(f"Application ID does not exist: {app_id}", 409)
        return json_answer(shown)

    def status(self, request: Request) -> Answer:
        """One app, its containers and images, and whether the device is settled."""
        engine_needed(request.snapshot)
        return self._pages.get(
            "status", request, lambda now, scope: state_status(now, scope.in_scope)
        )

    def plan(self, request: Request) -> Answer:
        """Ours: what is done and waited for, and why. Answers without the engine, too."""
        return self._pages.get(
            "plan", request, lambda now, scope: {"status": "success", **plan_state(now, scope)}
        )

    def preview(self, request: Request) -> Answer:
        """Ours: what the local target of the body would do, in order. Nothing is stored or changed.

        It tells of every app, so it takes a key that reaches every app.
        """
        if not request.scope.everything:
            raise AccessDenied("Unauthorized")
        engine_needed(request.snapshot)
        target = read_local(_target_document(request))
        return json_answer(
            {"status": "success", **preview_state(preview(request.snapshot, target))}
        )

    def container_id(self, request: Request) -> Answer:
        """All container ids by service, or the one asked for; `serviceName` beats `service`."""
        engine_needed(request.snapshot)
        asked = request.query.get("serviceName", request.query.get("service"))
        if asked is None:
            return self._pages.get(
                "containers",
                request,
                lambda now, scope: {
                    "status": "success",
                    "services": container_ids(now, scope.in_scope),
                },
            )
        found = container_ids(request.snapshot, request.scope.in_scope).get(asked[0])
        if found is None:
            return failed(NO_SUCH_SERVICE, 503)
        return json_answer({"status": "success", "containerId": found})

    def target_state(self, request: Request) -> Answer:
        """The target in a form that can be posted back (spec 20 §3.3)."""
        engine_needed(request.snapshot)
        return self._pages.get(
            "target",
            request,
            lambda now, scope: {
                "status": "success",
                "state": local_target_state(now, scope.in_scope),
            },
        )

    # -- actions

    def set_target_state(self, request: Request) -> Answer:
        """Replace the local target. Answers when it is stored; it is applied in the background.

        400 outside local mode, and for a bad document with every problem in it (spec 10 §8.26).
        """
        if not local_mode(request.snapshot):
            raise NotInLocalMode(NOT_LOCAL)
        engine_needed(request.snapshot)
        document = _target_document(request)
        target = read_local(document)
        raw = json.dumps(document, separators=(",", ":"))
        self._do(request, SetTarget("local", raw, target, request.flag("force")))
        return json_answer({"status": "success", "message": "OK"})

    def start(self, request: Request, app_id: int) -> Answer:
        """Start a service; update locks do not matter (spec 10 §5)."""
        self._do(request, StartService(_service(request, app_id)))
        return text_answer("OK")

    def restart(self, request: Request, app_id: int) -> Answer:
        """Replace a service's container by a new one from the target."""
        self._do(request, RestartService(_service(request, app_id), request.flag("force")))
        return text_answer("OK")

    def stop(self, request: Request, app_id: int) -> Answer:
        """Stop a service. Answers when it has stopped or, as the peer always does, while it is
        still stopping: after the grace period that the service was promised."""
        key = _service(request, app_id)
        patience = min(self._limit, grace(request.snapshot, key) + STOP_MARGIN)
        self._patience.ask(StopService(key, request.flag("force")), patience, request.left)
        return text_answer("OK")

    def _do(self, request: Request, command: Command) -> None:
        self._patience.met(command, self._limit, request.left)


def _in_app(act: Callable[[Request, int], Answer]) -> Callable[[Request], Answer]:
    """What is checked first in every action on an app; both faults are answered as JSON."""

    def run(request: Request) -> Answer:
        app_id = whole_number(request.path["app_id"])
        if not app_id:
            return failed("Invalid app id", 400)
        if not request.scope.in_scope(app_id):
            raise AccessDenied("Unauthorized")
        return act(request, app_id)

    return run


def _target_document(request: Request) -> dict[str, Json]:
    """The target document of a body; `force` may stand beside it.

    An empty one removes every app, as it does at the peer. One that says something but has no
    `local` is refused: mostly it is JSON that was sent as a form, which `curl -d` does.
    """
    document = {key: value for key, value in request.body.items() if key != "force"}
    if document.keys() - {"dependent"} and "local" not in document:
        raise InvalidTarget((NO_LOCAL,))
    return document


def _service(request: Request, app_id: int) -> ServiceKey:
    """The service that an action means: parameters, engine, app, service, in this order."""
    service, image_id = request.text("serviceName"), request.number("imageId") or None
    if service is None and image_id is None:
        raise InvalidInput(NO_SERVICE_NAMED)
    engine_needed(request.snapshot)
    return find_service(request.snapshot, app_id, service, image_id)
