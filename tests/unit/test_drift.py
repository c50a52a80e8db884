"""What became of a container since it was made, and the narrow way back (spec 21 §10.3, §5.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_planner import LOCKED, target, text, there, wanted, world
from worlds import spec

from balena_agent.core import drift
from balena_agent.core.observed import Container
from balena_agent.core.situation import Backoff, Situation
from balena_agent.core.spec import ContainerSpec, Endpoint

POLICY = "HostConfig.RestartPolicy"
NO_RESTART = {"Name": "no", "MaximumRetryCount": 0}


def noted(name: str = "web", **fields: Any) -> Container:
    """A container that the agent made, of which somebody has changed these fields since."""
    made = there(wanted(name))
    live = replace(made.spec, fields={**made.spec.fields, **fields})
    return replace(made, spec=live, intended=made.spec)


def in_networks(container: Container, *names: str) -> Container:
    ends = tuple(Endpoint(name) for name in names)
    return replace(container, spec=replace(container.spec, endpoints=ends))


def test_M92_a_field_that_was_changed_by_hand_is_changed_back_without_a_lock() -> None:
    found = text(target(wanted("web")), world(noted(**{POLICY: NO_RESTART})), Situation())
    assert found == [f"update web: {POLICY} changed since the start"]


@pytest.mark.parametrize("name", drift.UPDATABLE)
def test_every_updatable_field_goes_back_to_the_intent(name: str) -> None:
    value = {POLICY: NO_RESTART, "HostConfig.CpusetCpus": "1"}.get(name, 7)
    container = noted(**{name: value})
    assert drift.deviations(container) == {name: value}
    (line,) = text(target(wanted("web")), world(container), Situation())
    assert line == f"update web: {name} changed since the start"


def test_only_an_update_that_failed_leads_to_a_replacement() -> None:
    observed = world(noted(**{POLICY: NO_RESTART}))
    failed = {"update service 1/web": Backoff(0.0, "the engine says no", due=True)}
    (line,) = text(target(wanted("web")), observed, replace(LOCKED, backoff=failed))
    assert line.startswith("stop web: ") and line.endswith("changed back: the engine says no")


def test_a_changed_target_replaces_and_does_not_update() -> None:
    made = wanted("web")
    new = replace(made, spec=replace(made.spec, fields={**made.spec.fields, POLICY: NO_RESTART}))
    old = replace(there(made), intended=made.spec)
    (line,) = text(target(new), world(old))
    assert line.startswith("stop web: HostConfig.RestartPolicy")


def test_what_the_engine_drops_or_made_of_it_at_once_is_no_drift() -> None:
    container = noted(**{"HostConfig.Memory": 5})
    observed = world(container)
    lacking = replace(observed, unsupported=frozenset({"HostConfig.Memory"}))
    assert text(target(wanted("web")), lacking, Situation()) == []
    tolerated = world(replace(container, tolerated={"HostConfig.Memory": 5}))
    assert text(target(wanted("web")), tolerated, Situation()) == []
    changed = world(replace(container, tolerated={"HostConfig.Memory": 6}))
    assert len(text(target(wanted("web")), changed, Situation())) == 1


def test_M91_a_network_that_was_taken_away_is_joined_again_without_a_lock() -> None:
    container = in_networks(noted())
    found = text(target(wanted("web")), world(container), Situation())
    assert found == ["connect web: is not a member any more"]
    found = text(target(wanted("web")), world(container, network=False), Situation())
    assert found[-1] == "wait service 1/web: waits for 1_default to join it"


def test_nothing_is_started_without_all_its_networks() -> None:
    made = there(wanted("web"), state="created")
    half = in_networks(made)  # not noted either: the agent was killed while it made it
    found = text(target(wanted("web")), world(half), Situation())
    assert found == ["connect web: is not a member any more"]
    assert text(target(wanted("web")), world(made), Situation()) == [
        "start web: created, not started yet"
    ]


def test_a_network_that_was_joined_by_hand_is_left_and_a_strangers_is_not() -> None:
    container = in_networks(noted(), "1_default", "1_other", "theirs")
    found = text(target(wanted("web")), world(container), Situation())
    assert found == ["disconnect web: not in the target"]


def test_M59_a_network_that_the_target_does_not_name_any_more_is_left_under_the_lock() -> None:
    made = spec("i1:latest", 1, ["1_default", "1_b"], [], "")
    container = there(wanted("web"), spec=made, intended=made)
    assert text(target(wanted("web")), world(container), Situation())[0].startswith("take-locks 1")
    assert text(target(wanted("web")), world(container)) == [
        "disconnect web: the target does not name the network any more"
    ]
    waiting = wanted("db", image="new:latest", image_present=False)
    found = text(target(wanted("web"), waiting), world(container))
    assert not any(line.startswith("disconnect") for line in found)


def shared(owner_began: str, guest_began: str, **guest: Any) -> tuple[Any, Any]:
    mode = ContainerSpec("sha256:i1:latest", {"HostConfig.NetworkMode": "service:one"})
    live = replace(mode, fields={"HostConfig.NetworkMode": "container:id-one"})
    one, two = wanted("one"), wanted("two", spec=mode)
    return target(one, two), world(
        there(one, started_at=owner_began),
        there(two, spec=live, started_at=guest_began, **guest),
    )


@pytest.mark.parametrize(
    ("owner", "guest", "dead"),
    [
        ("2026-01-01T00:00:02Z", "2026-01-01T00:00:01Z", True),
        ("2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z", False),
        ("2026-01-01T00:00:00.12Z", "2026-01-01T00:00:00.119Z", True),
        ("2026-01-01T00:00:00.12Z", "2026-01-01T00:00:00.123Z", False),
        ("2026-01-01T00:00:00.1Z", "2026-01-01T00:00:00.100000001Z", False),
        ("2026-01-01T00:00:00Z", "", False),
    ],
)
def test_M69_who_shares_a_network_that_started_again_is_restarted(
    owner: str, guest: str, dead: bool
) -> None:
    desired, observed = shared(owner, guest)
    found = text(desired, observed)
    assert ("stop two: network of one was recreated" in found) is dead
    if dead:
        assert text(desired, observed, Situation())[0].startswith("take-locks 1")


def test_who_was_stopped_is_not_restarted() -> None:
    desired, observed = shared("2", "1", state="exited")
    assert text(desired, observed, Situation()) == []
