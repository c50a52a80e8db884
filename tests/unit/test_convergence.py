"""The proof that the planner always comes to rest, and that the proof itself can fail."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
from convergence import Case, compiled, handing_over, random_case, run, situation

from balena_agent.core import ground, handover, reboots, renewal, services, supervisor
from balena_agent.core import planner as planner_module
from balena_agent.core.planner import plan
from balena_agent.core.spec import Difference
from balena_agent.core.steps import CreateNetwork, CreateVolume, ReinstateContainer, ReleaseLocks
from balena_agent.runtime import orders

CASES = int(os.environ.get("BALENA_AGENT_PROOF_CASES", "20000"))
"""20,000 in every run, 200,000 and more at night."""

BATCH = 250


def failures(count: int, first: int = 0, **how: object) -> list[str]:
    found = []
    for seed in range(first, first + count):
        if wrong := run(random_case(seed), **how):  # type: ignore[arg-type]
            found.append(f"seed {seed}: {wrong}")
    return found


def caught(words: str, **how: object) -> bool:
    """Whether some case fails with these words; the first one is enough."""
    return any(words in line for first in range(0, 5000, 20) for line in failures(20, first, **how))


def batch(first: int) -> list[str]:
    return failures(min(BATCH, CASES - first), first)


def test_every_random_case_settles_in_its_target() -> None:
    """On all cores. The figure is printed (`pytest -s`); a slow machine is no failure."""
    begun = time.monotonic()
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        found = [line for lines in pool.map(batch, range(0, CASES, BATCH)) for line in lines]
    print(f"{CASES} cases in {time.monotonic() - begun:.1f} s")
    assert found == []


def handed_over(count: int, seen: dict[str, int]) -> list[str]:
    """Run cases in which every service hands over: what went wrong, a service without a running
    container at any moment included. `seen` counts what the cases went through."""

    def watched(desired, observed, now):  # type: ignore[no-untyped-def]
        running = [c.key for c in observed.containers.values() if c.state == "running"]
        for service in (s for app in desired.apps for s in app.services):
            if service.key not in running:
                raise RuntimeError(f"{service.key} is down")
        seen["side by side"] += len(running) > len(set(running))
        seen["failed"] += any(name.startswith("await-handover") for name in now.backoff)
        return plan(desired, observed, now)

    found = []
    for seed in range(count):
        try:
            found.append(run(handing_over(seed), planner=watched))
        except RuntimeError as error:
            found.append(str(error))
    return [wrong for wrong in found if wrong]


def test_no_hand_over_leaves_its_service_without_a_running_container() -> None:
    """Whatever happens: deaths of the agent, locks of users, steps that fail, new containers that
    end or are ill."""
    seen = {"side by side": 0, "failed": 0}
    assert handed_over(CASES // 20, seen) == []
    assert all(count > CASES // 20 for count in seen.values()), seen


def test_proof_catches_a_hand_over_to_a_dead_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "fault", lambda new: "")
    wrong = handed_over(20, {"side by side": 0, "failed": 0})
    assert any("is down" in line for line in wrong)


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
    honest = ground.differences

    def one_sided(wanted, actual, *rest):  # type: ignore[no-untyped-def]
        if wanted.fields["Cmd"] == ["run1"]:
            return (Difference("HostConfig.RestartPolicy", "", "no"),)
        return honest(wanted, actual, *rest)

    monkeypatch.setattr(ground, "differences", one_sided)
    assert failures(40)


def test_proof_catches_users_of_a_network_of_ours_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "uses", lambda container: False)
    assert caught("are not on supervisor0")


def test_proof_catches_dependents_that_stay_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "renewed_parent", lambda *_: "")
    assert caught("not made anew after")


def test_proof_catches_a_start_in_the_wrong_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "awaits_boot", lambda *_: False)
    assert caught("in the boot that it was made in")


def test_proof_catches_a_reboot_that_comes_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reboots, "_work_is_left", lambda *_: False)
    assert caught("not last")


def test_proof_catches_a_reboot_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_module, "with_reboot", lambda found, *_: found)
    assert caught("still")


def test_proof_catches_a_deadlock_between_two_rules() -> None:
    """A network that waits for its users, whose users wait for it (balena-supervisor#2349)."""

    def deadlocked(desired, observed, now):  # type: ignore[no-untyped-def]
        found = plan(desired, observed, now)
        kept = tuple(s for s in found.steps if not isinstance(s, CreateNetwork))
        return replace(found, steps=kept)

    assert caught("still busy", planner=deadlocked)


def test_proof_catches_a_container_that_a_death_leaves_stopped() -> None:
    """Killed between stop and remove, and then the container was right (balena-supervisor#2257)."""

    def forgetful(desired, observed, now):  # type: ignore[no-untyped-def]
        return plan(desired, observed, replace(now, stopped_by_agent={}))

    assert caught("stopped by the agent and left so", planner=forgetful)


def test_proof_catches_drift_that_nobody_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "repair", lambda *_: True)
    for words in ("restart policy", "in networks"):
        assert caught(words), words


def test_proof_catches_a_dead_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "outlived", lambda *_: False)
    assert caught("in a dead namespace")


def test_proof_catches_locks_that_a_death_leaves_behind() -> None:
    def deaf(desired, observed, now):  # type: ignore[no-untyped-def]
        found = plan(desired, observed, now)
        if found.steps and all(isinstance(step, ReleaseLocks) for step in found.steps):
            return replace(found, steps=())
        return found

    assert caught("are still held", planner=deaf)


def test_proof_catches_a_container_that_stays_retired() -> None:
    """A hand-over that is not taken back leaves a container that no power cut brings back."""

    def heedless(desired, observed, now):  # type: ignore[no-untyped-def]
        found = plan(desired, observed, now)
        kept = tuple(s for s in found.steps if not isinstance(s, ReinstateContainer))
        return found if kept == found.steps else replace(found, steps=kept, waits=())

    assert caught("wrong name", planner=heedless)


def test_proof_catches_a_renewal_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes what there is now for what was there then renews for ever."""

    def everything(intent, observed):  # type: ignore[no-untyped-def]
        return {
            app_id: replace(begun, containers=frozenset(observed.containers))
            for app_id, begun in intent.renewals.items()
        }

    monkeypatch.setattr(orders, "left_over", everything)
    assert caught("still busy")


def test_proof_catches_a_second_purge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that is forgotten only with the whole renewal goes again as soon as it is back."""

    def forgetful(intent, observed):  # type: ignore[no-untyped-def]
        return dict(intent.renewals)

    def also_volumes(draft, app, *rest):  # type: ignore[no-untyped-def]
        planned(draft, app, *rest)
        for volume in app.volumes:
            if app.app_id in draft.situation.intent.renewals:
                draft.emit(CreateVolume(app.uuid, app.app_id, volume, "planted"))

    planned = planner_module._plan_app
    monkeypatch.setattr(orders, "left_over", forgetful)
    monkeypatch.setattr(planner_module, "_plan_app", also_volumes)
    assert caught("is purged twice")


def test_proof_catches_a_purge_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "take_down", lambda *_: None)
    monkeypatch.setattr(renewal, "_makes", lambda *_: False)
    assert caught("still busy")


def test_proof_catches_two_steps_on_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case | None = None

    def twice(desired, observed, now):  # type: ignore[no-untyped-def]
        return plan(desired, observed, replace(now, running={}))

    wrong = [w for seed in range(60) if (w := run(case := random_case(seed), planner=twice))]
    assert wrong and case is not None
    assert any("under way" in line for line in wrong)
    assert planner_module.plan is plan
