"""Who may ask what: API keys, their scopes, and the devices that are open without a key.

Theory: a managed device answers nobody without a key, but for `/ping` and `/v1/healthy` (spec 10
§3.1). An unmanaged or local-mode device is a developer's: there the setting
`[api] open_in_local_mode` decides who is let in without one.

    always  everybody
    dev     the host itself, the containers on the supervisor0 bridge, and everybody on a device
            with a development variant of the OS
    never   nobody

Whoever is let in without a key may do everything, and whatever key came along is ignored: the CLI
sends the user's cloud token everywhere. A key is compared in a time that does not tell how much of
it was right (see the store), and never logged.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..core.errors import AccessDenied
from ..core.names import SUPERVISOR_SUBNET
from ..core.scopes import EVERYTHING, Scope
from ..core.snapshot import Snapshot
from ..core.status import local_mode

OPEN_CHOICES = ("always", "dev", "never")

_AUTHORIZATION = re.compile(r"(?:ApiKey|Bearer) ([A-Za-z0-9_]+)", re.IGNORECASE)
_BRIDGE = ipaddress.ip_network(SUPERVISOR_SUBNET)


class Keys(Protocol):
    """What the store knows about API keys. Callable from any thread."""

    def global_key(self) -> str:
        """The key that reaches everything."""

    def service_key(self, app_id: int, service: str) -> str:
        """The key of one service, for its own app."""

    def scopes_of(self, key: str) -> Scope | None:
        """What a key may reach; None for a key that is not ours."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Where a request comes from: the client's address, and ours on that connection."""

    address: str = ""
    own_address: str = ""


class Auth:
    """Decides about every request anew, so that a switch to local mode counts at once."""

    def __init__(self, keys: Keys, open_in_local_mode: str = "dev") -> None:
        if open_in_local_mode not in OPEN_CHOICES:
            raise ValueError(f"open_in_local_mode must be one of {', '.join(OPEN_CHOICES)}")
        self._keys = keys
        self._open = open_in_local_mode

    def scope(self, snapshot: Snapshot, caller: Caller, key: str | None) -> Scope:
        """What a request may reach. AccessDenied, or whatever the store raises in trouble."""
        if self._is_open(snapshot, caller):
            return EVERYTHING
        scope = self._keys.scopes_of(key) if key else None
        if scope is None:
            raise AccessDenied("Unauthorized")
        return scope

    def _is_open(self, snapshot: Snapshot, caller: Caller) -> bool:
        if self._open == "never" or not local_mode(snapshot):
            return False
        if self._open == "always" or snapshot.facts.os_variant == "dev":
            return True
        return is_near(caller)


def is_near(caller: Caller) -> bool:
    """Whether a request comes from the host itself or over the supervisor0 bridge.

    A process of the host that uses any address of the host has that very address itself.
    """
    address = _address(caller.address)
    return is_local(caller) or (address is not None and address in _BRIDGE)


def is_local(caller: Caller) -> bool:
    """Whether a request comes from a process of the host itself."""
    address = _address(caller.address)
    return address is not None and (address.is_loopback or address == _address(caller.own_address))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, IPv4 also where the dual-stack socket shows it as `::ffff:a.b.c.d`."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def passed_key(query: Mapping[str, list[str]], authorization: str) -> str | None:
    """The key that a request carries, if any (spec 10 §3.2).

    One non-empty `apikey` in the query counts even when a header has a better one.
    """
    asked = query.get("apikey", [])
    if len(asked) == 1 and asked[0]:
        return asked[0]
    header = _AUTHORIZATION.fullmatch(authorization.strip())
    return header[1] if header else None
