"""Who the device is towards the cloud's registry and delta server, and where its name is shown.

Theory (spec 20 §18.7): the cloud's registry asks for the device's own name and key, and those are
worth more than any image. So they are offered to registries of the cloud alone: the one that
config.json names, and hosts of the cloud's domain (`example.org` of `api.example.org`). Any other
registry host is somebody else's: its images are fetched as public ones. A device without a cloud
has no name.

While the device is being provisioned its provisioning key stands in for its own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .observed import HostFacts

DELTA_ENDPOINT = "https://delta.balena-cloud.com"


@dataclass(frozen=True, slots=True)
class CloudAccess:
    """`api` and `deltas` are base URLs without a trailing slash; `registry` is "" where
    config.json does not name one. Without `username` the device has no cloud."""

    api: str = ""
    registry: str = ""
    deltas: str = DELTA_ENDPOINT
    username: str = ""
    password: str = field(default="", repr=False)

    def covers(self, registry: str) -> bool:
        """Whether a registry host is one of the cloud's."""
        host = _host(registry)
        if not self.username or not host:
            return False
        api = _host(self.api)
        if host in (api, _host(self.registry)):
            return True
        domain = "" if _is_address(api) else api.removeprefix("api.")
        return "." in domain and host.endswith(f".{domain}")

    def credentials(self, registry: str) -> Mapping[str, str] | None:
        """The engine's auth_config for a registry, or None for one that is not the cloud's."""
        if not self.covers(registry):
            return None
        return {
            "username": self.username,
            "password": self.password,
            "serveraddress": registry,
        }


def cloud_access(facts: HostFacts) -> CloudAccess:
    """The access of a device; none for one that is unmanaged or has no key yet."""
    key = facts.provisioning_key or facts.device_api_key
    if not (facts.managed and facts.device_uuid and key):
        return CloudAccess()
    return CloudAccess(
        api=facts.api_endpoint.rstrip("/"),
        registry=facts.registry_endpoint,
        deltas=(facts.delta_endpoint or DELTA_ENDPOINT).rstrip("/"),
        username=f"d_{facts.device_uuid}",
        password=key,
    )


def _host(address: str) -> str:
    """The host name of a URL or of `host:port`, in lower case; "" where there is none."""
    text = address if "//" in address else f"//{address}"
    try:
        return (urlsplit(text).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
