"""A device and its cloud: the target comes from there, and the device says how it is doing.

The cloud is the small one of the tests, at the outer end of the device's wire. Schedules of minutes
are proved with a hand-driven clock (tests/unit/test_cloud_threads.py); here is their beginning.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cloud import FakeCloud, Recorded
from e2e_device import Device
from e2e_targets import IMAGE, Json

UUID = "c1" * 16
KEY = "e2e-key-of-the-device"
FIRST, SECOND = "a1" * 16, "a2" * 16
STATE = f"/device/v3/{UUID}/state"
METRICS = {
    "cpu_usage", "memory_usage", "memory_total", "storage_usage", "storage_total", "cpu_temp",
    "storage_block_device", "cpu_id", "is_undervolted",
}  # fmt: skip


def service(number: int, **composition: Any) -> Json:
    return {
        "id": number, "image_id": 20 + number, "image": IMAGE, "environment": {}, "labels": {},
        "composition": {"stop_grace_period": "1s", **composition},
    }  # fmt: skip


def app(number: int, commit: str, **services: Json) -> Json:
    release = {"id": 500, "services": services, "volumes": {}, "networks": {}}
    return {"id": number, "name": f"app{number}", "class": "fleet" if number == 1 else "app",
            "releases": {commit: release}}  # fmt: skip


def keeper(number: int, commit: str, name: str, **composition: Any) -> Json:
    """An app of one service, which keeps data in a volume."""
    kept = service(number, volumes=["data:/data"], **composition)
    found = app(number, commit, **{name: kept})
    found["releases"][commit]["volumes"] = {"data": {}}
    return found


def target(apps: Json | None = None, **config: str) -> Json:
    apps = {FIRST: app(1, "c1", main=service(1), side=service(2))} if apps is None else apps
    return {UUID: {"name": "from afar", "config": config, "apps": apps}}


@pytest.fixture
def cloud(api_device: Device) -> Iterator[FakeCloud]:
    address = api_device.machine.link.outer_address
    with FakeCloud(address, keys={UUID: KEY}, targets={UUID: target()}) as made:
        yield made


@pytest.fixture
def device(api_device: Device, cloud: FakeCloud) -> Iterator[Device]:
    """A registered device that has never had a target; the agent runs when the test `begin`s."""
    api_device.exec("systemctl", "stop", "balena-agent.service")
    api_device.raze()
    api_device.furnish()  # a device of a cloud keeps no image that nothing needs
    config = {
        "uuid": UUID, "apiEndpoint": cloud.url, "deviceApiKey": KEY, "deviceId": 90210,
        "registered_at": 1700000000000, "deviceType": "qemux86-64",
    }  # fmt: skip
    boot = api_device.machine.inner_path("/mnt/boot")
    boot.mkdir(parents=True, exist_ok=True)
    (boot / "config.json").write_text(json.dumps(config))
    yield api_device
    said = api_device.said("-b", "all")
    assert KEY not in said and "Traceback" not in said


def begin(device: Device, *running: str) -> None:
    """The agent starts without any memory; wait until these services run."""
    device.mark()
    device.start_over()
    if running:
        device.until(lambda: device.running(*running), 30, f"{running} run")
        settled(device)


def settled(device: Device) -> None:
    def idle() -> bool:
        return bool(device.api("GET", "/v2/state/plan", inside=True).json()["settled"])

    device.until(idle, 30, "the target is applied")


def update(device: Device, **body: Any) -> int:
    return int(device.api("POST", "/v1/update", body, inside=True).status)


def polls(cloud: FakeCloud) -> list[Recorded]:
    return cloud.asked("GET", STATE)


def sent(cloud: FakeCloud) -> list[Recorded]:
    return cloud.asked("PATCH", "/device/v3/state")


def status(cloud: FakeCloud, uuid: str = FIRST, commit: str = "c1") -> Json:
    """What the cloud was told about a release: its own status, and those of its services."""
    found = cloud.told.get(UUID, {}).get("apps", {}).get(uuid, {})
    release = found.get("releases", {}).get(commit, {})
    services = release.get("services", {})
    return {"": release.get("update_status"), **{n: s["status"] for n, s in services.items()}}


def up(*services: str) -> Json:
    return {"": "done", **dict.fromkeys(services, "Running")}


def told(device: Device, cloud: FakeCloud, wanted: Callable[[], object], what: str) -> None:
    device.until(wanted, 30, f"the cloud knows that {what}")
    assert all(len(r.body) == 1 for r in sent(cloud))


def test_C13_C24_the_target_comes_and_everything_is_reported(
    device: Device, cloud: FakeCloud
) -> None:
    begin(device, "main", "side")
    poll = polls(cloud)[0]
    assert poll.headers["authorization"] == f"Bearer {KEY}"
    assert poll.headers["user-agent"].startswith("Supervisor/19.0.5 (Linux; ")
    told(device, cloud, lambda: status(cloud) == up("main", "side"), "both run")
    report = cloud.told[UUID]
    assert (report["status"], report["api_port"]) == ("Idle", 48484)
    assert report["api_secret"] == device.machine.api_key
    assert device.machine.address in report["ip_address"].split()
    assert report["apps"][FIRST]["release_uuid"] == "c1"
    shown = device.api("GET", "/v2/device/name", inside=True).json()
    assert shown["deviceName"] == "from afar"
    assert device.get("CloudState") == "online"


def test_S06_the_data_of_an_app_goes_when_the_cloud_wants_it_no_more(
    device: Device, cloud: FakeCloud
) -> None:
    """Not before: it stays while the app is rejected, and while no answer is a target."""
    first, second = keeper(1, "c1", "main"), keeper(2, "d1", "other")
    cloud.targets[UUID] = target({FIRST: first, SECOND: second})
    begin(device, "main", "other")
    device.until(lambda: {"1_data", "2_data"} <= device.volumes(), 10, "both have volumes")
    broken = keeper(2, "d2", "other", ports=["nonsense"])
    cloud.targets[UUID] = target({FIRST: first, SECOND: broken})
    assert update(device) == 204
    device.until(lambda: "nonsense" in device.said(), 20, "the second app is rejected")
    for empty in ({}, {UUID: {}}, {UUID: {"name": "x", "config": {}, "apps": None}}):
        cloud.targets[UUID] = empty
        seen = len(polls(cloud))
        assert update(device) == 204
        device.until(lambda seen=seen: len(polls(cloud)) > seen, 10, "a poll")
    settled(device)
    assert device.running("main", "other") and {"1_data", "2_data"} <= device.volumes()
    cloud.targets[UUID] = target({FIRST: first})
    assert update(device) == 204
    device.until(lambda: "2_data" not in device.volumes(), 30, "the data of the second app is gone")
    settled(device)
    assert device.running("main") and "1_data" in device.volumes()
    cloud.targets[UUID] = target({})
    assert update(device) == 204
    device.until(lambda: "1_data" not in device.volumes(), 30, "the data of the first app is gone")
    settled(device)
    assert device.containers() == {} and device.networks() <= {"supervisor0"}


def test_S45_a_bad_port_in_one_app_leaves_the_other_alone(device: Device, cloud: FakeCloud) -> None:
    bad = app(2, "d1", other=service(3, ports=["nonsense"]))
    cloud.targets[UUID] = target({FIRST: app(1, "c1", main=service(1)), SECOND: bad})
    begin(device)
    device.until(lambda: device.running("main"), 30, "the good app runs")
    told(device, cloud, lambda: status(cloud) == up("main"), "the good app runs")
    told(device, cloud, lambda: status(cloud, SECOND, "d1")[""] == "rejected", "the other cannot")
    assert "nonsense" in device.said()


def test_S46_unchanged_changed_and_failed_answers(device: Device, cloud: FakeCloud) -> None:
    begin(device, "main", "side")
    before = device.ids()
    new = "New target from"
    assert device.said().count(new) == 1
    seen = len(polls(cloud))
    assert update(device) == 204
    device.until(lambda: len(polls(cloud)) > seen, 20, "a poll")
    assert polls(cloud)[-1].headers["if-none-match"]
    settled(device)
    assert device.ids() == before and device.said().count(new) == 1
    cloud.targets[UUID] = target({FIRST: app(1, "c2", main=service(1))})
    assert update(device) == 204
    device.until(lambda: device.running("main"), 30, "the new release is applied")
    # A cloud that is out of order, from the start of the agent: 15 s, 30 s, of each at least half.
    cloud.status = 500
    seen = len(polls(cloud))
    device.restart()
    device.until(lambda: len(polls(cloud)) >= seen + 3, 100, "three polls")
    at = [poll.at for poll in polls(cloud)[seen : seen + 3]]
    assert 7 <= at[1] - at[0] <= 25 and 14 <= at[2] - at[1] <= 45, at
    assert device.running("main") and device.get("CloudState") == "offline"


def test_S47_no_poll_for_an_update_trigger_that_is_switched_off(
    device: Device, cloud: FakeCloud
) -> None:
    cloud.targets[UUID] = target(BALENA_SUPERVISOR_INSTANT_UPDATE_TRIGGER="false")
    begin(device, "main", "side")
    seen = len(polls(cloud))
    assert update(device) == 202
    assert update(device, force=True) == 204
    device.until(lambda: len(polls(cloud)) > seen, 20, "the forced poll")
    assert len(polls(cloud)) == seen + 1
    # C21: nor after a start; what a start does first would be a poll.
    device.restart()
    settled(device)
    told_before = len(sent(cloud))
    assert device.api("POST", "/v1/regenerate-api-key", inside=True).status == 200
    device.until(lambda: len(sent(cloud)) > told_before, 40, "a report of the new key")
    assert len(polls(cloud)) == seen + 1


def test_S48_a_report_holds_what_changed(device: Device, cloud: FakeCloud) -> None:
    begin(device, "main", "side")
    told(device, cloud, lambda: status(cloud) == up("main", "side"), "both run")
    seen = len(sent(cloud))
    stop = {"serviceName": "side"}
    path = "/v2/applications/1/stop-service"
    assert device.api("POST", path, stop, inside=True, timeout=60).status == 200
    told(device, cloud, lambda: status(cloud)["side"] == "exited", "one has ended")
    for report in sent(cloud)[seen:]:
        assert report.body[UUID].keys() - METRICS == {"apps"}
        release = report.body[UUID]["apps"][FIRST]["releases"]["c1"]
        assert set(release["services"]) == {"main", "side"}
    # Ten seconds from sending to sending; one may be longer on its way than the next.
    times = [report.at for report in sent(cloud)]
    assert all(b - a >= 8 for a, b in itertools.pairwise(times)), times


def test_S49_a_report_waits_as_long_as_the_cloud_says(device: Device, cloud: FakeCloud) -> None:
    begin(device, "main", "side")
    told(device, cloud, lambda: status(cloud) == up("main", "side"), "both run")
    seen = len(sent(cloud))
    cloud.statuses, cloud.retry_after = {"PATCH": 429}, "2"
    path = "/v2/applications/1/stop-service"
    answer = device.api("POST", path, {"serviceName": "side"}, inside=True, timeout=60)
    assert answer.status == 200
    device.until(lambda: len(sent(cloud)) > seen, 20, "a report that is refused")
    cloud.statuses = {}
    told(device, cloud, lambda: status(cloud)["side"] == "exited", "one has ended")
    refused, again = sent(cloud)[seen : seen + 2]
    assert 2 <= again.at - refused.at < 7.5  # where a pause of its own would begin


def test_S50_nothing_new_is_not_reported(device: Device, cloud: FakeCloud) -> None:
    """Its five minutes are in the unit tests; here is that an idle device keeps silent."""
    begin(device, "main", "side")
    told(device, cloud, lambda: status(cloud) == up("main", "side"), "both run")
    seen, begun = len(sent(cloud)), time.monotonic()
    device.until(lambda: time.monotonic() - begun > 25, 40, "some time has passed")
    assert [r.body for r in sent(cloud)[seen:]] == []


def test_C15_a_restart_fetches_nothing_twice(device: Device, cloud: FakeCloud) -> None:
    begin(device, "main", "side")
    told(device, cloud, lambda: status(cloud) == up("main", "side"), "both run")
    before, polled, reported = device.ids(), len(polls(cloud)), len(sent(cloud))
    device.restart()
    device.until(lambda: len(polls(cloud)) > polled, 20, "the first poll")
    assert polls(cloud)[polled].headers["if-none-match"]
    settled(device)
    assert device.ids() == before
    assert all("api_secret" not in r.body[UUID] for r in sent(cloud)[reported:])


def test_C16_a_cloud_that_does_not_know_the_device(device: Device, cloud: FakeCloud) -> None:
    cloud.targets.clear()
    begin(device)

    def refused() -> bool:  # it is not after a report, which this cloud takes all the same
        described = json.loads(device.call("Describe")[0])
        states = (device.get("CloudState"), described["cloud"]["state"])
        return states == ("refused",) * 2 and "device unknown to the cloud" in device.status_text()

    device.until(refused, 60, "the state of the cloud")


def test_C17_a_busy_cloud_is_left_alone(device: Device, cloud: FakeCloud) -> None:
    cloud.statuses, cloud.retry_after = {"GET": 503}, "3"
    begin(device)
    device.until(lambda: len(polls(cloud)) >= 3, 40, "three polls")
    at = [poll.at for poll in polls(cloud)]
    # Below where a pause of its own would begin.
    assert all(3 <= b - a < 7.5 for a, b in itertools.pairwise(at)), at
    cloud.statuses = {}
    device.until(lambda: device.running("main", "side"), 30, "the target is applied")


def test_C22_what_is_no_target_is_told_once(device: Device, cloud: FakeCloud) -> None:
    begin(device, "main", "side")
    before = device.ids()
    cloud.targets[UUID] = "<html>Please log in</html>"
    for count in range(1, 4):
        seen = len(polls(cloud))
        assert update(device) == 204
        device.until(lambda seen=seen: len(polls(cloud)) > seen, 10, f"poll {count}")
    assert polls(cloud)[-1].headers.get("if-none-match") is None
    cloud.targets[UUID] = target({FIRST: app(1, "c1", main={**service(1), "id": "x"})})
    assert update(device) == 204
    wanted = "Could not move to new release: Invalid target state."
    device.until(lambda: wanted in device.said(), 10, "the reason")
    assert device.said().count("Could not move to new release: ") == 2
    settled(device)
    assert device.ids() == before


def test_C32_a_new_key_is_reported_at_once(device: Device, cloud: FakeCloud) -> None:
    begin(device, "main", "side")
    told(device, cloud, lambda: status(cloud) == up("main", "side"), "both run")
    fresh = device.api("POST", "/v1/regenerate-api-key", inside=True).text
    told(device, cloud, lambda: cloud.told[UUID]["api_secret"] == fresh, "the key is a new one")


def test_C54_a_device_boots_without_its_cloud(device: Device, cloud: FakeCloud) -> None:
    begin(device, "main", "side")
    told(device, cloud, lambda: status(cloud) == up("main", "side"), "both run")
    cloud.stop()
    asked = len(cloud.requests)
    device.machine.reboot()
    device.ready(60)
    device.until(lambda: device.running("main", "side"), 30, "the services run")
    settled(device)
    device.until(lambda: device.get("CloudState") == "offline", 20, "the state of the cloud")
    assert len(cloud.requests) == asked
    assert device.api("GET", "/v1/healthy", inside=True).status == 500
    cloud.start()
    well = lambda: device.api("GET", "/v1/healthy", inside=True).status == 200  # noqa: E731
    device.until(well, 20, "the device is well")
    device.until(lambda: device.get("CloudState") == "online", 150, "the state of the cloud")


def test_A61_health_follows_the_cloud_but_the_watchdog_does_not(
    device: Device, cloud: FakeCloud
) -> None:
    begin(device, "main", "side")
    health = lambda: device.api("GET", "/v1/healthy", inside=True)  # noqa: E731
    pid = device.main_pid()
    device.until(lambda: health().status == 200, 20, "the device is well")
    cloud.stop()
    # What was found last is good for ten seconds.
    device.until(lambda: health().status == 500, 40, "the device is not well")
    assert health().text == "Unhealthy"
    cloud.start()
    device.until(lambda: health().status == 200, 40, "the device is well")
    cloud.targets[UUID] = target(BALENA_SUPERVISOR_CONNECTIVITY_CHECK="false")
    assert update(device) == 204
    settled(device)
    checks = lambda: device.api("GET", "/v2/local/target-state", inside=True).json()  # noqa: E731
    off = lambda: checks()["state"]["local"]["config"]["SUPERVISOR_CONNECTIVITY_CHECK"] == "false"  # noqa: E731
    device.until(off, 20, "the check is off")
    cloud.stop()
    begun = time.monotonic()
    device.until(lambda: time.monotonic() - begun > 11, 20, "a probe would be due")
    assert health().status == 200
    assert device.main_pid() == pid
