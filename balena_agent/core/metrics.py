"""The state of agent and services in the text format of Prometheus (ours: `GET /metrics`).

Theory: gauges of the current snapshot, nothing that would have to be counted or kept. Names and
labels are a promise to whoever has built a dashboard on them: they are only ever added. Series of
services are those of the apps that the reader may see; app names and service names are the target's
words and are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .describe import ServiceRow, service_rows
from .hardware import Metrics
from .scopes import Scope
from .snapshot import Snapshot
from .status import applying, local_mode

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with its series: (labels, value)."""

    name: str
    kind: str
    help: str
    series: tuple[tuple[Labels, float], ...]


def metrics(snapshot: Snapshot, scope: Scope, version: str) -> tuple[Metric, ...]:
    """All metrics of a snapshot; `version` is the agent's own."""
    rows = [row for row in service_rows(snapshot) if scope.in_scope(row.app_id)]
    return (*_agent(snapshot, version), *_services(snapshot, rows))


def device_metrics(found: Metrics, wanted: bool) -> Iterator[Metric]:
    """The machine's figures in base units; without them where the owner wants none."""
    known: tuple[tuple[str, str, int | None], ...] = (
        ("cpu_usage_percent", "Load of all cores since the last reading.", found.cpu_usage),
        ("cpu_temperature_celsius", "Temperature of the processor.", found.cpu_temp),
        (
            "memory_used_bytes",
            "Memory in use, caches aside.",
            _bytes(found.memory_usage),
        ),
        ("memory_bytes", "Memory of the machine.", _bytes(found.memory_total)),
        ("storage_used_bytes", "Used part of the data disk.", _bytes(found.storage_usage)),
        ("storage_bytes", "Size of the data partition.", _bytes(found.storage_total)),
    )
    for name, text, value in known if wanted else ():
        if value is not None:
            yield gauge(f"balena_device_{name}", text, value)
    text = "Whether the supply voltage is, or was in this boot, too low."
    yield gauge("balena_device_undervolted", text, found.is_undervolted)


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes << 20


def gauge(name: str, text: str, value: float) -> Metric:
    return Metric(name, "gauge", text, (({}, value),))


def _agent(snapshot: Snapshot, version: str) -> Iterator[Metric]:
    facts = snapshot.facts
    said = {"version": version, "compat_version": facts.compat_version}
    yield Metric("balena_agent_info", "gauge", "Versions, as labels.", ((said, 1),))
    for name, text, value in (
        ("managed", "Whether the device belongs to a cloud.", facts.managed),
        ("local_mode", "Whether targets come from local users.", local_mode(snapshot)),
        ("engine_up", "Whether the container engine answers.", snapshot.engine_up),
        ("update_pending", "Whether something is left to do or waited for.", applying(snapshot)),
        ("update_downloaded", "Whether an image of the pending update has been fetched.",
         snapshot.update_downloaded),
        ("update_failed", "Whether a step of the pending update has failed or is locked.",
         snapshot.update_failed),
        ("steps_running", "Steps under way.", len(snapshot.running)),
        ("waits", "Things that are waited for.", len(snapshot.plan.waits)),
        ("failures", "Steps that failed and are tried again.", len(snapshot.failures)),
        ("notices", "Remarks on the target that nobody needs to act on.", len(snapshot.notices)),
    ):  # fmt: skip
        yield gauge(f"balena_agent_{name}", text, value)


def _services(snapshot: Snapshot, rows: Iterable[ServiceRow]) -> Iterator[Metric]:
    known = [(_labels(row), row) for row in rows]
    containers = snapshot.observed.containers
    yield Metric(
        "balena_service_status", "gauge", "1 for the status that the service has.",
        tuple(({**labels, "status": row.status}, 1) for labels, row in known),
    )  # fmt: skip
    yield Metric(
        "balena_service_running", "gauge", "Whether the service's container runs.",
        tuple(
            (labels, row.container_id in containers and containers[row.container_id].running)
            for labels, row in known
        ),
    )  # fmt: skip
    yield Metric(
        "balena_service_download_percent", "gauge", "Progress of the download of its image.",
        tuple(
            (labels, row.download_progress)
            for labels, row in known
            if row.download_progress is not None
        ),
    )  # fmt: skip


def _labels(row: ServiceRow) -> dict[str, str]:
    return {"app_id": str(row.app_id), "app": row.app_name, "service": row.service}


def text_of(found: Iterable[Metric]) -> str:
    """The text format, version 0.0.4; a metric without series is left out."""
    return "".join(line + "\n" for metric in found if metric.series for line in _lines(metric))


def _lines(metric: Metric) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for labels, value in metric.series:
        named = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{metric.name}{f'{{{named}}}' if named else ''} {_number(value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
