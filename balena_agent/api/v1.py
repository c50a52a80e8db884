"""The endpoints under `/v1`, and `/ping` (spec 10 §8.1, §8.2, §8.6)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..core.intent import Power
from .checks import engine_needed
from .exchange import (
    TEXT_TYPE,
    Answer,
    Endpoint,
    Request,
    go_failure,
    json_answer,
    query_failure,
    text_answer,
)
from .patience import Patience

_log = logging.getLogger(__name__)

Healthy = Callable[[], bool]


class V1:
    """`healthy` says whether the agent is well and reaches its cloud; `limit` is how long a request
    may wait."""

    def __init__(self, patience: Patience, healthy: Healthy, limit: float) -> None:
        self._patience = patience
        self._healthy = healthy
        self._limit = limit

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("GET", "/ping", self.ping, query_failure),
            Endpoint("GET", "/v1/healthy", self.healthy, query_failure),
            Endpoint("POST", "/v1/reboot", self.reboot, go_failure),
            Endpoint("POST", "/v1/shutdown", self.shutdown, go_failure),
        )

    def ping(self, _: Request) -> Answer:
        """`OK`, whatever the state of the world."""
        return text_answer("OK")

    def healthy(self, _: Request) -> Answer:
        """200 `OK` or 500 `Unhealthy`; a check that fails to tell counts as unhealthy."""
        try:
            well = self._healthy()
        except Exception:
            _log.exception("the health check failed")
            well = False
        return text_answer("OK", 200, TEXT_TYPE) if well else text_answer("Unhealthy", 500)

    def reboot(self, request: Request) -> Answer:
        return self._power(request, off=False)

    def shutdown(self, request: Request) -> Answer:
        return self._power(request, off=True)

    def _power(self, request: Request, off: bool) -> Answer:
        """202 once the host has accepted; 423 for a lock, 500 for everything else (spec 10 §8.6).

        Without the engine nobody knows whose locks would have to be asked: only force goes on.
        """
        force = request.flag("force")
        if not force:
            engine_needed(request.snapshot)
        asked = Power(off, force, request.who)
        self._patience.met(asked, self._limit, request.left, urgent=True)
        return json_answer({"Data": "OK", "Error": ""}, 202)
