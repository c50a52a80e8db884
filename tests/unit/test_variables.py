"""Device variables (spec 30 §3): names, types, defaults, and what is told about bad ones."""

from __future__ import annotations

from dataclasses import fields

import pytest

from balena_agent.core.variables import (
    VARIABLES,
    DeviceSettings,
    as_variables,
    changes,
    effective,
    plain_names,
)


def test_every_setting_has_one_variable() -> None:
    assert sorted(v.setting for v in VARIABLES) == sorted(f.name for f in fields(DeviceSettings))


def test_the_defaults_as_variables() -> None:
    assert as_variables(effective({}, managed=True).settings) == {
        "SUPERVISOR_POLL_INTERVAL": "900000", "SUPERVISOR_INSTANT_UPDATE_TRIGGER": "true",
        "SUPERVISOR_LOCAL_MODE": "false", "SUPERVISOR_CONNECTIVITY_CHECK": "true",
        "SUPERVISOR_LOG_CONTROL": "true", "SUPERVISOR_API_REQUEST_TIMEOUT": "59000",
        "SUPERVISOR_DELTA": "false", "SUPERVISOR_DELTA_REQUEST_TIMEOUT": "59000",
        "SUPERVISOR_DELTA_APPLY_TIMEOUT": "0", "SUPERVISOR_DELTA_RETRY_COUNT": "30",
        "SUPERVISOR_DELTA_RETRY_INTERVAL": "10000", "SUPERVISOR_DELTA_VERSION": "3",
        "SUPERVISOR_OVERRIDE_LOCK": "false", "SUPERVISOR_PERSISTENT_LOGGING": "false",
        "SUPERVISOR_HARDWARE_METRICS": "true", "SUPERVISOR_VPN_CONTROL": "true",
        "HOST_FIREWALL_MODE": "off", "HOST_DISCOVERABILITY": "true",
    }  # fmt: skip
    assert effective({}, managed=False).settings.local_mode


def test_settings_survive_their_spelling() -> None:
    settings = DeviceSettings(delta=True, firewall_mode="auto", delta_version=2, vpn_control=False)
    assert effective(as_variables(settings), managed=True).settings == settings


def test_H09_balena_beats_resin_beats_the_bare_name() -> None:
    given = {"RESIN_SUPERVISOR_DELTA": "1", "BALENA_SUPERVISOR_DELTA": "0", "SUPERVISOR_DELTA": "1"}
    assert not effective(given, managed=True).settings.delta
    assert not effective(dict(reversed(given.items())), managed=True).settings.delta
    del given["BALENA_SUPERVISOR_DELTA"]
    assert plain_names(given | {"SUPERVISOR_DELTA": "0"}) == {"SUPERVISOR_DELTA": "1"}


def test_the_old_name_of_the_lock_variable_wins() -> None:
    given = {"RESIN_OVERRIDE_LOCK": "1", "SUPERVISOR_OVERRIDE_LOCK": "0"}
    assert effective(given, managed=True).settings.override_lock


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("BALENA_HOST_FIREWALL_MODE", "sideways", "firewallMode, value: 'sideways'. Falling back"
         " to default (off)"),
        ("SUPERVISOR_POLL_INTERVAL", "10abc", "appUpdatePollInterval, value: '10abc'. Falling back"
         " to default (900000)"),
        ("SUPERVISOR_POLL_INTERVAL", "-1", "appUpdatePollInterval, value: '-1'"),
        ("SUPERVISOR_DELTA", "", "delta, value: ''"),
        ("SUPERVISOR_DELTA", "yes", "delta, value: 'yes'"),
        ("SUPERVISOR_DELTA_VERSION", "4", "deltaVersion, value: '4'"),
    ],
)  # fmt: skip
def test_H10_H11_a_bad_value_is_told_and_the_default_holds(
    name: str, value: str, told: str
) -> None:
    found = effective({name: value}, managed=True)
    assert found.settings == DeviceSettings()
    (line,) = found.problems
    assert line.startswith(f"Warning: Ignoring invalid device configuration value for {told}")


@pytest.mark.parametrize(
    ("value", "meant"), [(" 60000 ", 60_000), ("+20000", 20_000), ("0", 10_000), ("9999", 10_000)]
)
def test_the_poll_interval_has_a_floor(value: str, meant: int) -> None:
    found = effective({"SUPERVISOR_POLL_INTERVAL": value}, managed=True)
    assert found.settings.poll_interval == meant and found.problems == ()


def test_changes_between_two_settings() -> None:
    after = DeviceSettings(delta=True, firewall_mode="on")
    wanted = {"SUPERVISOR_DELTA": "true", "HOST_FIREWALL_MODE": "on"}
    assert changes(DeviceSettings(), after) == wanted
