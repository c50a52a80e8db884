"""host/networkmanager.py against the real NetworkManager of a device."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from balena_agent.core.errors import BusUnavailable
from balena_agent.host.bus import Bus
from balena_agent.host.network import addresses
from balena_agent.host.networkmanager import UNKNOWN, WORDS, NetworkManager

pytestmark = pytest.mark.skipif(
    os.environ.get("BALENA_AGENT_TEST_DEVICE") != "1",
    reason="needs a virtual device with NetworkManager: set BALENA_AGENT_TEST_DEVICE=1 inside one",
)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def network() -> Iterator[NetworkManager]:
    run("systemctl", "start", "NetworkManager.service")
    bus = Bus()
    bus.start()
    yield NetworkManager(bus)
    bus.close()


@pytest.fixture
def interface(network: NetworkManager) -> Iterator[str]:
    run("ip", "link", "add", "wan0", "type", "bridge")
    run("ip", "link", "set", "wan0", "up")
    yield "wan0"
    subprocess.run(["ip", "link", "del", "wan0"], check=False)
    # NetworkManager forgets it a moment later, and would tell that to the next test.
    until(lambda: "wan0" not in run("nmcli", "-g", "NAME", "connection").splitlines())


def test_connectivity_is_a_word(network: NetworkManager) -> None:
    assert network.connectivity() in WORDS
    assert network.check() in WORDS


def test_H46_a_new_address_is_told_and_read(network: NetworkManager, interface: str) -> None:
    told = threading.Event()
    network.on_change(told.set)
    told.clear()
    run("ip", "address", "add", "203.0.113.7/24", "dev", interface)
    assert told.wait(10), "no word of the new address"
    run("ip", "address", "add", "203.0.113.9/24", "dev", interface)
    assert {"203.0.113.7", "203.0.113.9"} <= set(addresses())


def test_H45_inner_interfaces_are_not_the_devices_addresses(interface: str) -> None:
    run("ip", "address", "add", "203.0.113.8/24", "dev", interface)
    for name in ("balena3", "br-0123456789ab"):
        run("ip", "link", "add", name, "type", "bridge")
        run("ip", "link", "set", name, "up")
        run("ip", "address", "add", "198.51.100.9/24", "dev", name)
    try:
        found = addresses()
    finally:
        for name in ("balena3", "br-0123456789ab"):
            run("ip", "link", "del", name)
    assert "203.0.113.8" in found and "198.51.100.9" not in found
    assert not any(address.startswith("fe80") for address in found)


def test_a_failed_change_is_taken_back(network: NetworkManager) -> None:
    before = run("nmcli", "-g", "NAME", "connection")
    with pytest.raises(RuntimeError), network.checkpoint():
        run("nmcli", "connection", "add", "type", "bridge", "con-name", "probe", "ifname", "probe0")
        raise RuntimeError("the change did not work out")
    assert "probe" not in run("nmcli", "-g", "NAME", "connection").splitlines()
    assert run("nmcli", "-g", "NAME", "connection") == before


def test_a_change_that_worked_stays(network: NetworkManager) -> None:
    with network.checkpoint():
        run("nmcli", "connection", "add", "type", "bridge", "con-name", "probe", "ifname", "probe0")
    assert "probe" in run("nmcli", "-g", "NAME", "connection").splitlines()
    run("nmcli", "connection", "delete", "probe")


def test_H56_without_networkmanager_addresses_are_still_known(
    network: NetworkManager, interface: str
) -> None:
    run("ip", "address", "add", "203.0.113.9/24", "dev", interface)
    run("systemctl", "stop", "NetworkManager.service")
    try:
        assert network.connectivity() == UNKNOWN
        assert "203.0.113.9" in addresses()
        with pytest.raises(BusUnavailable), network.checkpoint():
            pass
    finally:
        run("systemctl", "start", "NetworkManager.service")
