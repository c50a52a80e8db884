"""What of a report is kept back because the cloud did not take it (spec 31 §6, D).

Theory: one member that the cloud refuses must not silence the whole device. A release that was
deleted in the cloud gets the whole report refused as if the key were bad (401); so what a refusal
was about is found out by leaving things out:

    ""       everything goes
    trial    refused with `apps`: at once again without them, which tells whether the key is good
    reduced  it is good: then `apps` with the target's releases alone
    held     not these either: no `apps` for ten minutes, or until other releases are to be told

A report that breaks the cloud's rules (400) loses one class of members after the other; they come
back after an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from .cloudanswer import DENIED, Outcome
from .cloudreport import ADDRESSES, APPS, METRICS, Report, reduced
from .jsonread import Json

HOLD_SECONDS: Final = 600.0
LEAVE_OUT_SECONDS: Final = 3600.0

TRIAL: Final = "trial"
REDUCED: Final = "reduced"
HELD: Final = "held"

_CLASSES = (METRICS | {"is_undervolted"}, ADDRESSES, frozenset({APPS}))
"""In the order in which they are left out."""

Releases = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Withheld:
    """`apps` is the state above, with the releases it is about and when it ends; `classes` says
    how many of the classes are left out, until `classes_until`. Times are monotonic seconds."""

    apps: str = ""
    releases: Releases = frozenset()
    until: float = 0.0
    classes: int = 0
    classes_until: float = 0.0


def expired(held: Withheld, releases: Releases, now: float) -> Withheld:
    """What still holds: `releases` are those that the whole report would name."""
    if held.classes and now >= held.classes_until:
        held = replace(held, classes=0)
    over = now >= held.until or (releases and releases != held.releases)
    if held.apps in (REDUCED, HELD) and over:
        held = replace(held, apps="", releases=frozenset())
    return held


def allowed(document: Mapping[str, Json], held: Withheld, wanted: Releases) -> Report:
    """The part of a report that may be sent; `wanted` are the target's releases."""
    out = frozenset[str]().union(*_CLASSES[: held.classes])
    kept = {key: value for key, value in document.items() if key not in out}
    if held.apps in (TRIAL, HELD):
        kept.pop(APPS, None)
    elif held.apps == REDUCED and APPS in kept:
        kept[APPS] = reduced(kept[APPS], wanted)
    return kept


def after(
    held: Withheld, outcome: Outcome, sent: Mapping[str, Json], whole: Releases, wanted: Releases,
    now: float,
) -> Withheld:  # fmt: skip
    """What is kept back next. `sent` went out; `whole` are the releases of the whole report."""
    if outcome.worked:
        if held.apps != TRIAL:
            return held
        # The key is good, so it was the apps. What cannot be reduced is held at once.
        return replace(held, apps=REDUCED if whole - wanted else HELD)
    if outcome.kind == DENIED:
        return _refused(held, sent, whole, now)
    return held


def _refused(held: Withheld, sent: Mapping[str, Json], whole: Releases, now: float) -> Withheld:
    if APPS not in sent:
        return replace(held, apps="", releases=frozenset()) if held.apps == TRIAL else held
    if held.apps == REDUCED:
        return replace(held, apps=HELD)
    return replace(held, apps=TRIAL, releases=whole, until=now + HOLD_SECONDS)


def after_bad_request(held: Withheld, now: float) -> Withheld:
    """The cloud said that the report breaks its rules: one class less, or from the beginning."""
    classes = held.classes + 1 if held.classes < len(_CLASSES) else 0
    return replace(held, classes=classes, classes_until=now + LEAVE_OUT_SECONDS)
