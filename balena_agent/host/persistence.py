"""Whether the journal is kept over a reboot (spec 30 §15.4).

Theory: on a generic host journald is told with a drop-in and restarted: running services keep
their streams to it, no line is lost, and no reboot is needed. On balenaOS the directory of the
kept journal is only mounted at boot, so there config.json alone decides, and a reboot follows.

/etc is read-only to the agent, so the drop-in stands in /run, which counts for journald just the
same, and is written anew by every start of the agent.
"""

from __future__ import annotations

from pathlib import Path

from ..core.errors import Unavailable
from .machine import write_durable
from .systemd import Systemd

UNIT = "systemd-journald.service"
DROP_IN = "/run/systemd/journald.conf.d/50-balena-agent.conf"


class JournalKeeping:
    """Calls from any thread but the bus thread."""

    def __init__(self, systemd: Systemd, drop_in: str = DROP_IN) -> None:
        self._systemd = systemd
        self._drop_in = Path(drop_in)

    def kept(self) -> bool | None:
        """What we have asked for; None when we never did since the boot."""
        try:
            return "persistent" in self._drop_in.read_text()
        except OSError:
            return None

    def keep(self, wanted: bool) -> None:
        """Keep the journal, or keep it in memory only; at once. RefusedByHost, Unavailable."""
        if wanted == self.kept():
            return
        text = f"[Journal]\nStorage={'persistent' if wanted else 'volatile'}\n"
        try:
            self._drop_in.parent.mkdir(0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"{self._drop_in.parent}: {error.strerror}") from error
        write_durable(self._drop_in, text.encode(), 0o644)
        self._systemd.restart(UNIT)
