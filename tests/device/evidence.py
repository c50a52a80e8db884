"""What a failing call shows: the last words of a device, from wherever they can be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .disk import Paths
from .outer import DeviceError

if TYPE_CHECKING:
    from .machine import Machine


def last_lines(machine: Machine, paths: Paths, unit: str = "", lines: int = 30) -> str:
    """Never fails itself: it is called when something else has failed."""
    parts = []
    with contextlib.suppress(OSError, DeviceError):
        for part in _parts(machine, paths, unit, lines):
            parts.append(part)
    return "\n".join(parts)


def _parts(machine: Machine, paths: Paths, unit: str, lines: int) -> Iterator[str]:
    for title, path in (("console", paths.console), ("keeper", paths.home / "keeper.log")):
        text = path.read_text(errors="replace") if path.exists() else ""
        # A running device says the interesting things in its journal; one that goes down or comes
        # up has no journal, and says on its console what it waits for.
        if text:
            said = [line for line in text.splitlines() if line.strip()]
            yield "\n".join([f"--- {title}", *said[-(10 if unit and machine.on else lines) :]])
    if unit and machine.on:
        status = machine.exec("systemctl", "status", "--no-pager", "-n0", unit, check=False)
        yield "--- systemctl status\n" + status.stdout + status.stderr
        yield "--- journal of the unit\n" + machine.journal("-u", unit, lines=lines)
    yield "--- journal\n" + machine.journal(lines=lines)
