"""Cases of spec 30 §22 that are about the machine around the agent: the LED, a bus that hangs."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cloud import FakeCloud
from device.client import Answer
from e2e_device import UNIT, Device
from e2e_targets import pair

LED = "/run/e2e-led"


@pytest.fixture
def led(device: Device) -> Iterator[Device]:
    device.exec("sh", "-c", f"echo 0 >{LED}")
    device.drop_in(f"[Service]\nEnvironment=LED_FILE={LED}\n")
    yield device
    device.drop_in("")


def test_H41_the_led_blinks_and_is_dark_again(led: Device) -> None:
    """The file is looked at far more often than it changes."""
    answer = led.api("POST", "/v1/blink")
    assert (answer.status, answer.text) == (200, "OK")
    path = led.machine.inner_path(LED)
    seen: list[tuple[float, str]] = []
    quiet = 0
    begun = time.monotonic()
    while (now := time.monotonic()) - begun < 30:
        text = path.read_text().strip()
        quiet += 1
        if text and (not seen or text != seen[-1][1]):
            seen.append((now, text))
            quiet = 0
        if len(seen) > 1 and quiet > 100:
            break  # no pattern has such a pause: two seconds of looks, a stall of ours is none
        time.sleep(0.02)
    shown = [text for _, text in seen if text]
    assert set(shown) == {"0", "1"} and shown[-1] == "0"
    changes = [at for at, _ in seen]
    apart = [after - before for before, after in itertools.pairwise(changes)]
    # About 200 ms for about 15 s: wide enough for a machine with other work.
    assert 0.1 < statistics.median(apart) < 0.4
    assert 12 < changes[-1] - begun < 25
    assert len(changes) > 35


FROZEN_SECONDS = 75.0
WATCHDOG_SECONDS = 30
"""Calls on the bus have 25 s, and one after the other is given up within the time that the bus is
frozen; the watchdog would have fired twice. In the unit as it is installed it waits for 180 s,
which is no more than the same with other numbers."""


@pytest.fixture
def watched(device: Device) -> Iterator[Device]:
    """A device whose watchdog is quick."""
    device.drop_in(f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}\n")
    device.mark()
    yield device
    device.drop_in("")


def test_H57_a_bus_that_hangs_harms_nothing_but_what_needs_it(watched: Device) -> None:
    watched.apply(pair())
    pid, boot, before = watched.main_pid(), watched.boot_id(), watched.ids()
    name = watched.exec("hostname").stdout.strip()
    daemon = watched.show("MainPID", unit="dbus.service")["MainPID"]
    watched.exec("kill", "-STOP", daemon)
    begun = time.monotonic()
    try:
        with ThreadPoolExecutor(3) as pool:

            def ask(method: str, path: str) -> Answer:
                # Forced: not even that may be done later, after the answer that said no.
                body = {"force": True} if method == "POST" else None
                return watched.api(method, path, body, timeout=FROZEN_SECONDS)

            waiting = [
                pool.submit(ask, "POST", "/v1/reboot"),
                pool.submit(ask, "GET", "/v1/device/host-config"),
                pool.submit(ask, "GET", "/v2/device/vpn"),
            ]
            asked = 0
            while time.monotonic() - begun < FROZEN_SECONDS:
                for path in ("/ping", "/v1/healthy", "/v2/state/plan", "/v1/device"):
                    answer = watched.api("GET", path, timeout=5.0)
                    assert answer.status == 200, answer
                asked += 1
                time.sleep(1)
            assert asked > FROZEN_SECONDS / 4
            reboot, host, vpn = (future.result(1) for future in waiting)
        assert reboot.status == 500 and "did not answer" in reboot.json()["Error"]
        assert (host.status, host.json()["network"]["hostname"]) == (200, name)
        assert vpn.status in (200, 500, 503)
    finally:
        watched.exec("kill", "-CONT", daemon)
    watched.until(lambda: watched.get("EngineState") == "up", 15, "it answers on the bus again")
    watched.until(
        lambda: watched.exec("balena-agentctl", "proxy", "show", check=False).returncode == 0,
        15, "what needs the host works again",
    )  # fmt: skip
    again = "The system bus answers again"
    watched.until(lambda: again in watched.said(), WATCHDOG_SECONDS, "the probe has noticed")
    said = watched.said()
    assert "The system bus is silent" in said
    assert "Stuck" not in said and "Traceback" not in said
    watched.settled()
    assert watched.lock_files() == []
    assert (watched.main_pid(), watched.boot_id(), watched.ids()) == (pid, boot, before)


@pytest.fixture
def announcing(device: Device) -> Iterator[Device]:
    path = device.machine.inner_path("/etc/balena-agent/agent.conf")
    kept = path.read_text()
    path.write_text("[host]\nannounce = yes\n")
    device.restart()
    yield device
    path.write_text(kept)
    device.restart()


def browse(device: Device) -> str:
    kind = "_balena-agent._tcp"
    words = ("timeout", "3", "avahi-browse", "--parsable", "--resolve", "--terminate", kind)
    return device.exec(*words, check=False).stdout


def test_the_device_announces_itself_when_it_is_asked_to(announcing: Device) -> None:
    announcing.until(lambda: ";48484;" in browse(announcing), 20, "it is found")
    announcing.exec("systemctl", "stop", UNIT)
    announcing.until(lambda: ";48484;" not in browse(announcing), 20, "it is gone")
    announcing.exec("systemctl", "start", UNIT)
    announcing.ready()


def test_unasked_it_does_not(device: Device) -> None:
    assert ";48484;" not in browse(device)


def test_H56_without_networkmanager_the_addresses_are_still_told(device: Device) -> None:
    pid, wire = device.main_pid(), device.machine.address
    device.exec("systemctl", "stop", "NetworkManager.service")
    try:

        def told() -> list[str]:
            answer = device.api("GET", "/v1/device", inside=True)
            return str(answer.json()["ip_address"]).split()

        device.until(lambda: wire in told(), 30, "the address is told")
        assert device.main_pid() == pid and device.machine.unit_state(UNIT) == "active"
    finally:
        device.exec("systemctl", "start", "NetworkManager.service")


def test_a_cloud_with_a_local_name_is_found_by_mdns(device: Device) -> None:
    """The device's resolver knows nothing of mDNS; Avahi does (spec 30 §14)."""
    outer = device.machine.link.outer_address
    path = device.machine.inner_path("/mnt/boot/config.json")
    kept = path.read_bytes() if path.exists() else None
    publish = ("avahi-publish", "--address", "--no-reverse", "my-cloud.local", outer)
    device.exec("systemd-run", "--quiet", "--unit=my-cloud", *publish)
    try:
        with FakeCloud(outer) as cloud:
            endpoint = f"http://my-cloud.local:{cloud.port}"
            known = {"uuid": "c" * 32, "apiEndpoint": endpoint, "deviceApiKey": "k"}
            path.write_text(json.dumps({**known, "deviceId": 1, "registered_at": 1}))
            device.start_over()  # it knows no image of earlier tests, and leaves all of them
            asked = f"/device/v3/{'c' * 32}/state"
            device.until(lambda: cloud.asked("GET", asked), 90, "the cloud is asked")
            assert cloud.asked("GET", asked)[0].headers["host"] == f"my-cloud.local:{cloud.port}"
    finally:
        device.exec("systemctl", "stop", "my-cloud")
        path.unlink() if kept is None else path.write_bytes(kept)
        device.start_over()  # a file that is merely lost would not make it forget the cloud
