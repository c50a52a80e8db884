"""Images from a registry: one that is missing, and how often it is asked for (spec 20 §18)."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
from collections.abc import Iterator

from device import images
from e2e_device import Device
from e2e_targets import Json, service, target

BIG = 48_000_000
TRIES = 4


def failure(device: Device, reference: str) -> Json:
    """What the published plan says about the failing download, or {}."""
    found = [f for f in device.plan()["failures"] if f["subject"] == f"image {reference}"]
    return dict(found[0]) if found else {}


def tried_at(device: Device, reference: str) -> list[float]:
    """When the download began, each time, by the journal (seconds)."""
    begun = f"Downloading image '{reference}'"
    told = [entry for entry in device.journal() if entry.get("MESSAGE") == begun]
    return [int(entry["__REALTIME_TIMESTAMP"]) / 1e6 for entry in told]


def name_in_registry(device: Device, repository: str, digest: str, tag: str) -> None:
    """Give an image in the registry one more tag, past the engine."""
    connection = http.client.HTTPConnection(device.machine.registry, timeout=10)
    with contextlib.closing(connection):
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        path = f"/v2/{repository}/manifests"
        connection.request("GET", f"{path}/{digest}", headers={"Accept": kind})
        manifest = connection.getresponse().read()
        connection.request("PUT", f"{path}/{tag}", manifest, {"Content-Type": kind})
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()


@contextlib.contextmanager
def thin_line(device: Device) -> Iterator[None]:
    """The device's own line to its registry lets 2 MB a second through."""
    shape = ("root", "tbf", "rate", "16mbit", "burst", "256kb", "latency", "100ms")
    device.exec("tc", "qdisc", "add", "dev", "lo", *shape)
    try:
        yield
    finally:
        device.exec("tc", "qdisc", "del", "dev", "lo", "root")


def release(number: int, second: str, first: str = "e2e:1") -> Json:
    """Services one, two and three; all of them are to be replaced by release 2."""
    environment = {"RELEASE": str(number)}
    return target(
        service("one", 1, image=first, environment=environment),
        service("two", 2, image=second, environment=environment),
        service("three", 3, environment=environment),
        release=number,
    )


def test_S31_one_missing_image_keeps_every_old_container_up(device: Device) -> None:
    device.exec("systemctl", "start", "docker-registry")
    big = images.build(
        device.machine, "s31-big:1", files={"/big": os.urandom(BIG)}, engine_only=False
    )
    made = images.build(device.machine, "s31:there", engine_only=False)
    absent = f"{device.machine.registry}/s31:absent"
    device.apply(release(1, "e2e:1"))
    before = device.ids()
    device.mark()

    def progress() -> float:
        shown = device.api("GET", "/v2/applications/state").json()["fleet"]["services"]["one"]
        return float(shown["downloadProgress"] or 0)

    def overall() -> float:
        shown = device.api("GET", "/v2/state/status").json()["overallDownloadProgress"]
        return float(shown or 0)

    with thin_line(device):
        device.post(release(2, absent, big.reference))
        device.until(lambda: 0 < progress() < 100, 30, "progress of the download is shown")
        device.until(lambda: 0 < overall() < 100, 30, "and so is that of all downloads")

    def attempts() -> int:
        return int(failure(device, absent).get("attempts", 0))

    device.until(lambda: attempts() >= TRIES, 60, f"{TRIES} failed downloads")
    # The other image is here, but nothing of the release is begun.
    downloaded = f"Downloaded image '{big.reference}'"
    device.until(lambda: downloaded in device.said(), 60, "the other image is here")
    assert device.ids() == before and device.running("one", "two", "three")
    waits = {wait["subject"]: wait["reason"] for wait in device.plan()["waits"]}
    assert "keeps running until the image of two is here" in waits["service 1/one"]
    assert f"Failed to download image '{absent}' due to" in device.said()

    # 1, 2, 4 seconds, with a tenth of jitter, and what the attempts themselves take: the first one
    # shares the thin line with the other image.
    pauses = [later - sooner for sooner, later in itertools.pairwise(tried_at(device, absent))]
    for number, pause in enumerate(pauses[: TRIES - 1]):
        assert 0.9 * 2**number <= pause < 1.1 * 2**number + 10, pauses

    # A restart of the agent is no new beginning.
    known = attempts()
    device.restart()
    device.until(attempts, 30, "the failure is remembered")
    assert attempts() >= known
    assert device.ids() == before

    # The image is there at last: the release is applied as a whole.
    name_in_registry(device, "s31", made.digest, "absent")
    device.settled(60)
    assert set(device.containers()) == {"one_11_2_c2", "two_12_2_c2", "three_13_2_c2"}
    assert not set(device.ids().values()) & set(before.values())
    assert device.inspect("two")["Image"] == made.id


def test_what_is_no_image_reference_touches_nothing_else(device: Device) -> None:
    bad = service("bad", 2, image="No Such:Thing")
    one = service("one", 1)
    device.post({"local": {"name": "e2e", "config": {}, "apps": {
        **target(one)["local"]["apps"],
        "2": {**target(bad)["local"]["apps"]["1"], "name": "other"},
    }}})  # fmt: skip
    device.until(lambda: device.running("one"), 20, "the other app runs")
    told = device.until(lambda: failure(device, "No Such:Thing"), 10, "the failure is told")
    assert told["error"].startswith('image reference "No Such:Thing": "No Such" is no repository')
