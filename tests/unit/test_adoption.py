"""Containers that nobody noted are adopted when they are as wanted (spec 21 §10.2)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from agent import Rig, remembered, rig, service, target
from fakes.engine import FakeEngine
from fakes.machine import FakeStore

from balena_agent.core.adoption import KEY_VARIABLE, keys_of
from balena_agent.core.looks import Touch
from balena_agent.core.names import SERVICE_ID, SUPERVISOR_API
from balena_agent.core.observed import Container, Observed
from balena_agent.core.preview import preview
from balena_agent.core.steps import EngineStep, RemoveContainer, RenameContainer
from balena_agent.core.target import read_local

API = {SUPERVISOR_API: "1"}
DOCUMENT = target(service("one", labels=API), service("two", 2, network_mode="service:one"))


def settled(agent: Rig) -> FakeEngine:
    agent.post(DOCUMENT)
    agent.settled()
    return agent.engine


def first_life() -> FakeEngine:
    with rig(keys=lambda app, service: f"old-{service}") as agent:
        return settled(agent)


def keys_in(store: FakeStore):  # type: ignore[no-untyped-def]
    """Keys as the real store has them: made new where there is none."""
    return lambda app, service: store.keys.setdefault((app, service), f"new-{service}")


def test_M93_M96_a_lost_store_costs_no_container_and_all_are_noted_again() -> None:
    engine = first_life()
    before = engine.observed
    store = FakeStore()
    with rig(engine=FakeEngine(before), store=store, keys=keys_in(store)) as agent:
        settled(agent)
        assert agent.engine.performed == []
        assert agent.engine.observed == before
    assert store.keys == {(1, "one"): "old-one"}
    assert store.specs.keys() == before.containers.keys()
    memory = remembered(store)
    with rig(engine=FakeEngine(before), memory=memory, keys=keys_in(store)) as agent:
        agent.settled()
        known = agent.published.current.observed.containers.values()
        assert all(c.intended for c in known) and agent.engine.performed == []


def test_no_key_is_made_before_the_first_look() -> None:
    engine = FakeEngine(first_life().observed)
    engine.down = True
    store = FakeStore()
    with rig(engine=engine, store=store, keys=keys_in(store)) as agent:
        agent.post(DOCUMENT)
        agent.until(lambda s: s.desired.apps and "No such file" in s.engine_error)
        assert store.keys == {}
        engine.down = False
        agent.settled()
    assert store.keys == {(1, "one"): "old-one"} and engine.performed == []


def test_what_is_not_as_wanted_is_not_adopted() -> None:
    world = first_life().observed
    odd = {
        k: replace(c, spec=replace(c.spec, image="sha256:old")) for k, c in world.containers.items()
    }
    noted: list[str] = []
    store = FakeStore()
    store.save_specs = lambda specs: noted.extend(specs)  # type: ignore[method-assign,assignment]
    engine = FakeEngine(replace(world, containers=odd))
    with rig(engine=engine, store=store) as agent:
        engine._numbers = itertools.count(100)
        settled(agent)
    removed = {s.container_id for s in engine.performed if isinstance(s, RemoveContainer)}
    assert removed == odd.keys()
    assert set(noted) == engine.observed.containers.keys()


def test_what_the_engine_lacks_neither_keeps_from_adoption_nor_is_drift() -> None:
    world = first_life().observed
    limited = target(
        service("one", labels=API, mem_limit="64m"), service("two", 2, network_mode="service:one")
    )
    lacking = replace(world, unsupported=frozenset({"HostConfig.Memory"}))
    store = FakeStore()
    with rig(engine=FakeEngine(lacking), store=store, keys=keys_in(store)) as agent:
        agent.post(limited)
        agent.settled()
        assert agent.engine.performed == []
    assert store.specs.keys() == world.containers.keys()
    assert list(store.tolerated.values()) == [{"HostConfig.Memory": 0}]


def test_M31_a_share_of_cpus_is_left_out_where_the_kernel_has_none() -> None:
    document = target(service("one", cpus="0.5"))
    for lacks, nano in ((frozenset[str](), 500_000_000), (frozenset({"HostConfig.NanoCpus"}), 0)):
        engine = FakeEngine(replace(rigged(), unsupported=lacks))
        with rig(engine=engine) as agent:
            agent.post(document)
            said = agent.settled().notices
            (made,) = agent.engine.observed.containers.values()
        assert made.spec.fields["HostConfig.NanoCpus"] == nano
        assert any("cpus" in line and "no CPU quota" in line for line in said) is bool(lacks)


LEGACY = "io.balena.legacy-container"


def of_the_old_time(container: Container) -> Container:
    """As it was made when services had no ids."""
    labels = {**container.spec.fields["Labels"], LEGACY: "1", SERVICE_ID: "99"}
    fields = {**container.spec.fields, "Labels": labels}
    return replace(container, service_id=99, spec=replace(container.spec, fields=fields))


def taken_over(before: dict[str, Any], after: dict[str, Any]) -> FakeEngine:
    """The engine after a target came for a world of legacy containers that nobody noted."""
    with rig() as agent:
        agent.post(before)
        agent.settled()
        world = agent.engine.observed
    old = {key: of_the_old_time(made) for key, made in world.containers.items()}
    engine = FakeEngine(replace(world, containers=old))
    engine._numbers = itertools.count(100)
    with rig(engine=engine) as agent:
        agent.until(lambda s: s.looked)
        told = preview(agent.published.current, read_local(after)).steps
        agent.post(after)
        agent.settled()
    assert {type(s) for s in told if isinstance(s, EngineStep)} == {*map(type, engine.performed)}
    return engine


def test_a_legacy_container_is_not_made_anew_only_for_the_id_of_its_service() -> None:
    engine = taken_over(target(service("main")), target(service("main", 7), commit="c2"))
    (container,) = engine.observed.containers.values()
    assert [type(step) for step in engine.performed] == [RenameContainer]
    assert (container.service_id, str(container.name)) == (99, "main_7_1_c2")


def test_a_legacy_container_that_is_not_as_wanted_is_replaced_by_one_of_today() -> None:
    engine = taken_over(target(service("main")), target(service("main", 7, tty=False)))
    (container,) = engine.observed.containers.values()
    assert LEGACY not in container.spec.fields["Labels"]
    assert container.service_id == 7


def test_only_an_app_of_one_service_inherits() -> None:
    both = target(service("main", 7), service("other", 8))
    for before, after in (
        (target(service("main")), both),
        (target(service("main"), service("other", 2)), target(service("main", 7))),
        (target(service("old")), target(service("main", 7))),
    ):
        engine = taken_over(before, after)
        left = [c.spec.fields["Labels"] for c in engine.observed.containers.values()]
        assert not any(LEGACY in labels for labels in left)


def rigged() -> Observed:
    with rig() as agent:
        return agent.engine.observed


def test_what_is_changed_after_the_adoption_is_drift() -> None:
    engine = FakeEngine(first_life().observed)
    store = FakeStore()
    with rig(engine=engine, store=store, keys=keys_in(store)) as agent:
        before = settled(agent).observed.containers
        one = next(c for c in before.values() if c.service == "one")
        lost = replace(one, spec=replace(one.spec, endpoints=one.spec.endpoints[:1]))
        engine.change(
            lambda seen: replace(seen, containers={**seen.containers, one.id: lost}), Touch()
        )
        agent.reconciler.wake(Touch(everything=True))
        agent.until(lambda s: engine.performed, "repaired")
        agent.settled()
        members = engine.observed.containers[one.id].spec.networks
        assert sorted(members) == sorted(one.spec.networks)
        assert engine.observed.containers.keys() == before.keys()


def test_only_a_key_that_the_label_asks_for_is_ours() -> None:
    made = next(c for c in first_life().observed.containers.values() if c.service == "one")
    assert keys_of([made]) == {(1, "one"): "old-one"}

    def without_label(container: Container) -> Container:
        fields = {**container.spec.fields, "Labels": {}}
        return replace(container, spec=replace(container.spec, fields=fields))

    assert keys_of([without_label(made)]) == {}
    long = {**made.spec.fields, "Env": {KEY_VARIABLE: "x" * 1000}}
    assert keys_of([replace(made, spec=replace(made.spec, fields=long))]) == {}


def test_a_renewed_key_is_handed_out_with_a_target_not_with_an_address() -> None:
    keys = ["first"]
    with rig(keys=lambda app, service: keys[0]) as agent:
        document = target(service("one", labels={SUPERVISOR_API: "1"}))
        agent.post(document)
        before = agent.settled()
        ids = agent.ids()
        keys[0] = "second"
        moved = replace(before.facts, addresses=("192.0.2.9",), connectivity="full")
        agent.reconciler.new_facts(moved)
        agent.until(lambda s: s.facts.addresses == ("192.0.2.9",) and s.settled)
        assert agent.ids() == ids
        agent.post({**document, "unknown": 1})
        agent.until(lambda s: s.settled and agent.ids() != ids, "the new key is handed out")
