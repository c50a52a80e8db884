"""Many values of one figure, told in a few numbers; a benchmark's result, told as one JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping
from typing import Any


def summary(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Median, least and greatest; {} without values."""
    known = sorted(values)
    if not known:
        return {}
    figures = {"median": statistics.median(known), "min": known[0], "max": known[-1]}
    return {name: round(value, digits) for name, value in figures.items()}


def report(name: str, figures: Mapping[str, Any]) -> None:
    """Print the result, with what it was measured on."""
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0]}
    print(json.dumps({"benchmark": name, "machine": machine, **figures}, indent=1))
