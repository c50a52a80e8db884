"""The dry run: what a target would do, as a whole and in order, on worlds made by the agent itself.

Most tests stand on the runtime with its fakes: what the preview says is held against what the agent
then does.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from agent import Rig, image, observed, rig, service, target

from balena_agent.core import preview as module
from balena_agent.core.desired import Desired, DesiredVolume
from balena_agent.core.intent import Power
from balena_agent.core.observed import Observed
from balena_agent.core.plan import Plan, Wait
from balena_agent.core.preview import Preview, preview, preview_state
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.spec import VolumeSpec
from balena_agent.core.steps import CreateVolume, RemoveImage
from balena_agent.core.target import read_local
from balena_agent.core.traits import describe, identity

API = {"labels": {"io.balena.features.supervisor-api": "1"}}
HANDS = {"labels": {"io.balena.update.strategy": "hand-over"}}
BUSYBOX = image("busybox")


def asked(here: Rig, document: dict[str, Any]) -> Preview:
    return preview(here.published.current, read_local(document))


def verbs(found: Preview) -> list[str]:
    return [identity(step) for step in found.steps]


def begun(here: Rig, document: dict[str, Any]) -> list[str]:
    """The steps that the agent does for a target, in the order of their beginnings."""
    seen: list[str] = []

    def note(snapshot: Snapshot) -> None:
        seen.extend(name for name in snapshot.running if name not in seen)

    here.published.subscribe(note)
    here.post(document)
    here.settled()
    return seen


def test_a_fresh_app_from_nothing_to_running() -> None:
    with rig(Observed()) as here:
        here.until(lambda s: s.looked)
        found = asked(here, target(service("web", image="busybox:2")))
        assert [describe(step) for step in found.steps] == [
            "fetch busybox:2 for web: image is missing",
            "create-network 1_default: no such network yet",
            "take-locks 1: create service 1/web: no container yet",
            "create web: no container yet",
            "start web: created, not started yet",
            "release-locks 1: nothing left to do",
        ]
        assert (found.untouched, found.waits, found.rejected) == ((), (), {})
        assert here.published.current.target is None
        assert here.store.targets == {} and here.containers() == {}


def test_the_target_in_force_does_nothing() -> None:
    document = target(service("web"), service("db", 2, **API))
    with rig() as here:
        here.post(document)
        here.settled()
        found = asked(here, document)
        assert found == Preview(untouched=(("1", "db"), ("1", "web")))


@pytest.mark.parametrize(
    "after",
    [
        target(service("web", environment={"A": "1"}), service("db", 2)),
        target(service("web", environment={"A": "1"}, **HANDS), service("db", 2)),
        target(service("web"), service("db", 2), commit="c2"),
        target(service("db", 2, running=False)),
        target(service("web", image="other"), service("db", 2, depends_on=["web"]), commit="c2"),
        target(service("web", network_mode="host"), service("db", 2, network_mode="host")),
        target(app=2),
        {"local": {"name": "dev", "config": {}, "apps": {}}},
    ],
    ids=[
        "one changed",
        "handed over",
        "renamed",
        "left and stopped",
        "fetched",
        "host",
        "moved",
        "gone",
    ],
)
def test_what_is_told_is_what_is_done(after: dict[str, Any]) -> None:
    with rig() as here:
        here.post(target(service("web"), service("db", 2)))
        here.settled()
        told = asked(here, after)
        assert told.steps and not told.waits
        ids = here.ids()
        done = begun(here, after)
        assert sorted(verbs(told)) == sorted(done)
        kept = {name for name, known in here.ids().items() if ids.get(name) == known}
        assert {name for _, name in told.untouched} <= kept


def test_every_step_has_its_cause() -> None:
    with rig() as here:
        here.post(target(service("web"), service("db", 2)))
        here.settled()
        found = asked(here, target(service("web", 1, command="sleep 1"), service("db", 2)))
        assert all(step.cause for step in found.steps)
        stop = next(step for step in found.steps if identity(step).startswith("stop"))
        assert "Cmd" in stop.cause
        assert found.untouched == (("1", "db"),)


def test_an_app_that_would_be_rejected_and_its_neighbour() -> None:
    with rig() as here:
        here.post(target(service("web")))
        here.settled()
        apps = target(service("web", ports=["x"]), commit="c2")
        apps["local"]["apps"] |= target(service("new"), app=2)["local"]["apps"]
        found = asked(here, apps)
        assert list(found.rejected) == ["1"] and "ports" in found.rejected["1"]
        assert found.untouched == (("1", "web"),)
        assert "start service 2/new" in verbs(found)
        assert not any("1/web" in name for name in verbs(found))


def test_what_others_must_bring_about_is_waited_for_and_then_taken_as_given() -> None:
    job = service("job")
    after = {"job": {"condition": "service_completed_successfully"}}
    with rig() as here:
        here.until(lambda s: s.looked)
        found = asked(here, target(job, service("web", 2, depends_on=after)))
        assert verbs(found)[-2:] == ["start service 1/web", "release-locks locks 1"]
        assert [str(wait) for wait in found.waits] == [
            "service 1/web: waits for job to complete (is running)"
        ]


@pytest.mark.parametrize("health", ["starting", "unhealthy"])
def test_a_service_that_is_not_healthy_yet_is_waited_for_and_then_is(health: str) -> None:
    after = {"db": {"condition": "service_healthy"}}
    with rig() as here:
        here.post(target(service("db")))
        now = here.settled()
        ill = {k: replace(c, health=health) for k, c in now.observed.containers.items()}
        now = replace(now, observed=replace(now.observed, containers=ill))
        document = target(service("db"), service("web", 2, depends_on=after))
        found = preview(now, read_local(document))
        assert verbs(found)[-2:] == ["start service 1/web", "release-locks locks 1"]
        assert [str(wait) for wait in found.waits] == [
            f"service 1/web: waits for db to be healthy (is {health})"
        ]


def test_the_key_of_a_service_is_the_one_that_it_has() -> None:
    """The store is asked for a key once, when the target is really set, and never for a preview."""
    calls: list[tuple[int, str]] = []

    def key(app_id: int, name: str) -> str:
        calls.append((app_id, name))
        return f"key of {name}"

    with rig(keys=key) as here:
        here.post(target(service("web", **API)))
        here.settled()
        asked_before = list(calls)
        assert not asked(here, target(service("web", **API))).steps
        fresh = asked(here, target(service("web", **API), service("new", 2, **API)))
        assert fresh.untouched == (("1", "web"),) and "create service 1/new" in verbs(fresh)
        now = replace(here.published.current, desired=Desired())
        assert not preview(now, read_local(target(service("web", **API)))).steps
        assert calls == asked_before


def test_what_a_user_stopped_stays_stopped_and_a_reboot_does_not_count() -> None:
    document = target(service("web"))
    with rig() as here:
        here.post(document)
        now = here.settled()
        (container,) = now.observed.containers.values()
        stopped = replace(container, state="exited")
        world = replace(now.observed, containers={container.id: stopped})
        intent = replace(now.intent, stopped={("1", "web"): "c1"}, power=Power())
        assert not preview(replace(now, observed=world, intent=intent), read_local(document)).steps


def test_owned_images_go_where_the_settings_say_so() -> None:
    with rig(observed("busybox", "other")) as here:
        here.post(target(service("web")))
        now = here.settled()
        assert now.standing.owned_images == {"busybox:latest"} and now.standing.keep_images
        lean = replace(now, standing=replace(now.standing, keep_images=False))
        found = preview(lean, read_local(target(service("web", image="other"), commit="c2")))
        assert "remove-image image busybox:latest" in verbs(found)


def test_steps_that_change_nothing_do_not_hide_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with rig() as here:
        here.until(lambda s: s.looked)
        now = here.published.current
    step, wait = RemoveImage("kept", "no service uses it"), Wait("volume x", "still used")
    monkeypatch.setattr(module, "plan", lambda *_: Plan((step,), (wait,)))
    found = preview(now, read_local(target(service("web"))))
    assert (found.steps, found.waits) == ((step,), (wait,))


def test_a_plan_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with rig() as here:
        here.until(lambda s: s.looked)
        now = here.published.current
    step = CreateVolume("1", 1, DesiredVolume("data", "1_data", VolumeSpec()), "once more")
    made = count()
    monkeypatch.setattr(module, "plan", lambda *_: Plan((step,)))
    monkeypatch.setattr(module, "effect", lambda *_: Observed(images={str(next(made)): BUSYBOX}))
    found = preview(now, read_local(target(service("web"))))
    assert "cut off" in found.waits[-1].reason


def test_of_an_image_that_is_still_to_come_only_the_name_is_told() -> None:
    with rig() as here:
        here.post(target(service("web", command="sleep 1")))
        here.settled()
        found = asked(here, target(service("web", image="other:2")))
        stop = next(step for step in found.steps if identity(step).startswith("stop"))
        assert stop.cause.endswith('-> "other:2", which is to be downloaded')
        assert not any("sha256:other" in step.cause or "Cmd" in step.cause for step in found.steps)


def test_the_document() -> None:
    with rig() as here:
        here.until(lambda s: s.looked)
        found = preview_state(asked(here, target(service("web", unknown_field=1))))
    assert set(found) == {"steps", "untouched", "waits", "rejected", "warnings"}
    assert found["steps"][0] == {
        "step": "create-network",
        "subject": "network 1_default",
        "app": "1",
        "service": "",
        "cause": "no such network yet",
    }
    assert "unknown_field" in found["warnings"][0]
    rejected = Preview(rejected={"1": "no"}, untouched=(("1", "web"),))
    assert preview_state(rejected)["rejected"] == [{"app": "1", "problem": "no"}]
    assert preview_state(rejected)["untouched"] == [{"app": "1", "service": "web"}]


def test_a_reboot_is_part_of_what_a_target_does() -> None:
    label = {"io.balena.update.requires-reboot": "1"}
    with rig() as here:
        here.post(target(service("web")))
        here.settled()
        found = asked(here, target(service("web"), service("db", 2, labels=label)))
        assert verbs(found) == [
            "take-locks locks 1",
            "create service 1/db",
            "require-reboot service 1/db",
            "release-locks locks 1",
            "take-locks locks 1",
            "reboot host",
            "start service 1/db",
        ]
        assert found.untouched == (("1", "web"),)
