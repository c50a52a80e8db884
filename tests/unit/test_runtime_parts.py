"""The runtime's small parts: merged looks, back-off, mailbox, worker threads, watchdog."""

from __future__ import annotations

import queue
import random
import threading
import time

import pytest
from agent import image
from fakes.engine import FakeEngine
from fakes.machine import FakeHost, ManualClock
from waiting import until

from balena_agent.core.desired import Desired, DesiredApp
from balena_agent.core.errors import Cancelled, EngineFailed, Locked
from balena_agent.core.looks import Patch, Touch
from balena_agent.core.observed import Observed, Volume
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.spec import VolumeSpec
from balena_agent.core.steps import AwaitHandover, Fetch, RemoveVolume, StopContainer, TakeLocks
from balena_agent.core.traits import identity
from balena_agent.runtime import telling
from balena_agent.runtime.executor import Crew, Executor, Outcome
from balena_agent.runtime.ledger import Ledger, delay
from balena_agent.runtime.mailbox import Mailbox
from balena_agent.runtime.state import Published
from balena_agent.runtime.world import World
from balena_agent.watchdog import Watchdog, watchdog_interval


def volume(label: str) -> Volume:
    return Volume("1_data", 1, "1", "data", VolumeSpec(labels={"v": label}))


def test_an_older_look_never_overwrites_a_newer_one() -> None:
    world = World({})
    world.see(Patch(volumes={"1_data": volume("new")}), asked=5)
    world.see(Patch(volumes={"1_data": volume("old")}), asked=4)
    assert world.observed.volumes["1_data"] == volume("new")


def test_a_full_look_keeps_what_was_seen_after_it_began() -> None:
    world = World({})
    world.see(Patch(volumes={"1_data": None}), asked=7)
    world.see_all(Observed(volumes={"1_data": volume("x"), "2_b": volume("y")}), asked=6)
    assert list(world.observed.volumes) == ["2_b"]
    world.see_all(Observed(volumes={"1_data": volume("x")}), asked=8)
    assert list(world.observed.volumes) == ["1_data"]


def test_a_look_that_began_before_a_full_one_says_nothing_about_what_is_gone() -> None:
    world = World({})
    world.see(Patch(volumes={"1_data": None}), asked=5)
    world.see_all(Observed(), asked=6)
    world.see(Patch(volumes={"1_data": volume("late")}), asked=4)
    assert world.observed.volumes == {}


def test_any_order_of_looks_ends_in_the_newest_knowledge() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        truth = {n: volume(str(n)) if rng.random() < 0.7 else None for n in range(1, 9)}
        looks = [(n, Patch(volumes={"1_data": seen})) for n, seen in truth.items()]
        rng.shuffle(looks)
        world = World({})
        for asked, patch in looks:
            world.see(patch, asked)
        assert world.observed.volumes.get("1_data") == truth[8]


def test_back_off_doubles_to_its_cap_and_is_forgiven() -> None:
    assert [delay(n) for n in (1, 2, 3, 30)] == [1.0, 2.0, 4.0, 900.0]
    ledger, step = Ledger(random.Random(1)), RemoveVolume("1", "1_data")
    for count in (1, 2, 3):
        failure = ledger.fail(step, EngineFailed("volume in use", 409), now=100.0)
        assert failure.count == count
        assert 0.9 * delay(count) <= failure.retry_at - 100.0 <= 1.1 * delay(count)
    assert ledger.backoff(100.0)[identity(step)].count == 3
    assert [failure.due for failure in ledger.backoff(200.0).values()] == [True]
    ledger.succeed(step)
    assert ledger.failures() == {}


def test_a_clock_that_is_set_makes_no_pause_longer() -> None:
    ledger, step = Ledger(random.Random(1)), RemoveVolume("1", "1_data")
    ledger.fail(step, EngineFailed("volume in use", 409), now=1e9)
    ledger.keep_time(1000.0)
    left = ledger.next_due(1000.0)
    assert left is not None and 0.9 <= left <= 1.1
    ledger.keep_time(1000.5)
    assert ledger.next_due(1000.5) == pytest.approx(left - 0.5)
    assert ledger.due(1002.0) == [identity(step)]
    ledger.keep_time(2e9)
    assert ledger.due(2e9) == [identity(step)]


def test_failures_of_what_nobody_wants_are_forgotten() -> None:
    ledger = Ledger()
    ledger.fail(RemoveVolume("1", "a"), EngineFailed("x"), 0.0)
    ledger.fail(TakeLocks("1", 1, ()), Locked("y"), 0.0)
    ledger.prune({"take-locks locks 1"})
    assert list(ledger.failures()) == ["take-locks locks 1"]
    assert [str(e) for e in ledger.lock_errors()] == ["y"]
    assert ledger.errors_about({"locks 1"}) and not ledger.errors_about({"locks 2"})


def test_wakes_are_merged_and_messages_keep_their_order() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for number in range(3):
        mailbox.post(number)
        mailbox.wake(Touch(containers=frozenset({str(number % 2)})))
    assert mailbox.take(0) == ([0, 1, 2], Touch(containers=frozenset({"0", "1"})))
    assert mailbox.take(0) == ([], Touch())


def test_a_crew_grows_to_its_size_and_runs_everything_once() -> None:
    crew, seen, lock = Crew("crew", 4), [], threading.Lock()
    gate, names = threading.Barrier(4, timeout=20), set()

    def job() -> None:
        gate.wait()
        with lock:
            seen.append(1)
            names.add(threading.current_thread().name)

    for _ in range(40):
        crew.submit(job)
    deadline = time.monotonic() + 20
    while len(seen) < 40 and time.monotonic() < deadline:
        gate_passed = threading.Event()
        gate_passed.wait(0.005)
    crew.close()
    assert len(seen) == 40
    assert len(names) == 4


def test_a_worker_that_gives_up_waits_for_no_job_that_another_has_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fleeting(queue.SimpleQueue[object]):
        """Each job looks as if it were still there when somebody else has just taken it."""

        def empty(self) -> bool:
            return False

    monkeypatch.setattr("balena_agent.runtime.executor.IDLE_SECONDS", 0.01)
    crew = Crew("w", 1)
    monkeypatch.setattr(crew, "_jobs", Fleeting())
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(3):
        asked = threading.Thread(target=crew.submit, args=(lambda n=number: done.put(n),))
        asked.start()
        asked.join(10)
        assert not asked.is_alive() and done.get(timeout=10) == number
        until(lambda: crew._threads == 0, "the worker has given up")


def test_every_step_posts_one_outcome_also_when_the_adapter_has_a_defect() -> None:
    engine, clock = FakeEngine(), ManualClock()
    outcomes: list[Outcome] = []
    done = threading.Semaphore(0)

    def post(message: object) -> None:
        if isinstance(message, Outcome):
            outcomes.append(message)
            done.release()

    def crash(step: object, ticket: object) -> None:
        raise ZeroDivisionError("planted")

    engine.before = crash  # type: ignore[assignment]
    watchdog = Watchdog(lambda text: None, clock.monotonic)
    executor = Executor(engine, FakeHost(), watchdog, post)
    executor.start(Fetch("a:latest", "1", 1, "web"))
    executor.start(RemoveVolume("1", "1_data"))
    for _ in range(2):
        assert done.acquire(timeout=5)
    executor.close()
    assert sorted(str(o.error) for o in outcomes) == ["internal error: ZeroDivisionError"] * 2
    assert watchdog.stuck() == []


def test_a_step_that_is_given_up_before_its_worker_comes_ends_at_once() -> None:
    engine, ended = FakeEngine(), queue.SimpleQueue[Outcome]()
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(step: object, ticket: object) -> None:
        begun.release()
        assert go_on.wait(5)

    engine.before = slow
    executor = Executor(
        engine, FakeHost(), Watchdog(lambda text: None),
        lambda message: ended.put(message) if isinstance(message, Outcome) else None, pullers=1,
    )  # fmt: skip
    first, second = (Fetch(name, "1", 1, "web") for name in ("a:latest", "b:latest"))
    executor.start(first)
    assert begun.acquire(timeout=5)
    executor.start(second)
    executor.cancel(identity(second))
    given_up = ended.get(timeout=5)
    assert given_up.step == second and isinstance(given_up.error, Cancelled)
    go_on.set()
    assert ended.get(timeout=5).step == first
    executor.start(second)  # whoever wants it again gets it, and the waiting job is over
    assert ended.get(timeout=5).error is None
    executor.close()
    assert [step for step in engine.performed if step == second] == [second]
    assert ended.empty()


def test_slow_stops_hold_up_neither_a_look_nor_a_cancel() -> None:
    engine, host = FakeEngine(), FakeHost()
    host.patient = True
    ended, looked, go_on = queue.SimpleQueue[Outcome](), threading.Event(), threading.Event()

    def slow(step: object, ticket: object) -> None:
        assert go_on.wait(5)

    engine.before = slow
    executor = Executor(
        engine, host, Watchdog(lambda text: None),
        lambda message: ended.put(message) if isinstance(message, Outcome) else None, workers=1,
    )  # fmt: skip
    wait = AwaitHandover("1", 1, "web", "old", "new")
    executor.start(StopContainer("1", "db", "id"))
    executor.start(wait)
    executor.submit(looked.set)
    assert looked.wait(5)
    executor.cancel(identity(wait))
    assert isinstance(ended.get(timeout=5).error, Cancelled)
    go_on.set()
    assert ended.get(timeout=5).error is None
    executor.close()


def test_a_notice_says_once_what_it_is_about() -> None:
    warnings = ("app 'shop' service 'web': Ignoring foo", "left out: extra")
    desired = Desired((DesiredApp("u", 1, "shop", "c1", warnings=warnings),))
    assert telling.notices(Snapshot(desired=desired)) == (
        "app 'shop' service 'web': Ignoring foo",
        "app shop: left out: extra",
    )


def test_readers_wait_for_something_newer() -> None:
    published = Published(Snapshot())
    assert published.newer_than(0, 0.0) is None
    seen: list[int] = []
    published.subscribe(lambda snapshot: seen.append(snapshot.version))
    first = published.publish(Snapshot())
    assert (first.version, seen) == (1, [1])
    assert published.newer_than(0, 0.0) is first


def test_watchdog_is_fed_only_while_every_worker_proves_work() -> None:
    sent: list[str] = []
    clock = ManualClock()
    watchdog = Watchdog(sent.append, clock.monotonic)
    slow, calm = watchdog.pulse("reconciler", 6), watchdog.pulse("http", 60)
    clock.advance(5)
    assert watchdog.pet() == []
    slow.within(30, "stopping web, 30 s allowed")
    clock.advance(20)
    assert watchdog.pet() == []
    clock.advance(11)
    assert watchdog.pet() == [slow]
    assert sent == ["WATCHDOG=1", "WATCHDOG=1",
                    "STATUS=stuck: reconciler (stopping web, 30 s allowed)"]  # fmt: skip
    slow.rest()
    calm.beat()
    assert watchdog.pet() == []
    watchdog.forget(calm)
    clock.advance(1000)
    assert watchdog.pet() == []


def test_status_is_sent_only_when_it_changes() -> None:
    sent: list[str] = []
    watchdog = Watchdog(sent.append)
    watchdog.status("a")
    watchdog.status("a")
    watchdog.status("b")
    assert sent == ["STATUS=a", "STATUS=b"]


def test_watchdog_interval_comes_from_systemd(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("WATCHDOG_USEC", "6000000")
    assert watchdog_interval() == 6.0
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert watchdog_interval(7.0) == 7.0


def test_the_image_helper_of_these_tests_is_honest() -> None:
    assert image("busybox").answers_to("busybox")
