"""The addresses under which this device can be reached.

Theory: the kernel is asked directly, per interface, so that this works with and without
NetworkManager. Interfaces that belong to the engine, to the VPN or to the agent's own plumbing are
not addresses *of the device* and are left out (spec 10 §8.11).
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

_SIOCGIFCONF = 0x8912
_ROW = 16 + struct.calcsize("LLHBBB0L")
"""Of the kernel's list: a label and the biggest of a union, of which the address is in use."""
_MOST = 1024
"""Addresses, of all interfaces."""
_GLOBAL_SCOPE = "00"
_INNER = re.compile(
    r"lo|docker.*|balena.*|rce.*|tun.*|resin-vpn|resin-dns|resin-redsocks|supervisor0|veth.*"
    r"|br-[0-9a-f]{12}"
)
_ETHERNET = "1"
_INTERFACES = "/sys/class/net"
_IF_INET6 = Path("/proc/net/if_inet6")
_TCP = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN = "0A"
_RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


def addresses() -> tuple[str, ...]:
    """IPv4 addresses, then global IPv6 ones, by the names of the interfaces. Never raises.

    The names come from sysfs: `if_nameindex` would hold up all threads while the kernel's network
    lock is taken, which it often is when the engine is at work.
    """
    try:
        names = [name for name in sorted(os.listdir(_INTERFACES)) if not _INNER.fullmatch(name)]
    except OSError:
        return ()
    return (*_ipv4(names), *_ipv6(names))


def is_on(address: str, names: Iterable[str]) -> bool:
    """Whether an address of ours belongs to one of these interfaces, or is a loopback address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    plain = mapped or found
    return plain.is_loopback or str(plain) in {*_ipv4(names), *_ipv6(names, scope="")}


def _ipv4(names: Iterable[str]) -> Iterator[str]:
    """By the order of the names. One call gives all addresses, each with a label, which is the name
    of its interface and may have a suffix: `eth0:1`."""
    rows = array.array("B", bytes(_MOST * _ROW))
    place, size = rows.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFCONF, struct.pack("iP", size, place))
        except OSError:
            return
    (filled,) = struct.unpack_from("i", answer)
    found: dict[str, list[str]] = {}
    for at in range(0, filled, _ROW):
        row = rows[at : at + _ROW].tobytes()
        label = row[:16].partition(b"\0")[0].decode(errors="replace")
        found.setdefault(label.partition(":")[0], []).append(socket.inet_ntoa(row[20:24]))
    for name in names:
        yield from found.get(name, ())


def _ipv6(names: Iterable[str], scope: str = _GLOBAL_SCOPE) -> Iterator[str]:
    """Addresses of one scope; "" for all."""
    try:
        lines = _IF_INET6.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        digits, _, _, found, _, name = line.split()
        if name in names and scope in ("", found):
            yield str(ipaddress.IPv6Address(int(digits, 16)))


def listening(port: int, tables: Iterable[Path] = _TCP) -> bool:
    """Whether anybody on this host listens on a TCP port, at whatever address."""
    wanted = f"{port:04X}"
    for table in tables:
        try:
            rows = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            _, local, _, state, *_ = row.split()
            if state == _LISTEN and local.rpartition(":")[2] == wanted:
                return True
    return False


def reserve_port(port: int, table: Path = _RESERVED) -> str:
    """Keep the kernel from lending our port to outgoing connections; "" or why that failed.

    Our port is in the range of ephemeral ports. A client on this host that keeps trying to reach
    us while we are restarted can be given our own port as its source: it then talks to itself, and
    we cannot listen any more.
    """
    try:
        ranges = [part for part in table.read_text().strip().split(",") if part]
        if any(_covers(part, port) for part in ranges):
            return ""
        table.write_text(",".join((*ranges, str(port))))
    except (OSError, ValueError) as error:
        return f"port {port} cannot be reserved: {error}"
    return ""


def _covers(part: str, port: int) -> bool:
    low, _, high = part.partition("-")
    return int(low) <= port <= int(high or low)


def mac_addresses(top: Path = Path(_INTERFACES)) -> tuple[str, ...]:
    """MAC addresses of the device's own interfaces: upper case, each once, by the names of the
    interfaces (spec 30 §11.3). Members of a bridge or bond show its master's. Never raises."""
    found: dict[str, None] = {}
    try:
        names = sorted(os.listdir(top))
    except OSError:
        return ()
    for name in names:
        try:
            ethernet = (top / name / "type").read_text().strip() == _ETHERNET
            address = (top / name / "address").read_text().strip().upper()
        except OSError:
            continue  # gone, or not an interface
        member = (top / name / "master").exists()
        if ethernet and not member and not _INNER.fullmatch(name) and address.strip("0:"):
            found[address] = None
    return tuple(found)
