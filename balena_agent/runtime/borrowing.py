"""Local mode begins and ends: what there was is noted, what is left goes (core/borrowed.py).

Theory: level-triggered like everything else. Local mode without a note: take one, before anything
is planned. A note without local mode: it has ended, now or while no agent ran. What goes is put
into the intent, where the planner finds it; when nothing is left the user's target and the note
are forgotten, which makes the end durable.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ..core.borrowed import (
    Possessions,
    free,
    has_visitors,
    left_behind,
    possessions,
)
from ..core.errors import AgentError
from ..core.intent import Intent
from ..core.observed import Observed
from ..core.snapshot import Snapshot
from ..core.sources import LOCAL
from ..core.status import lent_to_user
from .ledger import Ledger
from .ports import Store

KEY = "before_local_mode"
"""The setting under which the note is stored."""

_log = logging.getLogger(__name__)


class Borrowing:
    """See the module. `before` is the note that the store has. Used by one thread."""

    def __init__(self, store: Store, ledger: Ledger, before: Possessions | None) -> None:
        self._store = store
        self._ledger = ledger
        self._before = before
        self._told: frozenset[str] = frozenset()
        self._spared: frozenset[str] = frozenset()

    def turn(self, now: Snapshot, observed: Observed) -> tuple[Intent, bool]:
        """The intent after this turn, and whether the user's target is to be forgotten now."""
        if not now.facts.managed:
            return now.intent, False
        if lent_to_user(now):
            self._begin(observed)
            return now.intent, False
        if self._before is None or now.source in ("", LOCAL):
            return now.intent, False  # as long as nobody else speaks, the user's things are needed
        return self._end(now, observed, self._before)

    def _begin(self, observed: Observed) -> None:
        if self._before is None:
            before = possessions(observed)
            self._save(before)
            self._before = before
            self._told = self._spared = frozenset()

    def _end(self, now: Snapshot, observed: Observed, before: Possessions) -> tuple[Intent, bool]:
        others = (kept.target for source, kept in now.targets.items() if source != LOCAL)
        left = left_behind(before, observed, (now.target, *others))
        if left is None:
            return now.intent, False
        self._tell(left)
        self._spared |= {n for n in left if self._ledger.errors_about({f"volume {n}"})}
        intent = now.intent
        going = free(left - self._spared, observed)
        cleanup = (intent.cleanup - self._spared) | going
        if cleanup != intent.cleanup:
            intent = replace(intent, cleanup=cleanup)
        if left - self._spared or has_visitors(observed, now.desired):
            return intent, False
        return intent, self._forget()

    def _tell(self, left: frozenset[str]) -> None:
        """What will go is told before anything goes."""
        for name in sorted(left - self._told):
            _log.info("Local mode has ended: volume %s goes, it came with it", name)
        self._told |= left

    def _forget(self) -> bool:
        try:
            self._store.forget_target(LOCAL)
            self._store.set_setting(KEY, None)
        except AgentError as error:
            _log.warning("Cannot note the end of local mode: %s", error.message)
            return False
        self._before = None
        return True

    def _save(self, before: Possessions) -> None:
        try:
            self._store.set_setting(KEY, before.to_json())
        except AgentError as error:
            _log.warning("Cannot note what there was before local mode: %s", error.message)
