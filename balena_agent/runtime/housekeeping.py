"""Housekeeping: what is no longer true is forgotten, what has been reached is noted.

Theory: notes and intents are about things that come and go without us. Before every plan they are
held against what was last seen, so that nothing outlives what it is about. What has not been seen
yet is not judged.

Invariant: used by the reconciler's thread alone, which also publishes what is changed here.
"""

from __future__ import annotations

import logging

from ..core.origins import to_note
from ..core.plan import Plan
from ..core.target import images_to_run
from .borrowing import Borrowing
from .commands import Commands
from .damper import Damper
from .notes import Notes
from .state import Present
from .world import World

_log = logging.getLogger(__name__)


class Housekeeping:
    """See the module."""

    def __init__(
        self,
        present: Present,
        world: World,
        notes: Notes,
        damper: Damper,
        commands: Commands,
        borrowing: Borrowing,
    ) -> None:
        self._present = present
        self._world = world
        self._notes = notes
        self._damper = damper
        self._commands = commands
        self._borrowing = borrowing

    def tidy(self) -> None:
        """Forget what no longer exists: notes on containers, met intents, images without use."""
        if not self._present.now.looked:
            return
        observed = self._world.observed
        notes = self._notes
        noted = notes.stopped_by_agent.keys() | notes.origins.keys() | notes.joined.keys()
        gone = self._world.gone() | (noted - observed.containers.keys())
        if gone:
            self._world.forget(gone)
            self._notes.forget(gone)
        self._notes.came_from(to_note(self._present.now.desired, observed, self._notes.origins))
        self._commands.prune()
        images = (
            images_to_run(self._present.now.target) if self._present.now.target else frozenset()
        )
        self._notes.own(images - self._borrowing.found(self._present.now, observed))
        self._notes.disown_absent(images, observed)

    def save_commits(self, planned: Plan) -> None:
        """Note the releases that are wholly applied. Nothing of them needs to be forced now."""
        self._commands.release_settled(planned.settled_apps)
        for app in self._present.now.desired.apps:
            applied = app.commit and app.uuid in planned.settled_apps
            if applied and self._notes.commit(app.uuid, app.app_id, app.commit):
                _log.info("Finished applying release %s of %s", app.commit, app.name or app.uuid)
        self._present.change(commits=self._notes.commits)
