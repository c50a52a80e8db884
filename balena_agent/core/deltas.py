"""What the device variables say about deltas (spec 30 §3.1, spec 20 §18.8). Pure.

Version 3 alone is done: the engine applies it. Version 2 works on the engine's own directory
behind its back; a device that asks for it gets whole images, and is told so once. The variables
DELTA_APPLY_TIMEOUT and DELTA_RETRY_COUNT are about version 2 and have no effect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .jsonread import truth

VERSION = 3
_INTEGER = re.compile(r"\s*[+]?([0-9]{1,12})\s*\Z")


@dataclass(frozen=True, slots=True)
class DeltaSettings:
    """Times in seconds. `retry_interval` is the pause while the cloud is still at work."""

    wanted: bool = False
    version: int = VERSION
    request_timeout: float = 59.0
    retry_interval: float = 10.0

    @property
    def on(self) -> bool:
        return self.wanted and self.version == VERSION

    @property
    def notice(self) -> str:
        """What is odd about the settings, or ""."""
        if not self.wanted or self.on:
            return ""
        return f"deltas of version {self.version} are not done: images are downloaded as a whole"


def delta_settings(config: Mapping[str, str]) -> DeltaSettings:
    """The settings in the device variables, given without prefixes. What is no whole number is
    as good as not given."""
    default = DeltaSettings()

    def seconds(name: str, otherwise: float) -> float:
        return _whole(config.get(name), round(otherwise * 1000)) / 1000 or otherwise

    return DeltaSettings(
        wanted=truth(config.get("SUPERVISOR_DELTA")),
        version=_whole(config.get("SUPERVISOR_DELTA_VERSION"), VERSION),
        request_timeout=seconds("SUPERVISOR_DELTA_REQUEST_TIMEOUT", default.request_timeout),
        retry_interval=seconds("SUPERVISOR_DELTA_RETRY_INTERVAL", default.retry_interval),
    )


def _whole(text: str | None, otherwise: int) -> int:
    found = _INTEGER.match(text or "")
    return int(found[1]) if found else otherwise
