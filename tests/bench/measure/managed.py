"""The same device with a cloud: the small one of the tests, at the outer end of its wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .device import UNITS, Machine, wait_settled

from cloud import FakeCloud  # isort: skip - found by what `device` has done

UUID = "c1" * 16
KEY = "key-of-the-device"
APP = "a1" * 16
COMMIT = "c" * 32


def cloud_target(reference: str, count: int) -> dict[str, Any]:
    """What the cloud wants of the device: so many services that only wait; 0: no app."""
    services = {
        f"s{number:02}": {
            "id": number, "image_id": number, "image": reference, "environment": {}, "labels": {},
            "composition": {"restart": "always"},
        }
        for number in range(1, count + 1)
    }  # fmt: skip
    release = {"id": 1, "services": services, "volumes": {}, "networks": {}}
    app = {"id": 1, "name": "bench", "class": "fleet", "releases": {COMMIT: release}}
    return {UUID: {"name": "bench", "config": {}, "apps": {APP: app} if count else {}}}


@contextmanager
def managed(machine: Machine, reference: str) -> Iterator[FakeCloud]:
    """The device belongs to a cloud from now on, and has never had a target."""
    address = machine.link.outer_address
    with FakeCloud(address, keys={UUID: KEY}, targets={UUID: cloud_target(reference, 0)}) as cloud:
        config = {
            "uuid": UUID, "apiEndpoint": cloud.url, "deviceApiKey": KEY, "deviceId": 1,
            "registered_at": 1700000000000, "deviceType": "generic-amd64",
        }  # fmt: skip
        machine.exec("systemctl", "stop", UNITS["agent"])
        machine.exec("sh", "-c", "rm -rf /var/lib/balena-agent/*")
        path = machine.inner_path("/mnt/boot/config.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
        machine.exec("systemctl", "start", UNITS["agent"])
        machine.wait_until(lambda: bool(_polls(cloud)), 60.0, "the agent asks the cloud")
        yield cloud


def want(machine: Machine, cloud: FakeCloud, reference: str, count: int) -> None:
    """The cloud wants so many services; returns when the device has applied that."""
    cloud.targets[UUID] = cloud_target(reference, count)
    before = len(_polls(cloud))
    machine.api("POST", "/v1/update", {}, inside=True)
    machine.wait_until(lambda: len(_polls(cloud)) > before, 60.0, "the agent asks the cloud")
    machine.wait_until(lambda: _running(machine) == count, 120.0, f"{count} services run")
    wait_settled(machine, 120.0)


def _polls(cloud: FakeCloud) -> list[Any]:
    return cloud.asked("GET", f"/device/v3/{UUID}/state")


def _running(machine: Machine) -> int:
    return len(machine.exec("docker", "ps", "-q").stdout.split())
