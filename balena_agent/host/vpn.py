"""The VPN's unit and whether it is connected (spec 30 §10).

Theory: the unit belongs to the OS. Switching off is a mask at run time and a stop: other units
cannot revive it meanwhile, and a reboot undoes it, so a broken agent cannot lock the owner out.
Connected is what the VPN's own scripts say with a file. No such unit is a state, not an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.errors import AgentError
from .systemd import Systemd

UNIT = "openvpn.service"
CONNECTED = "/run/openvpn/vpn_status/active"


@dataclass(frozen=True, slots=True)
class VpnState:
    """`available` is False on a host without the unit."""

    available: bool
    enabled: bool
    connected: bool


class Vpn:
    """Calls from any thread but the bus thread."""

    def __init__(self, systemd: Systemd, connected: str = CONNECTED) -> None:
        self._systemd = systemd
        self._connected = Path(connected)

    def connected(self) -> bool:
        """What the VPN's own scripts say now."""
        return self._connected.exists()

    def state(self) -> VpnState:
        """As it is now. Where the bus does not answer the unit counts as absent."""
        try:
            unit = self._systemd.unit(UNIT)
        except AgentError:
            return VpnState(False, False, self.connected())
        enabled = unit.exists and unit.active not in ("inactive", "deactivating")
        return VpnState(unit.exists, enabled, self.connected())

    def set(self, enabled: bool) -> None:
        """RefusedByHost, Unavailable. Nothing is done on a host without the unit."""
        unit = self._systemd.unit(UNIT)
        if unit.load == "not-found":
            return
        if enabled:
            self._systemd.unmask((UNIT,))
            self._systemd.start(UNIT)
        else:
            self._systemd.mask((UNIT,))
            self._systemd.stop(UNIT)
