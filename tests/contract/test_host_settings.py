"""Host name, proxy and VPN against the real hostnamed, systemd, Avahi and redsocks of a device."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balena_agent.core.errors import InvalidInput, RefusedByHost, Unavailable
from balena_agent.core.hostconfig import HostConfig, after
from balena_agent.core.redsocks import Proxy, render
from balena_agent.core.steps import SwitchFeature
from balena_agent.core.switches import (
    DISCOVERY,
    IDLE,
    JOURNAL,
    OFF,
    ON,
    OWN,
    PERSISTENT,
    VOLATILE,
    VPN,
)
from balena_agent.host.bus import Bus
from balena_agent.host.discovery import Discovery
from balena_agent.host.hostname import Hostname
from balena_agent.host.persistence import JournalKeeping
from balena_agent.host.proxy import HostProxy
from balena_agent.host.switchboard import Switchboard
from balena_agent.host.systemd import Systemd
from balena_agent.host.vpn import Vpn
from balena_agent.host.wire import BusRefusal

pytestmark = pytest.mark.skipif(
    os.environ.get("BALENA_AGENT_TEST_DEVICE") != "1",
    reason="needs a virtual device with systemd: set BALENA_AGENT_TEST_DEVICE=1 inside one",
)

ETC = Path("/etc/hostname")
UNITS = Path("/run/systemd/system")
PROXY = Proxy({"type": "socks5", "ip": "127.0.0.1", "port": "9"})


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def bus() -> Iterator[Bus]:
    made = Bus()
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def systemd(bus: Bus) -> Systemd:
    return Systemd(bus)


@pytest.fixture
def written() -> list[str]:
    return []


def remembering(written: list[str]) -> Callable[[str], Callable[[], object]]:
    """A config.json of one key; "-" stands for the restored one."""

    def remember(name: str) -> Callable[[], object]:
        written.append(name)
        return lambda: written.append("-")

    return remember


@pytest.fixture
def hostname(bus: Bus, systemd: Systemd, written: list[str]) -> Iterator[Hostname]:
    before = ETC.read_text().strip()
    made = Hostname(bus, systemd, str(ETC), remembering(written), patience=2.0)
    yield made
    made.set(before)


def avahi_name() -> str:
    call = "org.freedesktop.Avahi / org.freedesktop.Avahi.Server GetHostName"
    return run("busctl", "call", *call.split())


def test_H32_a_host_name_is_set_everywhere(hostname: Hostname, written: list[str]) -> None:
    hostname.set("kiosk-7")
    assert (ETC.read_text(), os.uname().nodename, hostname.read()) == (
        "kiosk-7\n", "kiosk-7", "kiosk-7",
    )  # fmt: skip
    assert run("hostnamectl", "--static") == "kiosk-7"
    assert written == ["kiosk-7"]
    if (
        subprocess.run(["systemctl", "-q", "is-active", "avahi-daemon"], check=False).returncode
        == 0
    ):
        until(lambda: avahi_name() == 's "kiosk-7"', "told Avahi")


def test_H34_what_is_no_name_is_refused_and_nothing_changes(
    hostname: Hostname, written: list[str]
) -> None:
    before = (ETC.read_text(), os.uname().nodename)
    with pytest.raises(BusRefusal):
        hostname.set("a..b")
    assert (ETC.read_text(), os.uname().nodename) == before
    assert written == ["a..b", "-"], "config.json is as it was"


def test_H35_a_mounted_file_is_written_in_place(hostname: Hostname, tmp_path: Path) -> None:
    mine = tmp_path / "hostname"
    mine.write_text("a-much-longer-name-than-the-next\n")
    run("mount", "--bind", str(mine), str(ETC))
    try:
        hostname.set("bind-1")
        assert (mine.read_text(), os.uname().nodename) == ("bind-1\n", "bind-1")
        assert hostname.read() == "bind-1"
    finally:
        run("umount", str(ETC))


def test_the_name_in_use_is_set_when_the_file_has_it_already(hostname: Hostname) -> None:
    wanted = ETC.read_text().strip()
    run("hostname", "bind-2")
    hostname.set(wanted)
    assert (os.uname().nodename, hostname.read()) == (wanted, wanted)


@contextlib.contextmanager
def unit_of_the_os(command: str) -> Iterator[None]:
    """As on balenaOS, where this unit runs a moment after config.json has changed."""
    unit = UNITS / "balena-hostname.service"
    unit.write_text(f"[Service]\nType=oneshot\nExecStart={command}\n")
    run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        unit.unlink()
        run("systemctl", "daemon-reload")


def test_the_name_is_left_to_the_unit_of_the_os_and_waited_for(
    hostname: Hostname, written: list[str]
) -> None:
    hostname._patience = 30.0
    with unit_of_the_os("hostnamectl set-hostname from-config"):
        later = threading.Timer(0.5, run, ("systemctl", "start", "balena-hostname"))
        later.start()
        try:
            hostname.set("from-config")
            assert os.uname().nodename == hostname.read() == "from-config"
            assert written == ["from-config"]
        finally:
            later.join()


def test_a_unit_of_the_os_that_gives_no_name_is_no_success(
    hostname: Hostname, written: list[str]
) -> None:
    before = os.uname().nodename
    with unit_of_the_os("/bin/true"):
        told = f"still called {before}: balena-hostname.service (inactive) has not given it"
        with pytest.raises(Unavailable, match=re.escape(told)):
            hostname.set("from-config")
    assert (written, os.uname().nodename) == (["from-config", "-"], before)


@pytest.fixture
def proxy(systemd: Systemd, tmp_path: Path) -> Iterator[HostProxy]:
    """redsocks as the OS runs it: on our file, and only when there is one."""
    conf = tmp_path / "redsocks.conf"
    (UNITS / "redsocks.service").write_text(
        f"[Unit]\nConditionPathExists={conf}\n[Service]\nExecStart=/usr/sbin/redsocks -c {conf}\n"
    )
    log = tmp_path / "log"
    (UNITS / "balena-proxy-config.service").write_text(
        f"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'cat {conf} >{log} || true'\n"
    )
    run("systemctl", "daemon-reload")
    yield HostProxy(systemd, str(tmp_path), steady=0.5)
    subprocess.run(["systemctl", "stop", "redsocks.service"], check=False)
    for name in ("redsocks.service", "balena-proxy-config.service"):
        (UNITS / name).unlink(missing_ok=True)
    run("systemctl", "daemon-reload")


def active(unit: str) -> str:
    return subprocess.run(
        ["systemctl", "is-active", unit], check=False, capture_output=True, text=True
    ).stdout.strip()


def test_a_proxy_runs_and_is_taken_away(proxy: HostProxy, tmp_path: Path) -> None:
    proxy.set(PROXY, ("10.0.0.1", "192.0.2.0/24"))
    assert active("redsocks.service") == "active"
    assert (tmp_path / "redsocks.conf").read_text() == render(PROXY)
    assert (tmp_path / "log").read_text() == render(PROXY), "the OS has read it"
    assert (tmp_path / "no_proxy").read_bytes() == b"10.0.0.1\n192.0.2.0/24"
    assert proxy.read() == (PROXY, ("10.0.0.1", "192.0.2.0/24"))
    proxy.set(None, ("10.0.0.1",))
    assert active("redsocks.service") == "inactive"
    assert proxy.read() == (None, ("10.0.0.1",))
    assert not (tmp_path / "redsocks.conf").exists()


def test_the_same_again_restarts_nothing(proxy: HostProxy) -> None:
    proxy.set(PROXY, ())
    first = run("systemctl", "show", "-P", "MainPID", "redsocks.service")
    proxy.set(PROXY, ())
    assert run("systemctl", "show", "-P", "MainPID", "redsocks.service") == first


def test_quotes_and_backslashes_are_what_redsocks_reads(proxy: HostProxy) -> None:
    hard = Proxy({**PROXY.settings, "login": "a;b } c = d", "password": "\\ ' # // /* {"})
    proxy.set(hard, ())
    assert active("redsocks.service") == "active"
    assert proxy.read()[0] == hard


def test_what_redsocks_refuses_changes_nothing(proxy: HostProxy, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="redsocks refuses this"):
        proxy.set(Proxy({**PROXY.settings, "ip": "2001:db8::1"}), ())
    assert not (tmp_path / "redsocks.conf").exists()
    with pytest.raises(InvalidInput, match="dns is not supported by this host's redsocks"):
        proxy.set(Proxy(PROXY.settings, "9.9.9.9:53"), ())
    assert not (tmp_path / "redsocks.conf").exists()


def test_a_failing_unit_puts_the_former_files_back(proxy: HostProxy, tmp_path: Path) -> None:
    proxy.set(PROXY, ("10.0.0.1",))
    proxy._steady = 3.0  # so long it is seen to fail
    (UNITS / "redsocks.service").write_text("[Service]\nExecStart=/bin/false\n")
    run("systemctl", "daemon-reload")
    with pytest.raises(RefusedByHost, match=r"redsocks\.service is failed .*result exit-code"):
        proxy.set(Proxy({**PROXY.settings, "port": "10"}), ())
    assert proxy.read() == (PROXY, ("10.0.0.1",))


def test_H31_without_redsocks_nothing_is_written(proxy: HostProxy, tmp_path: Path) -> None:
    (UNITS / "redsocks.service").unlink()
    (UNITS / "redsocks.service").symlink_to("/dev/null")
    run("systemctl", "daemon-reload")
    with pytest.raises(RefusedByHost, match=r"cannot use a proxy: redsocks\.service is masked"):
        proxy.set(PROXY, ("10.0.0.1",))
    assert not list(tmp_path.glob("*"))
    proxy.set(None, ("10.0.0.1",))
    assert proxy.read() == (None, ("10.0.0.1",))


@pytest.fixture
def vpn(systemd: Systemd, tmp_path: Path) -> Iterator[Vpn]:
    """On the unit of the device's own openvpn."""
    yield Vpn(systemd, str(tmp_path / "active"))
    subprocess.run(["systemctl", "unmask", "--runtime", "openvpn.service"], check=False)
    subprocess.run(["systemctl", "stop", "openvpn.service"], check=False)


def test_H43_the_vpn_is_switched_off_for_others_too(vpn: Vpn) -> None:
    vpn.set(True)
    assert vpn.state().enabled
    vpn.set(False)
    assert not vpn.state().enabled
    assert subprocess.run(["systemctl", "start", "openvpn.service"], check=False).returncode != 0
    vpn.set(True)
    assert vpn.state().enabled and active("openvpn.service") == "active"


def test_H44_connected_is_what_the_scripts_say(vpn: Vpn, tmp_path: Path) -> None:
    assert not vpn.state().connected
    (tmp_path / "active").touch()
    assert vpn.state().connected


@pytest.fixture
def switches(systemd: Systemd, tmp_path: Path) -> Iterator[Switchboard]:
    """On the device's own units; afterwards as they were."""
    keeping = JournalKeeping(systemd, str(tmp_path / "journal.conf"))
    yield Switchboard(systemd, keeping, str(tmp_path / "active"))
    units = ("openvpn.service", "avahi-daemon.service", "avahi-daemon.socket")
    subprocess.run(["systemctl", "unmask", "--runtime", *units], check=False)
    subprocess.run(["systemctl", "unmask", *units], check=False)
    subprocess.run(["systemctl", "stop", "openvpn.service"], check=False)
    subprocess.run(["systemctl", "start", *units[1:]], check=False)


@pytest.mark.parametrize("switch", [VPN, DISCOVERY, JOURNAL])
def test_a_switch_does_on_the_host_what_the_model_says(switches: Switchboard, switch: str) -> None:
    settings = (PERSISTENT, VOLATILE, OWN) if switch == JOURNAL else (OFF, ON, OFF, OFF, ON)
    for setting in settings:
        step = SwitchFeature(switch, setting)
        before = switches.read()
        switches.perform(step)
        model = after(step, HostConfig(switches=before.settings)).switches
        assert switches.read().settings == model, step


def test_what_was_switched_off_and_is_started_all_the_same_is_seen(switches: Switchboard) -> None:
    switches.perform(SwitchFeature(VPN, OFF))
    run("systemctl", "unmask", "--runtime", "openvpn.service")
    assert switches.read().settings[VPN] == IDLE
    run("systemctl", "start", "openvpn.service")
    assert switches.read().settings[VPN] == ON


def test_H42_what_is_not_there_or_the_administrators_is_no_switch(switches: Switchboard) -> None:
    run("systemctl", "mask", "openvpn.service")
    found = switches.read()
    assert VPN not in found.settings and found.absent[VPN] == "openvpn.service is masked"
    run("systemctl", "unmask", "openvpn.service")
    with without_unit("openvpn.service"):
        found = switches.read()
        assert VPN not in found.settings and found.absent[VPN] == "there is no openvpn.service"
        assert found.settings[DISCOVERY] == ON
    assert switches.read().settings[VPN] == IDLE


def test_a_unit_that_does_not_run_after_its_start_is_told(switches: Switchboard) -> None:
    drop_in = UNITS / "openvpn.service.d/test.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Unit]\nConditionPathExists=/nowhere\n")
    run("systemctl", "daemon-reload")
    try:
        with pytest.raises(RefusedByHost, match="vpn is idle all the same"):
            switches.perform(SwitchFeature(VPN, ON))
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()
        run("systemctl", "daemon-reload")


def test_a_unit_is_known_by_its_alias(systemd: Systemd) -> None:
    names = ("dbus-org.freedesktop.Avahi.service", "no-such-unit.service", "avahi-daemon.service")
    found = systemd.units(names)
    assert tuple(found) == names
    assert found[names[0]].name == "avahi-daemon.service" and found[names[0]].exists
    assert found[names[1]].load == "not-found"


@contextlib.contextmanager
def without_unit(name: str) -> Iterator[None]:
    """Neither the unit nor the old script that systemd would make one from."""
    files = (Path("/lib/systemd/system", name), Path("/etc/init.d", Path(name).stem))
    for file in files:
        run("mv", str(file), f"/root/{file.name}")
    run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        for file in files:
            run("mv", f"/root/{file.name}", str(file))
        run("systemctl", "daemon-reload")


def test_somebody_else_names_the_host(bus: Bus, systemd: Systemd) -> None:
    before, told = run("hostnamectl", "hostname"), threading.Event()
    hostname = Hostname(bus, systemd, str(ETC), remembering([]))
    hostname.on_change(told.set)
    run("systemctl", "start", "avahi-daemon.service")
    try:
        run("hostnamectl", "set-hostname", "named-by-others")
        assert told.wait(10), "no word of the new name"
        assert hostname.read() == "named-by-others"
        hostname.tell_others("named-by-others")
        call = "org.freedesktop.Avahi / org.freedesktop.Avahi.Server GetHostName"
        until(lambda: "named-by-others" in run("busctl", "call", *call.split()), "Avahi knows")
    finally:
        run("hostnamectl", "set-hostname", before)


def test_H51_a_hidden_device_stays_hidden(systemd: Systemd) -> None:
    discovery, avahi = Discovery(systemd), "avahi-daemon.service"
    try:
        discovery.set(False)
        assert not systemd.unit(avahi).running
        call = "org.freedesktop.Avahi / org.freedesktop.Avahi.Server GetHostName"
        assert subprocess.run(["busctl", "call", *call.split()], check=False).returncode != 0
        assert not systemd.unit(avahi).running, "a call on the bus has not started it"
        discovery.set(True)
        assert systemd.unit(avahi).running
    finally:
        run("systemctl", "unmask", "--runtime", "avahi-daemon.service", "avahi-daemon.socket")


def test_H55_the_journal_is_kept_without_a_reboot(systemd: Systemd) -> None:
    drop_in = Path("/run/systemd/journald.conf.d/50-balena-agent.conf")
    keeping = JournalKeeping(systemd)
    kept, fleeting = Path("/var/log/journal"), Path("/run/log/journal")
    try:
        keeping.keep(PERSISTENT)
        run("systemd-cat", "-t", "probe", "echo", "kept")
        until(lambda: has_line(kept, "kept"), "in /var")
        keeping.keep(VOLATILE)
        run("systemd-cat", "-t", "probe", "echo", "fleeting")
        until(lambda: has_line(fleeting, "fleeting"), "in /run")
        assert not has_line(kept, "fleeting")
    finally:
        drop_in.unlink(missing_ok=True)
        run("systemctl", "restart", "systemd-journald.service")


def has_line(directory: Path, text: str) -> bool:
    found = subprocess.run(
        ["journalctl", "-D", str(directory), "-q", "-t", "probe", "-o", "cat"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return text in found.stdout.splitlines()
