"""Reboot and power-off on request: three ways to ask, and three who may forbid it (spec 30 §7)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from device import enter
from e2e_device import BUS, MANAGER, ROOT, UNIT, Device
from e2e_targets import CHAIN, chain, pair

UPDATE = "/mnt/state/rollback-health-breadcrumb"

Way = Callable[[Device, bool, bool], str]
"""Asks: (device, off, force). "" when it was accepted, else the words of the refusal."""


def by_http(device: Device, off: bool, force: bool) -> str:
    path = "/v1/shutdown" if off else "/v1/reboot"
    answer = device.api("POST", path, {"force": force}, timeout=30)
    found = answer.json()
    if answer.status == 202:
        assert found == {"Data": "OK", "Error": ""}
        return ""
    assert (answer.status, found["Data"]) == (423, "")
    return str(found["Error"])


def by_bus(device: Device, off: bool, force: bool) -> str:
    words = ("PowerOff" if off else "Reboot", "b", str(force).lower())
    done = device.exec("busctl", "call", BUS, ROOT, MANAGER, *words, check=False)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


def by_command(device: Device, off: bool, force: bool) -> str:
    words = ["poweroff" if off else "reboot", *["--force"] * force]
    done = device.exec("balena-agentctl", *words, check=False)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


WAYS: tuple[Way, ...] = (by_http, by_bus, by_command)


@contextlib.contextmanager
def blocked(device: Device) -> Iterator[str]:
    """Another program forbids a shutdown."""
    words = ("systemd-inhibit", "--what=shutdown", "--who=keeper", "--why=burning", "--mode=block")
    holder = device.machine.popen(*words, "sh", "-c", "echo held; sleep 3600")
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield "Blocked by keeper: burning"
    finally:
        enter.stop(holder)
        holder.wait()


@contextlib.contextmanager
def locked(device: Device) -> Iterator[str]:
    """A service holds its update lock."""
    path = device.lock("two")
    yield "service: two"
    with contextlib.suppress(OSError):  # gone with the device
        path.unlink()


@contextlib.contextmanager
def updating(device: Device) -> Iterator[str]:
    """An update of the host OS waits for its verdict."""
    path = device.machine.inner_path(UPDATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        yield "Waiting for Host OS update to finish"
    finally:
        Path(f"{device.machine.root}{UPDATE}").unlink(missing_ok=True)


def refused(device: Device, off: bool, why: str) -> None:
    """All three ways answer who refuses, nothing happens, and the agent works on."""
    before, boot, pid = device.ids(), device.boot_id(), device.main_pid()
    for ask in WAYS:
        assert why in ask(device, off, False), ask
        device.until(lambda: device.lock_files() in ([], ["1/two/updates.lock"]), 10, "no locks")
    assert device.api("GET", "/v1/healthy").status == 200
    assert (device.ids(), device.boot_id(), device.main_pid()) == (before, boot, pid)


def works_on(device: Device) -> None:
    """What was refused is not done later, and other work is."""
    device.apply(pair(environment={"COLOUR": "blue"}), seconds=60)
    assert device.running("one", "two") and device.lock_files() == []
    assert "COLOUR=blue" in device.inspect("one")["Config"]["Env"]
    assert "The host is shutting down" not in device.said()


BOTH = pytest.mark.parametrize("off", [False, True], ids=["reboot", "poweroff"])


@BOTH
def test_H40_another_programs_block_refuses_and_is_named(device: Device, off: bool) -> None:
    device.apply(pair())
    with blocked(device) as why:
        refused(device, off, why)
        works_on(device)


@BOTH
def test_H38_an_update_of_the_os_refuses(device: Device, off: bool) -> None:
    device.apply(pair())
    with updating(device) as why:
        refused(device, off, why)
        works_on(device)


@BOTH
def test_an_update_lock_refuses_and_its_service_is_named(device: Device, off: bool) -> None:
    device.apply(pair())
    with locked(device) as why:
        refused(device, off, why)
    works_on(device)


def test_loginds_own_refusal_is_answered_and_the_agent_works_on(device: Device) -> None:
    """Somebody has forbidden it to the whole machine; no force helps against that."""
    device.apply(pair())
    before, boot, pid = device.ids(), device.boot_id(), device.main_pid()
    device.exec("systemctl", "mask", "--runtime", "reboot.target")
    try:
        for force in (False, True):
            answer = device.api("POST", "/v1/reboot", {"force": force}, timeout=30)
            assert answer.status == 500 and "Permission denied" in answer.json()["Error"]
            assert "Permission denied" in by_bus(device, False, force)
            assert "Permission denied" in by_command(device, False, force)
            device.until(lambda: device.lock_files() == [], 10, "no locks")
        assert (device.ids(), device.boot_id(), device.main_pid()) == (before, boot, pid)
        works_on(device)
    finally:
        device.exec("systemctl", "unmask", "--runtime", "reboot.target")


def boots_again(device: Device, boots: int) -> None:
    """The device's own end was a request to boot again (a container's status 133)."""
    device.until(lambda: device.machine.status["boots"] > boots, 60, "it boots again")
    device.ready()


@pytest.mark.parametrize("ask", WAYS)
def test_H37_a_reboot_stops_the_services_in_order_and_they_come_back(
    rough: Device, ask: Way
) -> None:
    before = {name: each["Id"] for name, each in rough.apply(chain()).items()}
    boot, boots = rough.boot_id(), rough.machine.status["boots"]
    assert ask(rough, False, False) == ""
    boots_again(rough, boots)
    assert rough.boot_id() != boot
    rough.until(lambda: rough.running(*CHAIN), 20, "the services run again")
    rough.settled()
    assert rough.ids() == before and rough.lock_files() == []
    rough.stopped_in_order(*CHAIN)


@pytest.mark.parametrize("ask", WAYS)
def test_a_power_off_stops_the_services_in_order_and_they_come_back(
    rough: Device, ask: Way
) -> None:
    before = {name: each["Id"] for name, each in rough.apply(chain()).items()}
    assert ask(rough, True, False) == ""
    rough.machine.wait_until(lambda: not rough.machine.on, 60, "it is off")
    assert rough.machine.status["ended"] == "power off"
    rough.machine.up()
    rough.ready()
    rough.until(lambda: rough.running(*CHAIN), 20, "the services run again")
    rough.settled()
    assert rough.ids() == before and rough.lock_files() == []
    rough.stopped_in_order(*CHAIN)


@pytest.mark.parametrize(
    ("ask", "forbid"),
    [
        pytest.param(by_http, updating, id="H38_http_during_an_update"),
        pytest.param(by_bus, blocked, id="bus_past_a_block"),
        pytest.param(by_command, locked, id="command_past_a_lock"),
    ],
)
def test_a_forced_reboot_is_a_reboot(
    rough: Device, ask: Way, forbid: Callable[[Device], contextlib.AbstractContextManager[str]]
) -> None:
    rough.apply(pair())
    before, boots = rough.ids(), rough.machine.status["boots"]
    with forbid(rough) as why:
        assert why in by_http(rough, False, False)
        assert ask(rough, False, True) == ""
    boots_again(rough, boots)
    rough.until(lambda: rough.running("one", "two"), 20, "the services run again")
    rough.settled()
    assert rough.ids() == before
    assert rough.lock_files() == []
    assert rough.machine.unit_state(UNIT) == "active"
