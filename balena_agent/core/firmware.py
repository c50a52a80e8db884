"""The device's volume for extra firmware (spec 20 §13.1.2, spec 30 §17).

Theory: one volume, outside of all apps, is filled by services with the label
`io.balena.features.extra-firmware` and read by the kernel, to which config.json names it. It is
made, and named, only where a service has the label or where config.json names it already: other
devices keep their config.json as it is. A host without such a section in its config.json gets the
volume alone. Neither holds up any service.
"""

from __future__ import annotations

from .desired import Desired
from .names import EXTRA_FIRMWARE
from .observed import Observed
from .situation import Draft
from .steps import EnsureExtraFirmware, SetFirmwareVolume


def plan_firmware(draft: Draft, desired: Desired, observed: Observed) -> None:
    """Volume and name, where they are wanted."""
    named = draft.situation.host.firmware_volume
    accepted = [app for app in desired.apps if not app.problem]
    users = [s.name for a in accepted for s in a.services if EXTRA_FIRMWARE in s.spec.volumes]
    cause = f"service {users[0]} uses it" if users else "config.json names it"
    if not users and named != EXTRA_FIRMWARE:
        return
    if EXTRA_FIRMWARE not in observed.volumes:
        draft.emit(EnsureExtraFirmware(cause))
    if named not in (None, EXTRA_FIRMWARE):
        draft.emit(SetFirmwareVolume(cause))
