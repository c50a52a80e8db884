"""The host's configuration in the reconciler's turn: what it is, and what a target asks of it.

Theory: core/hostconfig.py compares; this remembers the last comparison, because a turn comes with
every message and the files change rarely, and tells what has changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.hostconfig import HostConfig, HostPlan, plan_host
from ..core.snapshot import Snapshot
from ..core.variables import VARIABLES, DeviceSettings, changes
from . import telling
from .ports import Host

_IN_A_FILE = frozenset(variable.name for variable in VARIABLES if variable.config_key)


class Hosting:
    """Used by one thread. `look` comes first in a turn; `plan` and `config` are of that look."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._asked: tuple[Mapping[str, str], bool, HostConfig] | None = None
        self._settings: DeviceSettings | None = None
        self.config = HostConfig()
        self.plan = HostPlan()

    def look(self, now: Snapshot) -> None:
        """Take in the host as it is, and compare it with the target."""
        self.config = self._host.config()
        self._tell(now.settings)
        if now.target is None:
            self._asked, self.plan = None, HostPlan()
            return
        asked = (now.target.config, now.facts.managed, self.config)
        if asked != self._asked:
            self._asked = asked
            self.plan = plan_host(*asked)

    def notices(self) -> tuple[str, ...]:
        return (*self.config.problems, *self.plan.problems)

    def _tell(self, settings: DeviceSettings) -> None:
        """Variables that are in force without a step are told when they change; the others when
        their step is done."""
        if self._settings is not None:
            told = changes(self._settings, settings)
            telling.settings({k: v for k, v in told.items() if k not in _IN_A_FILE})
        self._settings = settings
