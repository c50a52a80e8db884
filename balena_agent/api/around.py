"""What the HTTP API needs from the machine and the cloud: narrow ports, with honest stand-ins.

Theory: endpoints read the snapshot and submit commands; the few things that are neither come in
here, one callable or protocol each, so that this face imports no adapter. The defaults tell what a
device without that part would: no VPN, no LED, no cloud. Every member may be called from any
thread, has a deadline of its own and raises nothing but `AgentError`s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..core.errors import NotFound, Unavailable
from ..core.hardware import Metrics
from ..core.jsonread import Json


class Tags(Protocol):
    """The device's tags in the cloud."""

    def get(self) -> list[Json]:
        """`[{"id", "name", "value"}]`, asked from the cloud now. Unavailable."""

    def put(self, tags: Mapping[str, str]) -> None:
        """Keep these to be sent. Durable when it returns; the cloud gets them in its time."""


class HostConfig(Protocol):
    """`/v1/device/host-config` (spec 10 §8.12, §8.13)."""

    def read(self) -> dict[str, Json]:
        """The whole answer: `{"network": {...}}`."""

    def patch(self, network: Mapping[str, Json], force: bool) -> None:
        """Done when it returns. InvalidInput, Locked, or what the host says."""


class NoCloud:
    """`Tags` of a device that has no cloud: nothing is ever sent."""

    def get(self) -> list[Json]:
        raise Unavailable("This device is not connected to a cloud")

    def put(self, tags: Mapping[str, str]) -> None:
        pass


class NoHostConfig:
    """`HostConfig` where nobody knows how to set it. `hostname` tells the host's name."""

    def __init__(self, hostname: Callable[[], str] = lambda: "") -> None:
        self._hostname = hostname

    def read(self) -> dict[str, Json]:
        return {"network": {"hostname": self._hostname()}}

    def patch(self, network: Mapping[str, Json], force: bool) -> None:
        if network:
            raise Unavailable("The settings of this host cannot be changed here")


def _no_key(key: str) -> str:
    raise NotFound("No such key")


def _nothing() -> None:
    pass


def _no_addresses() -> tuple[str, ...]:
    return ()


def _nothing_to_fetch(force: bool, cancel: bool) -> None:
    pass


def _no_vpn() -> tuple[bool, bool]:
    return False, False


@dataclass(frozen=True, slots=True)
class Around:
    """See the module.

    rotate     puts a new key in the place of the given one and returns it; NotFound
    refresh    (force, cancel): fetch the target and apply it, in the background
    blink      shows the user which device it is; returns at once
    addresses  the device's IP addresses
    macs       the device's MAC addresses
    vpn        (enabled, connected)
    host_config, tags  see their protocols
    hardware   how the machine is doing, for /metrics
    version    the agent's own version, for /metrics
    """

    rotate: Callable[[str], str] = _no_key
    refresh: Callable[[bool, bool], object] = _nothing_to_fetch
    blink: Callable[[], None] = _nothing
    addresses: Callable[[], tuple[str, ...]] = _no_addresses
    macs: Callable[[], tuple[str, ...]] = _no_addresses
    vpn: Callable[[], tuple[bool, bool]] = _no_vpn
    host_config: HostConfig = field(default_factory=NoHostConfig)
    tags: Tags = field(default_factory=NoCloud)
    hardware: Callable[[], Metrics] = Metrics
    version: str = ""
