"""The note that this boot must not be the last word: something waits for a reboot.

Theory: the note is in /run and names the boot that it was left in, so it is gone after a reboot and
no step of the clock can make it look old (spec 30 §5 D). Other programs look for the peer's empty
file, which is left beside it and never read by us.

Callable from any thread.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable
from pathlib import Path

from ..core.errors import Unavailable
from .machine import write_durable

FILE = "reboot-required"
PEER_FILE = "reboot-after-apply"


class RebootBreadcrumb:
    """`run` is the agent's directory in /run, `peer` the directory that other programs look in."""

    def __init__(self, run: str, peer: str, boot_id: str) -> None:
        self._file = Path(run) / FILE
        self._peer = Path(peer) / PEER_FILE
        self._boot_id = boot_id
        self._lock = threading.Lock()

    def reasons(self) -> tuple[str, ...]:
        """Why a reboot is due, if one is. A note of another boot, or a damaged one, counts as none.

        Reasons are names of variables, or words for people.
        """
        try:
            known = json.loads(self._file.read_bytes())
            if known["boot_id"] == self._boot_id:
                return tuple(str(reason) for reason in known["reasons"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            pass
        return ()

    def add(self, reasons: Iterable[str]) -> tuple[str, ...]:
        """Leave these reasons too; the ones that are new. Unavailable: nothing is left."""
        with self._lock:
            known = self.reasons()
            new = tuple(reason for reason in dict.fromkeys(reasons) if reason not in known)
            if new:
                self._leave((*known, *new))
            return new

    def drop(self, reasons: Iterable[str]) -> None:
        """Take reasons back, because what they were for was not done. Unavailable."""
        with self._lock:
            gone, known = set(reasons), self.reasons()
            if gone.intersection(known):
                self._leave(tuple(reason for reason in known if reason not in gone))

    def _leave(self, reasons: tuple[str, ...]) -> None:
        if not reasons:
            for path in (self._file, self._peer):
                with contextlib.suppress(OSError):
                    path.unlink()
            return
        note = {"boot_id": self._boot_id, "reasons": list(reasons)}
        write_durable(self._file, json.dumps(note).encode(), 0o644)
        try:
            self._peer.parent.mkdir(parents=True, exist_ok=True)
            self._peer.touch()
        except OSError as error:
            raise Unavailable(f"{self._peer} cannot be left: {error.strerror}") from error
