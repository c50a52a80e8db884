"""The device's volume for extra firmware: when it is made, and named to the kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_planner import target, text, there, wanted, world
from worlds import spec

from balena_agent.core.names import EXTRA_FIRMWARE
from balena_agent.core.networks import firmware_volume_body, volume_from_inspect
from balena_agent.core.observed import NO_APP, HostState, Observed, Volume
from balena_agent.core.situation import Situation
from balena_agent.core.spec import VolumeSpec

WEB = wanted("web", spec=spec("i1:latest", 1, ["1_default"], [EXTRA_FIRMWARE], ""))
MAKE = "ensure-extra-firmware extra-firmware: "
NAME = "set-firmware-volume device: "


def with_volume(seen: Observed) -> Observed:
    made = Volume(EXTRA_FIRMWARE, NO_APP, "", EXTRA_FIRMWARE, VolumeSpec())
    return replace(seen, volumes={EXTRA_FIRMWARE: made})


@pytest.mark.parametrize(
    ("service", "named", "volume", "lines"),
    [
        (wanted("web"), "", False, []),
        (wanted("web"), "other", False, []),
        (wanted("web"), EXTRA_FIRMWARE, False, [MAKE + "config.json names it"]),
        (wanted("web"), EXTRA_FIRMWARE, True, []),
        (WEB, None, False, [MAKE + "service web uses it"]),
        (WEB, None, True, []),
        (WEB, "", True, [NAME + "service web uses it"]),
        (WEB, "other", True, [NAME + "service web uses it"]),
        (WEB, EXTRA_FIRMWARE, True, []),
    ],
)
def test_it_is_made_and_named_where_it_is_wanted(
    service: object, named: str | None, volume: bool, lines: list[str]
) -> None:
    seen = world(there(service))  # type: ignore[arg-type]
    now = Situation(host=HostState(firmware_volume=named))
    known = with_volume(seen) if volume else seen
    assert text(target(service), known, now) == lines  # type: ignore[arg-type]


def test_it_belongs_to_no_app_and_stays() -> None:
    now = Situation(keep_volumes=False)
    assert text(target(), with_volume(world(network=True)), now) == []


@pytest.mark.parametrize("labels", [None, {}, firmware_volume_body()["Labels"]])
def test_it_is_known_by_its_name(labels: dict[str, str] | None) -> None:
    seen = volume_from_inspect({"Name": EXTRA_FIRMWARE, "Labels": labels, "Driver": "local"})
    assert seen is not None
    assert (seen.app_id, seen.engine_name) == (NO_APP, EXTRA_FIRMWARE)
