"""The host's name, through hostnamed; Avahi is told, because it does not find out by itself.

Theory: hostnamed sets name and file at once and refuses what is no name (spec 30 §6.6). Where
/etc/hostname is a mount, as on balenaOS, it cannot replace the file: then we write the file in
place and ask hostnamed for the transient name, which makes it give the kernel the static one. So
nobody needs the right to name the machine but hostnamed.

Where the OS has a unit that makes the name from config.json, that unit does it all, some moments
after the file has changed. It is waited for: one that fails, or never runs, is no success.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable

from ..core.errors import AgentError, Broken, RefusedByHost, Unavailable
from .bus import Bus
from .machine import read_hostname
from .systemd import Systemd
from .wire import DAEMON, DAEMON_PATH, PROPERTIES, BusRefusal, Match, Signal

SERVICE = "org.freedesktop.hostname1"
PATH = "/org/freedesktop/hostname1"
AVAHI = "org.freedesktop.Avahi"
OS_UNITS = ("balena-hostname.service", "resin-hostname.service")

_AVAHI_SERVER = "org.freedesktop.Avahi.Server"
_SAME_NAME = "org.freedesktop.Avahi.NoChangeError"
_INVALID = "org.freedesktop.DBus.Error.InvalidArgs"
_LIMIT = 25.0
_OS_LIMIT = 15.0
_OS_LOOK = 0.2

_log = logging.getLogger(__name__)


class Hostname:
    """Calls from any thread but the bus thread. `file` is /etc/hostname; `remember` writes a name
    into config.json where the host has one, and gives what restores it. `patience` is for how many
    seconds the OS's own unit is waited for."""

    def __init__(
        self,
        bus: Bus,
        systemd: Systemd,
        file: str,
        remember: Callable[[str], Callable[[], object]],
        patience: float = _OS_LIMIT,
    ) -> None:
        self._bus = bus
        self._systemd = systemd
        self._file = file
        self._remember = remember
        self._patience = patience

    def read(self) -> str:
        """The static name, else the one in use; from the file where hostnamed does not answer."""
        with contextlib.suppress(AgentError):
            for name in ("StaticHostname", "Hostname"):
                if value := str(self._bus.get_property(SERVICE, PATH, SERVICE, name, 5.0)):
                    return value
        return read_hostname(self._file)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Tell when anybody has given the host another name. The callback runs in the bus thread
        and must not wait for the bus. BusUnavailable."""

        def told(_: Signal) -> None:
            callback()

        match = Match(sender=SERVICE, path=PATH, interface=PROPERTIES, arg0=SERVICE)
        self._bus.subscribe(match, told)

    def tell_others(self, name: str) -> None:
        """Somebody else has named the host: an Avahi that runs is told. Never raises."""
        with contextlib.suppress(AgentError):
            (runs,) = self._bus.call(
                DAEMON, DAEMON_PATH, DAEMON, "NameHasOwner", "s", (AVAHI,), timeout=5.0
            )
            if runs:
                self._announce(name)

    def set(self, name: str) -> None:
        """Make this the host's name, and see that it is. RefusedByHost, Unavailable."""
        restore = self._remember(name)
        try:
            if unit := self._os_unit():
                self._await(unit, name)
                return
            self._set(name)
        except AgentError:
            with contextlib.suppress(AgentError):
                restore()
            raise
        self._announce(name)

    def _os_unit(self) -> str:
        """The OS's own unit for the name, "" where there is none."""
        units = self._systemd.units(OS_UNITS)
        return next((name for name, unit in units.items() if unit.exists), "")

    def _await(self, unit: str, name: str) -> None:
        """Until the OS has given the host this name. Unavailable: it has not in time."""
        until = time.monotonic() + self._patience
        while (os.uname().nodename, found := self.read()) != (name, name):
            if time.monotonic() >= until:
                state = self._systemd.unit(unit).active
                raise Unavailable(
                    f"the host is still called {found}: {unit} ({state}) has not given it the name"
                    f" {name} within {self._patience:g} s"
                )
            time.sleep(_OS_LOOK)

    def _set(self, name: str) -> None:
        try:
            self._call("SetStaticHostname", name)
        except BusRefusal as refusal:
            if refusal.error_name == _INVALID:
                raise
            _log.info("hostnamed cannot replace %s (%s): writing into it", self._file, refusal)
            self._write_in_place(name)
        if os.uname().nodename != name:  # hostnamed looks no further when the file has it already
            self._call("SetHostname", name)
        if (found := self.read()) != name:
            raise RefusedByHost(f"the host is still called {found}")

    def _write_in_place(self, name: str) -> None:
        try:
            with open(self._file, "r+", encoding="utf-8") as file:
                file.write(name + "\n")
                file.truncate()
        except OSError as error:
            raise Unavailable(f"{self._file} cannot be written: {error.strerror}") from error

    def _call(self, member: str, name: str) -> None:
        self._bus.call(SERVICE, PATH, SERVICE, member, "sb", (name, False), timeout=_LIMIT)

    def _announce(self, name: str) -> None:
        """Only the first label: what Avahi serves is a `.local` name. No Avahi is no error."""
        try:
            label = name.partition(".")[0]
            self._bus.call(AVAHI, "/", _AVAHI_SERVER, "SetHostName", "s", (label,), timeout=5.0)
        except BusRefusal as refusal:
            if refusal.error_name != _SAME_NAME:
                _log.warning("Avahi does not take the new host name: %s", refusal)
        except Broken:
            raise
        except AgentError as error:
            _log.debug("Avahi is not told the new host name: %s", error)
