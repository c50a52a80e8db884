"""What the peer does not have: `GET /metrics` and the description of this API.

Invariant: neither holds anything in memory. The description is read from the package when it is
asked for; the figures of the process come from /proc in the moment of the question.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..core.errors import Broken
from ..core.hardware import Metrics
from ..core.metrics import Metric, device_metrics, gauge, metrics, text_of
from .exchange import JSON_TYPE, Answer, Endpoint, Request, query_failure

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENAPI = Path(__file__).with_name("openapi.json")


class Ours:
    """`version` is the agent's own; `hardware` reads the machine's figures."""

    def __init__(self, version: str, hardware: Callable[[], Metrics] = Metrics) -> None:
        self._version = version
        self._hardware = hardware

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("GET", "/metrics", self.metrics, query_failure),
            Endpoint("GET", "/v2/openapi.json", self.openapi, query_failure),
        )

    def metrics(self, request: Request) -> Answer:
        """The agent's state, that of the services within scope, what the process uses, and how the
        machine is doing."""
        snapshot = request.snapshot
        found = (
            *metrics(snapshot, request.scope, self._version),
            *_process(),
            *device_metrics(self._hardware(), snapshot.settings.hardware_metrics),
        )
        return Answer(200, text_of(found).encode("utf-8", "replace"), METRICS_TYPE)

    def openapi(self, _: Request) -> Answer:
        """Every endpoint of this API, described in OpenAPI 3.1."""
        try:
            return Answer(200, OPENAPI.read_bytes(), JSON_TYPE)
        except OSError as error:
            raise Broken(f"The description is not installed: {error.strerror}") from error


def _process() -> Iterator[Metric]:
    """What the agent's process costs, under the names that all exporters use."""
    used = time.process_time()
    text = "User and system CPU time in seconds."
    yield Metric("process_cpu_seconds_total", "counter", text, (({}, used),))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(os.listdir("/proc/self/fd"))
    except (OSError, ValueError, IndexError):
        return
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    yield gauge("process_resident_memory_bytes", "Resident memory in bytes.", resident)
    yield gauge("process_open_fds", "Open file descriptors.", files)
