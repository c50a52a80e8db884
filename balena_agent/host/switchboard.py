"""What a variable switches on this host: found out with one look, changed by the part itself.

Theory: core/switches.py says what the settings mean; here they are read off units and files. A unit
that the administrator has masked, or that is not there, is no switch of ours: it is left out, and
why stands in `absent`. That a change has come about is seen by looking again: a unit whose
condition is not met ends its start well and does not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.errors import RefusedByHost
from ..core.steps import SwitchFeature
from ..core.switches import DISCOVERY, IDLE, JOURNAL, OFF, ON, VPN
from . import discovery, vpn
from .discovery import Discovery
from .persistence import JournalKeeping
from .systemd import Systemd, UnitState
from .vpn import Vpn

_LOOK_SECONDS = 5.0
_AT_REST = ("inactive", "deactivating", "failed")
_OURS = "masked-runtime"
_UNITS: Mapping[str, str] = {VPN: vpn.UNIT, DISCOVERY: discovery.UNITS[1]}


@dataclass(frozen=True, slots=True)
class Found:
    """The setting of every switch that this host has; why it has not the others."""

    settings: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    vpn_connected: bool = False


class Switchboard:
    """Calls from any thread but the bus thread. `vpn_connected` is the file by which the VPN's
    scripts say that it is connected."""

    def __init__(
        self, systemd: Systemd, keeping: JournalKeeping, vpn_connected: str = vpn.CONNECTED
    ) -> None:
        self._systemd = systemd
        self._keeping = keeping
        self._vpn = Vpn(systemd, vpn_connected)
        self._discovery = Discovery(systemd)

    def read(self) -> Found:
        """How things are. BusUnavailable, DeadlineExceeded."""
        settings, absent = {JOURNAL: self._keeping.setting()}, {}
        units = self._systemd.units(_UNITS.values(), _LOOK_SECONDS)
        for switch, name in _UNITS.items():
            unit = units[name]
            if setting := self._setting(unit):
                settings[switch] = setting
            else:
                masked = unit.load == "masked"
                absent[switch] = f"{name} is masked" if masked else f"there is no {name}"
        return Found(settings, absent, self._vpn.connected())

    def perform(self, step: SwitchFeature) -> None:
        """Switch, and see that it is done. RefusedByHost, Unavailable."""
        match step.switch:
            case "vpn":
                self._vpn.set(step.setting == ON)
            case "discoverability":
                self._discovery.set(step.setting == ON)
            case _:
                self._keeping.keep(step.setting)
        now = self.read().settings.get(step.switch)
        if now != step.setting:
            raise RefusedByHost(f"{step.switch} is {now or 'not there'} all the same")

    def _setting(self, unit: UnitState) -> str:
        """ "" for a unit that is not ours to switch."""
        if unit.load == "masked":
            if self._systemd.unit_property(unit.path, "UnitFileState") != _OURS:
                return ""
            return OFF if unit.active in _AT_REST else ON
        if not unit.exists:
            return ""
        return IDLE if unit.active in _AT_REST else ON
