"""Word left on the host that a change waits for a reboot, and which boot this is.

Theory (spec 20 §20.1, spec 30 §5): our own word is a file in the run directory with the id of the
boot that it is about; it goes with the boot, and no clock step can touch it. Beside it the peer's
empty file is made for outside readers, and theirs is heeded: what counts there is that it is
younger than the boot. It lies below /tmp, so only root's own counts.

The boot is taken to begin with the first process of the system, which in a container is not the
start of the kernel. It is fixed when the agent starts: what was younger once stays younger.

Callable from any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from ..core.errors import Unavailable
from .machine import boot_id, write_durable

OURS = "reboot-required"
PEERS = "reboot-after-apply"
FIRST_PROCESS = "/proc/1/stat"


class Breadcrumbs:
    """`run` is our run directory, `locks` the directory of update locks: the peer's file is
    beside it."""

    def __init__(self, run: str, locks: str, boot: str = "", booted: float | None = None) -> None:
        self.boot_id = boot or boot_id()
        self._mutex = threading.Lock()
        self._ours = Path(run) / OURS
        self._peers = Path(locks).parent / PEERS
        self._booted = _booted() if booted is None else booted
        known = self._booted is not None
        form = "%Y-%m-%dT%H:%M:%S"
        self.booted_at = time.strftime(form, time.gmtime(self._booted)) if known else ""

    def reboot_required(self) -> bool:
        """Whether somebody left word in this boot."""
        return self._ours_counts() or self._peers_counts()

    def add(self, reasons: Iterable[str]) -> tuple[str, ...]:
        """Leave word, for these reasons too; those that are new. Unavailable."""
        with self._mutex:
            known = self.reasons()
            new = tuple(reason for reason in dict.fromkeys(reasons) if reason not in known)
            try:
                self._leave_ours((*known, *new))
                self._peers.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                self._touch_peers()
            except OSError as error:
                raise Unavailable(f"no reboot can be scheduled: {error}") from error
            return new

    def drop(self, reasons: Iterable[str]) -> None:
        """Take reasons back, because what they were for was not done. Unavailable."""
        with self._mutex:
            gone, known = set(reasons), self.reasons()
            left = tuple(reason for reason in known if reason not in gone)
            if left and left != known:
                self._leave_ours(left)
            elif known and not left:
                for path in (self._ours, self._peers):
                    with contextlib.suppress(OSError):
                        path.unlink()

    def consume(self) -> bool:
        """The reboot is about to be asked for. The peer's file would outlive it where /tmp is on
        disk, and a clock that starts anew would have the next boot heed it: so ours, which cannot,
        takes its place. Says whether it was there. Never fails: what is left is only told again."""
        if not self.boot_id or not self._peers_counts():
            return False
        with self._mutex, contextlib.suppress(Unavailable, OSError):
            self._leave_ours(self.reasons() or ("word was left from outside",))
            self._peers.unlink()
        return True

    def reasons(self) -> tuple[str, ...]:
        """Why the reboot is required, as far as we left word."""
        found = self._read().get("reasons") if self._ours_counts() else None
        return tuple(map(str, found)) if isinstance(found, list) else ()

    def _leave_ours(self, reasons: Iterable[str]) -> None:
        word = {"boot_id": self.boot_id, "reasons": list(dict.fromkeys(reasons))}
        self._ours.parent.mkdir(mode=0o755, exist_ok=True)
        write_durable(self._ours, json.dumps(word).encode(), 0o644)

    def _read(self) -> dict[str, object]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads(self._ours.read_bytes())
            return found if isinstance(found, dict) else {}
        return {}

    def _ours_counts(self) -> bool:
        return bool(self.boot_id) and self._read().get("boot_id") == self.boot_id

    def _peers_counts(self) -> bool:
        try:
            found = os.lstat(self._peers)
        except OSError:
            return False
        roots = stat.S_ISREG(found.st_mode) and found.st_uid in (0, os.geteuid())
        return roots and self._booted is not None and found.st_mtime > self._booted

    def _touch_peers(self) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(self._peers, flags, 0o644)
        try:
            os.utime(handle)
        finally:
            os.close(handle)


def _booted() -> float | None:
    """When the first process began, in wall time; None where that cannot be told."""
    try:
        fields = Path(FIRST_PROCESS).read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, IndexError):
        return None
