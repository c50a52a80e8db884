"""The cgroup of a device: everything that it runs is in there, and only that."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from .outer import DeviceError, wait_for


def kill(cgroup: Path) -> None:
    """Power cut: every process at once, before any of them can notice."""
    try:
        (cgroup / "cgroup.kill").write_text("1")
    except OSError as error:
        # Nothing runs there: it is gone, or goes between the opening and the writing.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def remove(cgroup: Path) -> None:
    """Deepest first; empty ones only. A dying process may hold one for a moment."""
    if not cgroup.exists():
        return

    def gone() -> bool:
        for directory, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        return not cgroup.exists()

    try:
        wait_for(gone, 5.0, f"{cgroup} empty")
    except DeviceError as error:
        print(error, file=sys.stderr)
