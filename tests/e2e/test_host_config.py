"""The host's name and proxy, changed on a running device. Cases of spec 30 §22."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_device import Device
from e2e_proxies import Connect, Hello, Server, Socks5, serving
from e2e_targets import service, target

CONF = "/mnt/boot/system-proxy/redsocks.conf"
NO_PROXY = "/mnt/boot/system-proxy/no_proxy"

# As on balenaOS, where redsocks listens to containers too and a script leads connections to it.
REDSOCKS = f"""\
[Unit]
ConditionPathExists={CONF}
[Service]
ExecStart=/bin/sh -c 'sed s/127.0.0.1/0.0.0.0/ {CONF} >/run/redsocks.conf; \
exec redsocks -c /run/redsocks.conf'
"""
PROXY_CONFIG = """\
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'iptables -w -t nat -D PREROUTING -p tcp -d {outer} --dport {port} \
-j REDIRECT --to-ports 12345 2>/dev/null; test ! -e {conf} || \
iptables -w -t nat -I PREROUTING -p tcp -d {outer} --dport {port} -j REDIRECT --to-ports 12345'
"""


@pytest.fixture
def server(device: Device) -> Iterator[Server]:
    """What a container asks for; the device has the units of balenaOS."""
    outer = device.machine.link.outer_address
    with serving(outer, Hello) as found:
        units = device.machine.inner_path("/run/systemd/system")
        (units / "redsocks.service").write_text(REDSOCKS)
        (units / "balena-proxy-config.service").write_text(
            PROXY_CONFIG.format(outer=outer, port=found.port, conf=CONF)
        )
        device.exec("systemctl", "daemon-reload")
        yield found
        device.exec("balena-agentctl", "proxy", "clear", "--force", check=False)
        device.exec("rm", "-rf", "/mnt/boot/system-proxy")
        for name in ("redsocks.service", "balena-proxy-config.service"):
            (units / name).unlink()
        device.exec("systemctl", "daemon-reload")


def asking(device: Device, server: Server) -> dict[str, Any]:
    """A target of a service that asks the server again and again."""
    url = f"http://{device.machine.link.outer_address}:{server.port}/"
    return target(
        service("one", 1, command=["sh", "-c", f"while :; do wget -qO- {url}; sleep 0.1; done"])
    )


@pytest.mark.parametrize("kind", ["socks5", "http-connect"])
def test_a_containers_connection_goes_through_the_proxy_and_then_directly(
    device: Device, server: Server, kind: str
) -> None:
    device.apply(asking(device, server))
    device.until(lambda: server.seen, 10, "the container reaches the server")
    outer = device.machine.link.outer_address
    with serving(outer, Socks5 if kind == "socks5" else Connect) as proxy:
        words = ["--type", kind, "--ip", outer, "--port", str(proxy.port)]
        if kind == "socks5":
            words += ["--login", "me", "--password-file", "-"]
        device.exec("balena-agentctl", "proxy", "set", *words, input="a=b;c\n", timeout=60.0)
        device.until(lambda: proxy.seen, 10, "the container's connection arrives at the proxy")
        who = "me/a=b;c@" if kind == "socks5" else ""
        assert proxy.seen[0] == f"{who}{outer}:{server.port}"
        device.exec("balena-agentctl", "proxy", "clear", timeout=60.0)
        after, direct = len(proxy.seen), len(server.seen)
        device.until(lambda: len(server.seen) > direct + 3, 10, "the server is reached directly")
        assert len(proxy.seen) == after
    assert device.exec("test", "-e", CONF, check=False).returncode == 1
    assert "a=b" not in device.said(), "no secret in the journal"


def test_a_proxy_that_cannot_be_is_refused_and_nothing_changes(
    device: Device, server: Server
) -> None:
    words = ["--type", "socks5", "--ip", "2001:db8::1", "--port", "1"]
    done = device.exec("balena-agentctl", "proxy", "set", *words, check=False, timeout=60.0)
    assert done.returncode == 1 and "redsocks refuses this" in done.stderr
    assert device.exec("test", "-e", CONF, check=False).returncode == 1


def test_H36_a_users_lock_keeps_the_name(device: Device) -> None:
    device.apply(target(service("one", 1)))
    before = device.exec("hostname").stdout
    device.lock("one")
    done = device.exec("balena-agentctl", "hostname", "locked-1", check=False)
    assert done.returncode == 3 and "service: one" in done.stderr
    assert device.exec("hostname").stdout == before
    device.exec("balena-agentctl", "hostname", "locked-1", "--force")
    assert device.exec("hostname").stdout == "locked-1\n"
    device.exec("balena-agentctl", "hostname", before.strip(), "--force")
    assert device.settled() and device.lock_files() == []


def test_H33_no_name_is_the_beginning_of_the_uuid(device: Device) -> None:
    before = device.exec("hostname").stdout.strip()
    device.exec("balena-agentctl", "hostname", "")
    assert device.exec("hostname").stdout.strip() == device.get("DeviceUuid")[:7]
    device.exec("balena-agentctl", "hostname", before)


def test_an_ordinary_user_may_not(device: Device) -> None:
    for words in (("hostname", "mine"), ("proxy", "clear"), ("proxy", "show"), ("blink",)):
        done = device.exec("balena-agentctl", *words, user="user", check=False)
        assert done.returncode == 4, done


def test_the_configuration_is_read_back(device: Device, server: Server) -> None:
    outer = device.machine.link.outer_address
    words = ["--type", "http-connect", "--ip", outer, "--port", "9", "--no-proxy", "192.0.2.0/24"]
    device.exec("balena-agentctl", "proxy", "set", *words, timeout=60.0)
    shown = device.exec("balena-agentctl", "proxy", "show", "--json").stdout
    assert json.loads(shown) == {
        "type": "http-connect", "ip": outer, "port": 9, "noProxy": ["192.0.2.0/24"],
    }  # fmt: skip
    assert device.exec("cat", NO_PROXY).stdout == "192.0.2.0/24"
