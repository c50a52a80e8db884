"""What a device tells the cloud about itself, and what of it is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import device_states
import pytest
from cloud.reports import problem

from balena_agent.core.cloudreport import (
    DeviceSide,
    difference,
    full_report,
    only_metrics,
    reduced,
    releases_of,
    wanted_releases,
)
from balena_agent.core.hardware import Metrics
from balena_agent.core.names import ContainerName
from balena_agent.core.observed import HostFacts, HostState, Obtained
from balena_agent.core.situation import Situation
from balena_agent.core.snapshot import Running, Snapshot
from balena_agent.core.steps import CreateContainer
from balena_agent.core.target import SUPERVISOR_APPS, Target

APP = f"{1011:032x}"
IMAGE = "registry.example.com/main:1"


FIGURES = Metrics(7, 412, 1848, 2011, 14021, "/dev/mmcblk0p6", 41, "00000000abcdef01")
SIDE = DeviceSide(("192.0.2.44", "2001:db8::44"), ("02:00:5E:10:00:01",), "s3cret", FIGURES)


def told(snapshot: Snapshot, side: DeviceSide = SIDE) -> dict[str, Any]:
    """The report, which the cloud would take."""
    report = full_report(snapshot, side)
    assert problem({"u": report}, "u") == ""
    return report


def configured(**config: str) -> Snapshot:
    snapshot = device_states.m1()
    assert snapshot.target
    return replace(snapshot, target=replace(snapshot.target, config=config))


def test_C24_the_first_report_says_everything() -> None:
    report = told(device_states.m1())
    assert report == {
        "status": "Idle", "os_version": "balenaOS 5.1.20", "os_variant": "prod",
        "supervisor_version": "19.0.5", "provisioning_progress": None, "provisioning_state": "",
        "ip_address": "192.0.2.44 2001:db8::44", "mac_address": "02:00:5E:10:00:01",
        "api_port": 48484, "api_secret": "s3cret", "is_undervolted": False,
        "cpu_usage": 7, "cpu_temp": 41, "cpu_id": "00000000abcdef01", "memory_usage": 412,
        "memory_total": 1848, "storage_usage": 2011, "storage_total": 14021,
        "storage_block_device": "/dev/mmcblk0p6",
        "apps": {APP: {"release_uuid": "c0ffee01", "releases": {"c0ffee01": {
            "update_status": "done", "services": {"main": {"image": IMAGE, "status": "Running"}},
        }}}},
    }  # fmt: skip
    assert difference({}, report) == report
    assert difference(report, report) == {}


def test_C30_what_must_not_be_null_is_left_out() -> None:
    report = told(device_states.m1(), DeviceSide())
    assert not {"ip_address", "mac_address", "is_undervolted", "cpu_usage"} & report.keys()
    assert report["api_secret"] is None
    lost = replace(device_states.m1(), facts=HostFacts(api_endpoint="https://x", os_variant="odd"))
    assert (told(lost)["os_version"], told(lost)["os_variant"]) == (None, None)


def test_what_a_machine_cannot_tell_is_null() -> None:
    figures = Metrics(cpu_id="\x07bell")
    report = told(device_states.m1(), replace(SIDE, hardware=figures))
    assert [report[n] for n in ("cpu_usage", "cpu_temp", "memory_total", "cpu_id")] == [None] * 4
    assert report["storage_block_device"] == ""


def test_H59_C31_metrics_that_are_switched_off_are_null_once() -> None:
    before = told(device_states.m1())
    after = told(configured(RESIN_SUPERVISOR_HARDWARE_METRICS="false"))
    changes = difference(before, after)
    numbers = {"cpu_temp", "cpu_usage", "memory_total", "memory_usage", "storage_total"}
    assert changes.keys() == numbers | {"storage_usage", "storage_block_device", "cpu_id"}
    assert set(changes.values()) == {None} and after["is_undervolted"] is False
    assert difference(before | changes, after) == {}


def test_H60_under_voltage_is_told_even_without_metrics() -> None:
    off = configured(RESIN_SUPERVISOR_HARDWARE_METRICS="false")
    low = replace(SIDE, hardware=replace(FIGURES, is_undervolted=True))
    assert difference(told(off), told(off, low)) == {"is_undervolted": True}


def test_texts_and_numbers_are_cut_to_what_the_cloud_keeps() -> None:
    addresses = tuple(f"2001:db8::{n:x}" for n in range(400))
    facts = replace(device_states.MANAGED, os_name="x" * 90, compat_version="1" * 30)
    huge = Metrics(memory_total=2**40)
    report = told(replace(device_states.m1(), facts=facts),
                  DeviceSide(addresses, (), "k" * 80, huge))  # fmt: skip
    sizes = [len(report[n]) for n in ("os_version", "supervisor_version", "api_secret")]
    assert sizes == [70, 20, 64]
    assert 1985 < len(report["ip_address"]) <= 2000
    assert set(report["ip_address"].split(" ")) <= set(addresses)
    assert report["memory_total"] == 2**31 - 1


def test_C55_an_update_of_the_os_tells_its_own_progress() -> None:
    standing = Situation(host=HostState(host_update=True))
    report = told(replace(device_states.m1(), standing=standing))
    assert not {"provisioning_progress", "provisioning_state"} & report.keys()


@pytest.mark.parametrize(
    ("name", "old", "new", "news"),
    [
        ("cpu_usage", 10, 19, False), ("cpu_usage", 19, 20, True), ("cpu_usage", 10, 50, True),
        ("cpu_usage", None, 5, True), ("cpu_usage", 5, None, True),
        ("cpu_temp", 40, 44, False), ("cpu_temp", 44, 45, True), ("cpu_temp", 45, 44, True),
        ("memory_usage", 410, 419, False), ("memory_usage", 419, 420, True),
        ("storage_usage", 2011, 2012, True), ("cpu_id", "a", "b", True),
    ],
)  # fmt: skip
def test_a_metric_is_new_when_it_is_in_another_bucket(
    name: str, old: Any, new: Any, news: bool
) -> None:
    changes = difference({name: old}, {name: new})
    assert changes == ({name: new} if news else {})
    assert only_metrics(changes)


def test_S48_a_changed_service_is_told_with_the_whole_of_apps_and_nothing_else() -> None:
    before = device_states.m2()
    (container, *others) = before.observed.containers.values()
    stopped = {c.id: c for c in (replace(container, state="exited"), *others)}
    after = replace(before, observed=replace(before.observed, containers=stopped))
    changes = difference(told(before), told(after))
    assert list(changes) == ["apps"]
    assert not only_metrics(changes)
    whole = {
        (app, service, entry["status"])
        for app, state in changes["apps"].items()
        for release in state["releases"].values()
        for service, entry in release["services"].items()
    }
    other = f"{2022:032x}"
    assert whole == {(APP, "main", "exited"), (APP, "side", "Running"), (other, "solo", "Running")}


def test_C27_an_update_is_told_from_download_to_done() -> None:
    old = {"update_status": "done", "services": {"main": {"image": IMAGE, "status": "Running"}}}

    def shown(snapshot: Snapshot) -> tuple[str, Any]:
        app = told(snapshot)["apps"][APP]
        assert app["release_uuid"] == "c0ffee01" and app["releases"]["c0ffee01"] == old
        new = app["releases"]["c0ffee09"]
        return new["update_status"], new["services"]["main"]

    image = "registry/main:9"
    for percent in (0, 37):
        entry = {"image": image, "status": "Downloading", "download_progress": percent}
        assert shown(device_states.updating(percent)) == ("downloading", entry)
    here = device_states.updating(0, image_is_here=True)
    assert shown(here) == ("downloaded", {"image": image, "status": "Downloaded"})
    service = here.desired.apps[0].services[0]
    creating = replace(here, running={"create": Running(CreateContainer(service, ""))})
    assert shown(creating) == ("applying changes", {"image": image, "status": "Installing"})


def test_an_old_release_is_told_by_the_name_that_its_image_came_under() -> None:
    snapshot = device_states.updating(5)
    (image,) = snapshot.observed.images.values()

    def name(**more: Any) -> str:
        images = {image.id: replace(image, **more)}
        found = told(replace(snapshot, observed=replace(snapshot.observed, images=images)))
        services = found["apps"][APP]["releases"].get("c0ffee01", {}).get("services", {})
        return str(services.get("main", {}).get("image"))

    noted = frozenset({Obtained("registry/noted@sha256:1", 1011, "main")})
    assert name(obtained=noted) == "registry/noted@sha256:1"
    assert name(digests=frozenset({"registry/d@sha256:2"})) == "registry/d@sha256:2"
    assert name(tags=frozenset()) == "None", "the cloud needs the image's name"


def test_S45_a_rejected_app_is_told_as_such_beside_the_others() -> None:
    snapshot = device_states.m2()
    first, *others = snapshot.desired.apps
    broken = replace(first, problem="ports: no such port", services=())
    desired = replace(snapshot.desired, apps=(broken, *others))
    nothing = replace(snapshot.observed, containers={})
    report = told(replace(snapshot, desired=desired, observed=nothing))
    release = report["apps"][APP]["releases"]["c0ffee02"]
    assert release == {"update_status": "rejected", "services": {}}
    assert len(report["apps"]) == 3


def local(snapshot: Snapshot) -> Snapshot:
    on = Target(config={"RESIN_SUPERVISOR_LOCAL_MODE": "1"})
    return replace(snapshot, target=on)


@pytest.mark.parametrize(
    "unsayable",
    [
        local,
        lambda s: replace(s, looked=False),
        lambda s: replace(s, source="local"),
        lambda s: replace(s, source="", target=None),
    ],
)
def test_C33_apps_are_told_whole_or_not_at_all(
    unsayable: Callable[[Snapshot], Snapshot],
) -> None:
    assert "apps" not in told(unsayable(device_states.m1()))


def test_host_apps_have_no_services_to_tell_and_the_supervisors_are_us() -> None:
    release = device_states.release(1, "cafe", device_states.service("main", 1, 2))
    host = replace(device_states.app(7, "os", release), is_host=True)
    ours = replace(device_states.app(8, "supervisor", release), uuid=sorted(SUPERVISOR_APPS)[0])
    snapshot = device_states.device(device_states.MANAGED, host, ours)
    snapshot = replace(snapshot, observed=replace(snapshot.observed, containers={}, images={}))
    apps = told(snapshot)["apps"]
    assert list(apps) == [ours.uuid]
    assert apps[ours.uuid]["releases"]["cafe"]["services"]["main"]["status"] == "Running"


def test_reduced_to_the_releases_of_the_target() -> None:
    snapshot = device_states.updating(5)
    report = told(snapshot)
    assert releases_of(report) == {(APP, "c0ffee01"), (APP, "c0ffee09")}
    wanted = wanted_releases(snapshot)
    small = reduced(report["apps"], wanted)
    assert releases_of({"apps": small}) == wanted == {(APP, "c0ffee09")}
    assert "release_uuid" not in small[APP], "it is not among them"


def test_a_container_with_a_strange_name_is_not_told() -> None:
    snapshot = device_states.m1()
    (container,) = snapshot.observed.containers.values()
    for name in (None, ContainerName("main", 21, 500, "")):
        odd = {container.id: replace(container, name=name, raw_name="odd")}
        assert told(replace(snapshot, observed=replace(snapshot.observed, containers=odd)))
