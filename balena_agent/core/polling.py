"""When the cloud is asked or told next, as functions of what happened (spec 31 §4, §6; 20 §22).

Theory: a whole fleet comes back at the same moment after an outage, so every wait that many devices
could share is spread by chance. `chance` is a number from 0 to 1 that the caller draws; the rest is
arithmetic. All times are seconds.

What the cloud asks for (`Retry-After`) goes before any rule of ours.
"""

from __future__ import annotations

from typing import Final

from .cloudanswer import UNTIMED, Outcome

FIRST_RETRY: Final = 15.0
SPREAD: Final = 60.0
"""A poll comes up to so much later than the interval says."""

REPORT_PAUSE: Final = 10.0
METRICS_PAUSE: Final = 300.0
RETURN_SPREAD: Final = 10.0
RETURN_PAUSE: Final = 60.0
"""How soon a way to the cloud that is found again is tried, and how often at most."""

LONGEST_SLEEP: Final = 86_400.0
"""No wait is slept through in one piece: a variable may ask for more than a clock can count."""

_REQUEST_LIMITS = (10.0, 600.0)
_ASKED_SPREAD = 0.1
_MOST_DOUBLINGS = 20


def request_limit(timeout_ms: int) -> float:
    """How long a whole request may take when each part of it may take so many milliseconds. No
    value of a variable cuts a device off from its cloud, or lets a request go on for ever."""
    shortest, longest = _REQUEST_LIMITS
    return min(max(2 * timeout_ms / 1000, shortest), longest)


def first_poll(instant_updates: bool, interval: float, chance: float) -> float:
    """How long a device that has just started waits: not at all, unless its owner wants no update
    before its time."""
    return 0.0 if instant_updates else after_success(interval, chance)


def after_success(interval: float, chance: float) -> float:
    return interval + SPREAD * chance


def after_failure(outcome: Outcome, failures: int, interval: float, chance: float) -> float:
    """`failures` in a row came before this one: 15 s, 30 s, 60 s ... up to the interval, and of
    that from a half to the whole. A clock that is not set will be soon: those waits do not grow."""
    if outcome.retry_after is not None:
        return outcome.retry_after * (1 + _ASKED_SPREAD * chance)
    doublings = 0 if outcome.kind == UNTIMED else min(failures, _MOST_DOUBLINGS)
    nominal = min(interval, FIRST_RETRY * float(1 << doublings))
    return nominal * (0.5 + 0.5 * chance)


def next_poll(outcome: Outcome, failures: int, interval: float, chance: float) -> float:
    """How long after an attempt the next one comes; `failures` as above."""
    if outcome.worked:
        return after_success(interval, chance)
    return after_failure(outcome, failures, interval, chance)


def failures_after(outcome: Outcome, failures: int) -> int:
    """How many failures in a row there are now."""
    if outcome.worked:
        return 0
    return failures if outcome.kind == UNTIMED else failures + 1


def may_be_cut_short(outcome: Outcome) -> bool:
    """Whether the wait after it is one that a way to the cloud, found again, makes needless."""
    return not outcome.worked and outcome.retry_after is None


def after_return(now: float, last: float, chance: float) -> float:
    """When a way to the cloud that is found again `now` is tried; `last`: when one was before."""
    return max(now, last + RETURN_PAUSE) + RETURN_SPREAD * chance


def report_due(only_metrics: bool, since_last: float) -> float:
    """How long a difference has yet to wait, `since_last` after the last report was sent: a change
    of mere load is news only every five minutes."""
    pause = METRICS_PAUSE if only_metrics else REPORT_PAUSE
    return max(0.0, pause - since_last)
