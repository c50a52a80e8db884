"""What faces show of a snapshot: golden documents, and the words for every state.

The golden files are written anew when WRITE_GOLDEN is set; read the difference before keeping it.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import device_states as states
import pytest

from balena_agent.core.describe import describe, plan_state, service_rows, status_line
from balena_agent.core.names import retired_name
from balena_agent.core.observed import Container
from balena_agent.core.plan import Plan, Wait
from balena_agent.core.report import (
    applications_state,
    container_ids,
    local_target_state,
    milliseconds,
    state_status,
)
from balena_agent.core.scopes import EVERYTHING, Scope
from balena_agent.core.snapshot import Failure, Running, Snapshot
from balena_agent.core.status import applying, engine_word, local_mode, overall_progress
from balena_agent.core.steps import (
    CreateContainer,
    Fetch,
    RemoveContainer,
    StartContainer,
    Step,
    StopContainer,
)
from balena_agent.core.target import Target, read_local
from balena_agent.core.traits import identity

GOLDEN = Path(__file__).parent / "data" / "report"


def everybody(_: int) -> bool:
    return True


def with_steps(snapshot: Snapshot, *running: tuple[Step, float]) -> Snapshot:
    entries = {identity(step): Running(step, percent, 100.0) for step, percent in running}
    return replace(snapshot, running=entries, update_pending=True)


def with_containers(snapshot: Snapshot, *containers: Container) -> Snapshot:
    observed = replace(snapshot.observed, containers={c.id: c for c in containers})
    return replace(snapshot, observed=observed)


def fetch(name: str, app_id: int = 1011) -> Fetch:
    image = f"registry.example.com/{name}:1"
    return Fetch(image, f"{app_id:032x}", app_id, name, "image missing")


def missing(snapshot: Snapshot, *names: str) -> Snapshot:
    """The snapshot without the images and containers of some services."""
    apps = tuple(
        replace(
            app,
            services=tuple(
                replace(s, image_present=s.image_present and s.name not in names)
                for s in app.services
            ),
        )
        for app in snapshot.desired.apps
    )
    observed = snapshot.observed
    return replace(
        snapshot,
        desired=replace(snapshot.desired, apps=apps),
        observed=replace(
            observed,
            containers={k: c for k, c in observed.containers.items() if c.service not in names},
            images={
                k: i
                for k, i in observed.images.items()
                if not any(f"/{name}:" in tag for tag in i.tags for name in names)
            },
        ),
    )


OLD = states.release(490, "beef0001", states.service("main", 11, 20))
FLEET = states.app(1011, "fleet1", OLD)


def old_main(**more: Any) -> Container:
    """A container of the release before."""
    assert OLD.services
    return states.container(FLEET, OLD, OLD.services["main"], **more)


def updating() -> Snapshot:
    """M2 in the middle of an update: main still of the old release, its image on the way, side's
    image not begun, solo being stopped, one wait and one failure."""
    now = missing(states.m2(), "main", "side")
    (solo,) = now.observed.containers.values()
    now = with_containers(now, solo, old_main())
    now = with_steps(
        now,
        (fetch("main"), 41.7),
        (StopContainer(solo.app_uuid, "solo", solo.id, cause="Cmd: a -> b"), -1.0),
    )
    main = f"service {FLEET.uuid}/main"
    keeps = Wait(main, "keeps running until there is: image of main")
    failed = fetch("side")
    return replace(
        now,
        version=7,
        plan=Plan(
            (CreateContainer(now.desired.apps[1].services[0], "no container yet"),),
            (keeps, Wait(f"service {FLEET.uuid}/side", "waits")),
        ),
        failures={identity(failed): Failure(failed, 2, "registry says no", 1234.5)},
        update_failed=True,
        last_error="registry says no",
        notices=("volume data: driver option ignored",),
    )


def local() -> Snapshot:
    document = states.local_document("web", "db", name="bench", config={"RESIN_HOST_X": "1"})
    document["local"]["apps"]["1"]["services"]["1"]["environment"] = {
        "MODE": "dev",
        "BALENA_SUPERVISOR_API_KEY": "secret",
    }
    return states.local_device(document | {"extra": {"kept": True}})


DEVICES = {"settled": states.m2, "updating": updating, "empty": states.unmanaged, "local": local}


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("form", ["peer", "ours"])
def test_golden_documents(name: str, form: str) -> None:
    now = DEVICES[name]()
    if form == "peer":
        shown: dict[str, Any] = {
            "applications/state": applications_state(now, everybody),
            "state/status": state_status(now, everybody),
            "containerId": container_ids(now, everybody),
            "local/target-state": local_target_state(now, everybody),
        }
    else:
        shown = describe(now, "0.1.0")
    path = GOLDEN / f"{name}-{form}.json"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(json.dumps(shown, indent=1, sort_keys=True) + "\n")
    assert json.loads(json.dumps(shown)) == json.loads(path.read_text())


@pytest.mark.parametrize("name", DEVICES)
def test_secrets_are_never_shown(name: str) -> None:
    now = DEVICES[name]()
    shown = [describe(now, "1"), local_target_state(now, everybody)]
    assert "secret" not in json.dumps(shown)


def main_status(now: Snapshot) -> tuple[str, int | None]:
    main = applications_state(now, everybody)["fleet1"]["services"]["main"]
    return main["status"], main["downloadProgress"]


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("created", "Installed"),
        ("running", "Running"),
        ("dead", "Dead"),
        ("exited", "exited"),
        ("paused", "paused"),
        ("restarting", "restarting"),
        ("removing", "removing"),
    ],
)
def test_words_of_the_engine(state: str, word: str) -> None:
    now = states.m1()
    (main,) = now.observed.containers.values()
    now = with_containers(now, replace(main, state=state))
    assert engine_word(state) == word
    assert main_status(now) == (word, None)
    assert state_status(now, everybody)["containers"][0]["status"] == word


def test_words_of_steps_under_way() -> None:
    now = states.m1()
    (main,) = now.observed.containers.values()
    about = (main.app_uuid, "main", main.id)
    assert main_status(with_steps(now, (StartContainer(*about), -1.0))) == ("Starting", None)
    assert main_status(with_steps(now, (StopContainer(*about), -1.0))) == ("Stopping", None)
    assert main_status(with_steps(now, (RemoveContainer(*about), -1.0))) == ("Running", None)
    gone = with_containers(now)
    create = CreateContainer(now.desired.apps[0].services[0])
    assert main_status(gone) == ("Downloaded", None)
    assert main_status(with_steps(gone, (create, -1.0))) == ("Installing", None)


@pytest.mark.parametrize(("percent", "shown"), [(-1.0, 0), (0.0, 0), (41.7, 41), (100.0, 100)])
def test_words_of_images(percent: float, shown: int) -> None:
    now = missing(states.m1(), "main")
    assert main_status(now) == ("Downloading", 0)
    assert main_status(with_steps(now, (fetch("main"), percent))) == ("Downloading", shown)


def test_an_old_container_does_not_speak_for_the_new_release() -> None:
    now = with_containers(states.m1(), old_main())
    assert main_status(now) == ("Downloaded", None)
    (row,) = service_rows(now)
    assert (row.status, row.container_id) == ("Running", old_main().id)


def test_an_old_container_without_a_commit_in_its_name_goes_by_its_release() -> None:
    now = states.m1()
    (main,) = now.observed.containers.values()
    assert main.name
    short = replace(main, name=replace(main.name, commit=""))
    assert main_status(with_containers(now, short)) == ("Running", None)


def test_handover() -> None:
    now = states.m1()
    (new,) = now.observed.containers.values()
    old = old_main(created_at="2026-02-01T00:00:00.5Z")
    now = with_containers(now, new, old)
    assert main_status(now) == ("Awaiting handover", None)
    words = {c["containerId"]: c["status"] for c in state_status(now, everybody)["containers"]}
    assert words == {new.id: "Awaiting handover", old.id: "Handing over"}
    assert applications_state(now, everybody)["fleet1"]["updateStatus"] == "applying changes"
    stopped = with_containers(now, new, replace(old, state="exited"))
    assert main_status(stopped) == ("Running", None)


def test_handover_within_one_release() -> None:
    """Only the configuration is another one: then it is the name that tells the old container."""
    now = states.m1()
    (new,) = now.observed.containers.values()
    assert new.name
    old = replace(new, id="old", raw_name=retired_name(new.name), created_at="9999")
    words = {
        c["containerId"]: c["status"]
        for c in state_status(with_containers(now, new, old), everybody)["containers"]
    }
    assert words == {new.id: "Awaiting handover", "old": "Handing over"}
    twice = with_containers(now, new, replace(old, raw_name="by hand"))
    assert main_status(twice) == ("Running", None)


def test_update_status_takes_the_first_that_applies() -> None:
    now = states.m2()

    def fleet(snapshot: Snapshot) -> str:
        return str(applications_state(snapshot, everybody)["fleet1"]["updateStatus"])

    assert fleet(now) == "done"
    created = [
        replace(c, state="created") if c.service == "side" else c
        for c in now.observed.containers.values()
    ]
    assert fleet(with_containers(now, *created)) == "applying changes"
    assert fleet(with_containers(now, *created[:1])) == "downloaded"
    assert fleet(missing(now, "main")) == "downloading"
    apps = now.desired.apps
    rejected = replace(now.desired, apps=(replace(apps[0], problem="bad"), *apps[1:]))
    assert fleet(replace(missing(now, "main"), desired=rejected)) == "rejected"


def test_scope_hides_other_apps() -> None:
    now, mine = updating(), Scope(app_id=2022).in_scope
    assert list(applications_state(now, mine)) == ["other"]
    assert list(container_ids(now, mine)) == ["solo"]
    status = state_status(now, mine)
    assert [c["serviceName"] for c in status["containers"]] == ["solo"]
    assert status["overallDownloadProgress"] is None
    assert list(local_target_state(now, mine)["local"]["apps"]) == ["2022"]
    assert local_target_state(local(), mine)["local"]["apps"] == {}
    nobody = Scope(app_id=5)
    assert state_status(now, nobody.in_scope)["containers"] == []
    assert plan_state(now, nobody) | {"settled": True} == {
        "settled": True,
        "steps": [],
        "running": [],
        "waits": [],
        "failures": [],
    }


def test_state_status_prefers_the_fleet() -> None:
    block = states.app(5, "aaa", states.release(1, "c1", states.service("x", 1, 51)), "block")
    fleet = states.app(9, "zzz", states.release(2, "c2", states.service("y", 2, 52)))
    shown = state_status(states.device(states.MANAGED, block, fleet), everybody)
    assert (shown["containers"][0]["appId"], shown["release"]) == (9, "c2")
    shown = state_status(states.device(states.MANAGED, block), everybody)
    assert (shown["containers"][0]["appId"], shown["release"]) == (5, "c1")


def test_progress_is_the_mean_of_what_is_downloaded() -> None:
    now = with_steps(states.m2(), (fetch("main"), 50.0), (fetch("side"), -1.0))
    assert overall_progress(now) == 25.0
    assert overall_progress(now, Scope(app_id=2022).in_scope) is None
    assert overall_progress(states.m2()) is None


def test_every_target_can_be_posted_back() -> None:
    cloud = states.m2()
    state = local_target_state(cloud, everybody)
    read = read_local(state)
    assert cloud.target
    for app in cloud.target.apps.values():
        again = read.apps[str(app.app_id)]
        assert (again.name, again.release) == (app.name, app.release)
    assert state["dependent"] == {"apps": [], "devices": []}
    assert local_target_state(replace(cloud, target=None), everybody)["local"]["apps"] == {}


def test_damaged_raw_targets_fall_back_to_what_was_read() -> None:
    for raw in ("", "{bad", "[]"):
        shown = local_target_state(replace(local(), raw_target=raw), everybody)
        assert list(shown["local"]["apps"]["1"]["services"]) == ["1", "2"]


@pytest.mark.parametrize(
    ("config", "on"),
    [
        ({}, False),
        ({"SUPERVISOR_LOCAL_MODE": "1"}, True),
        ({"BALENA_SUPERVISOR_LOCAL_MODE": "true"}, True),
        ({"SUPERVISOR_LOCAL_MODE": "0"}, False),
    ],
)
def test_local_mode(config: dict[str, str], on: bool) -> None:
    assert local_mode(replace(states.m1(), target=Target(None, config, {}))) is on
    assert local_mode(states.unmanaged())


def test_applying_until_settled() -> None:
    now = states.m1()
    assert not applying(now)
    assert applying(replace(now, update_pending=True))
    assert applying(replace(now, looked=False))
    assert applying(replace(now, plan=Plan(waits=(Wait("x", "y"),))))


def test_rows() -> None:
    rows = {row.service: row for row in service_rows(updating())}
    assert list(rows) == ["main", "side", "solo"]
    main, side, solo = rows.values()
    assert (main.status, main.download_progress) == ("Running", 41)
    assert main.waiting == "keeps running until there is: image of main"
    assert (side.status, side.container_id, side.waiting) == ("Downloading", "", "waits")
    assert (solo.status, solo.app_name, solo.commit) == ("Stopping", "other", "dead0001")


def test_nobody_knows_a_service_that_no_engine_tells_of() -> None:
    rows = {row.service: row for row in service_rows(replace(updating(), engine_error="away"))}
    assert (rows["main"].status, rows["side"].status) == ("Running", "Unknown")


def test_rows_of_what_is_left_of_former_apps() -> None:
    now = replace(states.m1(), target=Target(None, {}, {}))
    (row,) = service_rows(now)
    assert (row.app_id, row.app_name, row.service, row.commit) == (1011, "", "main", "c0ffee01")
    (app,) = describe(now, "1")["apps"]
    assert (app["inTarget"], app["id"]) == (False, 1011)


def crashing() -> Snapshot:
    now = states.m1()
    containers = {
        key: replace(each, state="restarting") for key, each in now.observed.containers.items()
    }
    return replace(now, observed=replace(now.observed, containers=containers))


def lines() -> list[tuple[Snapshot, str]]:
    now = states.m2()
    solo = StartContainer("u", "solo", "1", "was stopped")
    many = tuple(StartContainer("u", f"s{n}", str(n)) for n in range(5))
    wait = Wait("service 1/web", "lock held by db: /tmp/updates.lock")
    return [
        (Snapshot(), "Starting"),
        (replace(now, engine_error="no socket"), "Engine is not answering: no socket"),
        (replace(now, looked=False), "Looking at the engine"),
        (crashing(), "Settled: 1 service in 1 app; has ended and is being restarted: main"),
        (now, "Settled: 3 services in 3 apps"),
        (states.m1(), "Settled: 1 service in 1 app"),
        (states.unmanaged(), "Settled: no target state yet"),
        (replace(now, plan=Plan((solo,))), "Applying: start solo"),
        (replace(now, plan=Plan(many)), "Applying: start s0, start s1, start s2 (+2)"),
        (
            with_steps(replace(now, plan=Plan((solo,))), (solo, -1.0), (fetch("main"), 41.7)),
            "Applying: start solo, fetch registry.example.com/main:1 for main 41%",
        ),
        (
            replace(now, plan=Plan(waits=(wait, wait))),
            "Waiting: web: lock held by db: /tmp/updates.lock (+1)",
        ),
        (replace(now, stopping=True), "Stopping"),
        (replace(now, stopping=True, plan=Plan((solo,))), "Stopping: start solo"),
    ]


@pytest.mark.parametrize(("snapshot", "line"), lines())
def test_status_line(snapshot: Snapshot, line: str) -> None:
    assert status_line(snapshot) == line


def test_a_status_line_is_short() -> None:
    waits = (Wait("service 1/web", "x" * 1000),)
    assert len(status_line(replace(states.m1(), plan=Plan(waits=waits)))) == 200


@pytest.mark.parametrize(
    ("engine", "shown"),
    [
        ("2026-03-01T10:00:21.123456789Z", "2026-03-01T10:00:21.123Z"),
        ("2026-03-01T10:00:21.5Z", "2026-03-01T10:00:21.500Z"),
        ("2026-03-01T10:00:21Z", "2026-03-01T10:00:21.000Z"),
        ("", ""),
    ],
)
def test_milliseconds(engine: str, shown: str) -> None:
    assert milliseconds(engine) == shown


def test_newest_first_whatever_the_length_of_the_fraction() -> None:
    times = ["2026-03-01T10:00:21Z", "2026-03-01T10:00:21.1Z", "2026-03-01T10:00:21.123Z"]
    (main,) = states.m1().observed.containers.values()
    copies = [replace(main, id=str(n), created_at=when) for n, when in enumerate(times)]
    now = with_containers(states.m1(), *copies)
    shown = state_status(now, everybody)["containers"]
    assert [c["containerId"] for c in shown] == ["2", "1", "0"]
    assert container_ids(now, EVERYTHING.in_scope) == {"main": "2"}
