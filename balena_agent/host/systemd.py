"""org.freedesktop.systemd1: the state of the system and of units; starting and stopping them.

Theory: a unit is changed by a job, and the job's end is told by a signal that may come before the
answer to the call that made it. So the signal is subscribed to first, results are collected while
anybody waits, and the job's path picks the right one. A unit whose condition is not met ends its
start with `done` and stays inactive: that is no error, look at its state (spec 30 §19.1).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import DeadlineExceeded, RefusedByHost
from .bus import Bus
from .wire import BusRefusal, Match, Signal

SERVICE = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
MANAGER = SERVICE + ".Manager"

_JOB_LIMIT = 90.0


@dataclass(frozen=True, slots=True)
class UnitState:
    """A unit in systemd's words, e.g. `loaded`, `active`, `running`. `path` is its bus object."""

    name: str
    load: str
    active: str
    sub: str
    path: str

    @property
    def exists(self) -> bool:
        return self.load == "loaded"

    @property
    def running(self) -> bool:
        return self.active in ("active", "reloading")


class Systemd:
    """Calls from any thread but the bus thread. BusUnavailable, DeadlineExceeded."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._news = threading.Condition()
        self._subscribed = False
        self._waiting = 0
        self._results: dict[str, str] = {}

    def system_state(self) -> str:
        """`running`, `degraded`, `starting`, `stopping` ..."""
        return str(self._bus.get_property(SERVICE, PATH, MANAGER, "SystemState", 5.0))

    def is_stopping(self) -> bool:
        """Whether the whole host is going down."""
        return self.system_state() == "stopping"

    def units(self, names: Iterable[str], timeout: float = 25.0) -> Mapping[str, UnitState]:
        """The states of units, by the names asked for; `not-found` is a state as well."""
        wanted = list(names)
        (rows,) = self._call("ListUnitsByNames", "as", (wanted,), timeout)
        # A row bears the unit's own name, of which the one asked for may be an alias; but there is
        # one for each, in order, unless a name is none at all.
        names = wanted if len(wanted) == len(rows) else [row[0] for row in rows]
        return {
            name: UnitState(name=row[0], load=row[2], active=row[3], sub=row[4], path=row[6])
            for name, row in zip(names, rows, strict=True)
        }

    def unit(self, name: str) -> UnitState:
        """The state of one unit; `not-found` where there is none."""
        found = self.units([name])
        return found.get(name) or next(iter(found.values()))

    def unit_property(self, path: str, name: str) -> Any:
        """A property that every unit has, by the unit's bus object (`UnitState.path`)."""
        return self._bus.get_property(SERVICE, path, SERVICE + ".Unit", name, 5.0)

    def service_property(self, path: str, name: str) -> Any:
        """A property that only services have."""
        return self._bus.get_property(SERVICE, path, SERVICE + ".Service", name, 5.0)

    def start(self, name: str, timeout: float = _JOB_LIMIT) -> None:
        """Start a unit and wait until its job is done. RefusedByHost: no such unit, or failed."""
        self._run("StartUnit", name, timeout)

    def stop(self, name: str, timeout: float = _JOB_LIMIT) -> None:
        """Stop a unit and wait until its job is done. RefusedByHost."""
        self._run("StopUnit", name, timeout)

    def restart(self, name: str, timeout: float = _JOB_LIMIT) -> None:
        """Restart a unit, or start it, and wait until its job is done. RefusedByHost.

        A unit that was restarted too often of late would not come up again, whoever asked for it:
        what systemd counts of that is forgotten first."""
        with contextlib.suppress(RefusedByHost):  # it is not loaded: nothing is counted
            self._call("ResetFailedUnit", "s", (name,))
        self._run("RestartUnit", name, timeout)

    def mask(self, names: Iterable[str]) -> None:
        """Keep units from being started by anybody, until the next boot at most."""
        self._call("MaskUnitFiles", "asbb", (list(names), True, True))
        self._call("Reload")  # without it the mask has no effect (spec 30 §14)

    def unmask(self, names: Iterable[str]) -> None:
        """Take `mask` back; a mask that the administrator made stays."""
        self._call("UnmaskUnitFiles", "asb", (list(names), True))
        self._call("Reload")

    def _run(self, member: str, name: str, timeout: float) -> None:
        until = time.monotonic() + timeout
        with self._collecting():
            (job,) = self._call(member, "ss", (name, "replace"), timeout)
            result = self._result(job, until)
        if result not in ("done", "skipped"):
            verb = member.removesuffix("Unit").lower()
            raise RefusedByHost(f"{verb} of {name}: {result}")

    @contextlib.contextmanager
    def _collecting(self) -> Iterator[None]:
        """Keep the results of jobs while the block runs."""
        with self._news:
            self._waiting += 1
        try:
            self._subscribe()
            yield
        finally:
            with self._news:
                self._waiting -= 1
                if not self._waiting:
                    self._results.clear()

    def _subscribe(self) -> None:
        """Once per connection, because systemd tells nobody who did not ask."""
        if self._subscribed:
            return
        match = Match(sender=SERVICE, path=PATH, interface=MANAGER, member="JobRemoved")
        self._bus.subscribe(match, self._removed)
        try:
            self._call("Subscribe")
        except BusRefusal as refusal:
            if not refusal.error_name.endswith(".AlreadySubscribed"):
                raise
        self._subscribed = True

    def _removed(self, signal: Signal) -> None:
        _, job, _, result = signal.body
        with self._news:
            if self._waiting:
                self._results[job] = result
                self._news.notify_all()

    def _result(self, job: str, until: float) -> str:
        with self._news:
            while job not in self._results:
                left = until - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    raise DeadlineExceeded(f"{job} has not ended in its time")
            return self._results.pop(job)

    def _call(
        self, member: str, signature: str = "", body: tuple[Any, ...] = (), timeout: float = 25.0
    ) -> list[Any]:
        return self._bus.call(SERVICE, PATH, MANAGER, member, signature, body, timeout=timeout)
