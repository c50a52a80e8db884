"""The machine's own figures, as one value (spec 30 §12)."""

from __future__ import annotations

from dataclasses import dataclass


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
