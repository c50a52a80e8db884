"""Whether the cloud can be reached at all.

Theory: what counts is that the cloud itself answers, not that something does: a proxy on the way
has answers of its own for what it cannot or will not pass on (407, 502, 504), so those of a server
in trouble do not count. That the cloud refuses the device does: it has been reached.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.errors import AgentError
from ..core.jsonread import Json
from ..core.observed import HostFacts
from . import client
from .client import RefusedByCloud

LIMIT = 10.0
_ASKS_FOR_LOGIN = 407


def reached(facts: HostFacts, ask: Callable[..., Json] = client.request) -> bool | None:
    """Ask it now, at most `LIMIT` seconds; None on a device without a cloud."""
    if not facts.managed:
        return None
    try:
        ask(facts.api_endpoint, facts.device_api_key, "GET", "/ping", None, LIMIT)
    except RefusedByCloud as error:
        return error.status < 500 and error.status != _ASKS_FOR_LOGIN
    except AgentError:
        return False
    return True
