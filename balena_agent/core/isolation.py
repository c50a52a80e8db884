"""How a container is set apart from its host: limits, kernel settings, security, name resolution.

Theory: readers for the compose fields whose engine form is neither a plain scalar nor a plain list
(spec 21 §2). Each takes every spelling that compose knows and rejects, with a note, what the engine
would refuse for ever.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from .canonical import is_selinux_label
from .fields import LARGEST, Notes, plain, strings, text, text_map, whole
from .jsonread import Json

_LONGEST_LABEL = 63
_GATEWAY = "host-gateway"
"""The engine's word for the address of the host."""
_LIMITS = frozenset(
    {"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
     "rss", "rtprio", "rttime", "sigpending", "stack"}
)  # fmt: skip


def hostname(value: Json, name: str, notes: Notes) -> str | None:
    """A host name. Linux takes no label of more than 63 characters."""
    found = text(value, name, notes)
    if found and any(len(label) > _LONGEST_LABEL for label in found.split(".")):
        notes.ignored(name, value, "a part of the name has more than 63 characters")
        return None
    return found


def cgroup_parent(value: Json, name: str, notes: Notes) -> str | None:
    """A slice: this host's engine leaves cgroups to systemd."""
    found = text(value, name, notes)
    if found and not found.endswith(".slice"):
        notes.ignored(name, value, "expecting the name of a systemd slice, ending in .slice")
        return None
    return found


def extra_hosts(value: Json, name: str, notes: Notes) -> list[str] | None:
    """`name:address` entries, from a list with `:` or `=` or from a map (D3)."""
    if isinstance(value, Mapping):
        entries: list[str] | None = list(_hosts_of_map(value))
    else:
        entries = strings(value, name, notes)
    if entries is None:
        return None
    found = []
    for entry in entries:
        host, separator, address = entry.replace("=", ":", 1).partition(":")
        address = _without_brackets(address.strip())
        if not (host and separator and address):
            notes.ignored(name, entry, "expecting name:address")
        elif not _is_address(address):
            notes.ignored(name, entry, f"expecting an IP address or {_GATEWAY} after the name")
        else:
            found.append(f"{host.strip()}:{address}")
    return found


def _is_address(text: str) -> bool:
    try:
        return text == _GATEWAY or bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _hosts_of_map(value: Mapping[str, Json]) -> Iterator[str]:
    for host, addresses in value.items():
        for address in addresses if isinstance(addresses, list) else [addresses]:
            yield f"{host}:{plain(address) or ''}"


def _without_brackets(address: str) -> str:
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def security_options(value: Json, name: str, notes: Notes) -> list[str] | None:
    """Security options but for SELinux labels, in both spellings."""
    found = strings(value, name, notes)
    if found is None:
        return None
    dropped = [option for option in found if is_selinux_label(option)]
    if dropped:
        notes.ignored(name, dropped, "SELinux labels are not supported")
    return [option for option in found if option not in dropped]


def sysctls(value: Json, name: str, notes: Notes) -> dict[str, str]:
    return text_map(value, name, notes)


def ulimits(value: Json, name: str, notes: Notes) -> list[dict[str, Json]] | None:
    """Limits in the engine's form; one missing half is the same as the other."""
    if not isinstance(value, Mapping):
        notes.ignored(name, value, "expecting a map")
        return None
    found: list[dict[str, Json]] = []
    for limit, amount in value.items():
        if isinstance(amount, Mapping):
            notes.unknown(f"{name}.{limit}", amount, ("soft", "hard"))
        pair = _soft_and_hard(amount)
        if limit not in _LIMITS:
            notes.ignored(f"{name}.{limit}", amount, "no such limit")
        elif pair is None:
            notes.ignored(f"{name}.{limit}", amount, "expecting a number or {soft, hard}")
        elif _above(*pair):
            notes.ignored(f"{name}.{limit}", amount, "soft is more than hard")
        else:
            found.append({"Name": limit, "Soft": pair[0], "Hard": pair[1]})
    return found


def _soft_and_hard(amount: Json) -> tuple[int, int] | None:
    if isinstance(amount, Mapping):
        soft, hard = whole(amount.get("soft")), whole(amount.get("hard"))
    else:
        soft = hard = whole(amount)
    first = hard if soft is None else soft
    second = soft if hard is None else hard
    if first is None or second is None or max(abs(first), abs(second)) > LARGEST:
        return None
    return (first, second)


def _above(soft: int, hard: int) -> bool:
    """-1 is no limit at all."""
    return hard != -1 and (soft > hard or soft == -1)


def is_network_sysctl(name: str) -> bool:
    """Whether a kernel setting belongs to the network namespace (not allowed in host mode)."""
    return name.startswith(("net.", "net/"))
