"""The moment before a shutdown: taken, used once, and not missed by an agent that comes late."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from waiting import until

from balena_agent.core.errors import AgentError, BusUnavailable
from balena_agent.host.goodbye import Goodbye
from balena_agent.host.logind import DelayLock
from balena_agent.host.wire import BusRefusal

BUSY = BusRefusal("org.freedesktop.login1.OperationInProgress", "it is running already")


class Logind:
    """As much of logind as there is to hear; `preparing` may be an error to be raised."""

    def __init__(self, preparing: bool | AgentError = False, lock: AgentError | None = None):
        self.preparing = preparing
        self.lock = lock
        self.tell: Callable[[bool], None] = lambda begins: None
        self.held: list[int] = []

    def on_shutdown(self, callback: Callable[[bool], None]) -> None:
        if isinstance(self.preparing, BusUnavailable):
            raise self.preparing
        self.tell = callback

    def delay_shutdown(self, why: str) -> DelayLock:
        if self.lock:
            raise self.lock
        self.held.append(os.open(os.devnull, os.O_RDONLY))
        return DelayLock(self.held[-1])

    def preparing_for_shutdown(self) -> bool:
        if isinstance(self.preparing, AgentError):
            raise self.preparing
        return self.preparing

    def holds(self) -> bool:
        """Whether the last lock is still held."""
        with contextlib.suppress(OSError):
            return bool(self.held and os.fstat(self.held[-1]))
        return False


class Agent:
    """Counts what the goodbye asks of it."""

    def __init__(self, logind: Logind) -> None:
        self.ended = self.went_on = 0
        self.may_end = threading.Event()
        known: Any = logind
        self.goodbye = Goodbye(known, self._end, self._go_on)
        self.goodbye.start()

    def _end(self) -> None:
        self.ended += 1
        self.may_end.wait(5.0)

    def _go_on(self) -> None:
        self.went_on += 1


def test_the_moment_is_used_and_given_back() -> None:
    logind = Logind()
    agent = Agent(logind)
    assert logind.holds() and agent.ended == 0
    logind.tell(True)
    until(lambda: agent.ended == 1)
    assert logind.holds()
    agent.may_end.set()
    until(lambda: not logind.holds())
    logind.tell(False)
    until(lambda: agent.went_on == 1 and logind.holds())
    logind.tell(True)
    until(lambda: agent.ended == 2 and not logind.holds())


@pytest.mark.parametrize("lock", [None, BUSY])
def test_a_shutdown_that_was_under_way_before_the_agent_came(lock: AgentError | None) -> None:
    """Its signal came before anybody listened, and logind gives no lock any more."""
    logind = Logind(preparing=True, lock=lock)
    agent = Agent(logind)
    agent.may_end.set()
    until(lambda: agent.ended == 1 and not logind.holds())


def test_a_signal_and_the_property_are_one_shutdown() -> None:
    logind = Logind(preparing=True)
    agent = Agent(logind)
    logind.tell(True)
    agent.may_end.set()
    until(lambda: not logind.holds())
    assert agent.ended == 1


@pytest.mark.parametrize("error", [BUSY, BusUnavailable("no logind")])
def test_a_logind_that_does_not_say_is_no_shutdown(error: AgentError) -> None:
    agent = Agent(Logind(preparing=error))
    agent.goodbye.close()
    assert agent.ended == agent.went_on == 0
