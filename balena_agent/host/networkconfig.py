"""The host's name and proxy together: read, and changed as one.

Theory: a request may name both, and is done or not done. What can be judged is judged before
anything is touched; the proxy comes first because it can fail, and is put back when the name then
fails too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..core.errors import AgentError
from ..core.networkconfig import NAME_LENGTH, NetworkChange, NetworkConfig, applied
from .hostname import Hostname
from .proxytrial import ProxyTrial


class NetworkConfiguration:
    """Calls from any thread but the bus thread. `uuid` names a host without a name."""

    def __init__(self, hostname: Hostname, proxy: ProxyTrial, uuid: Callable[[], str]) -> None:
        self._hostname = hostname
        self._proxy = proxy
        self._uuid = uuid

    def start(self) -> None:
        """Go on with what an earlier run of the agent has left unfinished."""
        self._proxy.start()

    def close(self) -> None:
        self._proxy.close()

    def read(self) -> NetworkConfig:
        """As the host is now. Unavailable."""
        proxy, no_proxy = self._proxy.read()
        return NetworkConfig(self._hostname.read(), proxy, no_proxy)

    def set(self, change: NetworkChange) -> None:
        """InvalidInput, RefusedByHost, Unavailable: then all is as it was."""
        known = self.read()
        wanted = applied(known, change, self._uuid()[:NAME_LENGTH])
        if change.proxy:
            self._proxy.set(wanted.proxy, wanted.no_proxy)
        if change.hostname is None:
            return
        try:
            self._hostname.set(wanted.hostname)
        except AgentError:
            if change.proxy:
                with contextlib.suppress(AgentError):
                    self._proxy.set(known.proxy, known.no_proxy)
            raise
