"""Whether the journal is kept over a reboot (spec 30 §15.4).

Theory: on a generic host journald is told with a drop-in and restarted: running services keep
their streams to it, no line is lost, and no reboot is needed. Without the drop-in the host's own
configuration counts. On balenaOS the directory of the
kept journal is only mounted at boot, so there config.json alone decides, and a reboot follows.

/etc is read-only to the agent, so the drop-in stands in /run, which counts for journald just the
same, and is written anew by every start of the agent.
"""

from __future__ import annotations

from pathlib import Path

from ..core.errors import Unavailable
from ..core.switches import OWN, PERSISTENT, VOLATILE
from .machine import write_durable
from .systemd import Systemd

UNIT = "systemd-journald.service"
DROP_IN = "/run/systemd/journald.conf.d/50-balena-agent.conf"


class JournalKeeping:
    """Calls from any thread but the bus thread."""

    def __init__(self, systemd: Systemd, drop_in: str = DROP_IN) -> None:
        self._systemd = systemd
        self._drop_in = Path(drop_in)

    def setting(self) -> str:
        """What we have asked for since the boot: persistent, volatile, or nothing: own."""
        try:
            text = self._drop_in.read_text(errors="replace")
        except OSError:
            return OWN
        return PERSISTENT if PERSISTENT in text else VOLATILE

    def keep(self, wanted: str) -> None:
        """Keep the journal on disk (`persistent`), in memory only (`volatile`), or as the host has
        it (`own`); at once. RefusedByHost, Unavailable."""
        if wanted == self.setting():
            return
        try:
            if wanted == OWN:
                self._drop_in.unlink(missing_ok=True)
            else:
                self._drop_in.parent.mkdir(0o755, parents=True, exist_ok=True)
                text = f"[Journal]\nStorage={wanted}\n"
                write_durable(self._drop_in, text.encode(), 0o644)
        except OSError as error:
            raise Unavailable(f"{self._drop_in}: {error.strerror}") from error
        self._systemd.restart(UNIT)
