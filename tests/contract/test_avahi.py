"""host/avahi.py and host/clock.py against the real Avahi and timedated of a device."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balena_agent.core.errors import Unavailable
from balena_agent.host.avahi import Announcement, announced, resolve
from balena_agent.host.bus import Bus
from balena_agent.host.clock import Clock

pytestmark = pytest.mark.skipif(
    os.environ.get("BALENA_AGENT_TEST_DEVICE") != "1",
    reason="needs a virtual device with Avahi: set BALENA_AGENT_TEST_DEVICE=1 inside one",
)

AGENT, SSH = announced(48484, "1.2.3", "generic")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def found(kind: str) -> list[list[str]]:
    """What a stranger finds: the resolved lines of avahi-browse, by their fields."""
    words = ("timeout", "3", "avahi-browse", "--parsable", "--resolve", "--terminate", kind)
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    return [line.split(";") for line in done.stdout.splitlines() if line.startswith("=")]


def until_found(kind: str, wanted: bool = True) -> list[list[str]]:
    deadline = time.monotonic() + 20
    while bool(lines := found(kind)) != wanted:
        assert time.monotonic() < deadline, (kind, wanted, lines)
        time.sleep(0.1)
    return lines


@pytest.fixture
def bus() -> Iterator[Bus]:
    run("systemctl", "start", "avahi-daemon.service")
    made = Bus()
    made.start()
    yield made
    made.close()


@pytest.fixture
def device(bus: Bus) -> Bus:
    """One that announces itself; the bus ends that."""
    Announcement(bus, (AGENT, SSH)).start()
    return bus


def test_what_is_announced_is_found_under_the_host_s_name(device: Bus) -> None:
    line = until_found(AGENT.kind)[0]
    name, port, text = line[3], line[8], line[9]
    assert (name, port) == (os.uname().nodename.partition(".")[0], "48484")
    assert text == '"version=1.2.3"'
    assert until_found(SSH.subtype)[0][8] == "22222", "as the CLI looks for devices"
    device.close()
    until_found(AGENT.kind, False)
    until_found(SSH.subtype, False)


def test_it_is_announced_again_by_an_avahi_that_was_restarted(device: Bus) -> None:
    until_found(AGENT.kind)
    run("systemctl", "restart", "avahi-daemon.service")
    until_found(AGENT.kind)


def test_it_is_announced_once_avahi_is_there(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    units = ("avahi-daemon.socket", "avahi-daemon.service")
    run("systemctl", "mask", "--runtime", "--now", *units)
    try:
        with caplog.at_level("INFO"):
            Announcement(bus, announced(48484, "1.2.3", "balenaos")).start()
            deadline = time.monotonic() + 10
            while "Not announced by mDNS" not in caplog.text:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        run("systemctl", "unmask", "--runtime", *units)
        run("systemctl", "start", *units)
    until_found(AGENT.kind)
    assert not found(SSH.subtype), "that is the OS's own"


def test_it_follows_the_host_s_name(device: Bus) -> None:
    before = until_found(AGENT.kind)[0][3]
    run("avahi-set-host-name", "another-name")
    try:
        deadline = time.monotonic() + 20
        while {line[3] for line in found(AGENT.kind)} != {"another-name"}:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        run("avahi-set-host-name", before)


def test_a_local_name_has_an_address(bus: Bus) -> None:
    name = run("busctl", "call", "org.freedesktop.Avahi", "/", "org.freedesktop.Avahi.Server",
               "GetHostNameFqdn").split('"')[1]  # fmt: skip
    address = resolve(bus, name)
    shown = run("ip", "-o", "address")
    assert f" {address.partition('%')[0]}/" in shown


def test_a_name_that_nobody_has(bus: Bus) -> None:
    with pytest.raises(Unavailable, match=r"nobody answers to the name no-such-host\.local"):
        resolve(bus, "no-such-host.local")


def test_the_clock_says_whether_it_was_set(bus: Bus) -> None:
    shown = run("timedatectl", "show", "--property=NTPSynchronized", "--value")
    assert Clock(bus).synchronised() is (shown == "yes")


def test_without_an_answer_nobody_can_tell() -> None:
    bus = Bus()
    bus.start()
    bus.close()
    assert Clock(bus).synchronised() is None


def test_what_the_host_announces_already_does_not_hold_up_the_rest(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    static = Path("/etc/avahi/services/e2e-ssh.service")
    static.write_text(
        '<service-group><name replace-wildcards="yes">%h</name>'
        f"<service><type>{SSH.kind}</type><port>22</port></service></service-group>"
    )
    run("systemctl", "restart", "avahi-daemon.service")
    try:
        until_found(SSH.kind)
        with caplog.at_level("INFO"):
            Announcement(bus, (SSH, AGENT)).start()
            until_found(AGENT.kind)
        assert "Not announced by mDNS: _ssh._tcp: " in caplog.text
        assert {line[8] for line in found(SSH.kind)} == {"22"}
    finally:
        static.unlink()
        run("systemctl", "restart", "avahi-daemon.service")
