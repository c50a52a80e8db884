"""Every case of the device API on a virtual device: the numbered ones of spec 10, and the table of
endpoints. One test per case, in the order of the data file, which groups them by device."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from api_cases import load, problems
from cloud import FakeCloud
from e2e_api import DEVICE_KEY, UUID, Stage
from e2e_device import Device
from e2e_targets import Json

ORDER = ("M1", "M2", "U", "L")
TAG = {"id": 5, "tag_key": "loc", "value": "lab"}

UNSERVED = (
    (r"/v1/(restart|purge)\b", "restart and purge of an app"),
    (r"/v2/applications/[^/]+/(restart|purge)$", "restart and purge of an app"),
    (r"/v2/cleanup-volumes", "clean-up of volumes"),
    (r"/v2/local/logs|/v2/journal-logs", "log streams"),
)
LATER = {
    "A61": "health does not look at the cloud yet",
    **dict.fromkeys(
        ("A68", "A69", "A70", "A71", "A72", "A73", "A74", "A75", "A76", "A77", "A79", "A80"),
        "settings of the host are not changed yet",
    ),
}


def _marked(case: Json) -> object:
    reason = LATER.get(case["id"], "")
    served_by_nobody = 401 in case["status"] and case.get("auth") not in ("G", "A", "B")
    if not served_by_nobody and case["status"] != [404]:
        reason = reason or next((r for path, r in UNSERVED if re.search(path, case["path"])), "")
    marks = [pytest.mark.xfail(strict=False, reason=reason)] if reason else []
    return pytest.param(case, id=f"test_{case['id']}", marks=marks)


def _in_order() -> list[Json]:
    """By device; what leaves a device behind that plays nothing any more comes last."""

    def rank(case: Json) -> tuple[bool, int, bool]:
        setup = case.get("setup", ())
        return "last" in setup, ORDER.index(case["fx"]), "slow" in setup

    return sorted(load(), key=rank)


@pytest.fixture(scope="module")
def stage(api_device: Device) -> Iterator[Stage]:
    address = api_device.machine.link.outer_address
    with FakeCloud(address, keys={UUID: DEVICE_KEY}, tags={UUID: [dict(TAG)]}) as cloud:
        yield Stage(api_device, cloud)


@pytest.fixture(scope="module", autouse=True)
def no_secrets(stage: Stage) -> Iterator[None]:
    """After all cases the journal has neither a key nor a traceback in it."""
    yield
    keys = stage.seen_keys | {DEVICE_KEY}
    said = stage.device.said("-b", "all")
    assert "Traceback" not in said
    assert [key[:4] for key in keys if len(key) > 8 and key in said] == []


@pytest.mark.parametrize("case", [_marked(case) for case in _in_order()])
def test_case(stage: Stage, case: Json) -> None:
    stage.play(case)
    stage.cloud.tags[UUID] = [dict(TAG)]
    keys = stage.keys()
    with stage.prepared(case):
        reply = stage.ask(case, keys)
        assert list(problems(case, reply)) == []
    if reply.status in (200, 202, 204) and case["method"] != "GET":
        stage.rest()
