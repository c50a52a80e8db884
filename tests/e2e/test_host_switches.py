"""VPN, mDNS, journal, network and name of the host, as variables and other programs change them."""

from __future__ import annotations

import http.server
import json
from collections.abc import Callable, Iterator

import pytest
from e2e_device import UNIT, Device
from e2e_proxies import serving
from e2e_targets import IMAGE, UUID, Json, apps_json_v3, service, target

VPN, AVAHI = "openvpn.service", "avahi-daemon.service"
CONNECTED = "/run/openvpn/vpn_status/active"
DROP_IN = "/run/systemd/journald.conf.d/50-balena-agent.conf"
LED = "/tmp/led"
LOCAL = "BALENA_SUPERVISOR_LOCAL_MODE"
OK, LOST = "Internet Connectivity: OK", "Waiting for connectivity..."


class Online(http.server.BaseHTTPRequestHandler):
    """What NetworkManager asks whether there is a way to the Internet."""

    def do_GET(self) -> None:
        self.send_response(204)
        self.send_header("X-NetworkManager-Status", "online")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def managed(device: Device) -> Iterator[Device]:
    """The device as one of a fleet whose cloud cannot be reached, in local mode."""
    config = device.machine.inner_path("/mnt/boot/config.json")
    left_by_cloud = {**apps_json_v3(IMAGE), "config": {LOCAL: "1"}}
    device.machine.inner_path(LED).write_text("0")
    path = device.machine.inner_path("/run/systemd/system/balena-agent.service.d/e2e.conf")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[Service]\nEnvironment=LED_FILE={LED}\n")
    device.exec("systemctl", "daemon-reload")

    def cloud() -> None:
        document = {"uuid": UUID, "apiEndpoint": "http://127.0.0.1:9", "deviceApiKey": "k"}
        config.write_text(json.dumps(document))

    device.start_over(left_by_cloud, cloud)
    device.until(lambda: device.of("main") and device.is_settled(), 15, "the preload is applied")
    yield device
    device.exec("systemctl", "stop", VPN, check=False)
    path.unlink()
    device.exec("systemctl", "daemon-reload")
    device.configure(None)


@pytest.fixture(autouse=True)
def units_as_before(device: Device) -> Iterator[None]:
    yield
    device.exec("systemctl", "unmask", "--runtime", VPN, AVAHI, "avahi-daemon.socket", check=False)
    device.exec("systemctl", "start", "NetworkManager.service", AVAHI)


def configured(**variables: str) -> Json:
    document = target(service("one", 1))
    document["local"]["config"] = variables
    return document


def unit(device: Device, name: str) -> tuple[str, str]:
    shown = device.show("LoadState", "ActiveState", unit=name)
    return shown["LoadState"], shown["ActiveState"]


def becomes(device: Device, name: str, *wanted: str) -> None:
    device.until(lambda: unit(device, name) == wanted, 15, f"{name} is {wanted}")


def soon(device: Device, what: str, probe: Callable[[], bool], seconds: float = 15) -> None:
    device.until(probe, seconds, what)


def vpn(device: Device) -> Json:
    return dict(device.api("GET", "/v2/device/vpn", inside=True).json()["vpn"])


def test_H43_a_variable_switches_the_vpn_off_and_on(managed: Device) -> None:
    managed.exec("systemctl", "start", VPN)
    managed.mark()
    variables = {LOCAL: "1", "SUPERVISOR_VPN_CONTROL": "false"}
    managed.apply(configured(**variables))
    becomes(managed, VPN, "masked", "inactive")
    assert vpn(managed) == {"enabled": False, "connected": False}
    step = next(entry for entry in managed.journal() if entry.get("STEP") == "switch")
    assert step["CAUSE"] == "SUPERVISOR_VPN_CONTROL is false"
    assert managed.exec("systemctl", "start", VPN, check=False).returncode != 0
    managed.apply(configured(**variables | {"SUPERVISOR_VPN_CONTROL": "true"}))
    becomes(managed, VPN, "loaded", "active")
    managed.apply(configured(**variables))
    becomes(managed, VPN, "masked", "inactive")
    managed.apply(configured(**{LOCAL: "1"}))
    becomes(managed, VPN, "loaded", "active")


def test_H43_a_vpn_that_somebody_brings_back_is_switched_off_again(managed: Device) -> None:
    variables = {LOCAL: "1", "SUPERVISOR_VPN_CONTROL": "false"}
    managed.apply(configured(**variables))
    becomes(managed, VPN, "masked", "inactive")

    def brought_back() -> bool:  # the agent may look between the two, and mask it again at once
        words = f"systemctl unmask --runtime {VPN} && systemctl start {VPN}"
        return managed.exec("sh", "-c", words, check=False).returncode == 0

    soon(managed, "brought back", brought_back, 60)
    soon(managed, "off again", lambda: unit(managed, VPN) == ("masked", "inactive"), 45)


def test_H44_the_vpns_scripts_say_that_it_is_connected(managed: Device) -> None:
    file = managed.machine.inner_path(CONNECTED)
    soon(managed, "the directory is there", file.parent.is_dir)
    assert vpn(managed)["connected"] is False
    file.touch()
    soon(managed, "connected", lambda: bool(vpn(managed)["connected"]), 1)
    file.unlink()
    soon(managed, "not connected", lambda: not vpn(managed)["connected"], 5)


def test_H42_without_a_vpn_unit_the_state_reads_well(managed: Device) -> None:
    hidden = ("/lib/systemd/system/openvpn.service", "/etc/init.d/openvpn")
    for name in hidden:
        managed.exec("mv", name, "/root")
    managed.exec("systemctl", "daemon-reload")
    try:
        managed.mark()
        variables = {LOCAL: "1", "SUPERVISOR_VPN_CONTROL": "true"}
        managed.restart()
        managed.apply(configured(**variables))
        assert vpn(managed) == {"enabled": False, "connected": False}
        soon(managed, "told", lambda: absent(managed).get("vpn") == f"there is no {VPN}")
        assert not [entry for entry in managed.journal() if entry.get("STEP") == "switch"]
        assert managed.plan()["failures"] == []
    finally:
        for name in hidden:
            managed.exec("mv", f"/root/{name.rpartition('/')[2]}", name)
        managed.exec("systemctl", "daemon-reload")


def absent(device: Device) -> Json:
    told = json.loads(device.exec("balena-agentctl", "status", "--json").stdout)
    return dict(told["host"]["absent"])


def test_an_unmanaged_devices_vpn_is_left_alone(device: Device) -> None:
    device.exec("systemctl", "start", VPN)
    device.apply(configured(SUPERVISOR_VPN_CONTROL="false"))
    assert unit(device, VPN) == ("loaded", "active")
    device.exec("systemctl", "stop", VPN)


def test_H51_a_hidden_device_stays_hidden(device: Device) -> None:
    device.exec("systemctl", "start", AVAHI)
    device.apply(configured(HOST_DISCOVERABILITY="false"))
    becomes(device, AVAHI, "masked", "inactive")
    call = "org.freedesktop.Avahi / org.freedesktop.Avahi.Server GetHostName"
    device.exec("busctl", "call", *call.split(), check=False)
    assert unit(device, AVAHI) == ("masked", "inactive")
    device.apply(configured())
    becomes(device, AVAHI, "loaded", "active")


def test_H55_the_journal_is_kept_while_a_variable_says_so(device: Device) -> None:
    path = device.machine.inner_path(DROP_IN)
    before = device.boot_id()
    device.apply(configured(SUPERVISOR_PERSISTENT_LOGGING="true"))
    soon(device, "kept", lambda: "Storage=persistent" in path.read_text())
    device.exec("systemd-cat", "-t", "probe", "echo", "kept")
    soon(device, "on disk", lambda: in_journal(device, "/var/log/journal", "kept"))
    device.apply(configured(SUPERVISOR_PERSISTENT_LOGGING="false"))
    soon(device, "in memory", lambda: "Storage=volatile" in path.read_text())
    device.exec("systemd-cat", "-t", "probe", "echo", "fleeting")
    soon(device, "in memory", lambda: in_journal(device, "/run/log/journal", "fleeting"))
    assert not in_journal(device, "/var/log/journal", "fleeting")
    device.apply(configured())
    soon(device, "the host's own again", lambda: not path.exists())
    assert device.boot_id() == before
    device.exec("rm", "-rf", "/var/log/journal")
    device.exec("systemctl", "restart", "systemd-journald.service")


def in_journal(device: Device, where: str, text: str) -> bool:
    words = ("journalctl", "-D", where, "-q", "-t", "probe", "-o", "cat")
    return text in device.exec(*words, check=False).stdout.splitlines()


def test_H46_a_new_address_is_announced_on_the_bus(device: Device) -> None:
    device.exec("ip", "link", "add", "wan0", "type", "bridge")
    try:
        device.exec("ip", "link", "set", "wan0", "up")
        device.exec("ip", "address", "add", "203.0.113.7/24", "dev", "wan0")
        soon(device, "listed", lambda: "203.0.113.7" in device.get("AddressList"), 20)
        soon(device, "shown", lambda: "203.0.113.7" in shown_addresses(device), 20)
    finally:
        device.exec("ip", "link", "del", "wan0")
    soon(device, "gone", lambda: "203.0.113.7" not in device.get("AddressList"), 20)


def shown_addresses(device: Device) -> str:
    return str(device.api("GET", "/v1/device").json()["ip_address"])


def test_H56_addresses_without_networkmanager(device: Device) -> None:
    device.exec("systemctl", "stop", "NetworkManager.service")
    device.restart()
    assert device.machine.address in device.get("AddressList")
    assert device.machine.address in shown_addresses(device)


def test_no_way_to_the_cloud_is_shown_by_the_led(managed: Device) -> None:
    """What NetworkManager finds when it asks: a server answers, then it does not."""
    outer, led = managed.machine.link.outer_address, managed.machine.inner_path(LED)
    conf = managed.machine.inner_path("/etc/NetworkManager/conf.d/20-check.conf")
    said = managed.said
    try:
        with serving(outer, Online) as server:
            uri = f"http://{outer}:{server.port}/check"
            conf.write_text(f"[connectivity]\nenabled=true\nuri={uri}\nresponse=\ninterval=5\n")
            managed.exec("systemctl", "restart", "NetworkManager.service")
            soon(managed, "told", lambda: LOST in said(), 30)
            # A device without a default route is never asked whether it gets anywhere.
            route = ("ipv4.never-default", "no", "ipv4.gateway", outer)
            managed.exec("nmcli", "device", "modify", "host0", *route)
            soon(managed, "told", lambda: said().rfind(OK) > said().find(LOST), 30)
            soon(managed, "dark", lambda: led.read_text() == "0")
            before = said().count(LOST)

        def lost() -> bool:  # what NetworkManager asks by itself is seldom
            managed.exec("nmcli", "networking", "connectivity", "check")
            return said().count(LOST) > before

        soon(managed, "told", lost, 30)
        soon(managed, "lit", lambda: led.read_text() == "1")
        before = said().count(OK)
        managed.apply(configured(**{LOCAL: "1", "SUPERVISOR_CONNECTIVITY_CHECK": "0"}))
        soon(managed, "told", lambda: said().count(OK) > before)
        soon(managed, "dark", lambda: led.read_text() == "0")
    finally:
        conf.unlink()
        managed.exec("nmcli", "device", "reapply", "host0", check=False)
        managed.exec("systemctl", "restart", "NetworkManager.service")


def test_somebody_else_names_the_host(device: Device) -> None:
    before = device.exec("hostnamectl", "hostname").stdout.strip()

    def named() -> str:
        told = json.loads(device.exec("balena-agentctl", "status", "--json").stdout)
        return str(told["device"]["hostname"])

    device.exec("systemctl", "start", AVAHI)
    try:
        device.exec("hostnamectl", "set-hostname", "named-by-others")
        soon(device, "named", lambda: named() == "named-by-others", 20)
        call = "org.freedesktop.Avahi / org.freedesktop.Avahi.Server GetHostName"
        answer = ("busctl", "call", *call.split())
        soon(device, "Avahi knows", lambda: "named-by-others" in device.exec(*answer).stdout, 20)
        network = device.api("GET", "/v1/device/host-config").json()["network"]
        assert network["hostname"] == "named-by-others"
    finally:
        device.exec("hostnamectl", "set-hostname", before)


def test_H59_the_machines_figures_are_there_unless_nobody_wants_them(device: Device) -> None:
    def names() -> set[str]:
        lines = device.api("GET", "/metrics").text.splitlines()
        return {line.split(" ")[0] for line in lines if line.startswith("balena_device_")}

    device.apply(configured())
    assert {"balena_device_memory_bytes", "balena_device_undervolted"} <= names()
    device.apply(configured(SUPERVISOR_HARDWARE_METRICS="false"))
    assert names() == {"balena_device_undervolted"}


def test_the_agent_that_goes_leaves_the_switches_as_they_are(device: Device) -> None:
    device.apply(configured(HOST_DISCOVERABILITY="false"))
    becomes(device, AVAHI, "masked", "inactive")
    device.exec("systemctl", "stop", UNIT)
    assert unit(device, AVAHI) == ("masked", "inactive")
    device.exec("systemctl", "start", UNIT)
    device.ready()
    device.apply(configured())
    becomes(device, AVAHI, "loaded", "active")
