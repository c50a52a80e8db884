"""The update strategy hand-over on a real engine (spec 20 §15.3)."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Callable

import pytest
from e2e_device import LOCKS, UNIT, Device
from e2e_targets import OTHER_IMAGE, Json, service, target

SIGNAL = "/tmp/balena/handover-complete"
FIRST, OLD, NEW = "main_11_1_c1", "old_main_11_1_c1", "main_11_2_c2"
AWAIT = "await-handover"


def handing(release: int = 1, timeout: int = 60000, **more: object) -> Json:
    """One service `main`, that hands over; each release has an image of its own. The old one does
    not hear SIGTERM, but has little grace."""
    labels = {
        "io.balena.update.strategy": "hand-over",
        "io.balena.update.handover-timeout": str(timeout),
    }
    image = {"image": OTHER_IMAGE} if release % 2 == 0 else {}
    made = {
        "command": ["sleep", "3600"], "stop_grace_period": "1s", "restart": "always",
        "labels": labels, **image, **more,
    }  # fmt: skip
    return target(service("main", 1, **made), release=release)


def states(device: Device) -> dict[str, str]:
    return {name: each["State"] for name, each in device.containers().items()}


def both_run(device: Device) -> bool:
    return states(device) == {OLD: "running", NEW: "running"}


def awaited(device: Device) -> bool:
    return device.doing(AWAIT)


def side_by_side(device: Device, **more: object) -> None:
    """The second release runs beside the first and is waited for."""
    device.apply(handing())
    device.post(handing(2, **more))
    device.until(lambda: both_run(device) and awaited(device), 20, "both run")


def moment(text: str) -> float:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction}")


def overlap(device: Device, events: list[Json]) -> float:
    """Seconds between the start of the new container and the stop of the old one."""
    (ended,) = [e for e in events if e["Action"] == "die" and e["Type"] == "container"]
    started = moment(device.inspect("main")["State"]["StartedAt"])
    # Ignored for the grace of one second, then killed: the stop began with the first signal.
    first = min(e["timeNano"] for e in events if e["Action"] == "kill" and e["id"] == ended["id"])
    return float(first) / 1e9 - started


def test_S34_without_a_signal_both_run_until_the_time_is_up(device: Device) -> None:
    device.apply(handing())
    with device.engine_events() as events:
        device.post(handing(2, timeout=10000))
        device.until(lambda: both_run(device) and awaited(device), 20, "both run")
        words = {
            c["serviceName"] + c["containerId"]: c["status"]
            for c in device.api("GET", "/v2/state/status").json()["containers"]
        }
        assert set(words.values()) == {"Awaiting handover", "Handing over"}
        policy = device.engine("GET", f"/containers/{OLD}/json")["HostConfig"]["RestartPolicy"]
        assert policy["Name"] == "no"
        assert device.lock_files() == ["1/main/resin-updates.lock", "1/main/updates.lock"]
        device.settled()
    assert 10.0 <= overlap(device, events) < 25.0
    assert states(device) == {NEW: "running"}
    assert device.lock_files() == []
    image = device.engine("GET", f"/images/{OTHER_IMAGE}/json")["Id"]
    assert device.of("main")["ImageID"] == image


def test_S35_the_signal_of_the_new_one_ends_the_wait(device: Device) -> None:
    device.apply(handing())
    stale = device.machine.inner_path(f"{LOCKS}/1/main/handover-complete")
    stale.touch()
    with device.engine_events() as events:
        tell = f"sleep 3; touch {SIGNAL}; exec sleep 3600"
        device.apply(handing(2, command=["sh", "-c", tell]), seconds=30)
    assert 2.0 <= overlap(device, events) < 20.0  # the engine stamps the start a little late
    assert states(device) == {NEW: "running"}
    assert not stale.exists()


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (
            {"command": ["sh", "-c", "sleep 1; exit 3"], "restart": "no"},
            "the new container ended with code 3",
        ),
        (
            {"command": ["sh", "-c", "sleep 1; exit 4"], "restart": "always"},
            "the new container ended with code 4",
        ),
        (
            {"healthcheck": {"test": ["CMD", "false"], "interval": "1s", "retries": 1}},
            "the new container is unhealthy",
        ),
    ],
)
def test_a_new_one_that_fails_is_rolled_back(device: Device, new: Json, reason: str) -> None:
    before = device.apply(handing())[FIRST]["Id"]
    started = device.inspect("main")["State"]["StartedAt"]
    device.post(handing(2, **new))

    def rolled_back() -> bool:
        # One look: the pause before the next attempt is all the time there is.
        plan, where = device.plan(), (("failures", "error"), ("waits", "reason"))
        told = all(any(reason in each[key] for each in plan[name]) for name, key in where)
        if not told or device.ids() != {FIRST: before} or device.lock_files():
            return False
        found = device.engine("GET", f"/containers/{before}/json")
        policy = found["HostConfig"]["RestartPolicy"]["Name"]
        return (policy, found["State"]["StartedAt"]) == ("always", started)

    device.until(rolled_back, 60, "rolled back")
    assert f"Failed to hand over service 'main' due to '{reason}'" in device.said()
    device.until(lambda: NEW in device.containers(), 60, "it is tried again after a pause")
    device.apply(handing(3, timeout=1000, environment={"A": "3"}))
    assert states(device) == {"main_11_3_c3": "running"}


def test_a_port_that_both_publish_is_freed_first(device: Device) -> None:
    device.apply(handing(ports=["8085:80"]))
    device.apply(handing(2, ports=["8085:80"]))
    assert states(device) == {NEW: "running"}
    assert device.plan()["failures"] == []
    assert "Failed" not in device.said()


def test_a_port_that_the_engine_chose_is_freed_when_the_start_has_failed(device: Device) -> None:
    device.apply(handing(ports=["0:80"]))
    held = device.inspect("main")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]
    device.apply(handing(2, ports=[f"{held}:80"]))
    assert states(device) == {NEW: "running"}
    assert "port is already allocated" in device.said()


def test_an_update_lock_holds_the_hand_over_back(device: Device) -> None:
    before = device.apply(handing())[FIRST]["Id"]
    lock = device.lock("main")
    device.post(handing(2, timeout=500))
    device.until(lambda: "Updates are locked" in device.said(), 20, "the lock is told")
    assert device.ids() == {FIRST: before}
    lock.unlink()
    device.settled(40)
    assert states(device) == {NEW: "running"}


def test_back_to_the_old_release_in_the_middle(device: Device) -> None:
    before = device.apply(handing())[FIRST]["Id"]
    device.post(handing(2))
    device.until(lambda: both_run(device), 20, "both run")
    device.apply(handing())
    assert device.ids() == {FIRST: before}
    assert device.inspect("main")["HostConfig"]["RestartPolicy"]["Name"] == "always"


def test_S36_the_agent_is_killed_in_the_middle_and_the_newest_stays(device: Device) -> None:
    side_by_side(device)
    new = device.ids()[NEW]
    device.exec("systemctl", "kill", "-s", "KILL", "--kill-who=main", UNIT)
    device.ready()
    device.settled()
    assert device.ids() == {NEW: new}
    assert device.lock_files() == []


def test_a_restart_by_command_in_the_middle(device: Device) -> None:
    side_by_side(device)
    before = set(device.ids().values())
    assert device.action("restart", serviceName="main").status == 200
    device.settled()
    assert states(device) == {NEW: "running"}
    assert device.ids()[NEW] not in before


def cut(device: Device) -> None:
    device.machine.kill()
    device.machine.up()


def reboot(device: Device) -> None:
    device.machine.reboot(90)


def asked_for(device: Device) -> None:
    """By the API: the wait of a minute is given up for it."""
    boot = device.boot_id()
    assert device.api("POST", "/v1/reboot", {"force": True}, timeout=20).status in (200, 202)
    device.until(lambda: device.boot_id() != boot, 90, "the device has booted again")
    device.machine.wait_agent()


@pytest.mark.parametrize("power", [cut, reboot, asked_for])
def test_the_power_goes_in_the_middle(rough: Device, power: Callable[[Device], None]) -> None:
    side_by_side(rough)
    power(rough)
    rough.ready()
    rough.settled(60)
    assert states(rough) == {NEW: "running"}
    assert rough.plan()["failures"] == []
    assert rough.lock_files() == []


def test_the_power_goes_before_the_new_one_is_started(rough: Device) -> None:
    """The old one has no restart policy any more: it is the agent that brings the service back."""
    rough.apply(handing())
    rough.post(handing(2))
    rough.until(lambda: OLD in rough.containers(), 20, "the old one retires")
    cut(rough)
    rough.ready()
    rough.settled(60)
    assert states(rough) == {NEW: "running"}


def stranger(device: Device, name: str) -> str:
    """Somebody else's container."""
    body = {"Image": OTHER_IMAGE, "Cmd": ["sleep", "3600"]}
    return str(device.engine("POST", f"/containers/create?name={name}", body)["Id"])


def failures(device: Device, step: str) -> list[str]:
    """What the journal says of failed steps of this kind, oldest first."""
    told = [e for e in device.journal() if e.get("STEP") == step and int(e["PRIORITY"]) <= 4]
    return [str(e["MESSAGE"]) for e in told]


def test_where_a_stranger_has_the_name_for_the_old_one_it_is_replaced_plainly(
    device: Device,
) -> None:
    device.apply(handing())
    foreign = stranger(device, OLD)
    after = device.apply(handing(2))
    assert {name: each["State"] for name, each in after.items()} == {OLD: "created", NEW: "running"}
    assert after[OLD]["Id"] == foreign
    (told,) = failures(device, "retire")
    assert f'"/{OLD}" is already in use' in told


def test_a_stranger_with_the_name_that_we_need_is_told_and_waited_for(device: Device) -> None:
    foreign = stranger(device, FIRST)
    device.post(handing())

    def told() -> bool:
        reasons = [str(each["reason"]) for each in device.plan()["waits"]]
        ours = " ".join(r for r in reasons if f'"/{FIRST}" is already in use' in r)
        count = re.search(r"\(attempt (\d+) ", ours)
        return count is not None and int(count[1]) >= 3

    device.until(told, 30, "tried again, and told")
    assert device.ids() == {FIRST: foreign}
    assert f'"/{FIRST}" is already in use' in failures(device, "create")[0]
    device.exec("docker", "rm", foreign)
    after = device.settled()
    assert after[FIRST]["Id"] != foreign and after[FIRST]["State"] == "running"
