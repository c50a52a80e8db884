"""SIGKILL of the agent at any moment (S58): the target is reached all the same."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest
from e2e_device import UNIT, Device
from e2e_targets import OTHER_IMAGE, Json, service, target

KILLS = 30


def world(release: int) -> Json:
    """Five services that need each other; between two releases three of them differ."""
    odd = {"image": OTHER_IMAGE} if release % 2 else {}
    return target(
        service("front", 1, depends_on=["back"], environment={"R": str(release % 2)}),
        service("back", 2, volumes=["data:/data"], **odd),
        service("same", 3),
        service("moody", 4, stop_signal="SIGKILL", networks=["side"] if release % 2 else []),
        service("steady", 5, networks=["side"], depends_on=["same"]),
        release=1, volumes={"data": {}}, networks={"side": {}},
    )  # fmt: skip


@pytest.fixture
def quick(device: Device) -> Iterator[Device]:
    """systemd starts the agent again at once, so that thirty kills do not take a minute more."""
    device.drop_in("[Service]\nRestartSec=50ms\n")
    yield device
    device.drop_in("")


def test_S58_the_agent_is_killed_at_random_moments(quick: Device) -> None:
    seed = int(os.environ.get("E2E_SEED", time.time_ns() % 10**6))
    print(f"E2E_SEED={seed}")
    chance = random.Random(seed)
    quick.apply(world(0))
    kept = {name: quick.of(name)["Id"] for name in ("same", "steady")}
    for number in range(1, KILLS + 1):
        quick.post(world(number))
        time.sleep(chance.uniform(0.0, 0.8))  # the moment of the kill, not a wait
        quick.exec("systemctl", "kill", "-s", "KILL", "--kill-who=main", UNIT)
        if chance.random() < 0.5 or number == KILLS:
            quick.ready()
            check(quick, number, kept)
        else:
            quick.machine.wait_agent()
            quick.until(lambda: quick.api("GET", "/v2/state/status").status == 200, 20, "it looks")
    assert int(quick.show("NRestarts")["NRestarts"]) >= KILLS


def check(device: Device, number: int, kept: dict[str, str]) -> None:
    names = ("back", "front", "moody", "same", "steady")
    device.settled()
    assert device.running(*names), (number, device.containers())
    assert {name: device.of(name)["Id"] for name in kept} == kept
    assert f"R={number % 2}" in device.inspect("front")["Config"]["Env"]
    assert device.networks() <= {"1_default", "1_side", "supervisor0"}
    assert device.volumes() == {"1_data"}
    assert device.lock_files() == []
    wanted = {"1_side"} if number % 2 else {"1_default"}
    assert set(device.inspect("moody")["NetworkSettings"]["Networks"]) == wanted
