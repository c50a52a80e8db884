"""Restart and purge of whole apps, clean-up of volumes: over HTTP, D-Bus, balena-agentctl."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from e2e_device import Device
from e2e_targets import Json, app, apps, service

LOCKED = {
    "status": "failed",
    "message": "Lockfile exists for { appId: 1, service: one }",
}
NAMELESS = "0123456789abcdef" * 4


def two_apps() -> Json:
    mine = app(service("one", 1, volumes=["data:/data"]), service("two", 2), volumes={"data": {}})
    theirs = app(service("three", 3, volumes=["data:/data"]), name="other", volumes={"data": {}})
    return apps({"1": mine, "2": theirs})


def inside(device: Device, volume: str) -> str:
    return str(device.engine("GET", f"/volumes/{volume}")["Mountpoint"])


def write(device: Device, volume: str) -> None:
    device.exec("touch", f"{inside(device, volume)}/written")


def kept(device: Device, volume: str) -> bool:
    return "written" in device.exec("ls", inside(device, volume)).stdout.split()


def begun(device: Device) -> dict[str, str]:
    """The device runs both apps, and both have written data; container ids by name."""
    device.apply(two_apps())
    for volume in ("1_data", "2_data"):
        write(device, volume)
    return device.ids()


def http_v1(device: Device, what: str) -> None:
    answer = device.api("POST", f"/v1/{what}", {"appId": 1}, timeout=60.0)
    if what == "purge":
        assert (answer.status, answer.json()) == (200, {"Data": "OK", "Error": ""})
    else:
        assert (answer.status, answer.text) == (200, "OK")


def http_v2(device: Device, what: str) -> None:
    answer = device.api("POST", f"/v2/applications/1/{what}", {}, timeout=60.0)
    assert (answer.status, answer.text) == (200, "OK")


def ctl(device: Device, what: str) -> None:
    verb = "restart-app" if what == "restart" else what
    assert device.exec("balena-agentctl", verb, "1", timeout=60.0).returncode == 0


Ask = Callable[[Device, str], None]
everyone = pytest.mark.parametrize("ask", [http_v1, http_v2, ctl])


def anew(device: Device, before: dict[str, str]) -> None:
    """When the answer comes the app runs in new containers, and the other app in its old one."""
    after = device.ids()
    assert device.running("one", "two", "three")
    changed = {name.split("_")[0] for name in before if after[name] != before[name]}
    assert changed == {"one", "two"}


@everyone
def test_S28_restart_of_an_app(device: Device, ask: Ask) -> None:
    before = begun(device)
    ask(device, "restart")
    anew(device, before)
    assert kept(device, "1_data") and kept(device, "2_data")
    device.settled()
    assert device.lock_files() == []


@everyone
def test_S27_purge_of_an_app(device: Device, ask: Ask) -> None:
    before = begun(device)
    ask(device, "purge")
    anew(device, before)
    assert not kept(device, "1_data") and kept(device, "2_data")
    write(device, "1_data")
    device.settled()
    assert device.lock_files() == [] and kept(device, "1_data")
    said = device.said()
    assert said.index("Purging data for app 1") < said.index("Purged data")


@pytest.mark.parametrize("what", ["restart", "purge"])
def test_a_lock_refuses_and_force_overrides(device: Device, what: str) -> None:
    before = begun(device)
    path = device.lock("one")
    for where in (f"/v1/{what}", f"/v2/applications/1/{what}"):
        answer = device.api("POST", where, {"appId": 1}, timeout=60.0)
        assert (answer.status, answer.json()) == (423, LOCKED)
    verb = "restart-app" if what == "restart" else what
    assert device.exec("balena-agentctl", verb, "1", check=False).returncode == 3
    device.settled()
    assert device.ids() == before and path.exists() and kept(device, "1_data")
    answer = device.api("POST", f"/v1/{what}", {"appId": 1, "force": True}, timeout=60.0)
    assert answer.status == 200
    anew(device, before)
    device.settled()
    assert device.lock_files() == []


def test_apps_that_are_not_there(device: Device) -> None:
    begun(device)
    message = "Application with ID 99999 is not in the current state"
    for where in ("/v1/restart", "/v1/purge", "/v2/applications/99999/restart"):
        answer = device.api("POST", where, {"appId": 99999})
        assert (answer.status, answer.json()) == (503, {"status": "failed", "message": message})
    assert device.api("POST", "/v1/restart", {}).status == 400
    refused = device.call("PurgeApp", "ub", "99999", "false", check=False)
    assert "nothing of app 99999" in refused


def test_a_purge_outlives_the_caller_but_not_the_agent(device: Device) -> None:
    """Killed in the middle, the app comes back; what it writes then is nobody's to remove."""
    slow = {"command": ["sleep", "3600"], "stop_grace_period": "8s"}
    one = service("one", 1, volumes=["data:/data"], **slow)
    device.apply(apps({"1": app(one, volumes={"data": {}})}))
    write(device, "1_data")
    device.call("PurgeApp", "ub", "1", "false")
    stopping = "the app is taken down"
    device.until(lambda: device.doing("stop"), 10, stopping)
    device.exec("systemctl", "kill", "-s", "KILL", "balena-agent.service")
    device.ready()
    device.settled(60)
    assert device.running("one") and kept(device, "1_data")
    assert device.lock_files() == []


def littered(device: Device) -> None:
    begun(device)
    ours = {"io.balena.supervised": "true"}
    for name, labels in (("1_old", ours), ("9_left", ours), (NAMELESS, {}), ("theirs", {})):
        device.engine("POST", "/volumes/create", {"Name": name, "Labels": labels})
    device.engine("POST", "/volumes/create", {"Name": "extra-firmware", "Labels": ours})
    device.engine("POST", "/volumes/create", {"Name": "9_used", "Labels": ours})
    mounts = {"Image": "e2e:1", "HostConfig": {"Binds": ["9_used:/used"]}}
    device.engine("POST", "/containers/create?name=stranger", mounts)
    device.restart()


CLEAN = {"1_data", "2_data", "theirs", "extra-firmware", "9_used"}


def test_clean_up_over_http(device: Device) -> None:
    littered(device)
    answer = device.api("GET", "/v2/cleanup-volumes", timeout=60.0)
    assert (answer.status, answer.json()) == (200, {"status": "success"})
    assert device.volumes() == CLEAN
    assert kept(device, "1_data") and kept(device, "2_data")
    assert device.api("POST", "/v2/cleanup-volumes", {}).status == 404


def test_clean_up_from_the_shell(device: Device) -> None:
    littered(device)
    said = device.exec("balena-agentctl", "cleanup").stdout.split()
    assert sorted(said) == sorted([NAMELESS, "1_old", "9_left"])
    assert device.volumes() == CLEAN
    assert device.call("CleanupVolumes") == [[]]
