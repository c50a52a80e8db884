"""Targets of several sources, side by side (spec 20 §5.6).

Theory: who sets a target replaces what the same source has set before, and nothing else: the local
user, the cloud (by its address), the peer that we took over from, a preloaded device. All of them
are kept, as they came. One that cannot be read any more is kept too: nobody knows then what it
needs, and that matters to those who remove things.
"""

from __future__ import annotations

from dataclasses import dataclass

from .target import Target


@dataclass(frozen=True, slots=True)
class KeptTarget:
    """What one source has set last. `raw` as it came; `target` is None where it does not read."""

    raw: str
    target: Target | None
