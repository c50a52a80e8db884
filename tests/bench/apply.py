#!/usr/bin/env python3
"""How fast a target is applied, beside bare engine calls that do the same work.

  python tests/bench/apply.py [--services N] [--rounds N]

One fresh virtual device. Every round does the work four times: with 8 and 20 threads of bare
calls, by the agent, and by the agent for one service. So a machine that gets slower or faster
meanwhile does so for all of them. The bare calls are those without which the work cannot be done:
one network, then per container create and start; stop, remove, create, start; stop and remove.
The bodies are the agent's own but for the labels by which it would recognise them as its own.

Phases of the agent: `start` POST of a target -> the last service runs; `change` one variable of
all services -> the last new one runs; `remove` empty target -> the last one is gone; `one` a
target of one service. `settled` is how much later the agent says that nothing is left to do. Times
are monotonic, the moments come from the engine's events. Prints one JSON object; a slow machine is
no failure.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from measure import APP, Engine, Events, cpu, device, image, report, summary, target, wait_settled
from measure.device import engine_socket
from measure.engine import Fleet

from balena_agent.core.body import create_body, image_from_inspect
from balena_agent.core.compose import desired_app
from balena_agent.core.networks import network_body
from balena_agent.core.observed import HostFacts
from balena_agent.core.target import read_local

WORKERS = (8, 20)
Samples = dict[str, list[float]]


class Bare:
    """The engine alone, with the bodies that the agent sends."""

    def __init__(self, engine: Engine, reference: str, count: int) -> None:
        self._engine = engine
        found = image_from_inspect(engine.call("GET", f"/images/{reference}/json"))
        compiled = [
            desired_app(
                read_local(target(reference, count, value)).apps[str(APP)],
                lambda _: found, HostFacts(), lambda app, service: "0" * 32,
            )
            for value in ("old", "new")
        ]  # fmt: skip
        self._spec = compiled[0].networks[0].spec
        self._old, self._new = (
            {f"bare-{s.name}": create_body(s.spec, "bench") for s in app.services}
            for app in compiled
        )
        self._numbers = itertools.count(1)
        self.stuck_networks = 0

    def run(self, workers: int, note: Callable[[str, float], None]) -> None:
        """One round of the three phases, on a network of its own."""
        network = f"bare_{next(self._numbers)}"
        body = network_body(network, APP, self._spec)
        body["Labels"] = _foreign(body["Labels"])
        old, new = (
            {name: _foreign_body(body, network) for name, body in bodies.items()}
            for bodies in (self._old, self._new)
        )
        fleet = Fleet(self._engine, workers, old)
        began = time.monotonic()
        self._engine.call("POST", "/networks/create", body)
        note("network", time.monotonic() - began)
        fleet.start()
        note("start", time.monotonic() - began)
        fleet.bodies = new
        note("change", fleet.change())
        note("remove", fleet.remove())
        self._remove_network(network, note)

    def _remove_network(self, name: str, note: Callable[[str, float], None]) -> None:
        """Told apart, because the agent counts it as settling. The engine sometimes goes on
        counting containers that are gone, and then never lets the network go."""
        began = time.monotonic()
        try:
            self._engine.call("DELETE", f"/networks/{name}")
        except RuntimeError as error:
            self.stuck_networks += 1
            left = self._engine.call("GET", f"/networks/{name}").get("Containers")
            print(f"{error}; it counts {left}", file=sys.stderr)
        else:
            note("network removed", time.monotonic() - began)


def _foreign(labels: Any) -> dict[str, str]:
    """As many labels, but not ours: the agent must leave these containers alone."""
    return {name.replace("io.balena.", "io.bench."): value for name, value in labels.items()}


def _foreign_body(body: dict[str, Any], network: str) -> dict[str, Any]:
    """The body with foreign labels, on a bare network."""
    ours = f"{APP}_default"
    networks = body["NetworkingConfig"]["EndpointsConfig"]
    moved = {network if name == ours else name: e for name, e in networks.items()}
    host = {**body["HostConfig"], "NetworkMode": network}
    return {**body, "Labels": _foreign(body["Labels"]), "HostConfig": host,
            "NetworkingConfig": {"EndpointsConfig": moved}}  # fmt: skip


class Agent:
    """The agent, watched from the engine's side."""

    def __init__(self, machine: Any, events: Events, reference: str) -> None:
        self._machine = machine
        self._events = events
        self._reference = reference

    def run(self, count: int, note: Callable[[str, float], None]) -> None:
        """One round of all phases, beginning and ending without services."""
        self._phase("start", target(self._reference, count, "old"), "start", count, note)
        self._phase("change", target(self._reference, count, "new"), "start", count, note)
        self._phase("remove", target(self._reference, 0, ""), "destroy", count, note)
        self._phase("one", target(self._reference, 1, "old"), "start", 1, note)
        self._phase("one_remove", target(self._reference, 0, ""), "destroy", 1, note)

    def _phase(
        self, name: str, document: dict[str, Any], action: str, count: int,
        note: Callable[[str, float], None],
    ) -> None:  # fmt: skip
        used, mark, began = cpu(self._machine), self._events.mark(), time.monotonic()
        answer = self._machine.api("POST", "/v2/local/target-state", document, inside=True)
        if answer.status != 200:
            raise RuntimeError(f"target refused: {answer.status} {answer.text}")
        note(f"{name} accepted", time.monotonic() - began)
        last = self._events.when(mark, action, count)
        settled = max(wait_settled(self._machine), last)
        note(name, last - began)
        note(f"{name} settled", settled - last)
        for unit, now in cpu(self._machine).items():
            note(f"{name} cpu {unit}", now - used[unit])


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--services", type=int, default=20)
    options.add_argument("--rounds", type=int, default=3)
    asked = options.parse_args()
    samples: dict[str, Samples] = defaultdict(lambda: defaultdict(list))

    def noting(who: str) -> Callable[[str, float], None]:
        return lambda what, seconds: samples[who][what].append(seconds)

    with device("bench-apply") as machine:
        reference = image(machine)
        engine = Engine(engine_socket(machine))
        bare = Bare(engine, reference, asked.services)
        agent = Agent(machine, engine.events(), reference)
        wait_settled(machine)
        bare.run(WORKERS[0], lambda *_: None)  # the first round warms up caches of the engine
        agent.run(1, lambda *_: None)
        for number in range(asked.rounds):
            print(f"round {number + 1} of {asked.rounds}", file=sys.stderr)
            for workers in WORKERS:
                machine.exec("systemctl", "stop", "balena-agent.service")
                bare.run(workers, noting(f"bare {workers}"))
            machine.exec("systemctl", "start", "balena-agent.service")
            wait_settled(machine)
            agent.run(asked.services, noting("agent"))
    figures = {who: {what: summary(v) for what, v in known.items()}
               for who, known in samples.items()}  # fmt: skip
    report("apply", {"services": asked.services, "rounds": asked.rounds, "seconds": figures,
                     "stuck networks": bare.stuck_networks,
                     "agent/bare": _ratios(samples)})  # fmt: skip


def _ratios(samples: dict[str, Samples]) -> dict[str, dict[str, float]]:
    """Agent by bare, round by round: both saw the same machine."""
    found: dict[str, dict[str, float]] = {}
    for workers in WORKERS:
        bare = samples[f"bare {workers}"]
        for phase in ("start", "change", "remove"):
            pairs = zip(samples["agent"][phase], bare[phase], strict=True)
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            found.setdefault(phase, {})[f"{workers} workers"] = round(ratio, 2)
    return found


if __name__ == "__main__":
    main()
