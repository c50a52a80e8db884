"""Whether the device can be found in its network by mDNS (spec 30 §14).

Theory: Avahi belongs to the OS, and so does what it announces. Hidden means that nobody can start
it: any call to its bus name would, so it is masked until the next boot at most. Where it is not
installed there is nothing to hide. The agent itself announces nothing but where it is asked to.
"""

from __future__ import annotations

from .bus import Bus
from .systemd import Systemd

UNITS = ("avahi-daemon.socket", "avahi-daemon.service")


class Discovery:
    """Calls from any thread but the bus thread. RefusedByHost, Unavailable."""

    def __init__(self, systemd: Systemd) -> None:
        self._systemd = systemd

    def set(self, wanted: bool) -> None:
        """Show or hide the device. Nothing is done on a host without Avahi."""
        known = self._systemd.units(UNITS)
        present = [name for name in UNITS if known[name].load != "not-found"]
        if not present:
            return
        if wanted:
            self._systemd.unmask(present)
        else:
            self._systemd.mask(present)
        for name in present:
            (self._systemd.start if wanted else self._systemd.stop)(name)


def announce(bus: Bus, port: int, version: str, profile: str) -> None:
    """Announce the device from now on, see avahi.announced. Returns at once, never raises."""
    from .avahi import Announcement, announced  # most devices never do

    Announcement(bus, announced(port, version, profile)).start()
