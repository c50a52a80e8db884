"""What supervisors have stumbled over in the field: it ends in rest, or in a wait with a reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from agent import Rig, rig, service, target

from balena_agent.core.looks import Touch
from balena_agent.core.observed import Container
from balena_agent.core.spec import ContainerSpec
from balena_agent.core.steps import identity

CHANGED = {"environment": {"A": "b"}}


def count(agent: Rig) -> Counter[str]:
    """How often each step is tried from now on, well or not."""
    tried: Counter[str] = Counter()
    agent.engine.before = lambda step, ticket: tried.update([identity(step)])
    return tried


def named(name: str) -> Container:
    """Somebody else's container."""
    return Container(
        "foreign", "", 0, "", 0, None, "running", ContainerSpec("other"), raw_name=name
    )


def put(agent: Rig, container: Container) -> None:
    agent.engine.change(
        lambda seen: replace(seen, containers={**seen.containers, container.id: container}),
        Touch(everything=True),
    )


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["create", "rename"])
def test_a_name_that_somebody_else_has_is_told_and_waited_for(what: str) -> None:
    """meta-balena#280."""
    with rig() as agent:
        if what == "rename":
            agent.post(target(service("one"), commit="c0"))
            agent.settled()
        put(agent, named("one_1_1_c1"))
        tried, began = count(agent), agent.clock.monotonic()
        agent.post(target(service("one")))
        step = f"{what} service 1/one"
        seen = agent.until(lambda s: step in s.failures and s.failures[step].count >= 5)
        assert '"/one_1_1_c1" is already in use' in seen.last_error
        assert agent.clock.monotonic() - began > 10, "four pauses: 1, 2, 4 and 8 seconds"
        assert tried[step] == 5 and tried.keys() <= {step, "create-network network 1_default"}
        if what == "rename":
            assert agent.containers()["one"] == "running"
        agent.engine.change(
            lambda w: replace(w, containers={k: c for k, c in w.containers.items() if c.name}),
            Touch(everything=True),
        )
        agent.reconciler.wake(Touch(everything=True))
        agent.until(lambda s: s.settled and agent.containers().get("one") == "running")
        assert agent.ids().keys() == {"one"}
