"""Waiting for what other threads bring about: for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 30.0


def until(condition: Callable[[], object], what: str = "waited in vain") -> None:
    """Return as soon as the condition is true; fail, saying `what`, when it is not in time."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)
