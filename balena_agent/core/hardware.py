"""How the machine is doing, and what of it is worth a report (spec 30 §12, spec 31 §6).

Theory: a report is a difference to what the cloud was last told and has acknowledged. Figures move
all the time, so they count in steps (`_STEPS`): only another step is news, and what is told then is
the figure itself. A device whose owner wants no metrics says null for each of them; since null is
then what was told last, it says so once. Under-voltage is a fault of the device and no metric.

Sizes are MiB, temperatures degrees Celsius; None is what this machine cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .jsonread import Json


@dataclass(frozen=True, slots=True)
class Metrics:
    """Percent, MiB, degrees Celsius; None or "" for what this machine cannot tell."""

    cpu_usage: int | None = None
    memory_usage: int | None = None
    memory_total: int | None = None
    storage_usage: int | None = None
    storage_total: int | None = None
    storage_block_device: str = ""
    cpu_temp: int | None = None
    cpu_id: str = ""
    is_undervolted: bool = False


FIELDS = (
    "cpu_usage", "memory_usage", "memory_total", "storage_usage", "storage_total",
    "storage_block_device", "cpu_temp", "cpu_id",
)  # fmt: skip
"""What HARDWARE_METRICS switches off."""

_STEPS: Mapping[str, int] = {"cpu_usage": 20, "cpu_temp": 5, "memory_usage": 10}


def report(metrics: Metrics, wanted: bool) -> dict[str, Json]:
    """The members of the device's report. What is not known is left out."""
    told: dict[str, Json] = {"is_undervolted": metrics.is_undervolted}
    if not wanted:
        return told | dict.fromkeys(FIELDS)
    known = ((name, getattr(metrics, name)) for name in FIELDS)
    return told | {name: value for name, value in known if value not in (None, "")}


def news(told: Mapping[str, Json], now: Mapping[str, Json]) -> dict[str, Json]:
    """What of `now` the cloud shall hear, that has acknowledged `told`."""
    return {
        name: value
        for name, value in now.items()
        if name not in told or _step(name, told[name]) != _step(name, value)
    }


def _step(name: str, value: Json) -> Json:
    size = _STEPS.get(name)
    return value // size if size and isinstance(value, int) else value
