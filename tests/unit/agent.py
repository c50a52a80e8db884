"""A whole runtime on in-memory fakes, for tests of behaviour without bus, engine or root."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fakes.engine import FakeEngine
from fakes.machine import FakeHost, FakeStore, ManualClock

from balena_agent.core.intent import SetTarget
from balena_agent.core.looks import Touch
from balena_agent.core.observed import HostFacts, Image, Observed
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.steps import AwaitHandover, Fetch
from balena_agent.core.target import read_local
from balena_agent.runtime.compiler import ServiceKeys
from balena_agent.runtime.policy import Memory, Policy
from balena_agent.runtime.reconciler import Reconciler
from balena_agent.runtime.state import Published
from balena_agent.watchdog import Watchdog

DEADLINE = 30.0
PATIENCE = 0.5


@dataclass(slots=True)
class Rig:
    """The runtime and its fakes. `clock` stands still until a test moves it."""

    engine: FakeEngine
    host: FakeHost
    store: FakeStore
    clock: ManualClock
    published: Published
    reconciler: Reconciler
    watchdog: Watchdog

    def post(self, document: dict[str, Any], force: bool = False) -> None:
        target = read_local(document)
        command = SetTarget("local", json.dumps(document), target, force)
        assert self.reconciler.submit(command).result(DEADLINE) == "accepted"

    def until(self, wanted: Callable[[Snapshot], object], what: str = "") -> Snapshot:
        """The first snapshot that is as wanted; moves the clock while nothing else moves."""
        deadline = time.monotonic() + DEADLINE
        snapshot = self.published.current
        moved = time.monotonic()
        while not wanted(snapshot):
            assert time.monotonic() < deadline, f"{what or 'condition'} not met:\n{snapshot.plan}"
            newer = self.published.newer_than(snapshot.version, 0.02)
            if newer is None and self._waits_for_the_clock(moved):
                self.clock.advance(0.25)
                self.reconciler.wake(Touch(volumes=frozenset({"tick"})))
                moved = time.monotonic()
            snapshot = newer or self.published.current
        return snapshot

    def _waits_for_the_clock(self, moved: float) -> bool:
        """Whether nothing happens before the clock moves, which it did at `moved` (real time, s).
        What keeps a thread for long (a look that a test holds up) is not waited for."""
        running = self.published.current.running.values()
        if any(not isinstance(each.step, AwaitHandover | Fetch) for each in running):
            return False
        return self._idle() or time.monotonic() - moved > PATIENCE

    def _idle(self) -> bool:
        """Whether the reconciler has nothing to read, and nobody is at work for it."""
        executor, mailbox = self.reconciler._executor, self.reconciler._mailbox
        if executor._workers._open or executor._helpers._open:
            return False
        with mailbox._news:
            unread = bool(mailbox._messages or mailbox._touch)
            waits = bool(mailbox._news._waiters)  # type: ignore[attr-defined]
        return waits and not unread and not (executor._workers._open or executor._helpers._open)

    def settled(self) -> Snapshot:
        return self.until(lambda s: s.settled and not s.update_pending, "settled")

    def containers(self) -> dict[str, str]:
        """service -> engine state."""
        return {c.service: c.state for c in self.engine.observed.containers.values()}

    def ids(self) -> dict[str, str]:
        return {c.service: c.id for c in self.engine.observed.containers.values()}


def image(name: str, identity: str = "") -> Image:
    return Image(identity or f"sha256:{name}", frozenset({f"{name}:latest"}))


def observed(*names: str) -> Observed:
    return Observed(images={i.id: i for i in map(image, names)})


def remembered(store: FakeStore) -> Memory:
    """What an agent that starts finds in the store."""
    raw = store.targets.get("local", "")
    return Memory(
        read_local(json.loads(raw)) if raw else None,
        "local" if raw else "",
        raw,
        dict(store.stopped),
        dict(store.specs),
        store.stopped_by_agent,
        frozenset(store.images),
        dict(store.commits),
        dict(store.origins),
        dict(store.tolerated),
        dict(store.fetch_failures),
    )


@contextmanager
def rig(
    world: Observed | None = None,
    memory: Memory | None = None,
    policy: Policy | None = None,
    engine: FakeEngine | None = None,
    facts: HostFacts | None = None,
    keys: ServiceKeys = lambda app, service: "key",
    host: FakeHost | None = None,
    store: FakeStore | None = None,
) -> Iterator[Rig]:
    made = engine or FakeEngine(world or observed("busybox"))
    host, store, clock = host or FakeHost(), store or FakeStore(), ManualClock()
    published = Published(Snapshot(facts=facts or HostFacts(device_uuid="d0d0")))
    watchdog = Watchdog(lambda state: None)
    reconciler = Reconciler(
        made, host, store, clock, watchdog, published, keys,
        memory or Memory(), policy or Policy(),
    )  # fmt: skip
    host.adopt()
    reconciler.start()
    try:
        yield Rig(made, host, store, clock, published, reconciler, watchdog)
    finally:
        reconciler.close(5.0)


def service(name: str, number: int = 1, image: str = "busybox", **more: Any) -> dict[str, Any]:
    return {
        "imageId": number, "serviceName": name, "serviceId": number, "image": image,
        "running": True, "environment": {}, "labels": {}, **more,
    }  # fmt: skip


def target(*services: dict[str, Any], commit: str = "c1", app: int = 1) -> dict[str, Any]:
    by_id = {str(s["serviceId"]): s for s in services}
    entry = {
        "name": f"app{app}", "commit": commit, "releaseId": 1, "services": by_id,
        "volumes": {}, "networks": {},
    }  # fmt: skip
    return {"local": {"name": "dev", "config": {}, "apps": {str(app): entry}}}
