"""Versions and version ranges in npm's dialect, as contracts use them (spec 20 §6).

Theory: every form of a range - `^1.2`, `~1.2.3`, `1.x`, `1 - 2`, `>=1 <3`, joined by `||` - is
turned into alternatives, each a set of bounds that must all hold. Matching then knows only five
operators and one rule for prereleases: such a version is meant only where a bound of the same
alternative names a prerelease of the same three numbers. Build metadata (`+rev2`) counts nowhere.
What is no version or no range is None, never an error: both are text from strangers.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

_LARGEST: Final = 2**53 - 1
_LONGEST: Final = 256
_NUMBER: Final = "(?:0|[1-9][0-9]*)"
_WORD: Final = f"(?:[0-9]*[a-zA-Z-][a-zA-Z0-9-]*|{_NUMBER})"
_PRERELEASE: Final = rf"(?:-({_WORD}(?:\.{_WORD})*))?"
_BUILD: Final = re.compile(r"\+[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)*")
_VERSION: Final = re.compile(
    rf"v?({_NUMBER})\.({_NUMBER})\.({_NUMBER}){_PRERELEASE}(?:{_BUILD.pattern})?\Z"
)

_PART: Final = rf"({_NUMBER}|[xX*])"
_COMPARATOR: Final = re.compile(
    rf"(~>?|\^|[<>]?=?)([v=]*){_PART}(?:\.{_PART}(?:\.{_PART}{_PRERELEASE})?)?\Z"
)
_GAP: Final = re.compile(r"(~>?|\^|[<>]=?|=) +(?=[v=]*[0-9xX*])")
"""The blank after an operator, which may stand there but is not a border between two bounds."""

_HOLDS: Final[Mapping[str, Callable[[Any, Any], bool]]] = MappingProxyType(
    {
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
        "=": operator.eq,
    }
)


@dataclass(frozen=True, slots=True)
class Version:
    """`prerelease` is () for a release."""

    major: int
    minor: int
    patch: int
    prerelease: tuple[int | str, ...] = ()

    @property
    def release(self) -> tuple[int, int, int]:
        return (self.major, self.minor, self.patch)

    @property
    def rank(self) -> tuple[object, ...]:
        """What to compare: prereleases come before their release, numbers before words."""
        words = tuple(
            (1, 0, word) if isinstance(word, str) else (0, word, "") for word in self.prerelease
        )
        return (self.release, not words, words)


@dataclass(frozen=True, slots=True)
class Bound:
    """One of < <= > >= = and the version that it is about."""

    operator: str
    version: Version

    def holds(self, version: Version) -> bool:
        return _HOLDS[self.operator](version.rank, self.version.rank)


Range = tuple[tuple[Bound, ...], ...]
"""Alternatives; in each of them all bounds hold. An alternative without bounds is any release."""

_NOTHING: Final = (Bound("<", Version(0, 0, 0, (0,))),)


@dataclass(frozen=True, slots=True)
class _Partial:
    """A version as a range writes it: 0 to 3 `numbers` are given, the others may be anything."""

    operator: str
    prefix: str
    numbers: tuple[int, ...]
    prerelease: tuple[int | str, ...]
    ordered: bool
    """Whether no number stands behind an x."""

    @property
    def plain(self) -> bool:
        return self.operator == "" and self.prefix in ("", "v")


def read_version(text: str) -> Version | None:
    """A whole version: three numbers, perhaps a prerelease and build metadata."""
    found = _VERSION.match(text.strip()) if len(text) <= _LONGEST else None
    if found is None:
        return None
    major, minor, patch = (int(part) for part in found.group(1, 2, 3))
    if max(major, minor, patch) > _LARGEST:
        return None
    return Version(major, minor, patch, _words(found[4]))


def read_range(text: str) -> Range | None:
    """A range; one alternative that does not parse spoils all of it."""
    found: list[tuple[Bound, ...]] = []
    for part in text.split("||"):
        bounds = _alternative(" ".join(_BUILD.sub("", part).split()))
        if bounds is None:
            return None
        found.append(bounds)
    return tuple(found)


def satisfies(version: Version, wanted: Range) -> bool:
    """Whether the version lies in the range, by npm's rules."""
    return any(_within(version, bounds) for bounds in wanted)


def _within(version: Version, bounds: tuple[Bound, ...]) -> bool:
    if not all(bound.holds(version) for bound in bounds):
        return False
    return not version.prerelease or any(
        bound.version.prerelease and bound.version.release == version.release for bound in bounds
    )


def _alternative(text: str) -> tuple[Bound, ...] | None:
    ends = text.split(" - ")
    if len(ends) == 2:
        return _between(*ends)
    found: list[Bound] = []
    for word in _GAP.sub(r"\1", text).split():
        partial = _partial(word)
        bounds = _bounds(partial) if partial else None
        if bounds is None:
            return None
        found += bounds
    return tuple(found)


def _between(first: str, last: str) -> tuple[Bound, ...] | None:
    """`1.2 - 3.4`: both ends belong to it, and so does all that the last one leaves open."""
    low, high = _partial(first), _partial(last)
    if low is None or high is None:
        return None
    for end in (low, high):
        if end.operator not in ("", "=") or (len(end.numbers) == 3 and not end.plain):
            return None
    lowest = _at_least(low) if low.numbers else ()
    return lowest + (_compared("<=", high) if high.numbers else ())


def _partial(word: str) -> _Partial | None:
    found = _COMPARATOR.match(word) if len(word) <= _LONGEST else None
    if found is None:
        return None
    sign, prefix, *parts, prerelease = found.groups()
    known = [part for part in parts if part and part not in "xX*"]
    numbers = tuple(int(part) for part in known)
    if any(number >= _LARGEST for number in numbers):  # one more must be a version still
        return None
    ordered = known == list(parts[: len(known)])
    if not ordered:
        numbers = numbers[: next(i for i, part in enumerate(parts) if part in ("x", "X", "*"))]
    return _Partial(sign, prefix, numbers, _words(prerelease), ordered)


def _words(prerelease: str | None) -> tuple[int | str, ...]:
    words = prerelease.split(".") if prerelease else []
    return tuple(int(word) if word.isdigit() else word for word in words)


def _bounds(partial: _Partial) -> tuple[Bound, ...] | None:
    if partial.operator.startswith(("~", "^")):
        return _near(partial) if partial.numbers else ()
    if not partial.ordered:
        return None
    if len(partial.numbers) == 3 and partial.prefix not in ("", "v"):
        return None
    if not partial.numbers:
        return _NOTHING if partial.operator in ("<", ">") else ()
    return _compared(partial.operator or "=", partial)


def _near(partial: _Partial) -> tuple[Bound, ...]:
    """`~` leaves the last number open, `^` all that follow the first one that is not 0."""
    numbers = partial.numbers
    if partial.operator == "^":
        place = next((i for i, number in enumerate(numbers) if number), len(numbers) - 1)
    else:
        place = min(len(numbers), 2) - 1
    return (*_at_least(partial), Bound("<", _first_after(numbers, place)))


def _compared(sign: str, partial: _Partial) -> tuple[Bound, ...]:
    """A comparison; a partial version stands for all versions that begin with it."""
    numbers, last = partial.numbers, len(partial.numbers) - 1
    if last == 2:
        return (Bound(sign, _padded(numbers, partial.prerelease)),)
    after = _first_after(numbers, last)
    match sign:
        case ">":
            return (Bound(">=", Version(*after.release)),)
        case ">=":
            return (Bound(">=", _padded(numbers)),)
        case "<":
            return (Bound("<", _padded(numbers, (0,))),)
        case "<=":
            return (Bound("<", after),)
    return (Bound(">=", _padded(numbers)), Bound("<", after))


def _at_least(partial: _Partial) -> tuple[Bound, ...]:
    prerelease = partial.prerelease if len(partial.numbers) == 3 else ()
    return (Bound(">=", _padded(partial.numbers, prerelease)),)


def _padded(numbers: tuple[int, ...], prerelease: tuple[int | str, ...] = ()) -> Version:
    major, minor, patch = (*numbers, 0, 0)[:3]
    return Version(major, minor, patch, prerelease)


def _first_after(numbers: tuple[int, ...], place: int) -> Version:
    """The very first version whose number at `place` is one more: its lowest prerelease."""
    return _padded((*numbers[:place], numbers[place] + 1), (0,))
