"""What the device variables say about deltas (spec 30 §3.1, spec 20 §18.8). Pure.

Version 3 alone is done: the engine applies it. Version 2 works on the engine's own directory
behind its back; a device that asks for it gets whole images, and is told so once. The variables
DELTA_APPLY_TIMEOUT and DELTA_RETRY_COUNT are about version 2 and have no effect.
"""

from __future__ import annotations

from dataclasses import dataclass

from .variables import DeviceSettings

VERSION = 3


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


def delta_settings(settings: DeviceSettings) -> DeltaSettings:
    """What the device's settings say about deltas. A time of 0 is as good as not given."""
    default = DeltaSettings()
    return DeltaSettings(
        wanted=settings.delta,
        version=settings.delta_version,
        request_timeout=settings.delta_request_timeout / 1000 or default.request_timeout,
        retry_interval=settings.delta_retry_interval / 1000 or default.retry_interval,
    )
