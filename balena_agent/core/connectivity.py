"""Whether a managed device has a way to its cloud, as far as the host knows (spec 30 §11.1).

Theory: a cloud that has answered last time it was asked proves the way, whatever NetworkManager's
own check says, which may be blocked where the cloud is not; but not once every address is gone.
Otherwise NetworkManager's word counts where it checks. Where nobody checks, an address is the only
thing that can be missed for certain. A VPN that is connected proves the way. What nobody wants to
know, or nobody has looked at yet, is no trouble.
"""

from __future__ import annotations

from .cloudanswer import ONLINE
from .snapshot import Snapshot

FULL, UNKNOWN = "full", "unknown"

OK = "Internet Connectivity: OK"
WAITING = "Waiting for connectivity..."
"""The peer's lines, which people look for."""


def trouble(snapshot: Snapshot) -> str:
    """Why there is no way to the cloud, or ""."""
    facts = snapshot.facts
    if not facts.managed or facts.connectivity in ("", FULL):
        return ""
    if snapshot.host.vpn_connected or not snapshot.settings.connectivity_check:
        return ""
    if facts.addresses and snapshot.cloud.state == ONLINE:
        return ""
    if facts.connectivity == UNKNOWN:
        return "" if facts.addresses else "the device has no address"
    return f"NetworkManager says {facts.connectivity}"
