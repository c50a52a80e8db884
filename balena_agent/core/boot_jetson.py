"""extlinux.conf and extra_uEnv.txt: device tree and isolated processors of Jetson and i.MX boards.

Theory: both files say the same two things, `fdt` (a device tree file) and `isolcpus` (processors
that the scheduler leaves alone), the second as one item of a kernel command line. Only the lines
that say them are edited, and in the command line only that item; the rest stays to the byte.

Source: spec 30 §4.3 and §4.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .boot import Backend, Board, BootFault, Values, Wish

NAMES = ("fdt", "isolcpus")
_ISOLCPUS = "isolcpus"
_FDT_KEY, _CMDLINE_KEY = "custom_fdt_file", "extra_os_cmdline"
_UENV_LINE = re.compile(r"\s*(\w+)=(.*)\Z")
_DIRECTIVE = re.compile(r"(\s*)((?i:menu)\s+\S+|\S+)(\s*)(.*)\Z")
_UENV_ENDS = ("-nano", "-nano-emmc", "-nano-2gb-devkit", "-tx2")
_UENV_PARTS = ("-tx2-nx", "-agx-orin-", "-orin-nx-", "-orin-nano-", "imx8mm-var-som")
_UENV_SLUGS = ("iot-gate-imx8plus", "iot-gate-imx8plus-d1d8")
_UENV_DART = re.compile(r"imx8mm?-var-dart")
_EXTLINUX_UNTIL = (2, 47, 0)
_WORD = re.compile(rf"(?<!\S){_ISOLCPUS}(=\S*)?(?!\S)")


def wish(variables: Mapping[str, str], now: Values) -> Wish:
    """The two values; one that would break its line keeps what the file says."""
    values: dict[str, str | tuple[str, ...]] = {}
    problems: list[str] = []
    for name, text in variables.items():
        if name not in NAMES:
            problems.append(f"Ignoring HOST_EXTLINUX_{name}: not supported")
        elif not _is_word(text) or (name == _ISOLCPUS and "=" in text):
            problems.append(f"Ignoring HOST_EXTLINUX_{name}: expecting one word without '='")
            if name in now:
                values[name] = now[name]
        else:
            values[name] = text
    return Wish(values, tuple(problems))


def _is_word(text: str) -> bool:
    return bool(text) and text.isprintable() and text.split() == [text]


def _item(command_line: str) -> str | None:
    """The value of isolcpus in a kernel command line; the first one counts."""
    for word in command_line.split():
        key, equals, value = word.partition("=")
        if key == _ISOLCPUS and equals:
            return value
    return None


def _with_item(command_line: str, value: str | None) -> str:
    """The command line with this isolcpus, or without any; the rest stays to the byte."""
    places = list(_WORD.finditer(command_line))
    if value is not None and not places:
        blank = " " if command_line.strip() else ""
        return f"{command_line.rstrip()}{blank}{_ISOLCPUS}={value}"
    for number, place in reversed(list(enumerate(places))):
        before, behind = command_line[: place.start()], command_line[place.end() :]
        if number == 0 and value is not None:
            command_line = f"{before}{_ISOLCPUS}={value}{behind}"
        else:
            command_line = before.rstrip() + behind if before.strip() else behind.lstrip()
    return command_line


def _text(values: Values, name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) else None


def _said(fdt: str | None, isolcpus: str | None) -> Values:
    return {n: v for n, v in zip(NAMES, (fdt, isolcpus), strict=True) if v is not None}


def _rows(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


# ---- extlinux.conf -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """The numbers of the default label's lines: its APPEND, and its FDTs, of which the first
    counts."""

    append: int
    fdts: tuple[int, ...]


def _split(row: str) -> tuple[str, str]:
    """Directive in upper case and its value; ("", "") for a blank line or a comment."""
    found = _DIRECTIVE.match(row.rstrip("\r"))
    if not found or found[2].startswith("#"):
        return "", ""
    return " ".join(found[2].upper().split()), found[4].strip()


def _entry(rows: list[str]) -> _Entry:
    default, labels = "", [(n, _split(row)[1]) for n, row in enumerate(rows)
                           if _split(row)[0] == "LABEL"]  # fmt: skip
    for row in rows[: labels[0][0]] if labels else rows:
        directive, value = _split(row)
        default = value if directive == "DEFAULT" else default
    if not default:
        raise BootFault("Could not find default entry for extlinux.conf file")
    begin = next((n for n, name in labels if name == default), -1)
    if begin < 0:
        raise BootFault(f"Cannot find label entry (label: {default}) for extlinux.conf file")
    end = next((n for n, _ in labels if n > begin), len(rows))
    appends, fdts = (
        tuple(n for n in range(begin + 1, end) if _split(rows[n])[0] == word)
        for word in ("APPEND", "FDT")
    )
    if not appends:
        raise BootFault("Could not find APPEND directive in default extlinux.conf boot entry")
    return _Entry(appends[0], fdts)


def parse_extlinux(text: str) -> Values:
    """The default entry's two values. BootFault: there is no such entry, or no APPEND in it."""
    rows = _rows(text)
    entry = _entry(rows)
    fdt = _split(rows[entry.fdts[0]])[1] if entry.fdts else None
    return _said(fdt, _item(_split(rows[entry.append])[1]))


def render_extlinux(text: str, values: Values) -> str:
    if parse_extlinux(text) == values:
        return text
    rows = _rows(text)
    entry = _entry(rows)
    fdt, isolcpus = _text(values, "fdt"), _text(values, _ISOLCPUS)
    append = _split(rows[entry.append])[1]
    if _item(append) != isolcpus:
        rows[entry.append] = _edited(rows[entry.append], _with_item(append, isolcpus))
    if fdt is None:
        rows = [row for n, row in enumerate(rows) if n not in entry.fdts]
    elif entry.fdts:
        rows[entry.fdts[0]] = _edited(rows[entry.fdts[0]], fdt)
    else:
        near = rows[entry.append]
        rows.insert(entry.append, f"{_indent(near)}FDT {fdt}{_end(near)}")
    return "".join(row + "\n" for row in rows)


def _edited(row: str, value: str) -> str:
    """The line with another value; its directive and the blanks before it stay."""
    found = _DIRECTIVE.match(row.rstrip("\r"))
    assert found
    return f"{found[1]}{found[2]}{found[3] or ' '}{value}{_end(row)}"


def _indent(row: str) -> str:
    return row[: len(row) - len(row.lstrip())]


def _end(row: str) -> str:
    return "\r" if row.endswith("\r") else ""


def _is_old_jetson(board: Board) -> bool:
    parts = re.match(r"(\d+)\.(\d+)\.(\d+)", board.meta_version)
    version = tuple(int(part) for part in parts.groups()) if parts else _EXTLINUX_UNTIL
    return board.slug.startswith("jetson-") and version < _EXTLINUX_UNTIL


# ---- extra_uEnv.txt ------------------------------------------------------------------------------


def parse_uenv(text: str) -> Values:
    """The two values. The first line of a key counts."""
    known = _uenv_lines(_rows(text))
    fdt = known[_FDT_KEY][1] if _FDT_KEY in known else ""
    line = known[_CMDLINE_KEY][1] if _CMDLINE_KEY in known else ""
    return _said(fdt or None, _item(line))


def render_uenv(text: str, values: Values) -> str:
    if parse_uenv(text) == values:
        return text
    rows = _rows(text)
    known = _uenv_lines(rows)
    fdt, isolcpus = _text(values, "fdt"), _text(values, _ISOLCPUS)
    line = known[_CMDLINE_KEY][1] if _CMDLINE_KEY in known else ""
    if _item(line) != isolcpus:
        line = _with_item(line, isolcpus)
    rows = _with_key(rows, _FDT_KEY, fdt)
    rows = _with_key(rows, _CMDLINE_KEY, line or None)
    return "".join(row + "\n" for row in rows)


def _uenv_lines(rows: list[str]) -> dict[str, tuple[int, str]]:
    """key -> (line, value) of the first line of each key."""
    found: dict[str, tuple[int, str]] = {}
    for number, row in enumerate(rows):
        match = _UENV_LINE.match(row.rstrip("\r"))
        if match:
            found.setdefault(match[1], (number, match[2]))
    return found


def _with_key(rows: list[str], key: str, value: str | None) -> list[str]:
    """The lines with this value of a key, where it stood or at the end; or without the key."""
    known = _uenv_lines(rows).get(key)
    if value is None:
        return [row for row in rows if key not in _uenv_lines([row])]
    if known is None:
        return [*rows, f"{key}={value}" + (_end(rows[-1]) if rows else "")]
    number, old = known
    changed = rows[number] if old == value else f"{key}={value}{_end(rows[number])}"
    return [*rows[:number], changed, *rows[number + 1 :]]


def _has_uenv(board: Board) -> bool:
    slug = board.slug
    return (
        slug.endswith(_UENV_ENDS)
        or any(part in slug for part in _UENV_PARTS)
        or slug in _UENV_SLUGS
        or bool(_UENV_DART.search(slug))
    )


EXTLINUX = Backend(
    name="extlinux.conf",
    prefix="HOST_EXTLINUX_",
    matches=_is_old_jetson,
    claims=lambda name: True,
    wish=wish,
    parse=parse_extlinux,
    render=render_extlinux,
)
EXTRA_UENV = Backend(
    name="extra_uEnv.txt",
    prefix="HOST_EXTLINUX_",
    matches=_has_uenv,
    claims=lambda name: True,
    wish=wish,
    parse=parse_uenv,
    render=render_uenv,
)
