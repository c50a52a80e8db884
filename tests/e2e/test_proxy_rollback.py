"""A change of the proxy that cuts the device off from its cloud is taken back (spec 30 §6.4)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cloud import FakeCloud
from e2e_device import STORE, UNIT, Device
from e2e_proxies import Socks5, serving

SECONDS = 15
BOOT = "/mnt/boot/system-proxy"
REDSOCKS = f"""\
[Unit]
ConditionPathExists={BOOT}/redsocks.conf
[Service]
ExecStart=redsocks -c {BOOT}/redsocks.conf
"""
RULES = f"""\
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'iptables -w -t nat -D OUTPUT -p tcp -d {{outer}} --dport {{port}} \
-j REDIRECT --to-ports 12345 2>/dev/null; test ! -e {BOOT}/redsocks.conf || \
iptables -w -t nat -I OUTPUT -p tcp -d {{outer}} --dport {{port}} -j REDIRECT --to-ports 12345'
"""
"""As on balenaOS the host's own connections go through the proxy: those to the cloud here."""

ASK = f"""
import sqlite3
store = sqlite3.connect("file:{STORE}?mode=ro", uri=True)
print(store.execute("SELECT v FROM setting WHERE k = 'proxy_trial'").fetchall())
"""


@pytest.fixture
def cloud(device: Device) -> Iterator[FakeCloud]:
    """The device is managed by it, and loses patience soon."""
    outer = device.machine.link.outer_address
    path, conf, units = (
        device.machine.inner_path(name)
        for name in ("/mnt/boot/config.json", "/etc/balena-agent/agent.conf", "/run/systemd/system")
    )
    kept = [(each, each.read_bytes() if each.exists() else None) for each in (path, conf)]
    with FakeCloud(outer) as made:
        (units / "redsocks.service").write_text(REDSOCKS)
        text = RULES.format(outer=outer, port=made.port)
        (units / "balena-proxy-config.service").write_text(text)
        device.exec("systemctl", "daemon-reload")
        known = {"uuid": "c" * 32, "apiEndpoint": made.url, "deviceApiKey": "k"}
        path.write_text(json.dumps(known))
        conf.write_text(f"[host]\nproxy_rollback_after = {SECONDS}\n")
        device.start_over()  # it knows no image of earlier tests, and leaves all of them
        yield made
    for each, content in kept:
        if content is None:
            each.unlink(missing_ok=True)
        else:
            each.write_bytes(content)
    device.start_over()  # a file that is merely lost would not make it forget the cloud
    device.exec("balena-agentctl", "proxy", "clear", "--force", check=False, timeout=60.0)
    device.exec("rm", "-rf", BOOT)
    for name in ("redsocks.service", "balena-proxy-config.service"):
        (units / name).unlink(missing_ok=True)
    device.exec("systemctl", "daemon-reload")


def configure(device: Device, port: int) -> None:
    outer = device.machine.link.outer_address
    words = ["--type", "socks5", "--ip", outer, "--port", str(port), "--no-proxy", "192.0.2.1"]
    device.exec("balena-agentctl", "proxy", "set", *words, timeout=60.0)


def file(device: Device) -> str:
    return device.exec("cat", f"{BOOT}/redsocks.conf", check=False).stdout


def on_trial(device: Device) -> bool:
    """Whether the agent has a note of a change that it may take back."""
    return device.exec("python3", "-c", ASK).stdout.strip() != "[]"


def test_a_proxy_that_cuts_off_is_taken_back_and_one_that_works_stays(
    device: Device, cloud: FakeCloud
) -> None:
    with serving(device.machine.link.outer_address, Socks5) as proxy:
        configure(device, proxy.port)
        device.until(lambda: proxy.seen, 30, "the cloud is asked through the proxy")
        good = file(device)
        device.until(lambda: not on_trial(device), 30, "the cloud has answered, and it stays")
        # Nobody is there: the agent notices, though it is killed meanwhile.
        configure(device, 9)
        assert "port = 9;" in file(device)
        assert device.machine.unit_state("redsocks.service") == "active"
        device.exec("systemctl", "kill", "-s", "KILL", "--kill-who=main", UNIT)
        told = f"Proxy change reverted: the cloud could not be reached for {SECONDS} s after it"
        device.until(lambda: told in device.said(), 60, "the change is taken back")
        assert file(device) == good
        assert device.exec("cat", f"{BOOT}/no_proxy").stdout == "192.0.2.1"


def test_it_can_be_left_off(device: Device, cloud: FakeCloud) -> None:
    conf = device.machine.inner_path("/etc/balena-agent/agent.conf")
    conf.write_text("[host]\nproxy_rollback = no\n")
    device.restart()
    configure(device, 9)
    assert "port = 9;" in file(device)
    assert not cloud.asked("GET", "/ping")
