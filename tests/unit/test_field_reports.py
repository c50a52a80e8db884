"""What supervisors have stumbled over in the field: it ends in rest, or in a wait with a reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from agent import DEADLINE, Rig, observed, rig, service, target

from balena_agent.core.errors import DeadlineExceeded, EngineFailed, EngineUnavailable
from balena_agent.core.intent import StopService
from balena_agent.core.looks import Touch
from balena_agent.core.names import network_name
from balena_agent.core.observed import Container
from balena_agent.core.spec import ContainerSpec
from balena_agent.core.steps import Fetch, RemoveContainer, StartContainer, Step
from balena_agent.core.traits import identity

CHANGED = {"environment": {"A": "b"}}


def count(agent: Rig) -> Counter[str]:
    """How often each step is tried from now on, well or not."""
    tried: Counter[str] = Counter()
    agent.engine.before = lambda step, ticket: tried.update([identity(step)])
    return tried


def named(name: str) -> Container:
    """Somebody else's container."""
    spec = ContainerSpec("other")
    return Container("foreign", "", 0, "", 0, None, "running", spec, raw_name=name)


def put(agent: Rig, container: Container) -> None:
    agent.engine.change(
        lambda seen: replace(seen, containers={**seen.containers, container.id: container}),
        Touch(everything=True),
    )


def of(agent: Rig, name: str) -> Container:
    return next(c for c in agent.engine.observed.containers.values() if c.service == name)


def apps(*documents: dict[str, Any]) -> dict[str, Any]:
    """One target of several."""
    known = {k: v for each in documents for k, v in each["local"]["apps"].items()}
    return {"local": {"name": "dev", "config": {}, "apps": known}}


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["create", "rename"])
def test_a_name_that_somebody_else_has_is_told_and_waited_for(what: str) -> None:
    """meta-balena#280, home-assistant/supervisor#418."""
    with rig() as agent:
        if what == "rename":
            agent.post(target(service("one"), commit="c0"))
            agent.settled()
        put(agent, named("one_1_1_c1"))
        tried, began = count(agent), agent.clock.monotonic()
        agent.post(target(service("one")))
        step = f"{what} service 1/one"
        seen = agent.until(lambda s: step in s.failures and s.failures[step].count >= 4)
        assert '"/one_1_1_c1" is already in use' in seen.last_error
        assert agent.clock.monotonic() - began > 5, "three pauses: 1, 2 and 4 seconds"
        assert tried[step] == 4 and tried.keys() <= {step, "create-network network 1_default"}
        if what == "rename":
            assert agent.containers()["one"] == "running"
        agent.engine.change(
            lambda w: replace(w, containers={k: c for k, c in w.containers.items() if c.name}),
            Touch(),
        )
        agent.reconciler.wake(Touch(everything=True))
        agent.until(lambda s: s.settled and agent.containers() == {"one": "running"})


# ---- networks and ports --------------------------------------------------------------------------


def test_a_network_that_the_engine_never_lets_go_holds_up_nothing_else() -> None:
    """balena-supervisor#2370: `has active endpoints`, though nobody is there (moby#42119)."""
    with rig() as agent:
        more = target(service("one"))
        more["local"]["apps"]["1"]["networks"] = {"back": {}}
        agent.post(more)
        agent.settled()
        stuck = f"remove-network network {network_name('1', 'back')}"
        agent.engine.fail(stuck, EngineFailed("network 1_back has active endpoints", 403), 4)
        tried = count(agent)
        agent.post(apps(target(service("one", **CHANGED)), target(service("two", 2), app=2)))
        seen = agent.until(lambda s: stuck in s.failures and s.failures[stuck].count == 3)
        assert agent.containers() == {"one": "running", "two": "running"}
        assert of(agent, "one").spec.fields["Env"]["A"] == "b"
        assert any("has active endpoints" in str(wait) for wait in seen.plan.waits)
        assert tried[stuck] == 3
        agent.settled()


def test_two_networks_of_one_name_become_one() -> None:
    """balena-supervisor#590: `network is ambiguous`."""
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        (net,) = agent.engine.observed.networks.values()
        agent.engine.change(
            lambda w: replace(w, networks={**w.networks, "twin": replace(net, id="twin")}), Touch()
        )
        agent.reconciler.wake(Touch(everything=True))
        agent.until(lambda s: len(agent.engine.observed.networks) == 1)
        agent.settled()
        assert agent.containers() == {"one": "running"}


def test_a_port_that_a_service_of_the_old_release_still_has_is_free_in_the_end() -> None:
    """balena-supervisor#1634: the failing start must not keep the other service from going."""
    with rig() as agent:
        agent.post(target(service("old", ports=["80:80"])))
        agent.settled()
        taken = EngineFailed("Bind for 0.0.0.0:80 failed: port is already allocated", 500)

        def refuse(step: Step, ticket: object) -> None:
            if isinstance(step, StartContainer) and "old" in agent.containers():
                raise taken

        agent.engine.before = refuse
        agent.post(target(service("new", 2, ports=["80:80"])))
        agent.settled()
        assert agent.containers() == {"new": "running"}


# ---- containers ----------------------------------------------------------------------------------


def test_a_container_that_cannot_be_stopped_holds_up_nobody_else() -> None:
    """balena-supervisor#1632: neither other services, nor other apps, nor the next target."""
    with rig() as agent:
        both = target(service("loop"), service("web", 2))
        agent.post(apps(both, target(service("two", 3), app=2)))
        agent.settled()
        stop = "stop service 1/loop"
        agent.engine.fail(stop, DeadlineExceeded("tried to kill it, got no exit event"), 4)
        changed = target(service("loop", **CHANGED), service("web", 2, **CHANGED))
        agent.post(apps(changed, target(service("two", 3, **CHANGED), app=2)))
        agent.until(lambda s: stop in s.failures and s.failures[stop].count == 3)
        for name in ("web", "two"):
            assert of(agent, name).spec.fields["Env"]["A"] == "b", name
        agent.post(apps(both, target(service("two", 3), app=2)))
        agent.settled()
        assert "A" not in of(agent, "web").spec.fields["Env"]


def test_a_removal_under_way_is_waited_for_and_not_asked_for_again_and_again() -> None:
    """The engine takes a second request for done ("already in progress")."""
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        tried = count(agent)
        agent.engine.perform = _without_effect(agent, RemoveContainer)  # type: ignore[method-assign]
        put(agent, replace(of(agent, "one"), state="removing"))
        agent.reconciler.wake(Touch(everything=True))
        seen = agent.until(lambda s: any("being removed" in str(w) for w in s.plan.waits))
        assert not seen.failures and not tried
        agent.engine.change(lambda w: replace(w, containers={}), Touch())
        agent.reconciler.wake(Touch(everything=True))
        agent.until(lambda s: agent.containers() == {"one": "running"})


def _without_effect(agent: Rig, kind: type) -> Any:
    """The engine says yes to steps of this kind, and does nothing."""
    perform = agent.engine.perform

    def performed(step: Any, ticket: Any) -> None:
        if isinstance(step, kind):
            agent.engine.before(step, ticket)
        else:
            perform(step, ticket)

    return performed


def test_a_step_that_is_done_without_effect_is_tried_ever_more_rarely() -> None:
    """balena-supervisor#1131, #198: an engine whose own books are wrong."""
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        perform, tried = agent.engine.perform, count(agent)
        agent.engine.perform = _without_effect(agent, RemoveContainer)  # type: ignore[method-assign]
        agent.post(target(service("one", **CHANGED)))
        step, began = "remove service 1/one", agent.clock.monotonic()
        seen = agent.until(lambda s: step in s.failures and s.failures[step].count == 3)
        assert tried[step] == 3 and agent.clock.monotonic() - began >= 3.0
        assert "nothing has changed" in seen.last_error
        agent.engine.perform = perform  # type: ignore[method-assign]
        agent.settled()
        assert of(agent, "one").spec.fields["Env"]["A"] == "b"
        assert not agent.published.current.failures


# ---- downloads and images ------------------------------------------------------------------------


def test_a_pull_that_an_engine_restart_breaks_off_is_begun_again_and_is_no_failure() -> None:
    """balena-supervisor#1575."""
    with rig(observed()) as agent:

        def restart(step: Step, ticket: object) -> None:
            if isinstance(step, Fetch):
                agent.engine.before = lambda step, ticket: None
                agent.engine.down = True
                raise EngineUnavailable("connection reset by peer")

        agent.engine.before = restart
        agent.post(target(service("one")))
        agent.until(lambda s: s.engine_error and agent.engine.down)
        agent.engine.down = False
        agent.settled()
        assert agent.containers() == {"one": "running"}
        assert agent.store.fetch_failures == {}


def test_an_image_that_is_deleted_under_us_is_fetched_again() -> None:
    """balena-supervisor#1084, without any word from the engine: `no such image`."""
    with rig() as agent:
        agent.post(target(service("other", 2, image="other"), app=2))
        agent.settled()

        gone: list[Step] = []

        def deleted(step: Step, ticket: object) -> None:
            if identity(step) == "create service 1/one":
                gone.append(step)
                agent.engine.before = lambda step, ticket: None
                kept = {k: i for k, i in agent.engine.observed.images.items() if "busy" not in k}
                agent.engine.change(lambda w: replace(w, images=kept), Touch())

        agent.engine.before = deleted
        agent.post(apps(target(service("other", 2, image="other"), app=2), target(service("one"))))
        agent.until(lambda s: bool(gone))
        began = agent.clock.monotonic()
        agent.settled()
        assert agent.containers() == {"one": "running", "other": "running"}
        assert agent.clock.monotonic() - began < 30, "not only with the next look at everything"


def test_an_event_that_is_lost_costs_a_minute_at_most() -> None:
    """balena-supervisor#1612: everything downloaded, nothing running."""
    with rig() as agent:
        agent.post(target(service("one")))
        agent.settled()
        agent.engine.change(lambda w: replace(w, containers={}), Touch())
        agent.clock.advance(60)
        agent.until(lambda s: agent.containers() == {"one": "running"})


# ---- the host ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wall", [0.0, 1_000.0, 4_000_000_000.0])
def test_a_clock_that_jumps_neither_stops_retries_nor_makes_them_hot(wall: float) -> None:
    """meta-balena#2221: a device without a battery for its clock learns the time later."""
    with rig() as agent:
        start = "start service 1/one"
        agent.engine.fail(start, EngineFailed("no such device", 500), 3)
        tried = count(agent)
        agent.post(target(service("one")))
        agent.until(lambda s: start in s.failures and s.failures[start].count == 2)
        began = agent.clock.monotonic()
        agent.clock.set(wall)
        agent.settled()
        assert tried[start] == 4
        assert 3.0 < agent.clock.monotonic() - began < 60.0  # 4 s and jitter


def test_a_read_only_disk_is_told_and_services_are_still_stopped_and_started() -> None:
    with rig() as agent:
        agent.post(target(service("one"), service("two", 2)))
        agent.settled()
        words = "mkdir /var/lib/docker/containers/x: read-only file system"
        agent.engine.fail("create service 1/one", EngineFailed(words, 500), 3)
        agent.post(target(service("one", **CHANGED), service("two", 2)))
        seen = agent.until(lambda s: "create service 1/one" in s.failures)
        assert "read-only file system" in seen.last_error
        assert agent.reconciler.submit(StopService(("1", "two"))).result(DEADLINE) == "stopped"
        agent.settled()
        assert agent.containers() == {"one": "running", "two": "exited"}
