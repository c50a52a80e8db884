"""What a request wants of the host's name and proxy, judged before anything is touched.

Theory: the name ends up in /etc/hostname, the proxy in a file that the host's own scripts read as
root, line by line. So every value is held to a rule that leaves it no way out of its place, and
the answer names field and value (spec 30 §6.4, spec 10 §8.13). A change says of each part: left
alone (absent), cleared (null), or set.

Invariant: a `NetworkChange` that was read holds only values fit to be written.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from .errors import InvalidInput
from .jsonread import Json, Node, Problems, whole_number
from .redsocks import OURS, TYPES, Proxy

DEFAULT_DNS = "8.8.8.8:53"
NAME_LENGTH = 7
"""So much of the device's uuid is its name, when it has no other."""

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\Z")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?\Z")
_UNFIT = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"]')
"""Quotes, control characters of every kind, and what cannot be written as UTF-8."""

BAD_INPUT = "Could not parse host config input to a valid format:"


@dataclass(frozen=True, slots=True)
class ProxyChange:
    """`clear` removes the proxy first. `settings` are merged over what there is. `dns` is None
    where nothing is said, "" for none. `no_proxy` likewise: None, or the new list."""

    settings: Mapping[str, str] = field(default_factory=dict)
    dns: str | None = None
    no_proxy: tuple[str, ...] | None = None
    clear: bool = False

    @property
    def touches_file(self) -> bool:
        return self.clear or bool(self.settings) or self.dns is not None


@dataclass(frozen=True, slots=True)
class NetworkChange:
    """`hostname` is None where nothing is said, "" for the default name."""

    hostname: str | None = None
    proxy: ProxyChange | None = None

    def __bool__(self) -> bool:
        return self.hostname is not None or self.proxy is not None


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The host as it is: `proxy` is None without a redsocks.conf."""

    hostname: str = ""
    proxy: Proxy | None = None
    no_proxy: tuple[str, ...] = ()


def read_change(network: Json) -> NetworkChange:
    """The `network` object of a PATCH. InvalidInput lists everything that is wrong with it."""
    problems = Problems()
    node = Node(network, "$.network", problems)
    node.mapping(required=True)
    name = proxy = None
    if isinstance(network, dict) and "hostname" in network:
        name = _hostname(node.child("hostname"))
    if isinstance(network, dict) and "proxy" in network:
        proxy = read_proxy(node.child("proxy"))
    if problems:
        raise InvalidInput("\n".join((BAD_INPUT, *problems.lines)))
    return NetworkChange(name, proxy)


def read_hostname(name: str) -> str:
    """A host name that may be set; "" means the default one. InvalidInput."""
    if name and not _fit_hostname(name):
        raise InvalidInput(f"Invalid hostname: {name!r} must be labels of letters, digits and -")
    return name


def read_proxy(node: Node) -> ProxyChange:
    """The `proxy` object. Unknown keys are ignored; {} and null switch the proxy off."""
    if node.value is None:
        return ProxyChange(clear=True, no_proxy=())
    given = node.mapping(required=True)
    if not given:
        return ProxyChange(clear=True)
    settings = {key: _setting(node.child(key)) for key in given if key in OURS}
    dns = _dns(node.child("dns")) if "dns" in given else None
    no_proxy = _no_proxy(node.child("noProxy")) if "noProxy" in given else None
    return ProxyChange(settings, dns, no_proxy)


def merged(known: Proxy | None, change: ProxyChange) -> Proxy | None:
    """The proxy after a change, None for none. Nothing but DNS is no proxy: then there is none."""
    if not change.touches_file:
        return known
    base = Proxy() if change.clear or known is None else known
    kept = {k: v for k, v in base.settings.items() if change.settings.get(k) != ""}
    settings = {**kept, **{k: v for k, v in change.settings.items() if v}}
    dns = base.dns if change.dns is None else change.dns
    return Proxy(settings, dns) if settings else None


def missing(proxy: Proxy | None) -> tuple[str, ...]:
    """The settings without which a proxy cannot work."""
    return tuple(k for k in ("type", "ip", "port") if proxy and not proxy.settings.get(k))


def applied(known: NetworkConfig, change: NetworkChange, default_name: str) -> NetworkConfig:
    """The host configuration that a change asks for. InvalidInput: half a proxy."""
    found = known
    if change.hostname is not None:
        found = replace(found, hostname=change.hostname or default_name)
    if change.proxy:
        proxy = merged(known.proxy, change.proxy)
        if lacking := missing(proxy):
            raise InvalidInput(f"{BAD_INPUT} $.network.proxy lacks {', '.join(lacking)}")
        listed = change.proxy.no_proxy
        found = replace(found, proxy=proxy, no_proxy=known.no_proxy if listed is None else listed)
    return found


def shown(config: NetworkConfig) -> dict[str, Json]:
    """The `network` object of an answer (spec 10 §8.12)."""
    network: dict[str, Json] = {"hostname": config.hostname}
    if config.proxy:
        network["proxy"] = shown_proxy(config.proxy, config.no_proxy)
    return network


def shown_proxy(proxy: Proxy, no_proxy: Iterable[str]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    if proxy.usable:
        found = dict(proxy.settings)
        found["port"] = int(proxy.settings["port"])
        if proxy.dns:
            found["dns"] = proxy.dns
    listed = list(no_proxy)
    return {**found, "noProxy": listed} if listed else found


def _fit_hostname(name: str) -> bool:
    return len(name) <= 64 and bool(_HOSTNAME.match(name))


def _hostname(node: Node) -> str:
    name = node.value
    if name is None or name == "":
        return ""
    if not isinstance(name, str) or not _fit_hostname(name):
        node.bad("hostname of 1 to 64 characters, labels of letters, digits and - joined by dots")
        return ""
    return name


def _setting(node: Node) -> str:
    """One line of the redsocks block; null takes it away ("")."""
    key, value = node.path.rsplit(".", 1)[-1], node.value
    if value is None:
        return ""
    if key == "type":
        return node.one_of(TYPES, "")
    if key == "port":
        return _port(node)
    if key == "ip":
        return _address(node)
    if not isinstance(value, str) or len(value) > 255 or _UNFIT.search(value):
        node.bad("text of at most 255 characters without quotes and control characters")
        return ""
    return value


def _port(node: Node) -> str:
    number = whole_number(node.value)
    if number is None or not 0 < number < 65536:
        node.bad("port number from 1 to 65535")
        return ""
    return str(number)


def _address(node: Node) -> str:
    value = node.value
    if isinstance(value, str) and (_HOST.match(value) or _is_address(value)):
        return value
    node.bad("IP address or host name")
    return ""


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return "%" not in value


def _dns(node: Node) -> str:
    value = node.value
    if value is True:
        return DEFAULT_DNS
    if value is None or value is False:
        return ""
    address, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    try:
        ipaddress.IPv4Address(address)
        if port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            return f"{address}:{int(port)}"
    except ValueError:
        pass
    node.bad("true, false or an address like 9.9.9.9:53")
    return ""


def _no_proxy(node: Node) -> tuple[str, ...]:
    """Each entry becomes an argument of iptables in a script that ends at its first error."""
    value = [] if node.value is None else node.value
    if not isinstance(value, list):
        node.bad("list of IPv4 addresses and networks")
        return ()
    return tuple(
        entry
        for number, item in enumerate(value)
        if (entry := _destination(Node(item, f"{node.path}.{number}", node.problems)))
    )


def _destination(node: Node) -> str:
    try:
        if isinstance(node.value, str):
            ipaddress.IPv4Network(node.value, strict=False)
            return node.value
    except ValueError:
        pass
    node.bad("IPv4 address or network like 198.51.100.0/24")
    return ""
