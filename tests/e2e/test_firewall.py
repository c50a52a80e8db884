"""Who can reach what, asked from where it matters: the wire, a bridge, loopback, a container.

The outer machine is the LAN: another network namespace, at the other end of the device's only
interface. Expected is the table of spec 30 §13 (and spec 10 §2).
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from device import DeviceError
from e2e_device import UNIT, Device
from e2e_targets import IMAGE, Json, apps, apps_json_v3, service, target

CHAIN = "BALENA-FIREWALL"
JUMP = f"-A INPUT -j {CHAIN}"
API = 48484
BOTH = ("iptables", "ip6tables")
CHECKOUT = Path(__file__).parents[2]
LISTEN = """
import socket, sys
wire = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    wire.accept()[0].close()
"""


def listing(device: Device, program: str = "iptables") -> list[str]:
    return device.exec(f"{program}-save", "-t", "filter").stdout.splitlines()


def in_force(device: Device, why: str) -> bool:
    """Whether both families have the chain for this mode: `off`, `auto`, or `closed`."""
    families = [listing(device, program) for program in BOTH]
    return all(JUMP in lines and _says(lines, why) for lines in families)


def _says(lines: list[str], why: str) -> bool:
    ends = [line for line in lines if "Firewall disabled" in line]
    if why == "closed":
        return not ends and any(line.startswith(f"-A {CHAIN} -j REJECT") for line in lines)
    return len(ends) == 1 and f"({why})" in ends[0]


def lan(device: Device, port: int, host: str = "") -> bool:
    """Whether the LAN gets a TCP connection. A refusal must come at once, as one."""
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((host or device.machine.address, port), 5).close()
            return True
        except ConnectionRefusedError:
            return False
        except OSError as error:  # our own end's address is fresh, and not certain yet
            if error.errno != errno.EADDRNOTAVAIL or time.monotonic() > until:
                raise
            time.sleep(0.1)


def link_local(device: Device) -> str:
    """The device's own IPv6 address on the wire, with our end of it as its scope."""
    shown = device.exec("ip", "-6", "-j", "addr", "show", "dev", "host0", "scope", "link").stdout
    address = json.loads(shown)[0]["addr_info"][0]["local"]
    return f"{address}%{device.machine.link.outer_name}"


def from_bridge(device: Device) -> str:
    """What a container on the engine's own bridge gets from the API."""
    # busybox's wget wants more of an image than there is in ours.
    ask = rf"printf 'GET /ping HTTP/1.0\r\n\r\n' | nc -w 5 172.17.0.1 {API}"
    said = device.exec("docker", "run", "--rm", IMAGE, "sh", "-c", ask, check=False).stdout
    return said.rpartition("\n")[2]


def configured(mode: str, *services: Json) -> Json:
    document = target(*services) if services else apps({})
    document["local"]["config"] = {"HOST_FIREWALL_MODE": mode} if mode else {}
    return document


@pytest.fixture
def listener(device: Device) -> Iterator[Callable[[int], None]]:
    """Starts a service of the host on a port."""
    units: list[str] = []

    def start(port: int) -> None:
        units.append(f"e2e-listen-{port}.service")
        run = ("systemd-run", "--quiet", f"--unit={units[-1]}", "python3", "-c", LISTEN, str(port))
        device.exec(*run)
        asked = f":{port} "
        device.until(lambda: asked in device.exec("ss", "-tln").stdout, 10, f"{port} listens")

    yield start
    for unit in units:
        device.exec("systemctl", "stop", unit, check=False)


@pytest.fixture
def managed(device: Device) -> Iterator[Callable[[Json], Device]]:
    """The device as one of a fleet, with a preloaded target; afterwards as it was."""
    config = device.machine.inner_path("/mnt/boot/config.json")

    def manage(apps_json: Json) -> Device:
        document = {"uuid": "c" * 32, "apiEndpoint": "http://127.0.0.1:9", "deviceApiKey": "k"}
        device.exec("systemctl", "stop", UNIT)
        device.exec("sh", "-c", "rm -rf /var/lib/balena-agent/* /mnt/data/apps.json*")
        device.exec("sh", "-c", "cat >/mnt/data/apps.json", input=json.dumps(apps_json))
        config.write_text(json.dumps(document))
        device.exec("systemctl", "start", UNIT)
        device.machine.wait_agent()
        return device

    yield manage
    device.configure(None)


@pytest.fixture(autouse=True)
def no_rules_left(device: Device) -> Iterator[None]:
    yield
    with contextlib.suppress(AssertionError, DeviceError):
        device.post(configured(""))


def preloaded(**config: str) -> Json:
    return {**apps_json_v3(IMAGE), "config": config}


def test_on_a_managed_device_the_api_is_refused_from_the_lan(
    managed: Callable[[Json], Device],
) -> None:
    device = managed(preloaded())
    device.until(lambda: in_force(device, "off"), 15, "the rules stand")
    assert not lan(device, API)
    assert not lan(device, API, link_local(device))
    assert device.machine.api("GET", "/ping", inside=True).status == 200
    assert from_bridge(device) == "OK"
    own = device.machine.address  # the host itself, over its address on the LAN
    asked = ("curl", "-s", "-m", "5", f"http://{own}:{API}/ping")
    assert device.exec(*asked).stdout == "OK"


def test_in_local_mode_the_api_is_open_to_the_lan(device: Device) -> None:
    device.until(lambda: in_force(device, "off"), 15, "the rules stand")
    assert lan(device, API) and lan(device, API, link_local(device))
    assert from_bridge(device) == "OK"


def test_local_mode_opens_the_api_of_a_managed_device(managed: Callable[[Json], Device]) -> None:
    device = managed(preloaded(SUPERVISOR_LOCAL_MODE="1"))
    device.until(lambda: lan(device, API), 15, "the API is open")


def test_H47_on_refuses_what_is_not_named(
    managed: Callable[[Json], Device], listener: Callable[[int], None]
) -> None:
    device = managed(preloaded())
    for port in (8080, 22222):
        listener(port)
    assert lan(device, 8080) and lan(device, 22222)
    device = managed(preloaded(HOST_FIREWALL_MODE="on"))
    device.until(lambda: in_force(device, "closed"), 15, "the firewall is on")
    six = link_local(device)
    assert not lan(device, 8080) and not lan(device, 8080, six)
    assert not lan(device, API) and not lan(device, API, six)
    assert from_bridge(device) == "OK"
    # What stays open, and only works while neighbours are found: the wire's own entry is forgotten.
    assert lan(device, 22222)
    device.exec("ip", "-6", "neigh", "flush", "dev", "host0")
    assert lan(device, 22222, six)


def test_H48_rules_of_others_stay_where_they_are(device: Device) -> None:
    theirs = ("-s 203.0.113.7/32 -j DROP", "-s 203.0.113.8/32 -j DROP")
    device.exec(
        "sh", "-c", f"iptables -I DOCKER-USER 1 {theirs[0]}; iptables -I INPUT 1 {theirs[1]}"
    )
    try:
        for mode, seen in (("off", "off"), ("on", "closed"), ("off", "off")):
            device.post(configured(mode))
            device.until(partial(in_force, device, seen), 15, f"mode {mode}")
            lines = listing(device)
            inputs = [line for line in lines if line.startswith("-A INPUT ")]
            users = [line for line in lines if line.startswith("-A DOCKER-USER ")]
            assert inputs[:2] == [f"-A INPUT {theirs[1]}", JUMP]
            assert users[0] == f"-A DOCKER-USER {theirs[0]}" and "RETURN" in users[-1]
    finally:
        undo = f"iptables -D DOCKER-USER {theirs[0]}; iptables -D INPUT {theirs[1]}"
        device.exec("sh", "-c", undo)


def test_H49_auto_follows_services_in_the_hosts_network(
    device: Device, listener: Callable[[int], None]
) -> None:
    listener(8080)
    pid = device.main_pid()
    device.apply(configured("auto", service("one", 1)))
    device.until(lambda: in_force(device, "auto"), 15, "auto is open")
    assert lan(device, 8080)
    device.apply(configured("auto", service("one", 1, network_mode="host")))
    device.until(lambda: in_force(device, "closed"), 15, "auto is closed")
    assert not lan(device, 8080)
    device.apply(configured("auto", service("one", 1)))
    device.until(lambda: in_force(device, "auto"), 15, "auto is open again")
    assert lan(device, 8080) and device.main_pid() == pid


def test_H50_a_flushed_chain_is_restored(device: Device) -> None:
    device.until(lambda: in_force(device, "off"), 15, "the rules stand")
    device.exec("iptables", "-F", "INPUT")
    device.exec("ip6tables", "-F", CHAIN)
    device.until(lambda: in_force(device, "off"), 60, "the rules are restored")
    device.until(lambda: "restored" in device.said(), 10, "the agent tells of it")


def test_H10_an_unknown_mode_is_off_and_told_once(device: Device) -> None:
    device.apply(configured("sideways", service("one", 1)))
    told = "firewallMode, value: 'sideways'. Falling back to default (off)"
    device.until(lambda: told in device.said(), 10, "the agent tells of it")
    assert in_force(device, "off") and device.running("one")
    assert device.said().count(told) == 1


def test_without_the_tools_the_api_is_refused_all_the_same(
    managed: Callable[[Json], Device],
) -> None:
    device = managed(preloaded())
    drop_in = device.machine.inner_path(f"/run/systemd/system/{UNIT}.d/e2e.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    try:
        drop_in.write_text("[Service]\nInaccessiblePaths=/usr/sbin/xtables-nft-multi\n")
        device.exec("systemctl", "daemon-reload")
        device.exec("systemctl", "stop", UNIT)
        for program in BOTH:
            device.exec(program, "-D", "INPUT", "-j", CHAIN)
        device.exec("systemctl", "start", UNIT)
        device.machine.wait_agent()
        told = "Firewall mode not applied due to error: IPv4: iptables-save"
        device.until(lambda: told in device.said(), 10, "the agent says why")
        assert "firewall: IPv4: iptables-save" in device.status_text()
        with pytest.raises(DeviceError):
            device.machine.api("GET", "/ping", timeout=3.0)
        assert device.machine.api("GET", "/ping", inside=True).status == 200
        assert from_bridge(device) == "OK"
    finally:
        drop_in.unlink()
        device.exec("systemctl", "daemon-reload")


def test_the_rules_go_when_the_agent_is_removed(device: Device) -> None:
    device.exec("iptables", "-A", "INPUT", "-s", "203.0.113.9", "-j", "DROP")
    top = device.machine.inner_path("/root/installer")
    for part in ("units", "dbus"):
        for path in (CHECKOUT / part).iterdir():
            (top / part).mkdir(parents=True, exist_ok=True)
            (top / part / path.name).write_bytes(path.read_bytes())
    try:
        device.exec("sh", "/root/installer/units/install.sh", "remove")
        assert not device.machine.api_key, "the key goes with the agent"
        left = [line for program in BOTH for line in listing(device, program) if CHAIN in line]
        assert left == []
        assert "-A INPUT -s 203.0.113.9/32 -j DROP" in listing(device)
        assert device.exec("systemctl", "cat", UNIT, check=False).returncode != 0
    finally:
        device.exec("iptables", "-D", "INPUT", "-s", "203.0.113.9", "-j", "DROP")
        device.exec("sh", "/root/installer/units/install.sh")
        device.exec("systemctl", "enable", "--now", "--quiet", UNIT)
        device.ready()
    assert in_force(device, "off")
