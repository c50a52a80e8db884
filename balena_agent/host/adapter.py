"""The host side of the steps: locks, hand-overs, reboots, settings; and what they need to know.

Theory: nothing is decided here but what only the host can know at this moment: an OS update that
waits for its verdict must not be interrupted, unless forced (spec 20 §20). Everything else is done
by the module of its subject.
"""

from __future__ import annotations

from ..core.errors import AgentError, Locked
from ..core.hostconfig import HostConfig
from ..core.names import EXTRA_FIRMWARE
from ..core.observed import HostState
from ..core.reboots import HOST_UPDATE
from ..core.steps import (
    AwaitHandover,
    ChangeConfig,
    DumpConfig,
    HostStep,
    ReleaseLocks,
    RequestPowerOff,
    RequestReboot,
    RequireReboot,
    SetBootConfig,
    SetFirmwareVolume,
    SetNetworkConfig,
    SwitchFeature,
    TakeLocks,
)
from ..core.ticket import Ticket
from .breadcrumbs import Breadcrumbs
from .configfile import FIRMWARE_VOLUME, ConfigFile
from .handover import Handovers
from .locks import UpdateLocks, host_update_pending, locked_message
from .logind import Logind
from .networkconfig import NetworkConfiguration
from .settings import HostSettings


class MachineHost:
    """`ports.Host` on a real machine. `state` is the mount point of the state partition."""

    def __init__(
        self,
        locks: UpdateLocks,
        handovers: Handovers,
        logind: Logind,
        state: str,
        breadcrumbs: Breadcrumbs,
        config: ConfigFile,
        settings: HostSettings,
        network: NetworkConfiguration,
    ) -> None:
        self._locks = locks
        self._handovers = handovers
        self._logind = logind
        self._state = state
        self._breadcrumbs = breadcrumbs
        self._config = config
        self._settings = settings
        self._network = network

    def perform(self, step: HostStep, ticket: Ticket) -> None:
        """Do one step. Locked, RefusedByHost, Unavailable and its kinds, Cancelled."""
        match step:
            case AwaitHandover():
                self._handovers.wait(step, ticket)
            case TakeLocks():
                self._locks.take(step.app_id, step.services, step.force)
            case ReleaseLocks():
                self._locks.release(step.app_id)
            case RequireReboot():
                self._breadcrumbs.add((f"{step.app_uuid}/{step.service}: {step.cause}",))
            case SetFirmwareVolume():
                self._config.set(FIRMWARE_VOLUME, EXTRA_FIRMWARE)
            case RequestReboot():
                self._refuse_during_update(step.force)
                self._refuse_over_flocks(step.force)
                self._reboot(step.force)
            case RequestPowerOff():
                self._refuse_during_update(step.force)
                self._logind.power_off(step.force)
            case ChangeConfig() | SetBootConfig() | DumpConfig() | SwitchFeature():
                self._settings.perform(step)
            case SetNetworkConfig():
                self._network.set(step.change)

    def _reboot(self, force: bool) -> None:
        """Word of the peer's kind must not outlive the reboot, but has to outlive a refusal."""
        consumed = self._breadcrumbs.consume()
        try:
            self._logind.reboot(force)
        except AgentError:
            if consumed:
                self._breadcrumbs.add(())
            raise

    def state(self) -> HostState:
        """How it stands with the boot, from a few small local files."""
        return HostState(
            self._breadcrumbs.boot_id,
            self._breadcrumbs.booted_at,
            self._breadcrumbs.reboot_required(),
            host_update_pending(self._state),
            self._config.text(FIRMWARE_VOLUME),
        )

    def held_locks(self) -> frozenset[int]:
        """App ids whose update locks we hold."""
        return self._locks.held()

    def config(self) -> HostConfig:
        """What the host is set to, as of the last look at its files."""
        return self._settings.current

    def _refuse_during_update(self, force: bool) -> None:
        if not force and host_update_pending(self._state):
            raise Locked(HOST_UPDATE)

    def _refuse_over_flocks(self, force: bool) -> None:
        """The host's own rule: who holds a flock on a lock file, ours included, is in the middle
        of something (spec 20 §20.3)."""
        for lock in () if force else self._locks.holders(sorted(self._locks.held())):
            raise Locked(locked_message(lock.app_id, lock.service))
