"""The word of a new container that it has taken over: a file in its lock directory.

Theory (spec 20 §15.3): the directory is the one that the service sees as /tmp/balena; old and new
container share it. A file of either name, of any kind, is the signal, and is removed when it has
been seen. One that was there before the new container is of an earlier hand-over: so the files are
cleared before a container is created. There is no event to wait for that costs less than looking
ten times a second at two names while a hand-over lasts.

A directory that cannot be read holds no signal: then the time-out alone ends the wait.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from ..core.errors import Cancelled, Unavailable
from ..core.steps import AwaitHandover
from ..core.ticket import Ticket
from .locks import UpdateLocks, remove

FILES = ("handover-complete", "resin-kill-me")
PAUSE_SECONDS = 0.1


class Handovers:
    """Signals below the lock directories. Callable from any thread."""

    def __init__(self, locks: UpdateLocks, now: Callable[[], float] = time.monotonic) -> None:
        self._locks = locks
        self._now = now

    def clear(self, app_id: int, service: str) -> bool:
        """Remove the signal; says whether there was one."""
        found = False
        with contextlib.suppress(Unavailable), self._locks.directory(app_id, service) as here:
            for name in FILES:
                with contextlib.suppress(FileNotFoundError):
                    os.lstat(name, dir_fd=here)
                    found = True
                    remove(here, name)
        return found

    def wait(self, step: AwaitHandover, ticket: Ticket) -> None:
        """Return when the signal is there, which is then removed, or the time is up. Cancelled."""
        given_up = threading.Event()
        ticket.on_cancel(given_up.set)
        end = self._now() + step.timeout
        while not self.clear(step.app_id, step.service):
            left = end - self._now()
            if given_up.wait(min(PAUSE_SECONDS, max(0.0, left))):
                raise Cancelled("nobody waits for this hand-over any more")
            if left <= 0:
                return
