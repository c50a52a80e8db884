"""Downloads that fail: growing pauses that outlive the agent, and what is no failure at all."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import pytest
from agent import DEADLINE, Rig, observed, remembered, rig, service, target
from fakes.engine import FakeEngine
from fakes.machine import FakeStore

from balena_agent.core.errors import (
    DiskFull,
    EngineFailed,
    InvalidInput,
    StillProcessing,
    Unavailable,
)
from balena_agent.core.images import FetchFailure
from balena_agent.core.intent import Power
from balena_agent.core.observed import HostFacts, Image, Observed, Obtained
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.steps import EngineStep, Fetch, RemoveImage
from balena_agent.core.target import Target, read_local
from balena_agent.core.ticket import Ticket
from balena_agent.runtime.ledger import Ledger, delay
from balena_agent.runtime.policy import Memory, Policy
from balena_agent.store import Store

STEP = Fetch("absent:1", "1", 1, "one")
NOW = 1_000_000.0


def failures(snapshot: Snapshot) -> dict[str, int]:
    found = snapshot.failures.values()
    return {f.step.reference: f.count for f in found if isinstance(f.step, Fetch)}


def fails(agent: Rig, count: int) -> Snapshot:
    return agent.until(lambda s: failures(s).get("absent:1", 0) >= count, f"{count} failures")


def absent_engine() -> FakeEngine:
    engine = FakeEngine(observed("busybox"))
    engine.missing_images.add("absent:1")
    return engine


def tries_of(agent: Rig) -> list[float]:
    """When downloads begin, from now on."""
    tries: list[float] = []

    def begins(step: EngineStep, ticket: Ticket) -> None:
        if isinstance(step, Fetch):
            tries.append(agent.clock.wall())

    agent.engine.before = begins
    return tries


def fetched(agent: Rig) -> list[Fetch]:
    return [step for step in agent.engine.performed if isinstance(step, Fetch)]


def test_the_back_off_of_a_download_outlives_the_agent() -> None:
    store = FakeStore()
    with rig(engine=absent_engine(), store=store) as agent:
        agent.post(target(service("one", image="absent:1")))
        fails(agent, 3)
    kept = store.fetch_failures["absent:1"]
    assert kept.count >= 3 and "not found" in kept.error
    engine = FakeEngine(observed("busybox"))
    with rig(engine=engine, store=store, memory=remembered(store)) as agent:
        started, tries = agent.clock.wall(), tries_of(agent)
        first = agent.until(lambda s: s.plan.waits and s.looked)
        assert failures(first) == {"absent:1": kept.count}
        assert "failed" in first.plan.waits[0].reason
        agent.settled()
        assert store.fetch_failures == {}
    # The clock of the second life begins before the failure, as on a device without one.
    assert started < kept.at and tries[0] >= started + delay(kept.count)


def test_a_download_that_succeeds_at_last_is_forgiven() -> None:
    with rig(engine=absent_engine()) as agent:
        agent.post(target(service("one", image="absent:1")))
        fails(agent, 2)
        assert agent.store.fetch_failures["absent:1"].count == 2
        agent.engine.missing_images.clear()
        agent.settled()
        assert agent.store.fetch_failures == {}


def test_a_target_that_wants_it_no_more_and_one_that_wants_it_anew_begin_afresh() -> None:
    with rig(engine=absent_engine()) as agent:
        agent.post(target(service("one", image="absent:1")))
        fails(agent, 3)
        agent.post(target(service("one", image="absent:1"), commit="c2"))
        agent.until(lambda s: failures(s).get("absent:1") in (1, 2), "began afresh")
        agent.post(target(service("one")))
        agent.settled()
        assert agent.store.fetch_failures == {}


def test_a_reboot_is_no_new_beginning() -> None:
    """While a reboot is wanted no download is: that does not mean that it is forgiven."""
    with rig(engine=absent_engine()) as agent:
        agent.post(target(service("one", image="absent:1")))
        fails(agent, 3)
        answer = agent.reconciler.submit(Power())
        agent.until(lambda s: answer.done())
        agent.until(lambda s: not s.failures)
        assert agent.store.fetch_failures["absent:1"].count >= 3


def test_a_full_disk_does_not_stop_downloads() -> None:
    with rig(engine=absent_engine()) as agent:
        agent.post(target(service("one", image="absent:1")))
        agent.store.full = Unavailable("no space left on device")
        fails(agent, 2)
        agent.engine.missing_images.clear()
        agent.settled()


@pytest.mark.parametrize(
    ("at", "left"),
    [
        (NOW, 4.0),
        (NOW - 3.0, 1.0),
        (NOW - 100.0, 0.0),
        (NOW + 50_000.0, 4.0),  # the clock was set back since
    ],
)
def test_a_remembered_pause_is_never_longer_than_its_count_asks_for(at: float, left: float) -> None:
    ledger = Ledger()
    ledger.resume(STEP, FetchFailure(3, at, "no"), NOW)
    assert (ledger.next_due(NOW) or 0.0) == left
    assert ledger.fail(STEP, EngineFailed("no"), NOW).count == 4


def test_the_real_store_keeps_failures_and_what_images_were_obtained_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    notes = [("sha256:1", Obtained("a:1", 1, "web")), ("sha256:1", Obtained("b:1", 2, "db"))]
    for image_id, note in (*notes, notes[0]):
        store.save_obtained(image_id, note)
    store.save_fetch_failures({"a:1": FetchFailure(2, 5.5, "no"), "b:1": FetchFailure(1, 6.0, "x")})
    store.save_fetch_failures({"a:1": FetchFailure(3, 7.5, "still no")})
    store.forget_fetch_failures(frozenset({"b:1", "c:1"}))
    store.close()
    again = Store(tmp_path)
    assert again.fetch_failures() == {"a:1": FetchFailure(3, 7.5, "still no")}
    assert again.obtained_images() == {"sha256:1": frozenset(note for _, note in notes)}
    again.forget_obtained(*notes[0])
    assert again.obtained_images() == {"sha256:1": frozenset({notes[1][1]})}
    again.close()


# ---- what is no failure --------------------------------------------------------------------------


def test_a_delta_in_the_making_is_asked_for_again_and_not_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = "Delta still processing remotely. Will retry..."
    with rig() as agent, caplog.at_level("INFO"):
        agent.engine.fail("fetch", StillProcessing(words, 10.0), 4)
        tries = tries_of(agent)
        agent.post(target(service("one", image="later")))
        seen = agent.until(lambda s: s.failures)
        assert failures(seen) == {"later": 0} and not seen.update_failed
        assert [wait.reason for wait in seen.plan.waits] == [words]
        agent.settled()
        pauses = [later - sooner for sooner, later in itertools.pairwise(tries)]
        assert len(pauses) == 4 and all(10.0 <= pause < 15.0 for pause in pauses)
        assert agent.store.fetch_failures == {}
    assert words in caplog.messages


def test_an_unparsable_reference_is_an_error_of_that_image_alone() -> None:
    words = 'image reference "Bad Name": "Bad Name" is no repository'
    with rig() as agent:
        agent.engine.fail("fetch image Bad Name", InvalidInput(words), 100)
        both = target(service("one"))
        both["local"]["apps"]["2"] = target(service("two", 2, "Bad Name"))["local"]["apps"]["1"]
        agent.post(both)
        seen = agent.until(lambda s: s.failures and agent.containers() == {"one": "running"})
        assert next(iter(seen.failures.values())).error == words


def test_a_full_disk_is_an_ordinary_failure_of_that_download() -> None:
    words = "not enough space for image big:1: it needs 900 MiB"
    with rig() as agent:
        agent.engine.fail("fetch image big:1", DiskFull(words), 3)
        agent.post(target(service("one")))
        agent.settled()
        both = target(service("one"))
        both["local"]["apps"]["2"] = target(service("two", 2, "big:1"))["local"]["apps"]["1"]
        both["local"]["apps"]["3"] = target(service("three", 3))["local"]["apps"]["1"]
        agent.post(both)
        seen = agent.until(
            lambda s: failures(s).get("big:1") == 3 and "three" in agent.containers()
        )
        assert agent.store.fetch_failures["big:1"].count == 3
        assert [w.reason for w in seen.plan.waits if "big" in w.subject] == [
            f"{words} (attempt 3 failed)"
        ]
        agent.settled()
        assert agent.containers() == dict.fromkeys(("one", "two", "three"), "running")


def test_an_image_that_a_stranger_uses_does_not_keep_the_update_from_its_end() -> None:
    with rig(observed("busybox", "old"), policy=Policy(keep_images=False)) as agent:
        agent.post(target(service("one", image="old")))
        agent.settled()
        agent.engine.fail("remove-image", EngineFailed("image is being used", 409), 1)
        agent.post(target(service("one")))
        seen = agent.until(lambda s: s.failures and s.settled, "settled all the same")
        assert not seen.update_failed and [f.muted for f in seen.failures.values()] == [True]
        agent.settled()
        due = next(iter(seen.failures.values())).retry_at
        assert due >= agent.clock.wall() + 3500
        agent.clock.advance(3600)
        agent.until(lambda s: not s.failures and s.observed.image("old") is None, "an hour later")


def test_deltas_of_version_two_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    facts = HostFacts(device_uuid="d0d0", api_endpoint="https://api.x.example", device_api_key="k")
    with rig(facts=facts) as agent, caplog.at_level("WARNING"):
        for value in "ab":
            document = target(service("one", environment={"A": value}))
            config = {"SUPERVISOR_DELTA": "1", "SUPERVISOR_DELTA_VERSION": "2"}
            document["local"]["config"] = config
            agent.post(document)
            agent.settled()
        told = [m for m in caplog.messages if "deltas of version 2" in m]
        assert told == ["deltas of version 2 are not done: images are downloaded as a whole"]


def test_a_fetch_carries_its_source_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    facts = HostFacts(device_uuid="d0d0", api_endpoint="https://api.x.example", device_api_key="k")
    with rig(facts=facts) as agent, caplog.at_level("INFO"):
        for release in (1, 2):
            one = service("one", image=f"r.example/one:{release}")
            document = target(one, commit=f"c{release}")
            document["local"]["config"] = {"SUPERVISOR_DELTA": "1"}
            agent.post(document)
            agent.settled()
        assert [step.source for step in fetched(agent)] == ["", "r.example/one:1"]
    assert "Downloading image 'r.example/one:1'" in caplog.messages
    assert "Downloading delta for image 'r.example/one:2'" in caplog.messages


def test_a_stray_image_is_tidied_away_in_the_end() -> None:
    notes = frozenset({Obtained("web:1", 1, "one")})
    stray = Image("sha256:s", obtained=notes)
    world = Observed(images={**observed("busybox").images, stray.id: stray})
    with rig(world, policy=Policy(keep_images=False)) as agent:
        agent.post(target(service("one")))
        agent.settled()
        assert "sha256:s" not in agent.engine.observed.images
        assert RemoveImage("sha256:s") in agent.engine.performed


def test_remembered_failures_of_images_that_no_target_names_are_left_out() -> None:
    raw = json.dumps(target(service("one")))
    target_now: Target = read_local(json.loads(raw))
    known = {"gone:1": FetchFailure(5, NOW, "no")}
    store = FakeStore()
    store.fetch_failures = dict(known)
    memory = Memory(target_now, "local", raw, fetch_failures=known)
    with rig(store=store, memory=memory) as agent:
        assert agent.settled().failures == {}
        assert store.fetch_failures == {}


def test_progress_never_goes_back() -> None:
    """A delta that fails half-way is followed by a download of the whole image."""
    half, back, go_on = threading.Event(), threading.Event(), threading.Event()

    def download(step: EngineStep, ticket: Ticket) -> None:
        if isinstance(step, Fetch):
            ticket.progress(60)
            assert half.wait(DEADLINE)
            ticket.progress(0)
            ticket.progress(10)
            back.set()
            assert go_on.wait(DEADLINE)

    def percents(snapshot: Snapshot) -> list[float]:
        return [r.percent for r in snapshot.running.values() if isinstance(r.step, Fetch)]

    with rig() as agent:
        agent.engine.before = download
        document = target(service("one", image="big"))
        agent.post(document)
        agent.until(lambda s: percents(s) == [60])
        half.set()
        assert back.wait(DEADLINE)
        agent.post(document)  # messages keep their order: what came before it was taken in
        assert percents(agent.published.current) == [60]
        go_on.set()
        agent.settled()
