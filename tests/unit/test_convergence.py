"""The proof that the planner always comes to rest, and that the proof itself can fail."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import pytest
from convergence import Case, compiled, random_case, run, situation

from balena_agent.core import planner as planner_module
from balena_agent.core import services
from balena_agent.core.planner import plan
from balena_agent.core.spec import Difference
from balena_agent.core.steps import CreateNetwork, ReleaseLocks

CASES = int(os.environ.get("BALENA_AGENT_PROOF_CASES", "2000"))


def failures(count: int, **how: object) -> list[str]:
    found = []
    for seed in range(count):
        if wrong := run(random_case(seed), **how):  # type: ignore[arg-type]
            found.append(f"seed {seed}: {wrong}")
    return found


def test_every_random_case_settles_in_its_target() -> None:
    assert failures(CASES) == []


def test_a_settled_world_gets_no_steps_however_often_it_is_looked_at() -> None:
    for seed in range(200):
        case = random_case(seed)
        assert run(case) == ""
        for tick in (1000, 1001):
            again = plan(compiled(case), case.world, situation(case, tick))
            assert (again.steps, again.waits) == ((), ())


def test_proof_catches_a_field_that_is_normalised_on_one_side_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The endless replace loop of meta-balena#3876, planted."""
    honest = services.differences

    def one_sided(wanted, actual, *rest):  # type: ignore[no-untyped-def]
        if wanted.fields["Cmd"] == ["run1"]:
            return (Difference("HostConfig.RestartPolicy", "", "no"),)
        return honest(wanted, actual, *rest)

    monkeypatch.setattr(services, "differences", one_sided)
    assert failures(40)


def test_proof_catches_a_deadlock_between_two_rules() -> None:
    """A network that waits for its users, whose users wait for it (balena-supervisor#2349)."""

    def deadlocked(desired, observed, now):  # type: ignore[no-untyped-def]
        found = plan(desired, observed, now)
        kept = tuple(s for s in found.steps if not isinstance(s, CreateNetwork))
        return replace(found, steps=kept)

    found = failures(40, planner=deadlocked)
    assert found
    assert re.search("still busy", found[0])


def test_proof_catches_a_container_that_a_death_leaves_stopped() -> None:
    """Killed between stop and remove, and then the container was right (balena-supervisor#2257)."""

    def forgetful(desired, observed, now):  # type: ignore[no-untyped-def]
        return plan(desired, observed, replace(now, stopped_by_agent=frozenset()))

    found = failures(200, planner=forgetful)
    assert any("stopped by the agent and left so" in line for line in found)


def test_proof_catches_drift_that_nobody_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "repair", lambda *_: True)
    found = failures(200)
    for words in ("wrong restart policy", "in networks"):
        assert any(words in line for line in found), words


def test_proof_catches_a_dead_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "outlived", lambda *_: False)
    assert any("in a dead namespace" in line for line in failures(400))


def test_proof_catches_locks_that_a_death_leaves_behind() -> None:
    def deaf(desired, observed, now):  # type: ignore[no-untyped-def]
        found = plan(desired, observed, now)
        if found.steps and all(isinstance(step, ReleaseLocks) for step in found.steps):
            return replace(found, steps=())
        return found

    assert any("are still held" in line for line in failures(40, planner=deaf))


def test_proof_catches_two_steps_on_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case | None = None

    def twice(desired, observed, now):  # type: ignore[no-untyped-def]
        return plan(desired, observed, replace(now, running={}))

    wrong = [w for seed in range(60) if (w := run(case := random_case(seed), planner=twice))]
    assert wrong and case is not None
    assert any("under way" in line for line in wrong)
    assert planner_module.plan is plan
