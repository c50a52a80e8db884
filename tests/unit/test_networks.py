"""Networks and volumes: what the target means, what is sent, and when a live one is the same.

The live ones are what dockerd 20.10 answers for the bodies (spec 20 §19, 21 §14).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from balena_agent.core.errors import InvalidInput
from balena_agent.core.fields import Notes
from balena_agent.core.networks import (
    is_supervisor_network,
    network_body,
    network_differences,
    network_from_inspect,
    network_spec,
    supervisor_network_body,
    volume_body,
    volume_differences,
    volume_from_inspect,
    volume_spec,
)
from balena_agent.core.observed import NO_APP
from balena_agent.core.spec import NetworkSpec, VolumeSpec

OURS = {"io.balena.supervised": "true", "io.balena.app-id": "7"}
SUBNET = {"subnet": "192.168.91.0/24", "gateway": "192.168.91.1"}


def network(raw: Any) -> NetworkSpec:
    return network_spec(raw, "n", Notes("app 'app'"))


def volume(raw: Any) -> VolumeSpec:
    return volume_spec(raw, "v", Notes("app 'app'"))


def live_network(spec: NetworkSpec) -> NetworkSpec:
    """The spec after its way through the engine, which chooses a subnet if none is asked for."""
    body = network_body("abcd_n", 7, spec)
    inspect = {
        "Name": "abcd_n",
        "Id": "n1",
        "Driver": "null" if spec.config_only else body["Driver"],
        "EnableIPv6": body["EnableIPv6"],
        "Internal": body["Internal"],
        "ConfigOnly": body["ConfigOnly"],
        "IPAM": {
            "Driver": body["IPAM"]["Driver"],
            "Options": body["IPAM"]["Options"] or None,
            "Config": body["IPAM"]["Config"]
            or [{"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}],
        },
        "Options": body["Options"],
        "Labels": body["Labels"],
        "Containers": {},
    }
    found = network_from_inspect(inspect)
    assert found is not None
    return found.spec


FULL = {
    "driver": "bridge",
    "driver_opts": {"com.docker.network.bridge.name": "br9", "mtu": 1400},
    "ipam": {
        "config": [
            {**SUBNET, "ip_range": "192.168.91.0/28", "aux_addresses": {"h": "192.168.91.9"}}
        ],
        "options": {"o": "1"},
    },
    "enable_ipv6": True,
    "internal": "true",
    "labels": {"mine": "1", "io.resin.old": "2"},
}


def test_the_create_body_of_a_network() -> None:
    assert network_body("abcd_n", 7, network(FULL)) == {
        "Name": "abcd_n",
        "Driver": "bridge",
        "IPAM": {
            "Driver": "default",
            "Config": [
                {
                    "Subnet": "192.168.91.0/24",
                    "Gateway": "192.168.91.1",
                    "IPRange": "192.168.91.0/28",
                    "AuxiliaryAddresses": {"h": "192.168.91.9"},
                }
            ],
            "Options": {"o": "1"},
        },
        "EnableIPv6": True,
        "Internal": True,
        "Options": {"com.docker.network.bridge.name": "br9", "mtu": "1400"},
        "CheckDuplicate": True,
        "ConfigOnly": False,
        "Labels": {
            "mine": "1",
            "io.balena.old": "2",
            "io.balena.app-id": "7",
            "io.balena.supervised": "true",
            "io.balena.private.ipam.config": "true",
        },
    }


def test_the_create_body_of_a_network_that_says_nothing() -> None:
    body = network_body("abcd_default", 7, network({}))
    assert body["Labels"] == OURS
    assert body["IPAM"] == {"Driver": "default", "Config": [], "Options": {}}
    assert (body["Driver"], body["ConfigOnly"], body["EnableIPv6"]) == ("bridge", False, False)


@pytest.mark.parametrize(
    "raw",
    [
        {},
        FULL,
        {"config_only": True},
        {"config_only": True, "ipam": {"config": [SUBNET]}},
        {"ipam": {"config": [{"subnet": "10.9.0.0/16"}]}},
        {"driver": "macvlan", "driver_opts": {"parent": "eth0"}},
        {"labels": ["a=1"]},
    ],
)
def test_a_network_that_we_made_is_the_one_we_want(raw: Any) -> None:
    spec = network(raw)
    assert network_differences(spec, live_network(spec)) == ()


def test_s21_s22_a_subnet_that_comes_or_goes_is_a_difference() -> None:
    plain, chosen = network({}), network({"ipam": {"config": [SUBNET]}})
    assert [d.field for d in network_differences(chosen, live_network(plain))] == ["ipam_config"]
    assert [d.field for d in network_differences(plain, live_network(chosen))] == ["ipam_config"]


V4, V6 = {"subnet": "172.31.1.0/24"}, {"subnet": "fd00:1::/64"}
SHOWN_V4, SHOWN_V6 = {"Subnet": "172.31.1.0/24"}, {"Subnet": "fd00:1::/64"}


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ([V4], [{**SHOWN_V4, "Gateway": "172.31.1.1"}]),
        ([V6, V4], [SHOWN_V4, SHOWN_V6]),
        ([V6], [{"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}, SHOWN_V6]),
        (
            [V6, V4],
            [{**SHOWN_V4, "Gateway": "172.31.1.1"}, {**SHOWN_V6, "Gateway": "fd00:1::1"}],
        ),
    ],
    ids=["gateway after a restart", "order", "its own IPv4", "both after a restart"],
)
def test_what_the_engine_adds_to_addresses_is_no_difference(asked: Any, shown: Any) -> None:
    """As dockerd 20.10 shows them, before and after it was started anew."""
    wanted = network({"enable_ipv6": True, "ipam": {"config": asked}})
    live = replace(live_network(wanted), ipam_config=tuple(shown))
    assert network_differences(wanted, live) == ()


@pytest.mark.parametrize(
    "shown",
    [
        [],
        [{"Subnet": "172.31.2.0/24"}],
        [SHOWN_V4, {"Subnet": "172.31.2.0/24"}],
        [{**SHOWN_V4, "IPRange": "172.31.1.0/28"}],
        [SHOWN_V6],
    ],
    ids=str,
)
def test_other_addresses_are_a_difference(shown: Any) -> None:
    wanted = network({"ipam": {"config": [V4]}})
    live = replace(live_network(wanted), ipam_config=tuple(shown))
    assert [d.field for d in network_differences(wanted, live)] == ["ipam_config"]


def test_a_gateway_that_was_asked_for_is_compared() -> None:
    wanted = network({"ipam": {"config": [{**V4, "gateway": "172.31.1.9"}]}})
    other = replace(live_network(wanted), ipam_config=({**SHOWN_V4, "Gateway": "172.31.1.1"},))
    assert [d.field for d in network_differences(wanted, other)] == ["ipam_config"]


@pytest.mark.parametrize(
    "entry", [{"ip_range": "10.0.0.0/28"}, {"aux_addresses": {"a": "10.0.0.9"}}]
)
def test_addresses_without_a_subnet_are_refused_in_words(entry: Any) -> None:
    with pytest.raises(InvalidInput, match=r"networks\.n\.ipam\.config.*10\.0\.0\..*need a subnet"):
        network({"ipam": {"config": [entry]}})


def test_s24_leaving_config_only_is_a_difference() -> None:
    held = live_network(network({"config_only": True}))
    assert "config_only" in [d.field for d in network_differences(network({}), held)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"driver": "ipvlan"}, "driver"),
        ({"internal": True}, "internal"),
        ({"enable_ipv6": True}, "enable_ipv6"),
        ({"driver_opts": {"a": "1"}}, "driver_opts"),
        ({"labels": {"a": "1"}}, "labels"),
        ({"ipam": {"options": {"a": "1"}}}, "ipam_options"),
        ({"ipam": {"driver": "own"}}, "ipam_driver"),
    ],
)
def test_every_other_part_of_a_network_counts(change: Any, field: str) -> None:
    found = network_differences(network(change), live_network(network({})))
    assert [d.field for d in found] == [field]


@pytest.mark.parametrize("raw", [None, {}, {"driver": "default"}, {"driver": None}, {"driver": ""}])
def test_null_and_default_mean_the_usual_drivers(raw: Any) -> None:
    assert network(raw) == NetworkSpec()
    assert volume(raw) == VolumeSpec()


def test_lists_are_maps() -> None:
    raw = {"labels": ["a=1", "b"], "driver_opts": ["o=x=y"]}
    assert (network(raw).labels, network(raw).driver_opts) == ({"a": "1", "b": ""}, {"o": "x=y"})
    assert (volume(raw).labels, volume(raw).driver_opts) == ({"a": "1", "b": ""}, {"o": "x=y"})


def test_camel_case_and_unknown_keys() -> None:
    notes = Notes("app 'app'")
    raw = {"driverOpts": {"a": 1}, "attachable": True, "name": None}
    found = network_spec(raw, "n", notes)
    assert found.driver_opts == {"a": "1"}
    assert len(notes.lines) == 1
    assert notes.lines[0].endswith("unknown compose fields: networks.n.attachable")


def test_unknown_keys_of_addresses_are_named_by_path() -> None:
    notes = Notes("app 'app'")
    pool = {"subnet": "10.1.0.0/24", "ipRange": "10.1.0.0/25", "aux": {}}
    network_spec({"ipam": {"driver": "default", "foo": 1, "config": [pool]}}, "n", notes)
    told = [line.rsplit(": ", 1)[1] for line in notes.lines]
    assert told == ["networks.n.ipam.foo", "networks.n.ipam.config[0].aux"]


def test_a_gateway_without_a_subnet_is_refused_in_words() -> None:
    with pytest.raises(InvalidInput, match=r"networks\.n\.ipam\.config.*a gateway needs a subnet"):
        network({"ipam": {"config": [{"gateway": "10.0.0.1"}]}})


@pytest.mark.parametrize(
    "raw", [5, "x", [1], {"ipam": 5}, {"ipam": {"config": 5}}, {"ipam": {"config": [5]}},
            {"labels": 5}, {"driver": {}}, {"internal": []}]
)  # fmt: skip
def test_rubbish_is_noted_and_left_out(raw: Any) -> None:
    notes = Notes("app 'app'")
    assert network_spec(raw, "n", notes) == NetworkSpec()
    assert len(notes.lines) == 1


@pytest.mark.parametrize(
    ("name", "labels", "app", "app_id"),
    [
        ("abcd_default", OURS, "abcd", 7),
        ("7_default", {"io.balena.supervised": "true"}, "7", 7),
        ("12345678_default", OURS, "12345678", 7),
        ("user-app_default", OURS, "user-app", 7),
        ("abcd_a_b", {"io.resin.supervised": "true", "io.resin.app-id": "7"}, "abcd", 7),
    ],
)
def test_the_app_of_a_network(name: str, labels: dict[str, str], app: str, app_id: int) -> None:
    found = network_from_inspect({"Name": name, "Id": "n", "Driver": "bridge", "Labels": labels})
    assert found is not None
    assert (found.app, found.app_id, found.name) == (app, app_id, name.split("_", 1)[1])


@pytest.mark.parametrize(
    "inspect",
    [
        {"Name": "abcd_default", "Labels": None},
        {"Name": "abcd_default", "Labels": {"io.balena.supervised": "true"}},
        {"Name": "bridge", "Labels": OURS},
        {"Name": "my-net_x", "Labels": OURS},
        {"Name": "1" * 5000 + "_default", "Labels": {"io.balena.supervised": "true"}},
        {},
    ],
)
def test_networks_that_are_not_ours_are_none(inspect: Any) -> None:
    assert network_from_inspect(inspect) is None


def test_our_marks_cannot_be_set_by_a_user_and_are_no_difference() -> None:
    spec = network({"labels": {"io.balena.app-id": "9", "io.balena.supervised": "no", "a": "1"}})
    assert spec.labels == {"a": "1"}
    assert network_body("abcd_n", 7, spec)["Labels"] == {**OURS, "a": "1"}


def test_our_own_network() -> None:
    body = supervisor_network_body()
    assert body == {
        "Name": "supervisor0",
        "IPAM": {
            "Driver": "default",
            "Config": [{"Subnet": "10.114.104.0/25", "Gateway": "10.114.104.1"}],
        },
        "Options": {"com.docker.network.bridge.name": "supervisor0"},
        "CheckDuplicate": True,
    }
    assert is_supervisor_network(body)
    assert not is_supervisor_network({**body, "Options": None})
    assert not is_supervisor_network({**body, "IPAM": {"Config": [{"Subnet": "10.1.0.0/16"}]}})
    assert not is_supervisor_network({**body, "IPAM": None})


# ---- volumes -------------------------------------------------------------------------------------


def live_volume(spec: VolumeSpec) -> VolumeSpec:
    body = volume_body("7_v", "abcd", spec)
    found = volume_from_inspect(
        {
            "Name": "7_v",
            "Driver": body["Driver"],
            "Options": body["DriverOpts"] or None,
            "Labels": body["Labels"],
        }
    )
    assert found is not None
    assert (found.app_id, found.app_uuid, found.name) == (7, "abcd", "v")
    return found.spec


def test_the_create_body_of_a_volume() -> None:
    spec = volume({"labels": {"a": 1, "io.balena.app-uuid": "x"}, "driver_opts": {"type": "nfs"}})
    assert volume_body("7_v", "abcd", spec) == {
        "Name": "7_v",
        "Driver": "local",
        "DriverOpts": {"type": "nfs"},
        "Labels": {"a": "1", "io.balena.supervised": "true", "io.balena.app-uuid": "abcd"},
    }


@pytest.mark.parametrize("raw", [{}, {"labels": {"a": "1"}}, {"driver_opts": {"o": "x"}}])
def test_a_volume_that_we_made_is_the_one_we_want(raw: Any) -> None:
    assert volume_differences(volume(raw), live_volume(volume(raw))) == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"driver": "nfs"}, "driver"),
        ({"driver_opts": {"a": "1"}}, "driver_opts"),
        ({"labels": {"a": "1"}}, "labels"),
    ],
)
def test_s25_every_part_of_a_volume_counts(change: Any, field: str) -> None:
    found = volume_differences(volume(change), live_volume(volume({})))
    assert [d.field for d in found] == [field]


def test_the_password_of_a_network_share_is_not_shown() -> None:
    old = volume({"driver_opts": {"type": "cifs", "o": "username=u,password=hidden"}})
    new = volume({"driver_opts": {"type": "cifs", "o": "username=u,password=secret"}})
    assert [str(d) for d in volume_differences(new, old)] == ["driver_opts changed"]


def test_s43_a_volume_without_labels_is_adopted_if_its_app_is_known() -> None:
    inspect = {"Name": "1_data", "Driver": "local", "Labels": None, "Options": None}
    assert volume_from_inspect(inspect) is None
    assert volume_from_inspect(inspect, frozenset({2})) is None
    found = volume_from_inspect(inspect, frozenset({1}))
    assert found is not None
    assert volume_differences(volume({}), found.spec) == ()


def test_a_volume_that_the_engine_named_belongs_to_no_app() -> None:
    found = volume_from_inspect({"Name": "a" * 64, "Labels": None}, frozenset({2}))
    assert found is not None and found.app_id == NO_APP


@pytest.mark.parametrize("name", ["my_2_x", "x", "2-x", "a" * 63])
def test_volumes_with_other_names_are_never_ours(name: str) -> None:
    inspect = {"Name": name, "Labels": {"io.balena.supervised": "true"}}
    assert volume_from_inspect(inspect, frozenset({2})) is None
