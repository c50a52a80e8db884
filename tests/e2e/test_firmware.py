"""The device's volume for extra firmware, and its name in config.json."""

from __future__ import annotations

import json

from e2e_device import CONFIG, Device
from e2e_targets import service, target

LABEL = {"io.balena.features.extra-firmware": "1"}


def test_a_service_with_the_label_has_the_volume_made_and_named(api_device: Device) -> None:
    """On a device of its own: what config.json said last holds for good. The file is there before
    the agent is: its uuid goes to every container, and one that came later would replace them."""
    device = api_device
    before = {"uuid": "0" * 32, "os": {"sshKeys": ["k"]}}
    text = json.dumps(before)
    write = f"mkdir -p /mnt/boot; cat >{CONFIG}"
    device.start_over(between=lambda: device.exec("sh", "-c", write, input=text))
    device.apply(target(service("one", 1)))
    assert device.exec("cat", CONFIG).stdout == text
    device.apply(target(service("one", 1, labels=LABEL)))
    assert "extra-firmware" in device.volumes()
    found = device.inspect("one")
    assert [m["Destination"] for m in found["Mounts"] if m["Type"] == "volume"] == [
        "/extra-firmware"
    ]
    device.until(lambda: "kernel" in device.exec("cat", CONFIG).stdout, 10, "it is named")
    after = json.loads(device.exec("cat", CONFIG).stdout)
    assert after["os"].pop("kernel") == {"extraFirmwareVol": "extra-firmware"}
    assert after == before
    device.settled()
    assert device.of("one")["Id"] == found["Id"]  # the name in the file is no affair of its user's
