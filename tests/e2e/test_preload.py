"""Devices that start from apps.json, without a cloud (spec 20 §24)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from device import images
from e2e_device import Device
from e2e_targets import IMAGE, Json, apps_json_v2, apps_json_v3, pair

ABSENT = "not-there-yet:1"


@pytest.fixture
def data(device: Device) -> Iterator[Path]:
    """The device's data partition, which afterwards holds nothing that a restart would read."""
    yield device.machine.inner_path("/mnt/data")
    device.exec("sh", "-c", "rm -f /mnt/data/apps.json*")
    device.engine("DELETE", f"/images/{ABSENT}?force=1")


@pytest.mark.parametrize("document", [apps_json_v3(IMAGE), apps_json_v2(IMAGE)], ids=["v3", "v2"])
def test_S51_a_preloaded_app_runs_and_its_file_is_put_away(
    device: Device, data: Path, document: Json
) -> None:
    device.start_over(document)
    device.until(lambda: device.running("main"), 20, "the preloaded service runs")
    device.settled()
    assert (data / "apps.json").read_text().strip() == "{}"
    assert json.loads((data / "apps.json.preloaded").read_text()) == document
    before = device.ids()
    device.restart()
    device.settled()
    assert device.ids() == before


def test_S52_a_preload_with_a_missing_image_waits_for_it(device: Device, data: Path) -> None:
    document = apps_json_v3(ABSENT)
    device.start_over(document)
    wanted = f"waits for images: {ABSENT}"
    device.until(lambda: wanted in device.said(), 20, "the agent says what is missing")
    assert json.loads((data / "apps.json").read_text()) == document
    assert not (data / "apps.json.preloaded").exists()
    assert device.containers() == {}
    images.build(device.machine, ABSENT)
    device.until(lambda: device.running("main"), 15, "the preloaded service runs")
    device.settled()
    assert (data / "apps.json").read_text().strip() == "{}"


def test_a_target_that_comes_first_beats_the_preload(device: Device, data: Path) -> None:
    document = apps_json_v3(ABSENT, name="preloaded")
    device.start_over(document)
    device.apply(pair())
    images.build(device.machine, ABSENT)
    device.restart()
    device.settled()
    assert device.running("one", "two")
    assert json.loads((data / "apps.json").read_text()) == document


@pytest.mark.parametrize("text", ["{", "[]", '{"apps": {"x": 5}}', "\x00\xff", ""])
def test_a_preload_that_cannot_be_used_stays_and_is_told(
    device: Device, data: Path, text: str
) -> None:
    device.start_over(between=lambda: (data / "apps.json").write_bytes(text.encode("latin-1")))
    assert (data / "apps.json").read_bytes() == text.encode("latin-1")
    told = device.said()
    assert "Traceback" not in told
    if text != "[]":
        assert "apps.json is not used" in told
    device.apply(pair())
    assert device.running("one", "two")
