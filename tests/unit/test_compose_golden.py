"""Our create bodies are the peer's, for every golden case, but where the specification deviates.

A device may move from the peer to us and back without one container being made anew (S40): that
holds only if the bodies are the same.
"""

from __future__ import annotations

import pytest
from golden_bodies import (
    CASES,
    DEVIATIONS,
    comparable,
    compile_case,
    expected_body,
    main_of,
    our_body,
)

from balena_agent.core.body import joins

PEER_FAILS = {name for name, case in CASES.items() if "error" in case}


def test_every_deviation_names_a_case_and_a_rule() -> None:
    assert DEVIATIONS.keys() <= CASES.keys()
    assert all(entry["reason"].startswith("D") for entry in DEVIATIONS.values())


def test_every_case_on_which_the_peer_fails_is_decided() -> None:
    assert not PEER_FAILS - DEVIATIONS.keys()


@pytest.mark.parametrize("name", sorted(CASES.keys() - DEVIATIONS.keys()))
def test_body_is_the_peers(name: str) -> None:
    case = CASES[name]
    found = main_of(compile_case(case))
    assert comparable(our_body(found)) == comparable(expected_body(case.get("changed", {})))


@pytest.mark.parametrize("name", DEVIATIONS)
def test_body_deviates_as_specified(name: str) -> None:
    wanted = DEVIATIONS[name]
    found = compile_case(CASES[name])
    if "problem" in wanted:
        assert wanted["problem"] in found.problem
        assert not found.services
        return
    changed = wanted.get("changed", CASES[name].get("changed", {}))
    assert comparable(our_body(main_of(found))) == comparable(expected_body(changed))


@pytest.mark.parametrize("name", [n for n in CASES if n not in PEER_FAILS])
def test_further_networks_are_joined_before_the_start(name: str) -> None:
    case = CASES[name]
    wanted = DEVIATIONS.get(name, {}).get("joins", case.get("join_after_create", {}))
    found = compile_case(case)
    if not found.problem:
        joined = {end.network: list(end.aliases) for end in joins(main_of(found).spec)}
        assert joined == {network: end.get("aliases", []) for network, end in wanted.items()}


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "depends_on" in c])
def test_sharing_a_network_is_a_dependency(name: str) -> None:
    found = main_of(compile_case(CASES[name]))
    assert [d.service for d in found.depends_on] == list(CASES[name]["depends_on"])


def test_a_service_that_shall_not_run_has_the_same_body() -> None:
    found = main_of(compile_case(CASES["running"]))
    assert not found.running
    assert comparable(our_body(found)) == comparable(expected_body({}))
    assert str(found.container_name) == "main_4_5_c0ffee"
