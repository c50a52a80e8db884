"""The model of the engine: total, idempotent, and what it makes bears the id that it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from worlds import NETWORK, VOLUME, there, wanted, world

from balena_agent.core.effects import effect
from balena_agent.core.names import ContainerName
from balena_agent.core.observed import Observed
from balena_agent.core.spec import Endpoint
from balena_agent.core.steps import (
    ConnectNetwork,
    CreateContainer,
    CreateNetwork,
    CreateVolume,
    DisconnectNetwork,
    EngineStep,
    EnsureExtraFirmware,
    EnsureSupervisorNetwork,
    Fetch,
    ReinstateContainer,
    RemoveContainer,
    RemoveImage,
    RemoveNetwork,
    RemoveVolume,
    RenameContainer,
    RetireContainer,
    StartContainer,
    StopContainer,
    UpdateContainer,
)

NOTHING = Observed()
WEB = wanted("web")
NAME = ContainerName("web", 1, 2, "c2")
GONE = ("1", "web", "gone")
HERE = ("1", "web", "id-web")

MAKING: tuple[tuple[EngineStep, Callable[[Observed], object]], ...] = (
    (Fetch("new:1", "1", 1, "web"), lambda seen: seen.images),
    (CreateNetwork("1", 1, NETWORK), lambda seen: seen.networks),
    (EnsureSupervisorNetwork(), lambda seen: seen.networks),
    (CreateContainer(WEB), lambda seen: seen.containers),
)


@pytest.mark.parametrize(("step", "kind"), MAKING, ids=lambda each: type(each).__name__)
def test_what_is_made_bears_the_id_that_it_is_given(
    step: EngineStep, kind: Callable[[Observed], dict[str, object]]
) -> None:
    assert list(kind(effect(step, NOTHING, "given"))) == ["given"]
    assert len(kind(effect(step, NOTHING))) == 1


@pytest.mark.parametrize(
    "step",
    [
        RemoveImage("gone:1"),
        RemoveNetwork("1", "1_gone", "gone"),
        RemoveVolume("1", "1_gone"),
        StartContainer(*GONE),
        StopContainer(*GONE),
        RemoveContainer(*GONE),
        RenameContainer(*GONE, NAME),
        RetireContainer(*GONE, NAME),
        ReinstateContainer(*GONE, NAME, {"Name": "always"}),
        ConnectNetwork(*GONE, Endpoint("1_default")),
        DisconnectNetwork(*GONE, "1_default"),
        UpdateContainer(*GONE, {"HostConfig.Memory": 1}),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_step_on_what_is_gone_changes_nothing(step: EngineStep) -> None:
    seen = world(there(WEB))
    assert effect(step, seen) == seen


@pytest.mark.parametrize(
    "step",
    [
        Fetch("new:1", "1", 1, "web"),
        RemoveImage("i1:latest"),
        CreateNetwork("1", 1, replace(NETWORK, engine_name="1_other", name="other")),
        RemoveNetwork("1", "1_default", "n1"),
        CreateVolume("1", 1, VOLUME),
        EnsureSupervisorNetwork(),
        EnsureExtraFirmware(),
        CreateContainer(wanted("new", container_name=ContainerName("new", 1, 1, "c1"))),
        StopContainer(*HERE),
        RemoveContainer(*HERE),
        RenameContainer(*HERE, NAME),
        RetireContainer(*HERE, WEB.container_name),
        ConnectNetwork(*HERE, Endpoint("1_other")),
        DisconnectNetwork(*HERE, "1_default"),
        UpdateContainer(*HERE, {"HostConfig.Memory": 1}),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_step_that_is_done_twice_is_done_once(step: EngineStep) -> None:
    seen = world(there(WEB))
    if isinstance(step, RemoveImage):
        seen = world()
    once = effect(step, seen)
    assert once != seen
    assert effect(step, once) == once


def test_of_three_wrong_networks_one_right_one_is_left() -> None:
    right = effect(EnsureSupervisorNetwork(), NOTHING, "right")
    (made,) = right.networks.values()
    wrong = {key: replace(made, id=key, spec=NETWORK.spec) for key in ("a", "b")}
    both = replace(right, networks={**wrong, **right.networks})
    assert effect(EnsureSupervisorNetwork(), both, "new") == right
    only_wrong = replace(right, networks=wrong)
    assert list(effect(EnsureSupervisorNetwork(), only_wrong, "new").networks) == ["new"]


def test_an_image_that_a_container_uses_stays() -> None:
    seen = world(there(WEB))
    assert effect(RemoveImage("i1:latest"), seen) == seen


def test_every_start_is_later_than_those_before() -> None:
    second = there(wanted("db", container_name=ContainerName("db", 1, 1, "c1")), id="id-db")
    seen = world(there(WEB), second)
    for container_id in ("id-web", "id-db", "id-web"):
        before = max(c.started_at for c in seen.containers.values())
        seen = effect(StartContainer("1", "any", container_id), seen)
        assert seen.containers[container_id].started_at > before
