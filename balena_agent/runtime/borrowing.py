"""Local mode begins and ends: what there was is noted, what is left goes (core/borrowed.py).

Theory: level-triggered like everything else. Local mode without a note: take one, before anything
is planned. A note without local mode: it has ended, now or while no agent ran. What he has left is
noted then, before anything else is made. What goes is put into the intent, where the planner finds
it; when nothing is left the user's target and the note are forgotten, which makes the end durable.
What turns out not to go, because a stranger uses it say, is spared: it does not hold up the end.
Should the user come back before the end, nothing goes any more.

A device without a cloud is its user's: what was noted before counts no more. A target that he has
set there is forgotten as soon as a cloud's is in force.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..core.borrowed import (
    Left,
    Possessions,
    at_begin,
    found,
    has_visitors,
    kept,
    left_behind,
    used,
)
from ..core.errors import AgentError, EngineFailed
from ..core.images import names_of
from ..core.intent import Intent
from ..core.observed import Observed
from ..core.snapshot import Snapshot
from ..core.sources import LOCAL, is_cloud
from ..core.status import lent_to_user
from ..core.steps import Fetch, Step
from .ledger import Entry, Ledger
from .policy import Memory, Policy
from .ports import Store

KEY = "before_local_mode"
"""The setting under which the note is stored."""

TRIES = 3
"""So often in a row the removal of a thing may fail before it is spared."""

_log = logging.getLogger(__name__)


class Borrowing:
    """See the module. `under_way` gives the steps under way. Used by one thread."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        memory: Memory,
        policy: Policy,
        under_way: Callable[[], Mapping[str, Step]],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._before: Possessions | None = memory.before_local_mode
        self._stored = self._before
        self._policy = policy
        self._under_way = under_way
        self._told = self._spared = self._asked = Left()

    def turn(self, now: Snapshot, observed: Observed) -> tuple[Intent, bool]:
        """The intent after this turn, and whether the user's target is to be forgotten now."""
        lent = lent_to_user(now)
        if lent:
            self._begin(observed)
        elif not now.facts.managed:
            self._keep(None)
        if self._before is None:
            return self._intent(now, Left()), self._is_stale(now) and self._forget()
        if lent or not now.facts.managed or now.source in ("", LOCAL):
            # As long as nobody else speaks, the user's things are needed.
            return self._intent(now, Left()), False
        return self._end(now, observed, self._before)

    def found(self, now: Snapshot, observed: Observed) -> frozenset[str]:
        """See core/borrowed.py; none while the target in force is not the user's."""
        if self._before is None or now.target is None or now.source != LOCAL:
            return frozenset()
        return found(self._before, now.target, observed)

    def _begin(self, observed: Observed) -> None:
        before = at_begin(self._before, observed)
        if before != self._before:
            self._told = self._spared = Left()
        self._keep(before)

    def _is_stale(self, now: Snapshot) -> bool:
        """Whether a user's target is left from before there was a cloud."""
        if LOCAL not in now.targets or not is_cloud(now.source):
            return False
        _log.info("The device has the target of a cloud: the local one is forgotten")
        return True

    def _end(self, now: Snapshot, observed: Observed, before: Possessions) -> tuple[Intent, bool]:
        others = [each.target for source, each in now.targets.items() if source != LOCAL]
        left = left_behind(before, observed, (now.target, *others))
        if not self._keep(replace(before, left=left)) or None in others:
            return self._intent(now, Left()), False
        if self._policy.keeps_images(now.facts.managed) or self._fetching():
            left = replace(left, images=frozenset())
        self._tell(left, observed)
        self._spared |= self._refused(left, observed)
        left -= self._spared
        intent = self._intent(now, left - used(observed))
        waiting = left - kept(observed, now.desired) or self._fetching()
        if waiting or has_visitors(observed, now.desired):
            return intent, False
        return intent, self._forget()

    def _fetching(self) -> bool:
        """What comes just now may have no name yet."""
        return any(isinstance(step, Fetch) for step in self._under_way().values())

    def _intent(self, now: Snapshot, going: Left) -> Intent:
        """The standing intent with what goes now, and without what went before."""
        cleanup = (now.intent.cleanup - self._asked.volumes) | going.volumes
        self._asked = going
        if (cleanup, going.images) == (now.intent.cleanup, now.intent.images):
            return now.intent
        return replace(now.intent, cleanup=cleanup, images=going.images)

    def _refused(self, left: Left, observed: Observed) -> Left:
        """What cannot be removed: somebody uses it, or it has been tried often enough."""

        def failed(*subjects: str) -> bool:
            return any(map(_hopeless, self._ledger.about(subjects)))

        volumes = {name for name in left.volumes if failed(f"volume {name}")}
        images = {
            each
            for each in left.images
            if failed(*(f"image {name}" for name in names_of(observed.images[each])))
        }
        return Left(frozenset(volumes), frozenset(images))

    def _tell(self, left: Left, observed: Observed) -> None:
        """What will go is told before anything goes."""
        news = left - self._told
        named = {f"volume {name}" for name in news.volumes}
        named |= {f"image {', '.join(names_of(observed.images[i]))}" for i in news.images}
        for name in sorted(named):
            _log.info("Local mode has ended: %s goes, it came with it", name)
        self._told |= left

    def _forget(self) -> bool:
        try:
            self._store.forget_target(LOCAL)
            self._store.set_setting(KEY, None)
        except AgentError as error:
            _log.warning("Cannot note the end of local mode: %s", error.message)
            return False
        self._before = self._stored = None
        return True

    def _keep(self, before: Possessions | None) -> bool:
        """Note this; False if it is not stored yet. Then the next turn tries again."""
        self._before = before
        if before == self._stored:
            return True
        try:
            self._store.set_setting(KEY, before.to_json() if before else None)
        except AgentError as error:
            _log.warning("Cannot note what there was before local mode: %s", error.message)
            return False
        self._stored = before
        return True


def _hopeless(entry: Entry) -> bool:
    in_use = isinstance(entry.error, EngineFailed) and entry.error.in_use
    return in_use or entry.failure.count >= TRIES
