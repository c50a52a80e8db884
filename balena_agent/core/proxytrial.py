"""A change of the host's proxy on trial: it stays when the cloud can still be reached through it.

Theory: a wrong proxy cuts off the device, and with it everybody who could set it right. So a change
made while the cloud could be reached is only a trial: the former files are kept, and the first
answer of the cloud confirms it. When there is none for a while the former files come back (spec 30
§6.4). A second change during a trial goes on with the same former files, the last that are known to
work, and gets a while of its own. A reboot counts as a change: what was written takes effect then
at the latest.

Invariant: without a cloud that was reached before there is no trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum, auto

from . import redsocks
from .jsonread import Json
from .redsocks import Proxy


@dataclass(frozen=True, slots=True)
class Files:
    """The content of the two files; None where there is no such file."""

    conf: str | None
    no_proxy: str | None

    @classmethod
    def of(cls, proxy: Proxy | None, no_proxy: Sequence[str]) -> Files:
        conf = redsocks.render(proxy) if proxy else None
        return cls(conf, "\n".join(no_proxy) if no_proxy else None)


@dataclass(frozen=True, slots=True)
class Trial:
    """`before` comes back if the trial fails. It began in the boot `boot`, at `since` seconds of
    the monotonic clock."""

    before: Files
    boot: str
    since: float


class Verdict(Enum):
    WAIT = auto()
    CONFIRM = auto()
    REVERT = auto()


def begun(
    known: Trial | None, before: Files, after: Files, reached: bool | None, boot: str, now: float
) -> Trial | None:
    """The trial of a change, None for none. `reached`: whether the cloud answered just before the
    change; None where there is no cloud."""
    if after == before:
        return known
    if known is None and not reached:
        return None
    good = known.before if known else before
    return None if good == after else Trial(good, boot, now)


def resumed(trial: Trial, boot: str, now: float) -> Trial:
    """The same trial in this boot, where the clock may have begun anew."""
    return trial if trial.boot == boot else replace(trial, boot=boot, since=now)


def judged(
    trial: Trial, current: Files, reached: bool | None, now: float, seconds: float
) -> Verdict:
    """`reached` as for `begun`, but now. A device that has no cloud any more keeps what it has."""
    if reached is not False or current == trial.before:
        return Verdict.CONFIRM
    return Verdict.REVERT if now - trial.since >= seconds else Verdict.WAIT


def to_json(trial: Trial | None) -> Json:
    return None if trial is None else asdict(trial)


def from_json(value: Json) -> Trial | None:
    """What `to_json` made; None for anything else."""
    if not isinstance(value, dict):
        return None
    before, boot, since = (value.get(key) for key in ("before", "boot", "since"))
    if not (isinstance(before, dict) and isinstance(boot, str) and isinstance(since, int | float)):
        return None
    conf, no_proxy = before.get("conf"), before.get("no_proxy")
    if isinstance(conf, str | None) and isinstance(no_proxy, str | None):
        return Trial(Files(conf, no_proxy), boot, float(since))
    return None
