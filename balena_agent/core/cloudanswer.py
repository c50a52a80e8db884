"""What an answer of the cloud means, whatever was asked: one classification for all who ask it.

Theory (spec 31 §1): who asks the cloud wants to know whether it worked, whether to try again and
how soon, and what to tell people. An attempt that got no answer is an answer, too: `offline`.

    ok         done
    unchanged  nothing new since the ETag that was sent
    offline    nobody answered: name, connection, certificate, time
    untimed    the same, because the device's clock is not set yet
    busy       not now: 429, 5xx
    denied     the key is not good for this: 401, 403
    gone       the cloud does not know the device: 404, 410, or "unchanged" of what was never had
    bad        it is not understood: any other status, or a body that does not read
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

OK: Final = "ok"
UNCHANGED: Final = "unchanged"
OFFLINE: Final = "offline"
UNTIMED: Final = "untimed"
BUSY: Final = "busy"
DENIED: Final = "denied"
GONE: Final = "gone"
BAD: Final = "bad"

ONLINE: Final = "online"
"""The state of a device whose last request its cloud has answered."""

SHORTEST_REQUEST, LONGEST_REQUEST = 1.0, 3600.0
"""Seconds between which the cloud's wish to be left alone is granted."""

_MEANINGS: Mapping[str, str] = {
    BUSY: "the cloud is busy",
    DENIED: "the cloud refuses the device's key",
    GONE: "device unknown to the cloud",
    BAD: "the cloud's answer is not understood",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `reason` is for people, "" after a success. `retry_after`: seconds for
    which the cloud asked to be left alone."""

    kind: str
    reason: str = ""
    retry_after: float | None = None

    @property
    def worked(self) -> bool:
        return self.kind in (OK, UNCHANGED)


@dataclass(frozen=True, slots=True)
class CloudStatus:
    """How the device last stood with its cloud: `online`, `offline` or `refused`, "" before it has
    been asked; with the reason where it is not online."""

    state: str = ""
    error: str = ""


def judged(
    status: int, retry_after: str = "", wall: float = 0.0, sent_etag: bool = True
) -> Outcome:
    """The outcome of an answer. `retry_after` is the header's text, `wall` the time (s, UTC)."""
    kind = _kind(status, sent_etag)
    if kind in (OK, UNCHANGED):
        return Outcome(kind)
    return Outcome(kind, f"{_MEANINGS[kind]} (status {status})", asked_wait(retry_after, wall))


def _kind(status: int, sent_etag: bool) -> str:
    if 200 <= status < 300:
        return OK
    if status == 304:
        return UNCHANGED if sent_etag else GONE
    if status == 429 or status >= 500:
        return BUSY
    if status in (401, 403):
        return DENIED
    return GONE if status in (404, 410) else BAD


def asked_wait(text: str, wall: float) -> float | None:
    """`Retry-After` in seconds: it is a number of them or a date. None where it says nothing."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        asked = float(text[:9])
    else:
        instant = _instant(text)
        if instant is None:
            return None
        asked = instant - wall
    return min(max(asked, SHORTEST_REQUEST), LONGEST_REQUEST)


def _instant(text: str) -> float | None:
    """A date of HTTP in seconds (UTC)."""
    if not text:
        return None
    from email.utils import mktime_tz, parsedate_tz  # few clouds send dates

    try:
        read = parsedate_tz(text)
        return None if read is None else float(mktime_tz(read))
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def status_after(outcome: Outcome) -> CloudStatus:
    """Where an outcome leaves the device. One that the cloud has turned away is `refused`; while
    nobody answers, or somebody else does, or the cloud cannot for now, it is `offline`."""
    if outcome.worked:
        return CloudStatus(ONLINE)
    state = "refused" if outcome.kind in (DENIED, GONE) else "offline"
    return CloudStatus(state, outcome.reason)
