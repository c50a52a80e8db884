"""core/access.py and core/deltas.py: who the device is, and to whom; what is said about deltas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from balena_agent.config import settings_from
from balena_agent.core.access import CloudAccess, cloud_access
from balena_agent.core.deltas import DeltaSettings, delta_settings
from balena_agent.core.observed import HostFacts
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.status import deltas_wanted
from balena_agent.core.target import Target
from balena_agent.core.variables import DeviceSettings, effective
from balena_agent.host import machine

FACTS = HostFacts(
    device_uuid="0abc", api_endpoint="https://api.cloud.example/", device_api_key="DEVICEKEY"
)


def test_the_device_has_a_name_in_its_cloud() -> None:
    access = cloud_access(FACTS)
    assert access.credentials("registry2.cloud.example") == {
        "username": "d_0abc",
        "password": "DEVICEKEY",
        "serveraddress": "registry2.cloud.example",
    }
    assert "DEVICEKEY" not in repr(access) and "DEVICEKEY" not in repr(FACTS)


@pytest.mark.parametrize(
    ("registry", "known"),
    [
        ("registry2.cloud.example", True),
        ("REGISTRY.cloud.example:443", True),
        ("cloud.example.org", False),
        ("notcloud.example", False),
        ("cloud.example", False),
        ("ghcr.io", False),
        ("127.0.0.1:5000", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_the_key_goes_to_the_cloud_alone(registry: str, known: bool) -> None:
    assert (cloud_access(FACTS).credentials(registry) is not None) == known


@pytest.mark.parametrize(
    ("api", "registry", "known"),
    [
        ("https://cloud.example.org", "registry.cloud.example.org", True),
        ("https://cloud.example.org", "other.example.org", False),
        ("https://api.org", "registry.org", False),  # a whole top-level domain is nobody's
        ("http://10.1.2.3:8080", "10.1.2.3:5000", True),
        ("http://10.1.2.3", "11.1.2.3", False),
        ("http://10.1.2.3", "x.1.2.3", False),
    ],
)
def test_which_hosts_belong_to_an_endpoint(api: str, registry: str, known: bool) -> None:
    assert CloudAccess(api=api, username="d_1", password="k").covers(registry) == known


def test_a_registry_that_config_json_names_is_the_clouds() -> None:
    access = cloud_access(replace(FACTS, registry_endpoint="images.other.example"))
    assert access.covers("images.other.example") and not access.covers("x.other.example")


@pytest.mark.parametrize("missing", ["api_endpoint", "device_uuid", "device_api_key"])
def test_a_device_without_cloud_uuid_or_key_has_no_name(missing: str) -> None:
    access = cloud_access(replace(FACTS, **{missing: ""}))
    assert access == CloudAccess() and access.credentials("registry2.cloud.example") is None


@pytest.mark.parametrize(
    ("config", "password"),
    [
        ({"apiKey": "PROVISION", "deviceApiKey": "OWN"}, "PROVISION"),
        ({"apiKey": "PROVISION", "deviceApiKey": "OWN", "registered_at": 1}, "OWN"),
        ({"apiKey": "PROVISION", "deviceApiKey": "OWN", "registered_at": None}, "PROVISION"),
        ({"deviceApiKey": "OWN", "registered_at": "1600000000"}, "OWN"),
    ],
)
def test_the_provisioning_key_stands_in_until_the_device_is_registered(
    tmp_path: Path, config: dict[str, object], password: str
) -> None:
    ends = {"deltaEndpoint": "https://delta.x.example/", "registryEndpoint": "r.example"}
    whole = {"uuid": "0abc", "apiEndpoint": "https://api.x.example", **ends, **config}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    files = settings_from("", environment={"CONFIG_MOUNT_POINT": f"{tmp_path}/config.json"}).host
    facts, _ = machine.facts(files, api_port=1, engine_socket="")
    access = cloud_access(facts)
    assert (access.username, access.password) == ("d_0abc", password)
    assert (access.deltas, access.registry) == ("https://delta.x.example", "r.example")


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, DeltaSettings()),
        ({"SUPERVISOR_DELTA": "1"}, DeltaSettings(wanted=True)),
        ({"SUPERVISOR_DELTA": "false"}, DeltaSettings()),
        (
            {
                "SUPERVISOR_DELTA": "true",
                "SUPERVISOR_DELTA_VERSION": " 3 ",
                "SUPERVISOR_DELTA_REQUEST_TIMEOUT": "30000",
                "SUPERVISOR_DELTA_RETRY_INTERVAL": "2500",
            },
            DeltaSettings(True, 3, 30.0, 2.5),
        ),
        (
            {"SUPERVISOR_DELTA_VERSION": "3x", "SUPERVISOR_DELTA_REQUEST_TIMEOUT": "-1"},
            DeltaSettings(),
        ),
        ({"SUPERVISOR_DELTA_REQUEST_TIMEOUT": "0"}, DeltaSettings()),
    ],
)
def test_the_device_variables_of_deltas(config: dict[str, str], wanted: DeltaSettings) -> None:
    assert delta_settings(effective(config, managed=True).settings) == wanted


@pytest.mark.parametrize(("version", "on"), [(3, True), (2, False)])
def test_other_versions_are_told_and_not_done(version: int, on: bool) -> None:
    found = delta_settings(DeviceSettings(delta=True, delta_version=version))
    assert found.on == on
    assert found.notice == ("" if on else f"deltas of version {version} are not done: images are"
                            " downloaded as a whole")  # fmt: skip


def test_prefixes_are_read_through_and_without_a_cloud_there_are_none() -> None:
    target = Target(config={"BALENA_SUPERVISOR_DELTA": "1", "RESIN_SUPERVISOR_DELTA_VERSION": "2"})
    found = deltas_wanted(Snapshot(target=target, facts=FACTS))
    assert found.wanted and found.version == 2
    assert not deltas_wanted(Snapshot(target=target)).wanted
