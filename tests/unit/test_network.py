"""Addresses of the device, from the kernel of the machine that runs the test."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

from balena_agent.host import network


def test_addresses_are_usable_ones_of_this_machine() -> None:
    for address in network.addresses():
        parsed = ipaddress.ip_address(address)
        assert not parsed.is_loopback and not parsed.is_link_local
        family = socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))  # only an own address can be bound


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
