"""Without its engine the agent waits and says so (spec 10 §7)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e_device import UNIT, Device
from e2e_targets import pair, service, target

UNITS = ("docker.socket", "docker.service")
NEEDS_ENGINE = (
    ("GET", "/v2/applications/state"),
    ("GET", "/v2/state/status"),
    ("GET", "/v2/containerId"),
    ("GET", "/v2/local/target-state"),
    ("POST", "/v2/local/target-state"),
    ("POST", "/v2/applications/1/restart-service"),
    ("POST", "/v2/applications/1/stop-service"),
    ("POST", "/v2/applications/1/start-service"),
)


@pytest.fixture
def away(device: Device) -> Iterator[Device]:
    """A device with two services whose engine has been stopped; it is started at the end."""
    device.apply(pair())
    device.exec("systemctl", "stop", *UNITS)
    yield device
    device.exec("systemctl", "reset-failed", *UNITS, check=False)
    device.exec("systemctl", "start", *UNITS)
    device.ready()


def down(device: Device) -> None:
    device.until(lambda: device.get("EngineState") == "down", 10, "the agent sees it")


def test_the_agent_outlives_its_engine(away: Device) -> None:
    pid = away.main_pid()
    down(away)
    assert away.machine.unit_state(UNIT) == "active"
    assert away.main_pid() == pid
    silent = "Engine is not answering: "
    away.until(lambda: away.status_text().startswith(silent), 15, "the status says so")
    assert "The container engine does not answer" in away.said()
    for path in ("/ping", "/v1/healthy", "/v2/version", "/v2/state/plan"):
        assert away.api("GET", path).status == 200
    for method, path in NEEDS_ENGINE:
        answer = away.api(method, path, {"serviceName": "one"} if method == "POST" else None)
        assert (answer.status, path) == (503, path)
        assert answer.json()["status"] == "failed"
        assert answer.json()["message"]
    reboot = away.api("POST", "/v1/reboot", {})
    assert reboot.status == 500
    assert reboot.json()["Data"] == "" and reboot.json()["Error"]
    away.exec("systemctl", "start", *UNITS)
    away.until(lambda: away.get("EngineState") == "up", 15, "the agent sees the engine again")
    away.until(lambda: away.running("one", "two"), 15, "the engine runs its containers")
    well = "Settled: 2 services in 1 app"
    away.until(lambda: away.status_text().startswith(well), 15, "the status says so")
    assert "Traceback" not in away.said()


def test_a_target_under_way_is_finished_when_the_engine_is_back(device: Device) -> None:
    device.apply(pair(command=["sleep", "3600"], stop_grace_period="2s"))
    device.post(pair(2, environment={"A": "1"}))
    device.exec("systemctl", "stop", *UNITS, timeout=60)
    down(device)
    device.exec("systemctl", "start", *UNITS)
    device.until(lambda: device.running("one", "two"), 30, "the services run")
    device.settled()
    assert set(device.containers()) == {"one_11_2_c2", "two_12_2_c2"}
    assert "A=1" in device.inspect("one")["Config"]["Env"]
    assert device.lock_files() == []


def test_the_agent_is_ready_without_any_engine(away: Device) -> None:
    """READY does not wait for an engine, and the stored target is applied when there is one."""
    away.exec("systemctl", "stop", UNIT)
    away.exec("systemctl", "start", UNIT)
    assert away.machine.unit_state(UNIT) == "active"
    away.machine.wait_agent(10)
    down(away)
    assert away.api("GET", "/ping").status == 200
    away.exec("systemctl", "start", *UNITS)
    away.ready()
    assert set(away.settled()) == {"one_11_1_c1", "two_12_1_c1"}
    away.until(lambda: away.running("one", "two"), 15, "the services run")


def test_an_engine_that_hangs_is_no_reason_to_be_killed(device: Device) -> None:
    """A frozen engine: the agent goes on answering, and works again when the engine does."""
    device.apply(pair())
    pid = device.main_pid()
    frozen = device.show("MainPID", unit="docker.service")["MainPID"]
    device.exec("kill", "-STOP", frozen)
    try:
        device.post(pair(environment={"A": "2"}))
        device.until(lambda: not device.plan()["settled"], 5, "the target is taken")
        for path in ("/ping", "/v1/healthy", "/v2/state/plan"):
            assert device.api("GET", path, timeout=5.0).status == 200
        device.until(lambda: device.get("EngineState") == "down", 30, "the silence is noticed")
    finally:
        device.exec("kill", "-CONT", frozen)
    device.settled(60)
    assert "A=2" in device.inspect("one")["Config"]["Env"]
    assert device.main_pid() == pid


def test_what_the_engine_adds_to_a_network_at_its_start_is_no_difference(device: Device) -> None:
    """It tells the gateway that it has chosen, which it kept to itself before."""
    subnets = [{"subnet": "fd00:77::/64"}, {"subnet": "172.31.77.0/24"}]
    networks = {
        "plain": {"ipam": {"config": [{"subnet": "172.31.76.0/24"}]}},
        "six": {"enable_ipv6": True, "ipam": {"config": subnets}},
    }
    one = service("one", 1, composition={"networks": {"plain": {"ipv4_address": "172.31.76.9"}}})
    two = service("two", 2, composition={"networks": ["six"]})
    document = target(one, two, networks=networks)
    device.apply(document)
    before = device.ids()
    device.exec("systemctl", "restart", "docker.service")
    device.until(lambda: device.get("EngineState") == "up", 15, "the agent sees the engine again")
    device.until(lambda: device.running("one", "two"), 15, "the engine runs its containers")
    device.apply(document)
    assert device.ids() == before


def test_a_container_that_the_engine_never_tells_of_holds_up_no_other(device: Device) -> None:
    """A start that hangs keeps the container's lock, and who asks about it waits for ever."""
    one, two, three = (service(name, n) for n, name in enumerate(("one", "two", "three"), 1))
    before = device.apply(target(one))
    device.exec("systemctl", "kill", "-s", "STOP", "containerd.service")
    try:
        device.post(target(one, two))
        device.until(lambda: device.doing("start"), 20, "its start hangs")
        device.restart()  # an agent that has never seen it
        told = "the engine cannot tell about its container: "
        device.until(lambda: told in str(device.plan()["waits"]), 30, "its service is held")
        device.post(target(one, two, three))
        device.until(lambda: device.of("three"), 20, "another is made")
        status = device.api("GET", "/v2/state/status").json()["containers"]
        assert {c["serviceName"]: c["status"] for c in status}["one"] == "Running"
    finally:
        device.exec("systemctl", "kill", "-s", "CONT", "containerd.service")
    device.settled(60)
    assert device.running("one", "two", "three")
    assert device.of("one")["Id"] in {c["Id"] for c in before.values()}
