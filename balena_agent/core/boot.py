"""Boot configuration: device variables against the files that firmware and boot loader read.

Theory: each such file has a back end, a value of pure functions (spec 30 §4). `parse` gives what a
file says in canonical values; `render` edits the file's text so that it says what is wanted and
leaves everything else as it is. What a file holds is compared with what it *would* hold, as
`parse(render(text, wanted))`: so a wish that does not survive its own round trip is written once
and is then no difference any more. Nothing that cannot be met may loop, or stop an update.

Invariants, of every back end and every text and wish (tests/unit/test_boot_*.py)
  * rendering is idempotent: a rendered text is not changed by rendering it again;
  * a text that already says what is wanted is left as it is, to the byte;
  * a variable that may not or cannot be set keeps what the file has, and becomes a problem line.

Bytes of a file that are no UTF-8 are surrogates in its text (PEP 383), which no outside format can
spell. They are shown as the Latin-1 characters that they most likely are, and what comes back like
that means the bytes that are there: a value that is shown and sent back changes nothing.

A back end's text is the file's content; for those without a text file it is a short text that
stands for the content (the bytes of a boot block in hexadecimal, the digest of an image).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

Value = str | tuple[str, ...]
Values = Mapping[str, Value]
"""What one file says, by the name of a variable without its prefix. Lists are tuples."""


_LATIN = MappingProxyType({0xDC00 + byte: byte for byte in range(0x80, 0x100)})


class BootFault(ValueError):
    """A file that is not what it must be: its back end is out of work until it is."""


@dataclass(frozen=True, slots=True)
class Board:
    """What decides which files count: the device type, and meta-balena's version ("" unknown)."""

    slug: str
    meta_version: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """What variables ask a file to say, and a line for each that cannot be."""

    values: Values = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def _always(before: Values, after: Values) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Backend:
    """One file, or what stands for one. `prefix` begins its variables, `claims` chooses among them.

    `wish` gets the variables without prefix and what the file says now. `parse` and `render` may
    raise BootFault.
    """

    name: str
    prefix: str
    matches: Callable[[Board], bool]
    claims: Callable[[str], bool]
    wish: Callable[[Mapping[str, str], Values], Wish]
    parse: Callable[[str], Values]
    render: Callable[[str, Values], str]
    needs_reboot: Callable[[Values, Values], bool] = _always

    def own(self, variables: Mapping[str, str]) -> dict[str, str]:
        """This back end's share of plain variable names, without the prefix."""
        return {
            name[len(self.prefix) :]: value
            for name, value in variables.items()
            if name.startswith(self.prefix) and self.claims(name[len(self.prefix) :])
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """`text` is what shall be written; `names` are the variables that differ, with prefix."""

    backend: Backend
    text: str
    names: tuple[str, ...]
    reboot: bool


def difference(
    backend: Backend, text: str, variables: Mapping[str, str]
) -> tuple[Difference | None, tuple[str, ...]]:
    """What has to change in `text` for the back end's variables (without prefix), and the lines
    about what cannot be. BootFault when the text is not what it must be."""
    now = backend.parse(text)
    wish = backend.wish(variables, now)
    wish = replace(wish, values={n: _as_held(v, now.get(n, ())) for n, v in wish.values.items()})
    rendered = backend.render(text, wish.values)
    then = backend.parse(rendered)
    lost = sorted(name for name in {*wish.values, *then} if wish.values.get(name) != then.get(name))
    problems = wish.problems + tuple(
        f"{backend.prefix}{name} cannot be kept as it was given; {backend.name} has"
        f" {_shown(then.get(name))}"
        for name in lost
    )
    if then == now:
        return None, problems
    names = tuple(
        backend.prefix + name for name in sorted({*now, *then}) if now.get(name) != then.get(name)
    )
    return Difference(backend, rendered, names, backend.needs_reboot(now, then)), problems


def readable(text: str) -> str:
    """A text of a file for people and documents: without surrogates for bytes."""
    return text.translate(_LATIN)


def _as_held(value: Value, held: Value) -> Value:
    """A wished value, with the bytes that the file has for texts that are shown the same."""
    texts = (held,) if isinstance(held, str) else held
    known = {readable(text): text for text in texts} | {text: text for text in texts}
    if isinstance(value, str):
        return known.get(value, value)
    return tuple(known.get(item, item) for item in value)


def listed(value: Value) -> str:
    """A value as the text of a variable: a list as its JSON without the brackets."""
    return value if isinstance(value, str) else json.dumps(list(value), ensure_ascii=False)[1:-1]


def quoted_list(text: str) -> tuple[str, ...]:
    """The list that a variable means: `a` is one, `"a","b"` are two (ValueError: it is neither)."""
    stripped = text.strip()
    if not stripped.startswith('"'):
        return (stripped,)
    found = json.loads(f"[{stripped}]")
    if not all(isinstance(item, str) for item in found):
        raise ValueError("not a list of texts")
    return tuple(found)


def one_line(text: str) -> bool:
    """Whether a text can stand in one line of a file."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, which JSON can spell
        return False
    return not any(character in text for character in "\r\n\0")


def _shown(value: Value | None) -> str:
    text = "nothing" if value is None else listed(value) or "an empty value"
    return text if len(text) <= 60 else text[:59] + "…"
