"""config.txt of a Raspberry Pi: a line editor that leaves alone what nobody asked to change.

Theory: the text is a list of lines. Lines under a filter other than `[all]`, comments, includes,
lines that are no setting, settings that no variable can name, and those that are the OS's own
(`FORBIDDEN`) are opaque: they are neither read nor changed. The others are scalars (the last of a
name counts), lists with one line per element, and device tree lines: `dtoverlay=NAME,p` opens an
overlay, `dtparam=a,b` adds to the overlay that is open, or to the base where none is; parameters
of `BASE` always go to the base.

An edit changes values where they stand, takes away lines that are no longer wanted, and puts new
ones at the end, scalars before overlays. New base parameters come before the first overlay.
Should the outcome of small edits not say what is wanted, all device tree lines are written anew.

Source: spec 30 §4.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .boot import Backend, Board, Values, Wish, one_line, quoted_list

FORBIDDEN = frozenset(
    {
        "disable_commandline_tags",
        "cmdline",
        "kernel",
        "kernel_address",
        "kernel_old",
        "ramfsfile",
        "ramfsaddr",
        "initramfs",
        "device_tree_address",
        "init_emmc_clock",
        "avoid_safe_mode",
    }
)
BASE = frozenset(
    {
        "audio",
        "spi",
        "i2c",
        "i2c_arm",
        "i2c_vc",
        "i2c_baudrate",
        "i2c_arm_baudrate",
        "i2c_vc_baudrate",
    }
)
PLAIN_LISTS = ("device_tree_param", "device_tree_overlay", "gpio")
LISTS = frozenset({"dtparam", "dtoverlay", *PLAIN_LISTS})
ELSEWHERE = frozenset({"power_mode", "fan_profile"})
"""Variables of the same prefix that are another back end's (spec 30 §4.8)."""

SLUGS = frozenset(
    {
        "fincm3",
        "rt-rpi-300",
        "243390-rpi3",
        "nebra-hnt",
        "revpi-connect",
        "revpi-connect-s",
        "revpi-core-3",
        "revpi-connect-4",
    }
)
_SECTION = re.compile(r"\s*\[([^\]]*)\]\s*\Z")
_NAME = re.compile(r"[A-Za-z0-9_:]+\Z")
"""What the rest of a variable's name may be: a setting of another name has no variable."""

_FIN = "balena-fin"


@dataclass(slots=True)
class _Line:
    """One line without its line feed. `key` is "" where it is opaque, `text` where it is new."""

    text: str
    key: str = ""
    value: str = ""


@dataclass(slots=True)
class _Overlay:
    """An overlay as it stands in the file; `end` is the number of its last line."""

    begin: int
    end: int
    name: str
    parameters: list[str]

    def __str__(self) -> str:
        return ",".join((self.name, *self.parameters))


def parse(text: str) -> Values:
    """What a text says, but for what is opaque."""
    return _values(_lines(text))


def render(text: str, values: Values) -> str:
    """`text`, edited so that it says `values`."""
    wanted = {n: value for n, value in values.items() if n not in FORBIDDEN and value != ()}
    if parse(text) == wanted:
        return text
    end = "\r" if "\r\n" in text else ""
    lines = _lines(text)
    _edit_scalars(lines, wanted)
    for key in PLAIN_LISTS:
        _edit_list(lines, key, _tuple(wanted, key))
    base, overlays = _tuple(wanted, "dtparam"), _tuple(wanted, "dtoverlay")
    edited = _edit_tree(list(lines), base, overlays)
    if _tree_of(edited) != (base, overlays):
        edited = _rewrite_tree(lines, base, overlays)
    rows = [f"{n.key}={n.value}{end}" if n.key and not n.text else n.text for n in edited]
    return "".join(row + "\n" for row in rows)


def _lines(text: str) -> list[_Line]:
    """The lines, classified."""
    found: list[_Line] = []
    filtered = False
    for row in text.removesuffix("\n").split("\n") if text else ():
        if section := _SECTION.match(row):
            filtered = section[1].strip().lower() != "all"
            found.append(_Line(row))
            continue
        key, equals, value = row.partition("=")
        key = key.strip()
        opaque = filtered or not equals or key in FORBIDDEN or not _NAME.match(key)
        found.append(_Line(row) if opaque else _Line(row, key, value.removesuffix("\r")))
    return found


def _values(lines: Sequence[_Line]) -> dict[str, str | tuple[str, ...]]:
    found: dict[str, str | tuple[str, ...]] = {}
    for line in lines:
        if line.key in PLAIN_LISTS:
            found[line.key] = (*_tuple(found, line.key), line.value)
        elif line.key and line.key not in LISTS:
            found[line.key] = line.value
    base, overlays = _tree_of(lines)
    if base:
        found["dtparam"] = base
    if overlays:
        found["dtoverlay"] = overlays
    return found


def _tuple(values: Mapping[str, str | tuple[str, ...]], key: str) -> tuple[str, ...]:
    value = values.get(key, ())
    return value if isinstance(value, tuple) else (value,)


# ---- the device tree lines -----------------------------------------------------------------------


def _tree_of(lines: Sequence[_Line]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    base, overlays = _tree(lines)
    return tuple(base), tuple(str(overlay) for overlay in overlays)


def _tree(lines: Sequence[_Line]) -> tuple[list[str], list[_Overlay]]:
    """Base parameters, and the overlays with the lines they stand in."""
    base: list[str] = []
    overlays: list[_Overlay] = []
    open_one: _Overlay | None = None
    for number, line in enumerate(lines):
        if line.key == "dtoverlay":
            name, *parameters = _parts(line.value) or [""]
            open_one = _Overlay(number, number, name, parameters) if name else None
            if open_one:
                overlays.append(open_one)
        elif line.key == "dtparam":
            for part in _parts(line.value):
                if open_one is None or _is_base(part):
                    base.append(part)
                else:
                    open_one.parameters.append(part)
                    open_one.end = number
    return base, overlays


def _parts(value: str) -> list[str]:
    return [part for part in (part.strip() for part in value.split(",")) if part]


def _is_base(part: str) -> bool:
    return part.partition("=")[0] in BASE


def _edit_tree(lines: list[_Line], base: tuple[str, ...], overlays: tuple[str, ...]) -> list[_Line]:
    if _tree_of(lines)[1] != overlays:
        lines = _edit_overlays(lines, overlays)
    if _tree_of(lines)[0] != base:
        lines = _edit_base(lines, base)
    return lines


def _edit_overlays(lines: list[_Line], wanted: tuple[str, ...]) -> list[_Line]:
    """Overlays that are right already, from the first on, stay; the others are written anew."""
    known = _tree(lines)[1]
    kept = 0
    while kept < min(len(known), len(wanted)) and str(known[kept]) == wanted[kept]:
        kept += 1
    fresh = [line for overlay in wanted[kept:] for line in _overlay_lines(overlay)]
    if not known:
        return _appended(lines, fresh)
    if kept == len(known):
        at = known[-1].end + 1
        return lines[:at] + fresh + lines[at:]
    at = known[kept].begin
    tail = (_without_parameters(line) for line in lines[at:])
    return lines[:at] + fresh + [line for line in tail if line]


def _without_parameters(line: _Line) -> _Line | None:
    """A line behind the first overlay that goes: only what belongs to the base is left of it."""
    if line.key == "dtoverlay":
        return line if not _parts(line.value) else None
    if line.key != "dtparam":
        return line
    left = [part for part in _parts(line.value) if _is_base(part)]
    if len(left) == len(_parts(line.value)):
        return line
    return _setting("dtparam", ",".join(left)) if left else None


def _edit_base(lines: list[_Line], wanted: tuple[str, ...]) -> list[_Line]:
    """Old base parameters go, the wanted ones come where the first of them was, or else before the
    first overlay."""
    left: list[_Line] = []
    at = -1
    opened = False
    for line in lines:
        if line.key == "dtoverlay":
            at = len(left) if at < 0 else at
            opened = bool(_parts(line.value))
        if line.key != "dtparam":
            left.append(line)
            continue
        at = len(left) if at < 0 else at
        rest = [part for part in _parts(line.value) if opened and not _is_base(part)]
        if len(rest) == len(_parts(line.value)):
            left.append(line)
        elif rest:
            left.append(_setting("dtparam", ",".join(rest)))
    fresh = [_setting("dtparam", part) for part in wanted]
    return _appended(left, fresh) if at < 0 else left[:at] + fresh + left[at:]


def _rewrite_tree(
    lines: list[_Line], base: tuple[str, ...], overlays: tuple[str, ...]
) -> list[_Line]:
    left = [line for line in lines if line.key not in ("dtparam", "dtoverlay")]
    fresh = [_setting("dtparam", part) for part in base]
    return _appended(left, fresh + [line for name in overlays for line in _overlay_lines(name)])


def _overlay_lines(overlay: str) -> Iterator[_Line]:
    """One line for the overlay and one for each parameter. One that the parser would give to the
    base stands in the overlay's own line, and all before it, for their order matters."""
    name, *parameters = _parts(overlay)
    inline = max((n + 1 for n, part in enumerate(parameters) if _is_base(part)), default=0)
    yield _setting("dtoverlay", ",".join((name, *parameters[:inline])))
    for part in parameters[inline:]:
        yield _setting("dtparam", part)


# ---- other lines ---------------------------------------------------------------------------------


def _setting(key: str, value: str) -> _Line:
    return _Line("", key, value)


def _edit_scalars(lines: list[_Line], wanted: Mapping[str, str | tuple[str, ...]]) -> None:
    """Scalars are changed where they stand, or taken away; the new ones are added at the end."""
    last: dict[str, int] = {
        line.key: number for number, line in enumerate(lines) if line.key and line.key not in LISTS
    }
    fresh: list[_Line] = []
    for key, value in wanted.items():
        if key in LISTS or not isinstance(value, str):
            continue
        if key not in last:
            fresh.append(_setting(key, value))
        elif lines[last[key]].value != value:
            lines[last[key]] = _setting(key, value)
    left = [line for line in lines if line.key in LISTS or not line.key or line.key in wanted]
    lines[:] = _appended(left, fresh)


def _edit_list(lines: list[_Line], key: str, wanted: tuple[str, ...]) -> None:
    """The elements go into the lines that are there; further ones follow the last of them."""
    places = [number for number, line in enumerate(lines) if line.key == key]
    for place, value in zip(places, wanted, strict=False):
        if lines[place].value != value:
            lines[place] = _setting(key, value)
    fresh = [_setting(key, value) for value in wanted[len(places) :]]
    gone = set(places[len(wanted) :])
    if fresh and places:
        at = places[-1] + 1
        lines[at:at] = fresh
    elif fresh:
        lines[:] = _appended(lines, fresh)
    elif gone:
        lines[:] = [line for number, line in enumerate(lines) if number not in gone]


def _appended(lines: list[_Line], fresh: Sequence[_Line]) -> list[_Line]:
    """Lines at the end, where they hold for every board."""
    if not fresh:
        return lines
    sections = [s[1] for line in lines if not line.key and (s := _SECTION.match(line.text))]
    filtered = bool(sections) and sections[-1].strip().lower() != "all"
    return [*lines, *([_Line("[all]")] if filtered else []), *fresh]


# ---- variables -----------------------------------------------------------------------------------


def wish(variables: Mapping[str, str], now: Values, fin: bool = False) -> Wish:
    """What variables ask for. One that cannot be set keeps what the file says."""
    values: dict[str, str | tuple[str, ...]] = {}
    problems: list[str] = []
    for name, text in variables.items():
        if name in FORBIDDEN:
            problems.append(f"Ignoring HOST_CONFIG_{name}: managed by the OS")
            continue
        try:
            value = _read(name, text)
        except (ValueError, RecursionError):
            problems.append(f"Ignoring HOST_CONFIG_{name}: {_rule(name)}")
            value = now.get(name, ())
        if value != ():
            values[name] = value
    if fin:
        overlays = _tuple(values, "dtoverlay")
        if not any(_parts(overlay)[0] == _FIN for overlay in overlays):
            values["dtoverlay"] = (*overlays, _FIN)
    return Wish(values, tuple(problems))


def _read(name: str, text: str) -> str | tuple[str, ...]:
    """A variable's canonical value; ValueError when it can be none."""
    if not one_line(text) or not _NAME.match(name):
        raise ValueError("more than one line")
    if name not in LISTS:
        return text
    items = quoted_list(text)
    if not all(map(one_line, items)):
        raise ValueError("more than one line")
    if name == "dtparam":
        return tuple(part for item in items for part in _parts(item))
    if name == "dtoverlay":
        return tuple(",".join(_parts(item)) for item in items if _parts(item))
    return tuple(items)


def _rule(name: str) -> str:
    if name in LISTS:
        return 'expecting one line of text, or a list of them like "a","b"'
    return "expecting one line of text"


def _matches(board: Board) -> bool:
    return board.slug.startswith("raspberry") or board.slug in SLUGS


def _backend(fin: bool) -> Backend:
    return Backend(
        name="config.txt",
        prefix="HOST_CONFIG_",
        matches=lambda board: _matches(board) and (board.slug == "fincm3") is fin,
        claims=lambda name: name not in ELSEWHERE,
        wish=lambda variables, now: wish(variables, now, fin),
        parse=parse,
        render=render,
    )


CONFIG_TXT = _backend(fin=False)
CONFIG_TXT_FIN = _backend(fin=True)
"""The same file on balenaFin, which always gets an overlay of its own."""
