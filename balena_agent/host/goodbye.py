"""A moment before every shutdown of the host, whoever asks for it.

Theory: logind lets those who hold a delay inhibitor finish first, for five seconds by default. We
hold one all the time; when a shutdown begins, our last work is done in a thread of its own and the
inhibitor is given back, or logind goes on without us. A shutdown that is called off gets us the
inhibitor again. Whoever comes late hears no signal: so when we have begun to listen, logind is
asked once whether a shutdown is under way already. Without logind there is no such moment, and
nothing else is different: systemd stops us in any case (spec 30 §7, architecture B9).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from ..core.errors import AgentError
from .logind import DelayLock, Logind

_log = logging.getLogger(__name__)

WHY = "stopping services"


class Goodbye:
    """`last_work` is called when a shutdown begins, `carry_on` when it is called off; both may
    take their time and must not raise."""

    def __init__(
        self, logind: Logind, last_work: Callable[[], None], carry_on: Callable[[], None]
    ) -> None:
        self._logind = logind
        self._last_work = last_work
        self._carry_on = carry_on
        self._lock: DelayLock | None = None
        self._ending = False
        self._mutex = threading.Lock()

    def start(self) -> None:
        """Take the inhibitor and listen. Without logind that is told once, and left."""
        try:
            self._logind.on_shutdown(self._told)
        except AgentError as error:
            _log.info("Nobody will tell of shutdowns: %s", error)
            return
        self._take()
        with contextlib.suppress(AgentError):  # then there is no more than the signal
            if self._logind.preparing_for_shutdown():
                self._told(True)

    def close(self) -> None:
        """Give the inhibitor back."""
        with self._mutex:
            lock, self._lock = self._lock, None
        if lock:
            lock.release()

    def _told(self, begins: bool) -> None:
        """In the bus thread, or at the start. The same news twice is no news."""
        with self._mutex:
            if begins is self._ending:
                return
            self._ending = begins
        work = self._finish if begins else self._resume
        threading.Thread(target=work, name="goodbye", daemon=True).start()

    def _finish(self) -> None:
        _log.info("The host is shutting down")
        try:
            self._last_work()
        finally:
            self.close()

    def _resume(self) -> None:
        _log.info("The shutdown was called off")
        self._take()
        self._carry_on()

    def _take(self) -> None:
        try:
            lock = self._logind.delay_shutdown(WHY)
        except AgentError as error:
            _log.info("Shutdowns will not wait for the agent: %s", error)
            return
        with self._mutex:
            former, self._lock = self._lock, lock
        if former:
            former.release()
