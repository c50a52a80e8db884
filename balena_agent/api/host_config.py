"""`/v1/device/host-config` on a host whose name and proxy can be set (spec 10 §8.12, §8.13).

Theory: reading asks the host, writing is a command like any other: it is judged first, done by the
reconciler under the update locks of all apps, and answered when the host is so or why it is not.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping

from ..core.errors import DeadlineExceeded
from ..core.intent import ConfigureNetwork
from ..core.jsonread import Json
from ..core.networkconfig import NetworkConfig, read_change, shown
from ..runtime.ports import Submit

LIMIT = 900.0
"""Seconds for which an answer waits for the host."""


class HostNetwork:
    """`around.HostConfig`. `read` asks the host, `submit` is the reconciler's."""

    def __init__(
        self,
        read: Callable[[], NetworkConfig],
        submit: Submit,
        limit: float = LIMIT,
    ) -> None:
        self._read = read
        self._submit = submit
        self._limit = limit

    def read(self) -> dict[str, Json]:
        return {"network": shown(self._read())}

    def patch(self, network: Mapping[str, Json], force: bool) -> None:
        """No lock is taken where nothing is to be changed."""
        change = read_change(dict(network))
        if not change:
            return
        try:
            self._submit(ConfigureNetwork(change, force)).result(self._limit)
        except concurrent.futures.TimeoutError:
            raise DeadlineExceeded(f"Not done after {self._limit:g} seconds") from None
