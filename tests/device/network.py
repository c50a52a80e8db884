"""Addresses and the wire between a device and the outer machine.

Each device gets a /30 of its own out of a private test range: outer end .1, device .2 of it. The
device has no route beyond that, so a test cannot reach the world by mistake. The index that picks
the /30 also names the veth end, which keeps names short enough for the kernel (15 characters).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from .outer import DeviceError, run

RANGE = IPv4Network("192.168.231.0/24")
MAX_DEVICES = 60
INNER_INTERFACE = "host0"
PREFIX = "bavd"

KEYFILE = """\
[connection]
id=host0
type=ethernet
interface-name=host0
autoconnect=true

[ethernet]

[ipv4]
method=manual
address1={address}/30
never-default=true

[ipv6]
method=link-local
"""


@dataclass(frozen=True, slots=True)
class Link:
    """The wire of the device with this index."""

    index: int

    @property
    def outer_name(self) -> str:
        return f"{PREFIX}{self.index}"

    @property
    def outer_address(self) -> str:
        return str(RANGE[4 * self.index + 1])

    @property
    def address(self) -> str:
        return str(RANGE[4 * self.index + 2])

    @property
    def exists(self) -> bool:
        return Path(f"/sys/class/net/{self.outer_name}").exists()

    def keyfile(self) -> str:
        """NetworkManager's connection inside; without it, it asks for DHCP for ever."""
        return KEYFILE.format(address=self.address)

    def nspawn_arguments(self) -> list[str]:
        return ["--private-network", f"--network-veth-extra={self.outer_name}:{INNER_INTERFACE}"]

    def connect(self) -> None:
        """Give the outer end its address. Nothing on the outer machine would do it for us."""
        address = ["ip", "address", "replace", f"{self.outer_address}/30", "dev", self.outer_name]
        try:
            run(address)
            run(["ip", "link", "set", self.outer_name, "up"])
        except DeviceError:
            # A device that died at once took its wire along; its end tells more than this.
            if self.exists:
                raise

    def remove(self) -> None:
        """Usually gone with the device's network namespace; a killed one may need a moment."""
        if self.exists:
            run(["ip", "link", "delete", self.outer_name], check=False)


def free_index(taken: Iterable[int]) -> int | None:
    """Lowest index that no device has, or None when the range is full."""
    used = set(taken)
    return next((index for index in range(MAX_DEVICES) if index not in used), None)


def existing_indexes() -> set[int]:
    """Indexes of the veth ends of ours that exist on the outer machine."""
    names = (path.name for path in Path("/sys/class/net").iterdir())
    found = (re.fullmatch(rf"{PREFIX}(\d+)", name) for name in names)
    return {int(match[1]) for match in found if match}
