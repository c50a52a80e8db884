"""Restart and purge of whole apps, and the clean-up of volumes (spec 10 §8.7, §8.8, §8.17, §8.24).

Theory: each of them is one command, answered when the world shows that it is met: the app is up
again, the volumes are gone. The two generations of paths differ in where the app's id stands and
in how a fault of the caller looks; for everything else they share one shape.
"""

from __future__ import annotations

from dataclasses import replace

from ..core.errors import AccessDenied, AgentError, Locked
from ..core.intent import AppCommand, CleanupVolumes, PurgeApp, RestartApp
from ..core.jsonread import whole_number
from .checks import engine_needed
from .exchange import Answer, Endpoint, Request, failed, json_answer, query_failure, text_answer
from .patience import Patience

NO_APP_ID = "Missing app id"
NO_APP_TO_PURGE = "Invalid or missing appId"

_APP = "/v2/applications/<app_id>/"


class Apps:
    """`limit` is how long a request may wait for its command, in seconds."""

    def __init__(self, patience: Patience, limit: float) -> None:
        self._patience = patience
        self._limit = limit

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("POST", "/v1/restart", self.restart_v1, app_failure),
            Endpoint("POST", "/v1/purge", self.purge_v1, app_failure),
            Endpoint("POST", _APP + "restart", self.restart, app_failure),
            Endpoint("POST", _APP + "purge", self.purge, app_failure),
            Endpoint("GET", "/v2/cleanup-volumes", self.clean_up, app_failure),
        )

    def restart_v1(self, request: Request) -> Answer:
        """`OK` when every container of the app has been made anew and started."""
        app_id = request.number("appId")
        if app_id is None:
            return text_answer(NO_APP_ID, 400)
        self._do(request, RestartApp(_reached(request, app_id), request.flag("force")))
        return text_answer("OK")

    def purge_v1(self, request: Request) -> Answer:
        """The same, and its volumes are empty."""
        app_id = request.number("appId")
        if app_id is None:
            return text_answer(NO_APP_TO_PURGE, 400)
        self._do(request, PurgeApp(_reached(request, app_id), request.flag("force")))
        return json_answer({"Data": "OK", "Error": ""})

    def restart(self, request: Request) -> Answer:
        app_id = whole_number(request.path["app_id"])
        if not app_id:
            return failed(NO_APP_ID, 400)
        self._do(request, RestartApp(_reached(request, app_id), request.flag("force")))
        return text_answer("OK")

    def purge(self, request: Request) -> Answer:
        app_id = whole_number(request.path["app_id"])
        if not app_id:
            return failed(NO_APP_ID, 400)
        self._do(request, PurgeApp(_reached(request, app_id), request.flag("force")))
        return text_answer("OK")

    def clean_up(self, request: Request) -> Answer:
        """Volumes that nobody needs are gone; with an app's key only that app's."""
        scope = request.scope
        self._do(request, CleanupVolumes(None if scope.everything else scope.app_id))
        return json_answer({"status": "success"})

    def _do(self, request: Request, command: AppCommand) -> None:
        engine_needed(request.snapshot)
        self._patience.met(command, self._limit, request.left)


def app_failure(error: AgentError) -> Answer:
    """JSON for everything: 401, 423, and 503 for the rest, an unknown app included."""
    answer = query_failure(error)
    return answer if isinstance(error, (AccessDenied, Locked)) else replace(answer, status=503)


def _reached(request: Request, app_id: int) -> int:
    """The app's id, if the caller's key reaches the app. AccessDenied."""
    if not request.scope.in_scope(app_id):
        raise AccessDenied("Unauthorized")
    return app_id
