"""`supervisor0`, missing or wrong: who goes, who stays, and when it is made anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_planner import target, text, there, wanted, world
from worlds import spec

from balena_agent.core.names import SUPERVISOR_NETWORK
from balena_agent.core.networks import (
    SUPERVISOR_SPEC,
    supervisor_differences,
    supervisor_network_body,
    supervisor_network_from_inspect,
)
from balena_agent.core.observed import Network, Observed
from balena_agent.core.situation import Situation
from balena_agent.core.spec import NetworkSpec
from balena_agent.core.supervisor import fault

WEB = wanted("web", spec=spec("i1:latest", 1, ["1_default", SUPERVISOR_NETWORK], [], ""))
DB = wanted("db")


def api_network(spec: NetworkSpec = SUPERVISOR_SPEC, key: str = "s") -> dict[str, Network]:
    return {key: Network(key, SUPERVISOR_NETWORK, "", 0, SUPERVISOR_NETWORK, spec)}


def on(observed: Observed, networks: dict[str, Network]) -> Observed:
    return replace(observed, networks={**observed.networks, **networks})


def test_the_body_we_send_is_what_we_compare() -> None:
    seen = supervisor_network_from_inspect({**supervisor_network_body(), "Id": "s"})
    assert seen is not None
    assert supervisor_differences(seen.spec) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        NetworkSpec(),
        replace(SUPERVISOR_SPEC, driver_opts={}),
        replace(SUPERVISOR_SPEC, driver_opts={"com.docker.network.bridge.name": "br-1"}),
        replace(SUPERVISOR_SPEC, ipam_config=()),
        replace(SUPERVISOR_SPEC, ipam_config=({"Subnet": "10.114.104.0/24"},)),
        replace(
            SUPERVISOR_SPEC,
            ipam_config=({"Subnet": "10.114.104.0/25", "Gateway": "10.114.104.9"},),
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_told(wrong: NetworkSpec) -> None:
    assert "->" in fault(on(world(), api_network(wrong)))


def test_what_else_it_may_be_is_nobodys_matter() -> None:
    odd = replace(SUPERVISOR_SPEC, internal=True, labels={"a": "b"})
    assert fault(on(world(), api_network(odd))) == ""


def test_its_users_go_without_locks_and_others_stay() -> None:
    seen = world(there(WEB), there(DB))
    lines = text(target(WEB, DB), seen, Situation())
    assert lines == [
        "stop web: uses supervisor0: network is missing",
        "wait network supervisor0: waits until web has let it go",
    ]
    seen = world(there(WEB, "exited"), there(DB))
    assert text(target(WEB, DB), seen, Situation())[0].startswith("remove web: uses supervisor0")
    assert text(target(WEB, DB), world(there(DB)), Situation()) == [
        "ensure-supervisor-network supervisor0: network is missing",
        "wait service 1/web: waits for supervisor0",
    ]


def test_a_container_that_was_cut_off_counts_as_a_user() -> None:
    off = there(WEB, intended=WEB.spec, spec=spec("i1:latest", 1, ["1_default"], [], ""))
    assert text(target(WEB), world(off), Situation())[0].startswith("stop web: uses supervisor0")


def test_users_keep_running_until_the_release_is_here() -> None:
    new = replace(DB, image_present=False)
    lines = text(target(WEB, new), world(there(WEB), there(DB)), Situation())
    assert "wait service 1/web: keeps running until the image of db is here" in lines


def test_a_right_one_and_one_that_nobody_needs_are_left_alone() -> None:
    assert text(target(WEB), on(world(there(WEB)), api_network())) == [
        "release-locks 1: nothing left to do"
    ]
    unneeded = on(world(there(DB)), api_network(NetworkSpec()))
    assert text(target(DB), unneeded, Situation()) == []


def test_two_of_the_name_are_one_too_many() -> None:
    twice = on(on(world(), api_network()), api_network(key="t"))
    assert fault(twice) == "there are two networks of this name"


def test_rejected_apps_are_not_waited_for() -> None:
    lines = text(target(WEB, problem="no"), world(there(WEB)), Situation())
    assert lines == []
