"""The packet filter's rules that keep the API's port to containers, VPN and loopback (spec 30 §13).

Theory: all our rules stand in one chain of our own, `BALENA-FIREWALL`, which INPUT jumps to; no
other chain is ever declared, since declaring one empties it. What the chain shall hold follows from
a `Wish`, and is written exactly as `iptables-save` lists it. So the difference between the wish and
the world is a comparison of lines, and nothing is done where there is none.

The same chain serves IPv4 and IPv6; only the names of ICMP differ, and IPv6 has a DHCP of its own.
In mode `on` everything else that comes from outside is refused; `auto` is `on` while a service of
the target uses the host's network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .snapshot import Snapshot
from .status import local_mode, target_apps
from .target import Release

CHAIN = "BALENA-FIREWALL"

INTERFACES = ("resin-vpn", "tun0", "docker0", "lo", "supervisor0")
"""Where clients of the API may come from on a managed device."""

_SERVICES = (22222, 2375)
"""ssh and the engine of a development device."""

_BRIDGES = ("balena0", "docker0", "br+")
_DNS, _DHCP6_CLIENT = 53, 546
_JUMP = f"-A INPUT -j {CHAIN}"


@dataclass(frozen=True, slots=True)
class Family:
    """IPv4 or IPv6: the words that differ."""

    name: str
    icmp: str
    refusal: str
    dhcp: bool = False


IPV4 = Family("IPv4", "icmp", "icmp-port-unreachable")
IPV6 = Family("IPv6", "ipv6-icmp", "icmp6-port-unreachable", dhcp=True)


@dataclass(frozen=True, slots=True)
class Wish:
    """`open_api`: the API is for everybody who can reach the device. `closed`: what is not named
    is refused. `why` is the mode's name."""

    port: int
    open_api: bool = False
    closed: bool = False
    why: str = "off"


@dataclass(frozen=True, slots=True)
class Present:
    """What a listing shows: the chain's rules (None: no such chain), and whether INPUT uses it."""

    rules: tuple[str, ...] | None = None
    jump: bool = False


def wish(snapshot: Snapshot) -> Wish:
    mode = snapshot.settings.firewall_mode
    closed = mode == "on" or (mode == "auto" and uses_host_network(snapshot))
    return Wish(snapshot.facts.api_port, local_mode(snapshot), closed, mode)


def uses_host_network(snapshot: Snapshot) -> bool:
    """Whether some service of the target is in the host's network."""
    releases = [app.release for app in target_apps(snapshot) if app.release is not None]
    return any(_host_services(release) for release in releases)


def _host_services(release: Release) -> bool:
    modes = (service.composition.get("network_mode") for service in release.services.values())
    return "host" in modes


def rules(wanted: Wish, family: Family) -> tuple[str, ...]:
    """The chain's rules in their order, as `iptables-save` lists them."""
    refuse = f"-j REJECT --reject-with {family.refusal}"
    api = _port("tcp", wanted.port)
    lines = [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-m addrtype --src-type LOCAL -j ACCEPT",
        *(f"-i {name} {api} -j ACCEPT" for name in INTERFACES if not wanted.open_api),
        *([f"{api} -j ACCEPT"] if wanted.open_api else []),
        f"{api} {refuse}",
        *(f"{_port('tcp', port)} -j ACCEPT" for port in _SERVICES),
        "-m addrtype --dst-type MULTICAST -j ACCEPT",
        f"-p {family.icmp} -j ACCEPT",
        *([f"{_port('udp', _DHCP6_CLIENT)} -j ACCEPT"] if family.dhcp else []),
        *(
            f"-i {bridge} {_port(protocol, _DNS)} -j ACCEPT"
            for bridge in _BRIDGES
            for protocol in ("udp", "tcp")
        ),
    ]
    if not wanted.closed:
        lines.append(f'-m comment --comment "Firewall disabled ({wanted.why})" -j RETURN')
    lines.append(refuse)
    return tuple(f"-A {CHAIN} {line}" for line in lines)


def _port(protocol: str, port: int) -> str:
    return f"-p {protocol} -m {protocol} --dport {port}"


def read(listing: str) -> Present:
    """What `iptables-save -t filter` has printed."""
    lines = listing.splitlines()
    known = any(line.startswith(f":{CHAIN} ") for line in lines)
    mine = tuple(line for line in lines if line.startswith(f"-A {CHAIN} "))
    return Present(mine if known else None, _JUMP in lines)


def transaction(lines: Iterable[str], present: Present) -> str:
    """Input for `iptables-restore --noflush`: our chain with these rules, and the jump to it in
    front of INPUT unless there is one somewhere. All of it takes effect, or nothing."""
    jump = [] if present.jump else [f"-I INPUT 1 -j {CHAIN}"]
    return "\n".join(("*filter", f":{CHAIN} - [0:0]", *lines, *jump, "COMMIT", ""))
