#!/usr/bin/env python3
"""What one plan costs, for 10, 100 and 1,000 services.

  python tests/bench/planner.py [--rounds N]

No device and no root: target documents are compiled and planned against model worlds. `compile`
is the target from its document's values to specs, with nothing kept from before; `fresh` is the
plan for an engine that has the images only, `settled` the one for a world that is as wanted,
`change` the one when every service has got another variable. Seconds; the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from measure import report

from balena_agent.core.desired import Desired
from balena_agent.core.effects import effect
from balena_agent.core.observed import HostFacts, Image, Observed
from balena_agent.core.planner import plan
from balena_agent.core.situation import Situation
from balena_agent.core.steps import Step
from balena_agent.core.target import Target, read_local
from balena_agent.runtime.compiler import Compiler

SIZES = {10: 1, 100: 5, 1000: 50}
"""Services in all -> apps."""

IMAGE = Image("sha256:" + "1" * 64, frozenset({"bench:latest"}))


def document(services: int, apps: int, value: str) -> dict[str, Any]:
    """A local target; every service has ports, a volume, a dependency and labels."""
    each = services // apps

    def service(app: int, number: int) -> dict[str, Any]:
        return {
            "imageId": app * each + number, "serviceName": f"s{number}", "image": "bench",
            "running": True, "environment": {"VALUE": value}, "labels": {"number": str(number)},
            "restart": "always", "volumes": ["data:/data"], "ports": [str(1000 + number)],
            "depends_on": ["s0"] if number else [],
        }  # fmt: skip

    found = {
        str(app): {
            "name": f"app{app}", "commit": "c" * 32, "releaseId": 1, "volumes": {"data": {}},
            "networks": {}, "services": {str(n + 1): service(app, n) for n in range(each)},
        }
        for app in range(1, apps + 1)
    }  # fmt: skip
    return {"local": {"name": "bench", "config": {}, "apps": found}}


def read(services: int, apps: int, value: str) -> Target:
    return read_local(document(services, apps, value))


def compiled(target: Target) -> Desired:
    compiler = Compiler(lambda app_id, service: "0" * 32)
    return compiler.compile(target, Observed(images={IMAGE.id: IMAGE}), HostFacts())


def at_rest(desired: Desired) -> tuple[Observed, Situation]:
    """The world that the planner itself makes of an engine with nothing but the image."""
    world, now = Observed(images={IMAGE.id: IMAGE}), Situation()
    while steps := plan(desired, world, now).steps:
        world, now = done(steps, world, now)
    return world, now


def done(steps: tuple[Step, ...], world: Observed, now: Situation) -> tuple[Observed, Situation]:
    for number, step in enumerate(steps):
        app_id = getattr(step, "app_id", -1)
        match type(step).__name__:
            case "TakeLocks":
                now = Situation(locked=now.locked | {app_id})
            case "ReleaseLocks":
                now = Situation(locked=now.locked - {app_id})
            case _:
                world = effect(step, world, f"id{len(world.containers)}-{number}")  # type: ignore[arg-type]
    return world, now


def cost(rounds: int, work: Callable[[], object]) -> float:
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return round(statistics.median(taken), 5)


def figures(services: int, apps: int, rounds: int) -> dict[str, float]:
    target = read(services, apps, "old")
    desired, changed = compiled(target), compiled(read(services, apps, "new"))
    empty = Observed(images={IMAGE.id: IMAGE})
    world, now = at_rest(desired)
    assert len(world.containers) == services
    return {
        "compile": cost(rounds, lambda: compiled(target)),
        "fresh": cost(rounds, lambda: plan(desired, empty, Situation())),
        "settled": cost(rounds, lambda: plan(desired, world, now)),
        "change": cost(rounds, lambda: plan(changed, world, now)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    found = {str(size): figures(size, apps, rounds) for size, apps in SIZES.items()}
    report("planner", {"unit": "s", "services": found})


if __name__ == "__main__":
    main()
