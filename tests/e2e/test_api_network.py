"""`supervisor0` taken away or replaced behind the agent's back."""

from __future__ import annotations

import pytest
from e2e_device import UNIT, Device
from e2e_targets import Json, service, target

NETWORK = "supervisor0"
API = {"io.balena.features.supervisor-api": "1"}
RIGHT = {"Subnet": "10.114.104.0/25", "Gateway": "10.114.104.1"}


def network(device: Device) -> Json:
    return dict(device.engine("GET", f"/networks/{NETWORK}"))


def take_away(device: Device) -> None:
    for name in ("one",):
        body = {"Container": device.of(name)["Id"], "Force": True}
        device.engine("POST", f"/networks/{NETWORK}/disconnect", body)
    device.engine("DELETE", f"/networks/{NETWORK}")


def make_wrong(device: Device) -> None:
    """Another subnet, and the bridge is the engine's to name; the service is on it again."""
    take_away(device)
    body = {"Name": NETWORK, "IPAM": {"Config": [{"Subnet": "10.97.2.0/24"}]}}
    device.engine("POST", "/networks/create", body)
    member = {"Container": device.of("one")["Id"]}
    device.engine("POST", f"/networks/{NETWORK}/connect", member)


@pytest.mark.parametrize("harm", [take_away, make_wrong])
def test_S59_the_network_of_the_api_is_made_again_under_its_user(
    device: Device, harm: object
) -> None:
    device.apply(target(service("one", 1, labels=API), service("two", 2)))
    one, two = device.of("one")["Id"], device.of("two")["Id"]
    before = network(device)["Id"]
    # All at once for the agent, which would put the first half right before the second is done.
    device.exec("systemctl", "kill", "--signal=STOP", UNIT)
    harm(device)  # type: ignore[operator]
    device.exec("systemctl", "kill", "--signal=CONT", UNIT)
    device.until(lambda: device.of("one").get("Id") not in (None, one), 60, "one is made anew")
    device.settled()
    assert device.running("one", "two")
    assert device.of("two")["Id"] == two
    made = network(device)
    assert made["Id"] != before
    assert made["IPAM"]["Config"] == [RIGHT]
    assert made["Options"]["com.docker.network.bridge.name"] == NETWORK
    assert NETWORK in device.inspect("one")["NetworkSettings"]["Networks"]
    asked = "wget -qO- $BALENA_SUPERVISOR_ADDRESS/ping"
    assert device.exec("docker", "exec", device.of("one")["Id"], "sh", "-c", asked).stdout == "OK"
