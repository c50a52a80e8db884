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


PASSWORD = "a=b;c\\d } {#//\u00f6\\\\"
"""Each character means something in redsocks.conf."""


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
        device.exec("balena-agentctl", "proxy", "set", *words, input=PASSWORD + "\n", timeout=60.0)
        device.until(lambda: proxy.seen, 10, "the container's connection arrives at the proxy")
        who = f"me/{PASSWORD}@" if kind == "socks5" else ""
        assert proxy.seen[0] == f"{who}{outer}:{server.port}"
        device.exec("balena-agentctl", "proxy", "clear", timeout=60.0)
        after, direct = len(proxy.seen), len(server.seen)
        device.until(lambda: len(server.seen) > direct + 3, 10, "the server is reached directly")
        assert len(proxy.seen) == after
    assert device.exec("test", "-e", CONF, check=False).returncode == 1
    assert PASSWORD[:3] not in device.said(), "no secret in the journal"


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
    body: dict[str, Any] = {"network": {"hostname": "locked-1"}}
    refused = device.api("PATCH", "/v1/device/host-config", body, timeout=60.0)
    assert refused.status == 423 and "one" in refused.text
    assert device.exec("hostname").stdout == before
    body["force"] = True
    assert device.api("PATCH", "/v1/device/host-config", body, timeout=60.0).status == 200
    assert device.exec("hostname").stdout == "locked-1\n"
    device.exec("balena-agentctl", "hostname", before.strip(), "--force")
    assert device.settled() and device.lock_files() == []


def test_H35_a_name_in_a_mounted_file(device: Device) -> None:
    """The agent's own mounts must not keep it from the file, nor show it an old one."""
    before = device.exec("hostname").stdout.strip()
    device.exec("cp", "/etc/hostname", "/run/name")
    device.exec("mount", "--bind", "/run/name", "/etc/hostname")
    try:
        device.restart()
        patch(device, None, hostname="bind-1")
        assert device.exec("cat", "/run/name", "/proc/sys/kernel/hostname").stdout == "bind-1\n" * 2
    finally:
        device.exec("umount", "/etc/hostname")
    device.restart()
    for name in ("plain-1", "plain-2", before):
        patch(device, None, hostname=name)
        assert shown(device)["hostname"] == device.exec("hostname").stdout.strip() == name
        assert device.exec("cat", "/etc/hostname").stdout == f"{name}\n"


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


SAMPLE: dict[str, Any] = {
    "type": "socks5", "ip": "10.20.30.40", "port": 1080, "login": "kiosk", "password": "s3cret",
    "noProxy": ["192.0.2.10", "198.51.100.0/24"],
}  # fmt: skip
WRITTEN = """\
base {
\tlog_debug = off;
\tlog_info = on;
\tlog = stderr;
\tdaemon = off;
\tredirector = iptables;
}

redsocks {
\ttype = socks5;
\tip = 10.20.30.40;
\tport = 1080;
\tlogin = "kiosk";
\tpassword = "s3cret";
\tlocal_ip = 127.0.0.1;
\tlocal_port = 12345;
}
"""


def patch(device: Device, proxy: Any, status: int = 200, **network: Any) -> str:
    body = {"network": {**network, **({} if proxy is None else {"proxy": proxy})}}
    answer = device.api("PATCH", "/v1/device/host-config", body, timeout=60.0)
    assert answer.status == status, answer
    return answer.text


def shown(device: Device) -> dict[str, Any]:
    return dict(device.api("GET", "/v1/device/host-config").json()["network"])


def both(device: Device) -> tuple[str, str]:
    """The two files; "" where there is none."""
    found = (device.exec("cat", name, check=False).stdout for name in (CONF, NO_PROXY))
    return next(found), next(found)


def running(device: Device) -> bool:
    return device.machine.unit_state("redsocks.service") == "active"


def test_H25_H26_H27_a_proxy_is_written_to_the_letter(device: Device, server: Server) -> None:
    patch(device, SAMPLE)
    assert both(device) == (WRITTEN, "192.0.2.10\n198.51.100.0/24")
    assert running(device) and shown(device)["proxy"] == SAMPLE
    patch(device, {"port": 1081})
    assert both(device)[0] == WRITTEN.replace("1080", "1081")
    patch(device, {"password": "a=b=c"})
    patch(device, {"ip": "10.20.30.41"})
    assert 'password = "a=b=c";' in both(device)[0]
    assert shown(device)["proxy"] == {
        **SAMPLE, "port": 1081, "password": "a=b=c", "ip": "10.20.30.41",
    }  # fmt: skip
    assert "a=b=c" not in device.said() and "s3cret" not in device.said()


def test_H28_H29_the_proxy_and_its_exceptions_go_alone(device: Device, server: Server) -> None:
    patch(device, SAMPLE)
    pid = device.show("MainPID", unit="redsocks.service")["MainPID"]
    patch(device, {"noProxy": SAMPLE["noProxy"]})
    assert device.show("MainPID", unit="redsocks.service")["MainPID"] == pid, "nothing is new"
    for _ in range(2):
        patch(device, {"noProxy": ["192.0.2.11"]})
        assert both(device) == (WRITTEN, "192.0.2.11")
    patch(device, {})
    assert both(device) == ("", "192.0.2.11") and not running(device)
    patch(device, {"noProxy": []})
    assert both(device) == ("", "")


@pytest.mark.parametrize(
    "wrong",
    [{"password": 'a"b'}, {"password": "a\nb"}, {"type": "ftp"}, {"noProxy": ["example.org"]},
     {"port": 0}, {"ip": "10.0.0.1;x"}, {"dns": "9.9.9.9:53"}],
    ids=str,
)  # fmt: skip
def test_H30_what_would_break_a_file_is_refused(
    device: Device, server: Server, wrong: dict[str, Any]
) -> None:
    patch(device, SAMPLE)
    told = patch(device, {**SAMPLE, **wrong}, status=400)
    assert next(iter(wrong)) in told
    assert both(device) == (WRITTEN, "192.0.2.10\n198.51.100.0/24") and running(device)


def test_H31_without_the_proxys_unit_nothing_is_half_done(device: Device, server: Server) -> None:
    unit = device.machine.inner_path("/run/systemd/system/redsocks.service")
    unit.unlink()
    unit.symlink_to("/dev/null")
    device.exec("systemctl", "daemon-reload")
    body = {"network": {"proxy": SAMPLE}}
    answer = device.api("PATCH", "/v1/device/host-config", body, timeout=60.0)
    assert answer.status >= 500 and "redsocks.service is masked" in answer.text
    assert both(device) == ("", "") and "proxy" not in shown(device)


def test_H32_H34_the_host_name_over_http(device: Device) -> None:
    before = device.exec("hostname").stdout.strip()
    try:
        patch(device, None, hostname="kiosk-7")
        assert shown(device)["hostname"] == "kiosk-7"
        assert device.exec("hostnamectl", "--static").stdout == "kiosk-7\n"
        assert device.exec("uname", "-n").stdout == "kiosk-7\n"
        for wrong in ("bad name", "a..b", "-x", "x" * 65):
            assert "hostname" in patch(device, None, status=400, hostname=wrong)
        assert device.exec("uname", "-n").stdout == "kiosk-7\n"
    finally:
        device.exec("balena-agentctl", "hostname", before)
