"""A container of which the engine tells nothing but its line in the list (core/unread.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worlds import target, text, there, wanted, world

from balena_agent.core.adoption import adopted
from balena_agent.core.situation import Situation
from balena_agent.core.unread import unread_container

LISTED = json.loads((Path(__file__).parent / "data/listed_container.json").read_text())
AT = "2026-02-03T04:05:06Z"


def told(known: Any = None, failed: bool = False, **more: Any) -> Any:
    return unread_container({**LISTED, **more}, AT, known, "no answer", failed)


def test_the_list_tells_whose_it_is_and_what_it_uses() -> None:
    found = told()
    assert (found.id, found.key, found.app_id) == (LISTED["Id"], ("1", "web"), 1)
    assert (found.state, found.created_at, found.unread) == ("running", AT, "no answer")
    assert str(found.name) == found.raw_name == "web_2_1_c1"
    assert found.spec.image == LISTED["ImageID"]
    assert found.spec.networks == ("1_default",) and found.spec.volumes == {"1_data"}
    assert told(Labels={"io.balena.supervised": "true"}) is None


def test_what_was_seen_before_is_better_than_the_list_but_for_one_that_was_never_read() -> None:
    seen = replace(told(), unread="", exit_code=3)
    assert told(seen) is seen
    assert told(replace(seen, unread="long ago")) == told()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("state", "failed", "taken_as"),
    [
        ("exited", True, "dead"), ("dead", True, "dead"), ("exited", False, "exited"),
        ("created", True, "created"), ("running", True, "running"), ("removing", True, "removing"),
    ],
)  # fmt: skip
def test_only_one_that_has_ended_and_cannot_be_read_is_dead(
    state: str, failed: bool, taken_as: str, known: bool
) -> None:
    seen = replace(told(), unread="", state=state) if known else None
    assert told(seen, failed, State=state).state == taken_as


def test_its_service_is_held_as_it_is_and_others_go_on() -> None:
    web, db = wanted("web"), wanted("db")
    sick = there(web, spec=told().spec, unread="no answer")
    held = "wait service 1/web: the engine cannot tell about its container: no answer"
    for state in ("running", "exited", "created"):
        assert text(target(web, db), world(replace(sick, state=state))) == [
            "create db: no container yet", held,
        ]  # fmt: skip
    assert text(target(), world(sick)) == ["release-locks 1: nothing left to do", held]
    second = there(web, id="second", created_at="9")
    assert text(target(web), world(sick, second), Situation()) == [held]


def test_a_dead_one_is_removed() -> None:
    web = wanted("web")
    sick = there(web, "dead", spec=told().spec, unread="no answer")
    assert text(target(web), world(sick), Situation()) == ["remove web: container is dead"]


def test_it_is_not_adopted() -> None:
    web = wanted("web")
    assert adopted(target(web), world(there(web)))
    assert not adopted(target(web), world(there(web, unread="no answer")))
