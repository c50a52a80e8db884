"""The host side of the steps: update locks, reboot and power-off, name and proxy.

Theory: nothing is decided here but what only the host can know at this moment: an OS update that
waits for its verdict must not be interrupted, unless forced (spec 20 §20). Everything else is done
by the module of its subject.
"""

from __future__ import annotations

from ..core.errors import Locked
from ..core.steps import (
    HostStep,
    ReleaseLocks,
    RequestPowerOff,
    RequestReboot,
    SetNetworkConfig,
    TakeLocks,
    Ticket,
)
from .locks import UpdateLocks, host_update_pending
from .logind import Logind
from .networkconfig import NetworkConfiguration

HOST_UPDATE = "Waiting for Host OS update to finish"


class MachineHost:
    """`ports.Host` on a real machine. `state` is the mount point of the state partition."""

    def __init__(
        self, locks: UpdateLocks, logind: Logind, state: str, host: NetworkConfiguration
    ) -> None:
        self._locks = locks
        self._logind = logind
        self._state = state
        self._host = host

    def perform(self, step: HostStep, ticket: Ticket) -> None:
        """Do one step. Locked, RefusedByHost, Unavailable and its kinds."""
        match step:
            case TakeLocks():
                self._locks.take(step.app_id, step.services, step.force)
            case ReleaseLocks():
                self._locks.release(step.app_id)
            case RequestReboot():
                self._refuse_during_update(step.force)
                self._logind.reboot(step.force)
            case RequestPowerOff():
                self._refuse_during_update(step.force)
                self._logind.power_off(step.force)
            case SetNetworkConfig():
                self._host.set(step.change)

    def held_locks(self) -> frozenset[int]:
        """App ids whose update locks we hold."""
        return self._locks.held()

    def _refuse_during_update(self, force: bool) -> None:
        if not force and host_update_pending(self._state):
            raise Locked(HOST_UPDATE)
