"""No input makes the agent replace or restart a container again and again (spec 21 §10.4).

`data/no-endless-loop.json` names every input with our answer to it. All of them stand in one target
on one device, each with a service of its own, those that are refused with an app of their own. It
is applied, and then looked at and applied five times more: nothing may have happened. Nor when the
agent has lost its store, and compares what is there field by field.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from device import images
from e2e_compose import DATA as COMPOSE
from e2e_compose import life
from e2e_device import Device
from e2e_targets import Json, app, apps, service

DATA = json.loads((Path(__file__).parent / "data/no-endless-loop.json").read_text())
INPUTS: list[Json] = DATA["inputs"]
LOOKS = 5
COMMON = "8"


@dataclass(frozen=True)
class Seen:
    """Containers by service after the first settling, after each further look, and after the loss
    of the store; the agent's words and what the engine announced meanwhile; the state of every app;
    what the engine supports."""

    first: Json
    later: tuple[Json, ...]
    adopted: Json
    said: str
    events: tuple[Json, ...]
    apps: Json
    info: Json


def document() -> Json:
    found = {COMMON: app(name="common", networks=DATA["networks"])}
    for number, each in enumerate(INPUTS, 100):
        made = service(
            each["name"], number, image=f"loop-{each.get('image', 'plain')}:1",
            composition=each["composition"],
        )  # fmt: skip
        if "rejected" in each:
            found[str(number)] = app(made, name=each["name"])
        else:
            found[COMMON]["services"][str(number)] = made
    return apps(found)


def furnish(device: Device) -> None:
    images.build(device.machine, "loop-plain:1", cmd=("sleep", "3600"))
    # The import of an image knows no STOPSIGNAL, a build does.
    recipe = "\n".join(("FROM loop-plain:1", *COMPOSE["images"]["rich"]))
    device.exec("docker", "build", "-q", "-t", "loop-rich:1", "-", input=recipe)


def containers(device: Device) -> Json:
    found: Json = {}
    for each in device.ids().values():
        container = device.engine("GET", f"/containers/{each}/json")
        found[container["Config"]["Labels"]["io.balena.service-name"]] = container
    return found


@pytest.fixture(scope="module")
def seen(identity: None, module_device: Device) -> Seen:
    device, target = module_device, document()
    furnish(device)
    device.mark()
    device.apply(target, seconds=90)
    first, later = containers(device), []
    with device.engine_events() as events:
        for _ in range(LOOKS):
            # The answer comes after everything known is forgotten: what settles has looked anew.
            device.apply(target)
            later.append(containers(device))
    told, said = device.api("GET", "/v2/applications/state").json(), device.said()
    device.start_over()
    device.apply(target)
    info = device.engine("GET", "/info")
    return Seen(first, tuple(later), containers(device), said, tuple(events), told, info)


@pytest.mark.parametrize("each", INPUTS, ids=[each["name"] for each in INPUTS])
def test_no_endless_loop(each: Json, seen: Seen) -> None:
    name, lines = each["name"], seen.said.splitlines()
    answer = each.get("ignored") or each.get("rejected")
    lacking = "needs" in each and not seen.info[each["needs"]]
    if answer and ("needs" not in each or lacking):
        assert any(name in line and all(w in line for w in answer) for line in lines), answer
    if "rejected" in each:
        assert seen.apps[name]["updateStatus"] == "rejected"
        assert name not in seen.first
        return
    container = seen.first[name]
    assert container["State"]["Status"] == "running"
    assert [life(look[name]) for look in seen.later] == [life(container)] * LOOKS
    assert life(seen.adopted[name]) == life(container)


def test_the_engine_was_not_asked_to_change_anything(seen: Seen) -> None:
    work = {"create", "start", "stop", "kill", "die", "destroy", "rename", "update", "connect",
            "disconnect", "remove"}  # fmt: skip
    assert [e for e in seen.events if e["Action"] in work] == []
