"""Reboots that the device itself needs, on a device that really reboots."""

from __future__ import annotations

from pathlib import Path

from e2e_device import Device
from e2e_targets import service, target

REQUIRES_REBOOT = {"io.balena.update.requires-reboot": "1"}
PEERS = "/tmp/balena-supervisor/reboot-after-apply"
UPDATE = "/mnt/state/rollback-health-breadcrumb"
SCHEDULED = 'Reboot has been scheduled to apply changes: {"serviceName":"two"}'


def asked(device: Device, *words: str) -> int:
    """How often the host was asked to reboot, as the journal tells."""
    return sum(entry.get("MESSAGE") == "Rebooting" for entry in device.journal(*words))


def leave_word(device: Device) -> None:
    """As the host does it, and the engine wakes the agent."""
    device.exec("touch", PEERS)
    device.engine("POST", "/volumes/create", {"Name": "wake"})


def test_S55_a_pending_reboot_is_asked_for_once(rough: Device) -> None:
    rough.apply(target(service("one", 1)))
    before = rough.ids()
    rough.exec("mkdir", "-p", str(Path(UPDATE).parent))
    rough.exec("touch", UPDATE)
    leave_word(rough)
    told = "Waiting for Host OS update to finish"
    rough.until(lambda: told in rough.said(), 75, "the agent waits for the host's update")
    rough.until(lambda: told in str(rough.plan()["waits"]), 10, told)
    assert rough.lock_files() == []
    refused = rough.api("POST", "/v1/reboot", {})
    assert (refused.status, told in refused.text) == (423, True)
    assert asked(rough) == 1  # the one that was just refused
    earlier = asked(rough, "-b", "0")
    boot = rough.boot_id()
    rough.exec("rm", UPDATE)
    rough.until(lambda: rough.boot_id() != boot, 150, "the device has rebooted")
    rough.ready()
    rough.settled()
    assert rough.ids() == before
    assert asked(rough, "-b", "-1") - earlier == 1
    assert asked(rough, "-b", "0") == 0


def test_S56_a_service_that_needs_a_reboot_is_started_after_it(rough: Device) -> None:
    rough.apply(target(service("one", 1)))
    one, boot = rough.of("one")["Id"], rough.boot_id()
    rough.post(target(service("one", 1), service("two", 2, labels=REQUIRES_REBOOT)))
    two = rough.until(lambda: rough.of("two"), 20, "two has a container")["Id"]
    rough.until(lambda: rough.boot_id() != boot, 60, "the device has rebooted")
    rough.ready()
    rough.settled()
    assert rough.running("one", "two")
    assert (rough.of("one")["Id"], rough.of("two")["Id"]) == (one, two)
    told = rough.said("-b", "-1")
    assert told.count(SCHEDULED) == 1
    assert asked(rough, "-b", "-1") == 1
    starts = [e for e in rough.journal("-b", "-1") if e.get("STEP") == "start"]
    assert "two" not in {entry.get("SERVICE") for entry in starts}
    assert SCHEDULED not in rough.said("-b", "0")
    assert asked(rough, "-b", "0") == 0


def test_H24_a_stepped_clock_does_not_make_a_reboot_forgotten(rough: Device) -> None:
    """An OS update holds the reboot up; meanwhile the peer's file looks older than the boot."""
    rough.apply(target(service("one", 1)))
    boot = rough.boot_id()
    rough.exec("mkdir", "-p", str(Path(UPDATE).parent))
    rough.exec("touch", UPDATE)
    rough.post(target(service("one", 1), service("two", 2, labels=REQUIRES_REBOOT)))
    rough.until(lambda: SCHEDULED in rough.said(), 30, "the reboot is scheduled")
    rough.exec("touch", "-d", "1970-01-02", PEERS)
    rough.restart()
    told = "Waiting for Host OS update to finish"
    rough.until(lambda: told in str(rough.plan()["waits"]), 30, "it is still required")
    assert rough.of("two")["State"] == "created"
    rough.exec("rm", UPDATE)
    rough.until(lambda: rough.boot_id() != boot, 150, "the device has rebooted")
    rough.ready()
    rough.settled()
    assert rough.running("one", "two")


def test_restart_true_takes_the_dependent_along(device: Device) -> None:
    after = {"one": {"condition": "service_started", "restart": True}}
    two, three = service("two", 2, depends_on=after), service("three", 3, depends_on=["one"])
    device.apply(target(service("one", 1), two, three))
    before = {name: device.of(name)["Id"] for name in ("one", "two", "three")}
    device.apply(target(service("one", 1, environment={"A": "b"}), two, three))
    now = {name: device.of(name)["Id"] for name in ("one", "two", "three")}
    assert now["one"] != before["one"] and now["two"] != before["two"]
    assert now["three"] == before["three"]
    device.restart()
    device.settled()
    assert {name: device.of(name)["Id"] for name in now} == now
