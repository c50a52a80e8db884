"""Addresses of the device, from the kernel of the machine that runs the test."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from balena_agent.host import network


def test_addresses_are_usable_ones_of_this_machine() -> None:
    for address in network.addresses():
        parsed = ipaddress.ip_address(address)
        assert not parsed.is_loopback and not parsed.is_link_local
        family = socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))  # only an own address can be bound


SECOND_ADDRESSES = """
ip link add wan0 type bridge && ip link set wan0 up
ip address add 203.0.113.7/24 dev wan0
ip address add 203.0.113.9/24 dev wan0
ip address add 198.51.100.9/24 dev wan0 label wan0:1
exec "$0" -c 'from balena_agent.host import network; print(*network._ipv4(["none", "wan0"]))'
"""


def test_every_ipv4_address_of_an_interface_is_found() -> None:
    """In a network of its own, where that can be had without being root."""
    apart = ["unshare", "--map-root-user", "--net", "sh", "-ec"]
    if subprocess.run([*apart, "ip link add wan0 type bridge"], capture_output=True).returncode:
        pytest.skip("no network namespaces with bridges here")
    found = subprocess.run(
        [*apart, SECOND_ADDRESSES, sys.executable],
        check=True, capture_output=True, text=True, cwd=Path(network.__file__).parents[2],
    ).stdout.split()  # fmt: skip
    assert sorted(found) == ["198.51.100.9", "203.0.113.7", "203.0.113.9"]


def test_interfaces_of_engine_vpn_and_agent_are_left_out() -> None:
    inner = ("lo", "docker0", "br-0123456789ab", "supervisor0", "resin-vpn", "veth1a2b", "tun0")
    assert all(network._INNER.fullmatch(name) for name in inner)
    assert not any(network._INNER.fullmatch(name) for name in ("eth0", "wlan0", "host0", "br-lan"))


def test_the_port_is_reserved_once_beside_what_others_reserved(tmp_path: Path) -> None:
    table = tmp_path / "ports"
    table.write_text("8080,9000-9010\n")
    assert network.reserve_port(48484, table) == ""
    assert network.reserve_port(48484, table) == ""
    assert network.reserve_port(9005, table) == ""
    assert table.read_text() == "8080,9000-9010,48484"
    table.write_text("\n")
    assert network.reserve_port(1, table) == ""
    assert table.read_text() == "1"
    assert "cannot be reserved" in network.reserve_port(1, tmp_path / "none" / "x")


def test_mac_addresses_are_those_of_the_device_itself(tmp_path: Path) -> None:
    def interface(name: str, address: str, kind: str = "1", master: bool = False) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(address + "\n")
        (tmp_path / name / "type").write_text(kind + "\n")
        if master:
            (tmp_path / name / "master").mkdir()

    interface("eth1", "02:00:5e:10:00:02")
    interface("eth0", "02:00:5e:10:00:01")
    interface("wlan0", "02:00:5e:10:00:01")
    interface("lo", "00:00:00:00:00:00", "772")
    interface("dummy0", "00:00:00:00:00:00")
    interface("docker0", "02:42:00:00:00:01")
    interface("veth12", "02:42:00:00:00:02")
    interface("wg0", "", "65534")
    interface("eth2", "02:00:5e:10:00:03", master=True)
    (tmp_path / "bonding_masters").write_text("")
    assert network.mac_addresses(tmp_path) == ("02:00:5E:10:00:01", "02:00:5E:10:00:02")
    assert network.mac_addresses(tmp_path / "none") == ()


def test_who_listens_is_seen() -> None:
    with socket.socket() as one, socket.socket(socket.AF_INET6) as two:
        for listener, address in ((one, "127.0.0.1"), (two, "::1")):
            try:
                listener.bind((address, 0))
            except OSError:  # a machine without IPv6
                continue
            port = listener.getsockname()[1]
            assert not network.listening(port)
            listener.listen()
            assert network.listening(port)
            assert not network.listening(port, (Path("/none"),))
