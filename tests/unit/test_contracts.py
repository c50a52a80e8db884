"""Contracts: what the device offers, when a requirement is met, and what becomes of the app."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from agent import observed, rig, service, target

from balena_agent.core.compose import desired_app
from balena_agent.core.contracts import (
    Fact,
    device_facts,
    judge,
    l4t_version,
    omission,
    read_contract,
    reasons,
    rejection,
    satisfied,
)
from balena_agent.core.describe import describe, status_line
from balena_agent.core.observed import HostFacts
from balena_agent.core.report import applications_state, local_target_state
from balena_agent.core.target import App, Release, Service

HOST = HostFacts(
    device_type="jetson-nano", device_arch="aarch64", os_id="balena-os", os_version="5.5.5+rev3",
    kernel_name="Linux", kernel_release="4.9.337-l4t-r32.7", compat_version="19.0.5",
)  # fmt: skip
FACTS = device_facts(HOST)
TOO_NEW = {"type": "sw.container", "requires": [{"type": "sw.supervisor", "version": ">=999"}]}
OPTIONAL = {"io.balena.features.optional": "1"}


def unmet(*requires: Any, facts: tuple[Fact, ...] = FACTS) -> tuple[str, ...]:
    return reasons(read_contract({"requires": list(requires)}), facts)


def svc(name: str, contract: Any = None, **labels: str) -> Service:
    return Service(name, 1, 1, name, labels=labels, contract=contract)


def app(*services: Service, **more: Any) -> App:
    release = Release("c1", 1, {s.name: s for s in services})
    return App("a" * 32, 1, "shop", release=release, **more)


# ---- the device ---------------------------------------------------------------------------


def test_everything_that_is_known_of_a_device() -> None:
    assert {(f.type, f.slug, f.version) for f in FACTS} == {
        ("sw.supervisor", "", "19.0.5"),
        ("sw.application", "balena-supervisor", "19.0.5"),
        ("hw.device-type", "jetson-nano", ""),
        ("arch.sw", "aarch64", ""),
        ("sw.l4t", "", "32.7.0"),
        ("sw.os", "balena-os", "5.5.5+rev3"),
        ("sw.kernel", "linux", "4.9.337"),
        ("sw.spec", "compose", "2.4.0"),
    }


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"os_version": ""}, "sw.os"),
        ({"os_id": ""}, "sw.os"),
        ({"kernel_name": ""}, "sw.kernel"),
        ({"kernel_release": "6.12-rc1"}, "sw.kernel"),
        ({"kernel_release": "6.1.0"}, "sw.l4t"),
    ],
)
def test_what_is_not_known_is_no_fact(change: dict[str, str], missing: str) -> None:
    assert missing not in {fact.type for fact in device_facts(replace(HOST, **change))}


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("4.4.38-l4t-r28.2", "28.2.0"),
        ("4.9.140-l4t-r32.3.1", "32.3.1"),
        ("4.9.140-l4t-r32.3.1-dirty", "32.3.1"),
        ("4.9.140-l4t-r32.7+g7b2f4ae8b", "32.7.0"),
        ("4.9.140-l4t-r32", ""),
        ("6.1.0-rpi7", ""),
        ("", ""),
    ],
)
def test_l4t_versions(release: str, version: str) -> None:
    assert l4t_version(release) == version


# ---- requirements -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "need",
    [
        {"type": "sw.supervisor"},
        {"type": "sw.supervisor", "version": ">=19"},
        {"type": "sw.supervisor", "version": None, "slug": None, "data": None},
        {"type": "sw.supervisor", "version": "", "data": {}, "name": "unheard of", "x": 1},
        {"type": "sw.l4t", "version": ">=32.7 <33"},
        {"type": "sw.os", "slug": "balena-os", "version": ">=5.5.5"},
        {"type": "sw.kernel", "slug": "linux", "version": "^4.9"},
        {"type": "hw.device-type", "slug": "jetson-nano"},
        {"type": "arch.sw", "slug": "aarch64"},
        {"type": "sw.spec", "slug": "compose", "version": ">=2"},
        {"or": []},
        {"or": [{"type": "sw.nonsense"}, {"type": "arch.sw", "slug": "aarch64"}]},
        {"or": [{"or": [{"type": "sw.nonsense"}]}, {"or": [{"type": "arch.sw"}]}]},
    ],
)
def test_requirements_that_are_met(need: Any) -> None:
    assert unmet(need) == ()


@pytest.mark.parametrize(
    "need",
    [
        {"type": "sw.supervisor", "version": ">=999"},
        {"type": "sw.supervisor", "slug": "balena-supervisor"},
        {"type": "sw.os", "slug": "balena-os", "version": ">5.5.5+rev2"},
        {"type": "sw.os", "slug": "debian"},
        {"type": "hw.device-type", "slug": "jetson"},
        {"type": "hw.device-type", "version": "1.0.0"},
        {"type": "hw.device-type", "slug": "jetson-nano", "data": {"arch": "aarch64"}},
        {"type": "sw.spec", "slug": "compose", "version": ">=2.5"},
        {"type": "sw.spec", "slug": "stack"},
        {"type": "sw.nonsense"},
        {"or": [{"type": "sw.nonsense"}, {"type": "arch.sw", "slug": "amd64"}]},
    ],
)
def test_requirements_that_are_not_met(need: Any) -> None:
    assert len(unmet(need)) == 1
    assert len(unmet({"type": "arch.sw"}, need)) == 1


def test_versions_that_are_no_semver_are_compared_as_text() -> None:
    facts = (Fact("sw.os", "ubuntu", "22.04"), Fact("sw.supervisor", version="1.0.0"))
    assert not unmet({"type": "sw.os", "version": "22.04"}, facts=facts)
    assert unmet({"type": "sw.os", "version": ">=20"}, facts=facts)
    assert unmet({"type": "sw.supervisor", "version": "latest"}, facts=facts)


def test_data_must_be_contained_in_one_fact() -> None:
    facts = (Fact("x", "a", data={"ram": {"size": 4, "kind": "ddr"}, "on": True}), Fact("x", "b"))
    assert not unmet({"type": "x", "data": {"ram": {"size": 4}}}, facts=facts)
    assert not unmet({"type": "x", "slug": "a", "data": {"on": True}}, facts=facts)
    assert unmet({"type": "x", "data": {"ram": {"size": 8}}}, facts=facts)
    assert unmet({"type": "x", "data": {"ram": {"size": {"gb": 4}}}}, facts=facts)
    assert unmet({"type": "x", "slug": "b", "data": {"on": True}}, facts=facts)


def test_the_reason_says_what_is_here_instead() -> None:
    (said,) = unmet({"type": "sw.supervisor", "version": ">=999"})
    assert said == "needs sw.supervisor >=999 but this device has 19.0.5"
    (said,) = unmet({"or": [{"type": "a.b", "slug": "c"}, {"type": "d", "data": {"e": 1}}]})
    assert said == "needs one of (a.b c, d with certain data)"


# ---- what cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize("raw", [{}, {"requires": None}, {"requires": []}, {"slug": "s", "x": []}])
def test_contracts_that_ask_for_nothing(raw: Any) -> None:
    contract = read_contract(raw)
    assert contract.type == "sw.container" and contract.problems == ()
    assert reasons(contract, ()) == ()


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ([], "contract"),
        ({"type": 5}, "contract.type"),
        ({"slug": {}}, "contract.slug"),
        ({"requires": {}}, "contract.requires"),
        ({"requires": ["sw.os"]}, "contract.requires[0]"),
        ({"requires": [None]}, "contract.requires[0]"),
        ({"requires": [{}]}, "contract.requires[0].type"),
        ({"requires": [{"type": ""}]}, "contract.requires[0].type"),
        ({"requires": [{"type": "a\nb"}]}, "contract.requires[0].type"),
        ({"requires": [{"type": "a"}, {"type": ["b"]}]}, "contract.requires[1].type"),
        ({"requires": [{"type": "a", "version": 2}]}, "contract.requires[0].version"),
        ({"requires": [{"type": "a", "slug": True}]}, "contract.requires[0].slug"),
        ({"requires": [{"type": "a", "data": "x"}]}, "contract.requires[0].data"),
        ({"requires": [{"or": {}}]}, "contract.requires[0].or"),
        ({"requires": [{"or": None}]}, "contract.requires[0].type"),
        ({"requires": [{"or": [{"type": 1}]}]}, "contract.requires[0].or[0].type"),
    ],
)
def test_a_contract_that_cannot_be_read_is_unmet(raw: Any, path: str) -> None:
    contract = read_contract(raw)
    (problem,) = contract.problems
    assert f" at {path} but" in problem
    assert problem in reasons(contract, FACTS)


def test_deep_nesting_is_a_problem_not_a_crash() -> None:
    need: dict[str, Any] = {"type": "arch.sw"}
    for _ in range(5000):
        need = {"or": [need]}
    assert "nested" in read_contract({"requires": [need]}).problems[0]


def test_no_contract_makes_us_raise() -> None:
    dice = random.Random(39)
    texts = ["", "or", "type", "slug", "version", "requires", "data", "sw.os", ">=1 ||", "^", "\0"]
    leaves: list[Any] = [None, True, 0, -1.5, *texts]

    def some(depth: int) -> Any:
        kind = dice.randrange(3) if depth else 0
        if kind == 1:
            return [some(depth - 1) for _ in range(dice.randrange(4))]
        if kind == 2:
            return {dice.choice(texts): some(depth - 1) for _ in range(dice.randrange(5))}
        return dice.choice(leaves)

    for _ in range(3000):
        contract = read_contract({"requires": some(5), "slug": some(1)})
        assert all(isinstance(line, str) for line in reasons(contract, FACTS))
        assert all(satisfied(need, FACTS) in (True, False) for need in contract.requires)


# ---- apps ---------------------------------------------------------------------------------


def test_the_sentences_are_the_peers_and_say_why() -> None:
    verdict = judge({"a": svc("a", TOO_NEW), "ok": svc("ok"), "b": svc("b", TOO_NEW)}, FACTS)
    why = "needs sw.supervisor >=999 but this device has 19.0.5"
    assert not verdict.accepted
    assert rejection("shop", verdict).splitlines() == [
        "Some releases were rejected due to having unmet requirements:",
        "  shop: Services with unmet requirements: a, b",
        f"    a: {why}",
        f"    b: {why}",
    ]
    assert omission(verdict).splitlines()[0] == (
        "Not running containers because of contract violations: a. b"
    )


def test_long_contracts_make_short_sentences() -> None:
    needs = [{"type": f"t{i}", "slug": "s" * 255} for i in range(500)]
    contract = {"requires": [{"or": needs}, *needs]}
    told = rejection("shop", judge({"a": svc("a", contract)}, FACTS))
    assert len(told) < 1000 and told.endswith("(+498)")


@pytest.mark.parametrize(
    ("label", "value", "accepted"),
    [
        ("io.balena.features.optional", "1", True),
        ("io.balena.features.optional", "true", True),
        ("io.resin.features.optional", "on", True),
        ("io.balena.features.optional", "0", False),
        ("io.balena.features.optional", "", False),
        ("io.balena.features.other", "1", False),
    ],
)
def test_which_services_are_optional(label: str, value: str, accepted: bool) -> None:
    assert judge({"a": svc("a", TOO_NEW, **{label: value})}, FACTS).accepted is accepted


def test_one_unmet_mandatory_service_rejects_the_app_and_all_unmet_ones_are_named() -> None:
    asked = app(svc("a", TOO_NEW), svc("b", TOO_NEW, **OPTIONAL), svc("c"))
    found = desired_app(asked, lambda _: None, HOST, lambda _a, _s: "")
    assert "  shop: Services with unmet requirements: a, b\n" in found.problem
    assert not found.services and not found.left_out and found.commit == "c1"


def test_optional_services_are_left_out() -> None:
    asked = app(svc("b", {"requires": 5}, **OPTIONAL), svc("c"))
    found = desired_app(asked, lambda _: None, HOST, lambda _a, _s: "")
    assert not found.problem and [s.name for s in found.services] == ["c"]
    assert found.left_out == {"b"}
    (said,) = found.warnings
    assert said.startswith("Not running containers because of contract violations: b\n    b: ")


def test_parts_of_the_host_os_are_not_judged() -> None:
    asked = app(svc("os", TOO_NEW, **{"io.balena.image.store": "root"}), is_host=True)
    assert not desired_app(asked, lambda _: None, HOST, lambda _a, _s: "").problem


# ---- the whole agent ----------------------------------------------------------------------


def both(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    apps = {**one["local"]["apps"], **two["local"]["apps"]}
    return {"local": {**one["local"], "apps": apps}}


def test_S39_an_unmet_contract_leaves_the_app_as_it_is_and_other_apps_go_on() -> None:
    with rig(observed("busybox", "newer")) as agent:
        agent.post(target(service("main", 1), service("side", 2)))
        agent.settled()
        before = dict(agent.engine.observed.containers)
        new = [
            service("main", 1, image="newer", contract=TOO_NEW),
            service("more", 3, environment={"A": "b"}),
        ]
        other = target(service("other", 9), commit="d1", app=2)
        agent.post(both(target(*new, commit="c2"), other))
        snapshot = agent.settled()
        now = agent.engine.observed.containers
        assert {key: now[key] for key in before} == before
        assert agent.containers() == {"main": "running", "side": "running", "other": "running"}
        assert agent.store.commits == {"1": "c1", "2": "d1"}
        state = applications_state(snapshot, lambda _: True)
        assert state["app1"]["updateStatus"] == "rejected"
        assert state["app2"]["updateStatus"] == "done"
        told = "app1: Services with unmet requirements: main"
        assert [told in line for line in snapshot.notices] == [True]
        assert told in status_line(snapshot) and "\n" not in status_line(snapshot)
        new[0]["contract"] = {"requires": [{"type": "sw.supervisor", "version": ">=19"}]}
        agent.post(both(target(*new, commit="c2"), other))
        snapshot = agent.settled()
        assert snapshot.notices == () and agent.store.commits["1"] == "c2"
        assert agent.containers() == {"main": "running", "more": "running", "other": "running"}


def test_S39_an_optional_service_alone_is_missing() -> None:
    with rig() as agent:
        agent.post(target(service("main", 1), service("extra", 2)))
        agent.settled()
        main = agent.ids()["main"]
        extra = service("extra", 2, contract=TOO_NEW, labels=OPTIONAL, image="not-here")
        agent.post(target(service("main", 1, depends_on=["extra"]), extra, commit="c2"))
        snapshot = agent.settled()
        assert agent.containers() == {"main": "running"} and agent.ids()["main"] == main
        assert agent.store.commits == {"1": "c2"}
        state = applications_state(snapshot, lambda _: True)["app1"]
        assert state["updateStatus"] == "done" and state["services"].keys() == {"main"}
        (app_shown,) = describe(snapshot, "1")["apps"]
        assert [s["name"] for s in app_shown["services"]] == ["main"]
        (notice,) = snapshot.notices
        assert notice.startswith(
            "app app1: Not running containers because of contract violations: extra\n"
        )
        posted = local_target_state(snapshot, lambda _: True)["local"]["apps"]["1"]
        assert posted["services"]["2"]["contract"] == TOO_NEW
