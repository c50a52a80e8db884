"""Requests of a device whose clock may not be set, and how one without an answer ends.

Theory (spec 30 §16, 31 §14): a device without a battery wakes up in the past, where the cloud's
certificate is not valid yet. Waiting helps then and is no failure, so it has a kind of its own. The
clock is only looked at when a certificate is refused for its dates: most devices never have to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ..core.cloudanswer import BAD, OFFLINE, UNTIMED, Outcome
from ..core.errors import AgentError, Unavailable
from . import client

_log = logging.getLogger(__name__)

WAITING = "Waiting for time synchronisation"

T = TypeVar("T")


class ClockNotSet(Unavailable):
    """Nobody can say whether the cloud's certificate is valid."""


class Timed:
    """`exchange`, with ClockNotSet where that is the matter. `synchronised`: whether the time was
    set from outside, None where nobody can tell. For any thread."""

    def __init__(
        self, exchange: Callable[..., client.Reply], synchronised: Callable[[], bool | None]
    ) -> None:
        self._exchange = exchange
        self._synchronised = synchronised
        self._lock = threading.Lock()
        self._waits = False

    def __call__(self, *asked: Any) -> client.Reply:
        return self.run(lambda: self._exchange(*asked))

    def run(self, ask: Callable[[], T]) -> T:
        """What `ask` gives, with the same error."""
        try:
            reply = ask()
        except client.CertificateOutOfTime as error:
            if self._synchronised() is not False:
                raise
            if not self._note(waits=True):
                _log.info(WAITING)
            raise ClockNotSet("the clock is not set, and the certificate not valid") from error
        self._note(waits=False)
        return reply

    def _note(self, waits: bool) -> bool:
        with self._lock:
            before, self._waits = self._waits, waits
        return before


def unanswered(error: AgentError) -> Outcome:
    """The outcome of an attempt that brought no answer."""
    if isinstance(error, ClockNotSet):
        return Outcome(UNTIMED, error.message)
    return Outcome(OFFLINE if isinstance(error, Unavailable) else BAD, error.message)
