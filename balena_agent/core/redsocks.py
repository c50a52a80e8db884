"""redsocks.conf: what it says about the proxy, as a value, and the text that says it.

Theory: the file belongs to the host, which reads it when the proxy's units start. We own three
blocks of it, and write them exactly as the peer does, because people and scripts compare the text
(spec 30 §6.2). Reading is lenient: a key that nobody knows is kept, a line that means nothing is
skipped. A quoted value keeps every character, `=`, `;` and `}` too; the peer cuts a password at
`=` and then writes the rest away (spec 30 §6.3).

Invariants: `parse(render(proxy)) == proxy`; no value can end its line, its quotes or its block,
because `render` quotes what may hold such characters and the rest has been judged before
(networkconfig.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

TYPES = ("socks4", "socks5", "http-connect", "http-relay")
QUOTED = ("login", "password")
OURS = ("type", "ip", "port", *QUOTED)
"""The settings that a request can name, beside dns and noProxy."""

LOCAL_PORT = 12345
_LOCAL = ("local_ip", "local_port")
_BASE = (
    ("log_debug", "off"), ("log_info", "on"), ("log", "stderr"), ("daemon", "off"),
    ("redirector", "iptables"),
)  # fmt: skip
_REMARK = r"(?://.*|/\*.*|\#.*)?"
_OPENING = re.compile(rf"\s*(\w+)\s*\{{\s*{_REMARK}\Z")
_SETTING = re.compile(
    rf"""\s*([\w-]+)\s*=\s*(?:("(?:[^"\\]|\\.)*")|(.*?))\s*(?:;\s*{_REMARK})?\Z"""
)
_PLAIN = re.compile(r"[A-Za-z0-9._:-]+\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")


@dataclass(frozen=True, slots=True)
class Proxy:
    """`settings` are the lines of the redsocks block in their order, without the local ones;
    `dns` is `ADDRESS:PORT`, or "" without DNS over the proxy."""

    settings: Mapping[str, str] = field(default_factory=dict)
    dns: str = ""

    @property
    def usable(self) -> bool:
        """Whether the block says enough to be a proxy (spec 30 §6.3)."""
        kind, port = self.settings.get("type"), self.settings.get("port", "")
        fit = bool(_PORT.match(port)) and 0 < int(port) < 65536
        return kind in TYPES and bool(self.settings.get("ip")) and fit


def parse(text: str) -> Proxy:
    """The proxy that a file's text describes; what it does not say is absent."""
    blocks = dict(_blocks(text))
    settings = blocks.get("redsocks", {})
    remote = blocks.get("dnsu2t", {})
    dns = (
        f"{remote['remote_ip']}:{remote.get('remote_port', '53')}" if "remote_ip" in remote else ""
    )
    return Proxy({k: v for k, v in settings.items() if k not in _LOCAL}, dns)


def local_port(text: str) -> int:
    """The port on which redsocks listens for what it shall pass on."""
    found = dict(_blocks(text)).get("redsocks", {}).get("local_port", "")
    return int(found) if _PORT.match(found) else LOCAL_PORT


def render(proxy: Proxy) -> str:
    """The whole file."""
    blocks = [
        _block("base", _BASE),
        _block(
            "redsocks",
            (
                *((key, _written(key, value)) for key, value in proxy.settings.items()),
                ("local_ip", "127.0.0.1"),
                ("local_port", str(LOCAL_PORT)),
            ),
        ),
    ]
    if proxy.dns:
        address, _, port = proxy.dns.rpartition(":")
        lines = (("remote_ip", address), ("remote_port", port),
                 ("local_ip", "127.0.0.1"), ("local_port", "53"))  # fmt: skip
        blocks.append(_block("dnsu2t", lines))
    return "\n\n".join(blocks) + "\n"


def _block(label: str, lines: tuple[tuple[str, str], ...]) -> str:
    inner = "".join(f"\t{key} = {value};\n" for key, value in lines)
    return f"{label} {{\n{inner}}}"


def _written(key: str, value: str) -> str:
    """redsocks undoes backslashes inside quotes. What is no plain word was in quotes before."""
    if key not in QUOTED and _PLAIN.match(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _blocks(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Lines end with a line feed alone, as for redsocks: other characters that Python takes for the
    end of a line may stand in a password."""
    label = ""
    lines: dict[str, str] = {}
    for line in text.removeprefix("\ufeff").split("\n"):
        if opening := _OPENING.match(line):
            label, lines = opening[1], {}
        elif line.strip() == "}" and label:
            yield label, lines
            label = ""
        elif label and (setting := _SETTING.match(line)):
            lines[setting[1]] = _read(setting[2] or setting[3])


def _read(value: str) -> str:
    """A value without its quotes and what they escape; the peer drops every quote."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value.replace('"', "")
