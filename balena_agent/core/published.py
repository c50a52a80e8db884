"""Published ports: from the forms of compose to the engine's port bindings (spec 21 §6).

Theory: every form means a set of (container port, protocol, host address, host port). It is
expanded in full and compared as a set: no folding into ranges, no order, no doubles. A port that
does not parse is refused, for a service without one of its ports would look healthy and be useless.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from .fields import Notes, pick, plain, whole
from .jsonread import Json

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?\Z")
_PROTOCOLS = ("tcp", "udp", "sctp")
_FIELDS = ("target", "published", "host_ip", "protocol")
_RULE = "expecting [ip:][host[-end]:]container[-end][/tcp|/udp|/sctp] or {target, published, ...}"

Binding = tuple[str, str, str]
"""(container port and protocol, host address, host port): ("80/tcp", "", "8080")."""


def port_bindings(value: Json, name: str, notes: Notes) -> dict[str, list[dict[str, str]]]:
    """The engine's PortBindings of a `ports` list. Raises a refusal for a bad entry."""
    if not isinstance(value, list):
        raise notes.refusal(name, value, "expecting a list")
    found: set[Binding] = set()
    for at, entry in enumerate(value):
        if isinstance(entry, Mapping):
            notes.unknown(f"{name}[{at}]", entry, _FIELDS)
        bindings = _bindings(entry)
        if bindings is None:
            raise notes.refusal(name, entry, _RULE)
        found.update(bindings)
    return _grouped(found)


def _grouped(found: set[Binding]) -> dict[str, list[dict[str, str]]]:
    grouped: dict[str, list[dict[str, str]]] = {}
    for port, address, host in sorted(found):
        grouped.setdefault(port, []).append({"HostIp": address, "HostPort": host})
    return grouped


def _bindings(entry: Json) -> list[Binding] | None:
    if isinstance(entry, Mapping):
        return _of_object(entry)
    if not isinstance(entry, str):
        number = whole(entry)
        return None if number is None else _pairs(str(number), str(number), "", "tcp")
    rest, slash, protocol = entry.strip().partition("/")
    host_side, _, container = rest.rpartition(":")
    address, colon, host = host_side.rpartition(":")
    if ":" in rest and not host and not colon:
        return None
    if ":" not in rest:
        host = container
    return _pairs(container, host, address, protocol if slash else "tcp")


def _of_object(entry: Mapping[str, Json]) -> list[Binding] | None:
    target = plain(entry.get("target")) or ""
    published = plain(entry.get("published")) or target
    address = pick(entry, "host_ip") or ""
    protocol = entry.get("protocol") or "tcp"
    if not isinstance(address, str) or not isinstance(protocol, str):
        return None
    return _pairs(target, published, address, protocol)


def _pairs(container: str, host: str, address: str, protocol: str) -> list[Binding] | None:
    """All bindings of two ranges of equal length; host "" lets the engine choose."""
    protocol = protocol.lower()
    inside = _range(container, lowest=1)
    outside = _range(host, lowest=0) if host else range(0)
    known = _address(address)
    if not inside or outside is None or known is None or protocol not in _PROTOCOLS:
        return None
    if not host:
        return [(f"{port}/{protocol}", known, "") for port in inside]
    if len(inside) != len(outside):
        return None
    return [(f"{a}/{protocol}", known, str(b)) for a, b in zip(inside, outside, strict=True)]


def _range(text: str, lowest: int) -> range | None:
    found = _RANGE.match(text)
    if not found:
        return None
    first, last = int(found[1]), int(found[2] or found[1])
    return range(first, last + 1) if lowest <= first <= last <= 65535 else None


def _address(text: str) -> str | None:
    """The host address without brackets, in the user's spelling; None if it is none."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not bare:
        return ""
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return None
    return bare
