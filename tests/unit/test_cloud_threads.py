"""The two threads of the cloud link, turn by turn, with a clock in the hand of the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import device_states
import pytest
from cloud.reports import problem

from balena_agent.cloud.client import CertificateOutOfTime, Reply
from balena_agent.cloud.poll import TargetPoll
from balena_agent.cloud.report import StateReport
from balena_agent.cloud.timed import Timed
from balena_agent.core.cloudanswer import Outcome
from balena_agent.core.cloudreport import DeviceSide
from balena_agent.core.errors import Broken, Refused, Unavailable
from balena_agent.core.hardware import Metrics
from balena_agent.core.intent import Apply, Command, SetTarget
from balena_agent.core.observed import HostFacts
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.sources import KeptTarget
from balena_agent.core.target import Target, read_v3
from balena_agent.runtime.state import Published
from balena_agent.watchdog import Pulse

UUID = "d" * 32
FACTS = replace(device_states.MANAGED, registered=True)
CLOUD = FACTS.api_endpoint


def document(name: str = "dev", **config: str) -> str:
    return json.dumps({UUID: {"name": name, "config": config, "apps": {}}})


@dataclass
class World:
    """Everything around one of the threads: time, the cloud, the reconciler and the store."""

    snapshot: Snapshot = field(default_factory=lambda: Snapshot(facts=FACTS))
    now: float = 1000.0
    chance: float = 1.0
    answer: Callable[[str, Any], Reply] = lambda method, body: Reply(200, {}, b"")
    asked: list[tuple[float, dict[str, str], Any]] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    figures: Any = None
    refusal: Exception | None = None

    def __post_init__(self) -> None:
        self.published = Published(self.snapshot)
        self.pulse = Pulse("test", 60.0, lambda: self.now)

    def poll(self) -> TargetPoll:
        return TargetPoll(
            self.published, self.submit, self, self.pulse, self.outcomes.append,
            lambda: self.chance, "0.1", self.exchange, lambda: self.now,
        )  # fmt: skip

    def report(self) -> StateReport:
        def device() -> DeviceSide:
            return DeviceSide(("192.0.2.1",), (), "s3cret", self.figures)

        return StateReport(
            self.published, self, self.pulse, device, self.outcomes.append,
            lambda: self.chance, "0.1", self.exchange, lambda: self.now,
        )  # fmt: skip

    def exchange(
        self, endpoint: str, key: str, method: str, path: str, body: Any, limit: float,
        headers: dict[str, str], largest: int = 0,
    ) -> Reply:  # fmt: skip
        facts = self.published.current.facts
        assert (endpoint, key) == (facts.api_endpoint, facts.device_api_key)
        assert path == ("/device/v3/state" if body else f"/device/v3/{facts.device_uuid}/state")
        self.asked.append((self.now, headers, body))
        if body:
            assert problem(body, facts.device_uuid) == ""
        return self.answer(method, body)

    def submit(self, command: Command) -> Future[str]:
        self.commands.append(command)
        done: Future[str] = Future()
        if isinstance(command, SetTarget):
            if self.refusal:
                done.set_exception(self.refusal)
                return done
            known = KeptTarget(command.raw, command.target)
            self.show(target=command.target, targets={command.source: known})
        done.set_result("accepted")
        return done

    def show(self, **changes: Any) -> None:
        self.published.publish(replace(self.published.current, **changes))

    def setting(self, key: str) -> Any:
        return json.loads(json.dumps(self.kept.get(key)))

    def set_setting(self, key: str, value: Any) -> None:
        self.kept[key] = value

    @property
    def etags(self) -> list[str]:
        return [headers.get("If-None-Match", "") for _, headers, _ in self.asked]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body[UUID] for _, _, body in self.asked]

    @property
    def times(self) -> list[float]:
        return [at - 1000.0 for at, _, _ in self.asked]


def go(world: World, thread: TargetPoll | StateReport, seconds: float) -> None:
    """Let the thread live for so long: it sleeps for exactly as long as it says."""
    until = world.now + seconds
    while world.now <= until:
        rest = thread.turn()
        assert rest > 0 or world.asked
        world.now += max(rest, 0.001)
    world.now = until


def says(status: int, body: str = "", **headers: str) -> Callable[[str, Any], Reply]:
    return lambda method, sent: Reply(
        status, {k.replace("_", "-"): v for k, v in headers.items()}, body.encode()
    )


# -- polling


def test_C13_the_first_poll_comes_at_once_with_key_and_agent() -> None:
    world = World(answer=says(200, document(), etag='"a"'))
    go(world, world.poll(), 1)
    ((at, headers, _),) = world.asked
    assert at == 1000.0
    agent = "Supervisor/19.0.5 (Linux; balenaOS 5.1.20; prod) balena-agent/0.1"
    assert headers == {"User-Agent": agent, "Accept-Encoding": "gzip"}
    (command,) = world.commands
    assert command == SetTarget(CLOUD, document(), read_v3(json.loads(document()), UUID))
    assert world.outcomes == [Outcome("ok")]


def test_C14_what_is_unchanged_is_not_applied_again() -> None:
    world = World(answer=says(200, document(), etag='"a"'))
    poll = world.poll()
    go(world, poll, 1)
    world.answer = says(304)
    go(world, poll, 2000)
    assert world.etags == ["", '"a"', '"a"'] and len(world.commands) == 1
    world.answer = says(200, document("other"), etag='"b"')
    go(world, poll, 2000)
    assert world.etags[3:] == ['"a"', '"b"'] and len(world.commands) == 3


def test_C15_the_etag_outlives_a_restart_with_the_target_that_it_belongs_to() -> None:
    world = World(answer=says(200, document(), etag='"a"'))
    go(world, world.poll(), 1)
    go(world, world.poll(), 1)
    assert world.etags == ["", '"a"']
    lost = World(kept=dict(world.kept))
    go(lost, lost.poll(), 1)
    assert lost.etags == [""], "the target is gone"
    for kept in (KeptTarget(document("other"), Target()), KeptTarget(document(), None)):
        other = World(kept=dict(world.kept))
        other.show(targets={CLOUD: kept})
        go(other, other.poll(), 1)
        assert other.etags == [""], "it is another one, or does not read"
    upgraded = World(kept={"target_etag": {**world.kept["target_etag"], "version": "0.2"}})
    upgraded.show(targets=world.published.current.targets)
    go(upgraded, upgraded.poll(), 1)
    assert upgraded.etags == [""], "another version may read it in another way"


def test_S46_C18_failed_polls_come_after_15_30_60_seconds_up_to_the_interval() -> None:
    world = World(answer=says(500))
    world.show(target=Target(config={"SUPERVISOR_POLL_INTERVAL": "100000"}))
    poll = world.poll()
    go(world, poll, 300)
    assert world.times == pytest.approx([0, 15, 45, 105, 205], abs=1)
    world.answer = says(304)
    world.kept.clear()
    assert not world.commands and {o.kind for o in world.outcomes} == {"busy"}


def test_S46_a_poll_that_worked_begins_the_waits_anew() -> None:
    world = World(answer=says(500), chance=0.5)
    world.show(target=Target(config={"SUPERVISOR_POLL_INTERVAL": "100000"}))
    poll = world.poll()
    go(world, poll, 20)  # 0, 11.25
    world.answer = says(200, document(SUPERVISOR_POLL_INTERVAL="100000"))
    go(world, poll, 20)  # 33.75, then 130 s
    world.answer = says(500)
    go(world, poll, 140)
    assert world.times == pytest.approx([0, 11.25, 33.75, 163.75, 175], abs=0.1)


def test_C17_a_busy_cloud_says_when_it_is_asked_again() -> None:
    world = World(answer=says(503, retry_after="120"), chance=0.0)
    poll = world.poll()
    go(world, poll, 119.9)
    assert len(world.asked) == 1
    go(world, poll, 1)
    assert len(world.asked) == 2


def test_C16_a_cloud_that_does_not_know_the_device_changes_nothing() -> None:
    world = World(answer=says(304))
    go(world, world.poll(), 16)
    assert [o.kind for o in world.outcomes] == ["gone", "gone"] and not world.commands


def test_C21_updates_that_shall_not_come_at_once_wait_after_a_start_too() -> None:
    world = World(answer=says(304), chance=0.5)
    world.show(target=Target(config={"SUPERVISOR_INSTANT_UPDATE_TRIGGER": "false"}))
    poll = world.poll()
    go(world, poll, 929)
    assert not world.asked
    go(world, poll, 2)
    assert world.times == pytest.approx([930])


def test_an_interval_longer_than_clocks_can_count_is_slept_in_parts() -> None:
    world = World(answer=says(200, document(SUPERVISOR_POLL_INTERVAL="9" * 15)))
    poll = world.poll()
    poll.turn()
    for _ in range(5):
        assert poll.turn() == 86_400
    assert len(world.asked) == 1


def test_C20_who_asks_is_served_at_once_and_the_schedule_stays() -> None:
    world = World(answer=says(200, document(), etag='"a"'), chance=0.0)
    poll = world.poll()
    go(world, poll, 300)
    answer = poll.ask(force=True)
    go(world, poll, 1)
    assert answer.result(0) == "accepted"
    assert world.times == pytest.approx([0, 300])
    assert world.commands[-1] == replace(world.commands[0], force=True)  # type: ignore[arg-type]
    world.answer = says(304)
    answers = poll.ask(force=True), poll.ask(cancel=True)
    go(world, poll, 1)
    assert [each.result(0) for each in answers] == ["accepted"] * 2
    assert world.commands[2:] == [Apply(True, True)], "unchanged: applied anew"
    go(world, poll, 600)
    assert world.times == pytest.approx([0, 300, 301, 900], abs=0.1)


def test_who_asks_when_a_poll_is_due_gets_that_one() -> None:
    world = World(answer=says(304))
    poll = world.poll()
    poll.ask(force=True)
    go(world, poll, 1)
    assert len(world.asked) == 1 and world.commands == [Apply(True, False)]


def test_who_asks_without_a_cloud_gets_the_target_that_there_is() -> None:
    def down(method: str, body: Any) -> Reply:
        raise Unavailable("The cloud cannot be reached: refused")

    world = World(answer=down)
    poll = world.poll()
    go(world, poll, 1)
    answer = poll.ask(force=True)
    go(world, poll, 1)
    assert world.commands == [Apply(True, False)]
    with pytest.raises(Unavailable, match=r"no target from the cloud: .*refused"):
        answer.result(0)
    assert {o.kind for o in world.outcomes} == {"offline"}
    world.show(facts=replace(FACTS, registered=False))
    answer = poll.ask()
    go(world, poll, 1)
    assert answer.result(0) == "accepted"
    assert world.commands[1:] == [Apply()] and len(world.asked) == 2


POLL = "balena_agent.cloud.poll"
BAD = json.dumps({UUID: {"name": "x", "config": {}, "apps": {"a": {"id": -1}}}})


def test_S37_C22_what_does_not_read_is_told_once_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(answer=says(200, document(), etag='"a"'))
    poll = world.poll()
    go(world, poll, 1)
    for body in ("<html>log in here</html>", "{}", BAD, "[]", "\xff"):
        caplog.clear()
        world.answer = says(200, body, etag='"b"')
        go(world, poll, 3000)
        told = [
            r.getMessage() for r in caplog.records if r.name == POLL and r.levelname == "WARNING"
        ]
        assert [line.startswith("Could not move to new release: ") for line in told].count(
            True
        ) == 1
        assert told[0].startswith("Could not move to new release: "), told
    assert len(world.commands) == 1
    assert set(world.etags[2:]) == {""}, "C23: it is judged again"


def test_C23_a_rejected_document_is_told_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    world = World(answer=says(200, BAD))
    go(world, world.poll(), 1)
    told = [r.getMessage() for r in caplog.records if r.name == POLL]
    assert told[0] == "Could not move to new release: Invalid target state."
    assert len(told) > 1 and all("\n" not in line for line in told)


def test_who_asks_hears_that_the_target_is_not_taken() -> None:
    world = World(answer=says(200, BAD))
    poll = world.poll()
    answer = poll.ask()
    go(world, poll, 1)
    with pytest.raises(Refused, match="the journal says why"):
        answer.result(0)


def test_a_target_that_cannot_be_kept_is_fetched_again() -> None:
    world = World(answer=says(200, document(), etag='"a"'), refusal=Broken("disk full"))
    poll = world.poll()
    go(world, poll, 1000)
    assert world.etags == ["", ""] and "target_etag" not in world.kept


def test_of_a_document_about_many_devices_the_own_part_is_kept() -> None:
    own = json.loads(document())
    both = {"e" * 32: {"name": "other", "config": {}, "apps": {}}, **own}
    world = World(answer=says(200, json.dumps(both), etag='"a"'))
    go(world, world.poll(), 1)
    (command,) = world.commands
    assert isinstance(command, SetTarget) and json.loads(command.raw) == own


def test_another_identity_waits_for_nothing_and_has_no_etag() -> None:
    world = World(answer=says(200, document(), etag='"a"'))
    poll = world.poll()
    go(world, poll, 1)
    world.show(facts=replace(FACTS, api_endpoint="https://other.example.com", device_api_key="k2"))
    go(world, poll, 1)
    assert world.etags == ["", ""]
    world.show(facts=HostFacts())
    go(world, poll, 10_000)
    assert len(world.asked) == 2


def test_every_attempt_proves_work_whatever_its_result() -> None:
    world = World(answer=says(500))
    poll = world.poll()
    for _ in range(50):
        rest = poll.turn()
        assert world.pulse.overdue() <= 0
        world.now += rest


def test_a_defect_ends_an_attempt_but_not_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    def broken(method: str, body: Any) -> Reply:
        raise ZeroDivisionError

    world = World(answer=broken)
    go(world, world.poll(), 16)
    assert len(world.asked) == 2 and "defect" in caplog.text


def nobody(method: str, body: Any) -> Reply:
    raise Unavailable("The cloud cannot be reached: refused")


def test_a_way_to_the_cloud_that_is_found_again_ends_the_wait_after_a_failure() -> None:
    world = World(answer=nobody)
    world.show(target=Target(config={"SUPERVISOR_POLL_INTERVAL": "100000000"}))
    poll = world.poll()
    go(world, poll, 1000)
    before = len(world.asked)
    poll.reachable()
    go(world, poll, 9)
    assert len(world.asked) == before
    go(world, poll, 2)
    assert len(world.asked) == before + 1
    for _ in range(10):  # a bad contact
        poll.reachable()
        go(world, poll, 2)
    assert len(world.asked) == before + 1
    go(world, poll, 60)
    assert len(world.asked) == before + 2, "at most once a minute"


@pytest.mark.parametrize("answer", [says(304), says(503, retry_after="3000")])
def test_who_waits_for_other_reasons_is_not_woken(answer: Callable[[str, Any], Reply]) -> None:
    world = World(answer=says(200, document(SUPERVISOR_POLL_INTERVAL="3000000"), etag='"a"'))
    poll = world.poll()
    go(world, poll, 1)
    world.answer = answer
    go(world, poll, 3100)
    before = len(world.asked)
    poll.reachable()
    go(world, poll, 100)
    assert len(world.asked) == before == 2


def clock_is_not_set(world: World) -> None:
    """The cloud's certificate is not valid as long as it is so."""

    def early(method: str, body: Any) -> Reply:
        raise CertificateOutOfTime("The cloud cannot be reached: not yet valid")

    exchange = Timed(lambda *asked: early("", None), lambda: False)
    world.answer = lambda method, body: exchange()


def test_C50_until_the_clock_is_set_waits_do_not_grow(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world = World()
    clock_is_not_set(world)
    poll = world.poll()
    go(world, poll, 100)
    assert world.times == pytest.approx([0, 15, 30, 45, 60, 75, 90], abs=1)
    assert [r.getMessage() for r in caplog.records] == ["Waiting for time synchronisation"]
    world.answer = nobody
    go(world, poll, 50)
    assert world.times[7:] == pytest.approx([105, 120, 150], abs=1), "it is no failure"


def test_C50_reports_wait_for_the_clock_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world = device()
    clock_is_not_set(world)
    go(world, world.report(), 100)
    assert world.times == pytest.approx([0, 15, 30, 45, 60, 75, 90], abs=2)
    assert [r.getMessage() for r in caplog.records] == ["Waiting for time synchronisation"]


@pytest.mark.parametrize("synchronised", [True, None])
def test_C50_a_bad_certificate_is_one_where_the_clock_is_right(synchronised: bool | None) -> None:
    def expired() -> Reply:
        raise CertificateOutOfTime("expired")

    with pytest.raises(CertificateOutOfTime):
        Timed(expired, lambda: synchronised)()


# -- reporting


def device(**changes: Any) -> World:
    world = World(replace(device_states.m1(), facts=FACTS))
    world.show(**changes)
    return world


def service_is(world: World, state: str) -> None:
    observed = world.published.current.observed
    (container,) = observed.containers.values()
    changed = {container.id: replace(container, state=state)}
    world.show(observed=replace(observed, containers=changed))


def test_C25_what_has_not_changed_is_not_told_again() -> None:
    world = device()
    go(world, world.report(), 3600)
    assert len(world.bodies) == 1 and {"apps", "status", "api_secret"} <= world.bodies[0].keys()


def test_S48_C26_changes_are_told_ten_seconds_apart_and_the_last_one_wins() -> None:
    world = device()
    report = world.report()
    for turn in range(300):  # five changes a second, for a minute
        service_is(world, ("running", "exited", "restarting")[turn % 3])
        go(world, report, 0.2)
    service_is(world, "exited")
    go(world, report, 60)
    gaps = [b - a for a, b in zip(world.times, world.times[1:], strict=False)]
    assert min(gaps) >= 10 and 3 <= len(world.bodies) <= 8
    assert all(list(body) == ["apps"] for body in world.bodies[1:])
    (app,) = world.bodies[-1]["apps"].values()
    assert app["releases"]["c0ffee01"]["services"]["main"]["status"] == "exited"


def test_S49_C28_a_report_waits_as_long_as_the_cloud_says_and_is_the_newest_then() -> None:
    world = device()
    world.answer = says(429, retry_after="5")
    report = world.report()
    go(world, report, 0.5)
    service_is(world, "exited")
    world.answer = says(200)
    go(world, report, 30)
    first, second = world.times
    assert 5 <= second - first <= 6
    assert "exited" in json.dumps(world.bodies[1])


def test_failed_reports_come_after_15_30_60_seconds() -> None:
    world = device()
    world.answer = says(500)
    go(world, world.report(), 200)
    assert world.times == pytest.approx([0, 15, 45, 105], abs=1)


FIGURES = Metrics(10, 400, 1000, 5, 50, "/dev/sda1", 40, "1")


def test_S50_C25_a_change_of_load_alone_is_told_every_five_minutes() -> None:
    world = device()
    world.figures = FIGURES
    report = world.report()
    go(world, report, 30)
    world.figures = replace(FIGURES, cpu_usage=50)
    go(world, report, 265)
    assert len(world.bodies) == 1
    go(world, report, 66)
    assert world.bodies[1:] == [{"cpu_usage": 50}] and 300 <= world.times[1] <= 361


def test_S50_load_goes_along_with_what_is_news() -> None:
    world = device()
    world.figures = FIGURES
    report = world.report()
    go(world, report, 30)
    world.figures = replace(FIGURES, cpu_usage=50)
    service_is(world, "exited")
    go(world, report, 61)
    assert sorted(world.bodies[1]) == ["apps", "cpu_usage"]


def test_a_restart_tells_nothing_twice_and_another_boot_everything() -> None:
    world = device()
    go(world, world.report(), 30)
    again = device()
    again.kept = world.kept
    go(again, again.report(), 60)
    assert not again.bodies
    elsewhere = device(facts=replace(FACTS, api_endpoint="https://other.example.com"))
    elsewhere.kept = world.kept
    go(elsewhere, elsewhere.report(), 1)
    assert elsewhere.bodies[0] == world.bodies[0]
    standing = world.published.current.standing
    boot = replace(standing, host=replace(standing.host, boot_id="boot-2"))
    rebooted = device(standing=boot)
    rebooted.kept = world.kept
    go(rebooted, rebooted.report(), 1)
    assert rebooted.bodies[0] == world.bodies[0]


def test_a_report_that_failed_is_tried_when_there_is_a_way_again() -> None:
    world = device()
    world.show(target=replace(world.snapshot.target or Target(),
                              config={"SUPERVISOR_POLL_INTERVAL": "100000000"}))  # fmt: skip
    world.answer = nobody
    report = world.report()
    go(world, report, 1000)
    before = len(world.asked)
    world.answer = says(200)
    report.reachable()
    go(world, report, 9)
    assert len(world.asked) == before
    go(world, report, 2)
    assert len(world.asked) == before + 1
    report.reachable()
    go(world, report, 30)
    assert len(world.asked) == before + 1, "there is nothing to tell"


def test_of_a_download_no_memory_is_written_until_it_is_done() -> None:
    writes: list[Any] = []

    class Flash(World):
        def set_setting(self, key: str, value: Any) -> None:
            writes.append(json.loads(json.dumps(value)))
            super().set_setting(key, value)

    world = Flash(replace(device_states.m1(), facts=FACTS))
    world.figures = FIGURES
    report = world.report()
    go(world, report, 20)
    assert len(writes) == 1 and "apps" in writes[0]["report"]
    for percent in range(0, 100, 10):
        world.published.publish(replace(device_states.updating(percent), facts=FACTS))
        world.figures = replace(FIGURES, cpu_usage=percent)
        go(world, report, 12)
    assert len(world.bodies) == 11 and len(writes) == 2
    assert "apps" not in writes[1]["report"], "after a power cut everything is told anew"
    world.published.publish(replace(device_states.updating(0, image_is_here=True), facts=FACTS))
    go(world, report, 12)
    assert len(writes) == 3 and "apps" in writes[2]["report"]


def test_C29_a_deleted_release_is_found_out_and_the_rest_goes_on() -> None:
    world = device()
    world.answer = lambda method, body: Reply(401 if "apps" in body[UUID] else 200, {}, b"")
    report = world.report()
    go(world, report, 60)
    tried = [("apps" in body, list(body)[:1]) for body in world.bodies]
    assert [apps for apps, _ in tried] == [True, False] and world.times[1] < 1
    world.show(facts=replace(FACTS, api_port=80))
    go(world, report, 60)
    assert world.bodies[2] == {"api_port": 80}
    go(world, report, 460)
    assert sum("apps" in body for body in world.bodies) == 1
    go(world, report, 120)
    assert sum("apps" in body for body in world.bodies) == 2, "after ten minutes, once more"


def test_a_bad_key_is_tried_again_with_everything_and_calmly() -> None:
    world = device()
    world.answer = says(401)
    go(world, world.report(), 50)
    assert ["apps" in body for body in world.bodies] == [True, False, True, False, True, False]
    assert world.times == pytest.approx([0, 0, 15, 15, 45, 45], abs=1)


def test_what_the_cloud_does_not_accept_is_told_without_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = device()
    world.figures = FIGURES

    def strict(method: str, body: Any) -> Reply:
        bad = "cpu_usage" in body[UUID]
        return Reply(
            400 if bad else 200, {}, b"s3cret: secret-device-key\nis wrong" if bad else b""
        )

    world.answer = strict
    go(world, world.report(), 100)
    assert [("cpu_usage" in body, "apps" in body) for body in world.bodies] == [
        (True, True), (False, True),
    ]  # fmt: skip
    assert "does not accept the report: (not shown): (not shown) is wrong" in caplog.text
    assert "s3cret" not in caplog.text and "secret-device-key" not in caplog.text


def test_nothing_is_told_before_the_device_is_registered() -> None:
    world = device(facts=device_states.MANAGED)
    report = world.report()
    go(world, report, 5000)
    assert not world.asked
    world.show(facts=FACTS)
    go(world, report, 0)
    assert len(world.asked) == 1
