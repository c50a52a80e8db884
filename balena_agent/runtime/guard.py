"""The firewall follows the state: on every change that matters to it, and every minute anyway.

Theory: level-triggered like everything here. A published snapshot that asks for other rules only
means "look again"; the turn of a minute means the same, because other programs flush what they
like. What is compared and written is the adapter's work (host/firewall.py), what is wanted is
core/firewall.py's. A failure is told once, shown in the status line, and tried again.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from ..core.firewall import Wish, wish
from ..core.logline import TELL
from ..core.snapshot import Snapshot
from .state import Published

_log = logging.getLogger(__name__)

AUDIT_SECONDS = 50.0
"""What others have flushed is restored within a minute (H50); a look starts two programs."""

_DEPENDS_ON = ("target", "desired", "facts")
"""What of a snapshot the wish is made of."""


class Firewall(Protocol):
    def keep(self, wanted: Wish) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Bring about what is wanted; the families changed, and what could not be done."""


class Guard:
    """`start` once; `problem` says why the rules are not in force, or is ""."""

    def __init__(
        self, published: Published, firewall: Firewall, audit: float = AUDIT_SECONDS
    ) -> None:
        self._published = published
        self._firewall = firewall
        self._audit = audit
        self._last = published.current
        self._look = threading.Event()
        self._closed = False
        self._wanted: Wish | None = None
        self.problem = ""

    def start(self) -> None:
        """Bring about the rules at once, so that they stand before the API listens; then follow."""
        self.turn()
        self._published.subscribe(self._seen)
        threading.Thread(target=self._run, name="firewall", daemon=True).start()

    def close(self) -> None:
        """Follow no longer. The rules stay: they belong to the device, not to this process."""
        self._closed = True
        self._look.set()

    def turn(self) -> None:
        snapshot = self._published.current
        before, wanted = self._wanted, wish(snapshot)
        self._wanted = wanted  # before it is done: another wish may come while the programs run
        changed, problems = self._firewall.keep(wanted)
        if changed and before == wanted:
            _log.warning("Firewall rules were changed by others and are restored")
        elif changed:
            who = "everybody" if wanted.open_api else "containers, VPN and the host itself"
            _log.info("Firewall applied: mode %s, API for %s", wanted.why, who)
        self._tell("; ".join(problems))

    def _run(self) -> None:
        while not self._closed:
            self._look.wait(self._audit)
            self._look.clear()
            if self._closed:
                return
            try:
                self.turn()
            except Exception:
                _log.exception("the firewall cannot be looked after")

    def _seen(self, snapshot: Snapshot) -> None:
        """In the reconciler's thread. An engine that is back may have put rules before ours."""
        before, self._last = self._last, snapshot
        returned = snapshot.engine_up and not before.engine_up
        same = all(getattr(before, name) is getattr(snapshot, name) for name in _DEPENDS_ON)
        if returned or not (same or self._knows(snapshot)):
            self._look.set()

    def _knows(self, snapshot: Snapshot) -> bool:
        return wish(snapshot) == self._wanted

    def _tell(self, problem: str) -> None:
        if problem and problem != self.problem:
            _log.warning("Firewall mode not applied due to error: %s", problem, extra=TELL)
        self.problem = problem
