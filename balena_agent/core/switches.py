"""Parts of the host that a variable switches: VPN, mDNS, where the journal is kept.

Theory: each is in one of a few settings, found by the host adapter; what is not on this host is not
in the map, and nothing is ever asked of it. `wanted_switches` says which setting each shall have,
and which other ones will do. Only a difference becomes a step, so whoever changes the host behind
our back is answered at the next look.

`on` and `off` are ours: `off` is held, so that no other unit can switch it on again. `idle` is
neither: it does not run and nobody keeps it from running. On balenaOS that is a fault; on a generic
host it is the administrator's choice. The journal likewise is the host's `own` affair until
somebody wants it kept.

That a variable has its default says nothing about a generic host, even where it is spelled out: a
client that reads the target, changes an app and writes it back, spells out all of them. There a
default only takes back what another value has brought about; the journal is in memory then.

Source: spec 30 §10, §14, §15.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .steps import SwitchFeature
from .variables import DeviceSettings, spelled

VPN, DISCOVERY, JOURNAL = "vpn", "discoverability", "journal"
ON, OFF, IDLE = "on", "off", "idle"
PERSISTENT, VOLATILE, OWN = "persistent", "volatile", "own"

RETRY_SECONDS = 60.0
RETRY_CAP_SECONDS = 3600.0
"""The first pause after a failed attempt, and the longest one."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`setting` is brought about unless the switch is in it, or in one of `also`."""

    switch: str
    setting: str
    cause: str
    also: tuple[str, ...] = ()


def plan_switches(
    found: Mapping[str, str],
    settings: DeviceSettings,
    given: Mapping[str, str],
    *,
    managed: bool,
    balena_os: bool,
) -> tuple[SwitchFeature, ...]:
    """The steps for what is `found`. `given` are the target's variables without prefix."""
    return tuple(
        SwitchFeature(wanted.switch, wanted.setting, wanted.cause)
        for wanted in wanted_switches(settings, given, managed=managed, balena_os=balena_os)
        if wanted.switch in found and found[wanted.switch] not in (wanted.setting, *wanted.also)
    )


def wanted_switches(
    settings: DeviceSettings, given: Mapping[str, str], *, managed: bool, balena_os: bool
) -> Iterator[Wanted]:
    """An unmanaged device's VPN is nobody's business; on balenaOS the journal's place is changed by
    config.json and a reboot alone (hostconfig.py)."""
    if managed:
        yield _switched(VPN, "SUPERVISOR_VPN_CONTROL", settings.vpn_control, balena_os)
    yield _switched(DISCOVERY, "HOST_DISCOVERABILITY", settings.discoverability, balena_os)
    if not balena_os:
        yield _journal(settings, given)


def _switched(switch: str, variable: str, on: bool, balena_os: bool) -> Wanted:
    also = (IDLE,) if on and not balena_os else ()
    return Wanted(switch, ON if on else OFF, f"{variable} is {spelled(on)}", also)


def _journal(settings: DeviceSettings, given: Mapping[str, str]) -> Wanted:
    variable = "SUPERVISOR_PERSISTENT_LOGGING"
    cause = f"{variable} is {spelled(settings.persistent_logging)}"
    if settings.persistent_logging:
        return Wanted(JOURNAL, PERSISTENT, cause)
    if variable in given:
        return Wanted(JOURNAL, VOLATILE, cause, (OWN,))
    return Wanted(JOURNAL, OWN, f"{variable} is not set")
