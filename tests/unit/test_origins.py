"""Where containers came from: `depends_on` with `restart`."""

from __future__ import annotations

from dataclasses import replace

from agent import rig, service, target
from test_planner import target as desired
from test_planner import text, there, wanted, world

from balena_agent.core.desired import Dependency
from balena_agent.core.origins import Origin, to_note
from balena_agent.core.situation import Situation
from balena_agent.core.steps import CreateContainer

WEB = wanted("web", depends_on=(Dependency("db", restart=True), Dependency("log")))
DB, LOG = wanted("db"), wanted("log")
TARGET = desired(WEB, DB, LOG)
LOCKED = Situation(locked=frozenset({1}))


def on(parent: str) -> Situation:
    return replace(LOCKED, origins={"id-web": Origin("", {"db": parent})})


def test_parents_of_running_containers_are_noted_once() -> None:
    seen = world(there(WEB), there(DB), there(LOG))
    noted = to_note(TARGET, seen, {})
    assert noted == {"id-web": Origin("", {"db": "id-db"})}
    assert to_note(TARGET, seen, noted) == {}
    kept = to_note(TARGET, seen, {"id-web": Origin("boot")})
    assert kept == {"id-web": Origin("boot", {"db": "id-db"})}


def test_nothing_is_noted_of_what_does_not_stand_yet() -> None:
    twice = world(there(WEB), there(DB), there(DB, id="other"))
    assert to_note(TARGET, twice, {}) == {}
    assert to_note(TARGET, world(there(WEB, "created"), there(DB)), {}) == {}
    assert to_note(TARGET, world(there(WEB), there(DB, "created")), {}) == {}
    assert to_note(desired(WEB, DB, problem="no"), world(there(WEB), there(DB)), {}) == {}


def test_a_parent_made_anew_takes_its_dependents_along() -> None:
    seen = world(there(WEB), there(DB, id="new"), there(LOG))
    assert text(TARGET, seen, on("id-db"))[0] == "stop web: depends on db, which was made anew"
    assert "stop" not in " ".join(text(TARGET, seen, on("new")))


def test_not_before_it_was_started_and_not_without_a_note() -> None:
    waiting = world(there(WEB), there(DB, "created", id="new"), there(LOG))
    assert text(TARGET, waiting, on("id-db")) == ["start db: created, not started yet"]
    seen = world(there(WEB), there(DB, id="new"), there(LOG))
    assert not any(line.startswith("stop") for line in text(TARGET, seen, LOCKED))


def test_a_plain_dependency_takes_nobody_along() -> None:
    seen = world(there(WEB), there(DB), there(LOG, id="new"))
    origins = {"id-web": Origin("", {"db": "id-db", "log": "id-log"})}
    assert not any("stop" in line for line in text(TARGET, seen, replace(LOCKED, origins=origins)))


def test_the_dependent_is_made_anew_once() -> None:
    after = {"db": {"condition": "service_started", "restart": True}}
    db = service("db")
    web, log = service("web", 2, depends_on=after), service("log", 3, depends_on=["db"])
    with rig() as agent:
        agent.post(target(db, web, log))
        agent.settled()
        before = agent.ids()
        agent.post(target({**db, "environment": {"A": "b"}}, web, log))
        agent.settled()
        now = agent.ids()
        assert now["db"] != before["db"]
        assert now["web"] != before["web"]
        assert now["log"] == before["log"]
        for _ in range(3):
            agent.post(target({**db, "environment": {"A": "b"}}, web, log))
            agent.settled()
        assert agent.ids() == now
        made = [s for s in agent.engine.performed if isinstance(s, CreateContainer)]
        assert len(made) == 5
        assert agent.store.origins.keys() == {now["web"]}


def test_health_of_a_service_without_a_check_is_warned_about_and_taken_as_started() -> None:
    after = {"db": {"condition": "service_healthy"}}
    check = {"test": ["CMD", "true"]}
    line = "depends_on.db: db has no health check: service_started is used"
    for db, warned in (
        (service("db"), True),
        (service("db", healthcheck={"disable": True}), True),
        (service("db", healthcheck=check), False),
    ):
        with rig() as agent:
            agent.post(target(db, service("web", 2, depends_on=after)))
            said = agent.settled().notices
            assert any(line in notice for notice in said) == warned
            assert agent.containers() == {"db": "running", "web": "running"}


def test_before_the_image_is_here_nothing_is_said_of_health() -> None:
    after = {"db": {"condition": "service_healthy"}}
    with rig() as agent:
        agent.engine.missing_images.add("big:latest")
        agent.post(target(service("db", image="big"), service("web", 2, depends_on=after)))
        seen = agent.until(lambda s: s.failures, "cannot be fetched")
        assert not any("health" in notice for notice in seen.notices)
