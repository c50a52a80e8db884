"""A change of the proxy on trial: the decision for every turn, and the host's side of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from waiting import until

from balena_agent.cloud.client import RefusedByCloud
from balena_agent.cloud.reach import reached
from balena_agent.core.errors import RefusedByHost, Unavailable
from balena_agent.core.jsonread import Json
from balena_agent.core.observed import HostFacts
from balena_agent.core.proxytrial import (
    Files,
    Trial,
    Verdict,
    begun,
    from_json,
    judged,
    resumed,
    to_json,
)
from balena_agent.core.redsocks import Proxy, parse
from balena_agent.host.proxytrial import KEY, UNSETTLED, ProxyTrial

NONE = Files(None, None)
OLD, NEW, NEWER = Files("old", None), Files("new", "10.0.0.1"), Files("newer", None)
TRIAL = Trial(OLD, "boot", 100.0)


def test_a_change_is_on_trial_where_the_cloud_was_reached() -> None:
    assert begun(None, OLD, NEW, True, "boot", 100.0) == TRIAL
    assert begun(None, OLD, NEW, False, "boot", 100.0) is None
    assert begun(None, OLD, NEW, None, "boot", 100.0) is None
    assert begun(None, OLD, OLD, True, "boot", 100.0) is None


def test_a_second_change_keeps_what_worked_and_gets_a_while_of_its_own() -> None:
    assert begun(TRIAL, NEW, NEWER, None, "boot", 150.0) == Trial(OLD, "boot", 150.0)
    assert begun(TRIAL, NEW, OLD, None, "boot", 150.0) is None
    assert begun(TRIAL, NEW, NEW, None, "boot", 150.0) == TRIAL


def test_a_reboot_gives_the_change_a_while_of_its_own() -> None:
    assert resumed(TRIAL, "boot", 5.0) == TRIAL
    assert resumed(TRIAL, "next boot", 5.0) == Trial(OLD, "next boot", 5.0)


@pytest.mark.parametrize(
    ("current", "answer", "now", "verdict"),
    [
        (NEW, True, 101.0, Verdict.CONFIRM),
        (NEW, True, 999.0, Verdict.CONFIRM),
        (NEW, None, 101.0, Verdict.CONFIRM),
        (NEW, False, 399.9, Verdict.WAIT),
        (NEW, False, 400.0, Verdict.REVERT),
        (OLD, False, 101.0, Verdict.CONFIRM),
        (OLD, False, 999.0, Verdict.CONFIRM),
    ],
)
def test_the_verdict(current: Files, answer: bool | None, now: float, verdict: Verdict) -> None:
    assert judged(TRIAL, current, answer, now, 300.0) is verdict


@pytest.mark.parametrize("trial", [None, TRIAL, Trial(NONE, "", 0.0), Trial(NEW, "b", 1.5)])
def test_a_trial_survives_the_store(trial: Trial | None) -> None:
    assert from_json(to_json(trial)) == trial


@pytest.mark.parametrize(
    "value",
    [1, "x", [], {}, {"before": {}, "boot": 1, "since": 1}, {"before": [], "boot": "", "since": 1},
     {"before": {"conf": 1}, "boot": "", "since": 1}],
)  # fmt: skip
def test_what_is_no_trial_is_none(value: Json) -> None:
    assert from_json(value) is None


# ---- the host's side -----------------------------------------------------------------------------

RIGHT = Proxy({"type": "socks5", "ip": "192.0.2.1", "port": "1080"})
WRONG = Proxy({"type": "socks5", "ip": "192.0.2.2", "port": "1080"})
SECONDS = 0.1


class FakeHost:
    """The files, and what the units make of them."""

    def __init__(self) -> None:
        self.now = NONE
        self.were: list[Files] = []
        self.refuses = self.refuses_to_put_back = False
        self.breaks = self.breaks_on_putting_back = False

    def read(self) -> tuple[Proxy | None, tuple[str, ...]]:
        return parse(self.now.conf) if self.now.conf else None, ()

    def files(self) -> Files:
        return self.now

    def set(self, proxy: Proxy | None, no_proxy: Sequence[str]) -> None:
        self._put(Files.of(proxy, no_proxy), self.refuses, self.breaks)

    def put(self, files: Files) -> None:
        self._put(files, self.refuses_to_put_back, self.breaks_on_putting_back)

    def _put(self, files: Files, refuses: bool, breaks: bool) -> None:
        if refuses:
            raise RefusedByHost("redsocks.service is failed")
        if breaks:
            raise RuntimeError("foreseen by nobody")
        self.now = files
        self.were.append(files)


class Memory:
    def __init__(self) -> None:
        self.kept: dict[str, Json] = {}

    def setting(self, key: str) -> Json:
        return self.kept.get(key)

    def set_setting(self, key: str, value: Json) -> None:
        self.kept[key] = value


class World:
    """A cloud that is reached through every proxy but the wrong one."""

    def __init__(self, boot: str = "boot", host: Any = None, memory: Any = None) -> None:
        self.host: FakeHost = host or FakeHost()
        self.memory: Memory = memory or Memory()
        self.cloud: bool | None = True
        self.trial = ProxyTrial(self.host, self.reached, self.memory, boot, SECONDS)

    def reached(self) -> bool | None:
        return self.cloud and self.host.now != Files.of(WRONG, ())

    @property
    def kept(self) -> Json:
        return self.memory.kept.get(KEY)


class BrokenAnswer:
    def __bool__(self) -> bool:
        raise RuntimeError("foreseen by nobody")


def no_thread() -> bool:
    return all(thread.name != "proxy" for thread in threading.enumerate())


def test_a_change_that_works_is_confirmed(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.trial.set(RIGHT, ())
    until(lambda: world.kept is None, "confirmed")
    until(no_thread, "nothing is left to do")
    assert world.trial.read() == (RIGHT, ())
    assert not caplog.records


def test_a_change_that_cuts_off_is_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.trial.set(RIGHT, ())
    until(lambda: world.kept is None, "confirmed")
    world.trial.set(WRONG, ())
    until(lambda: world.kept is None, "taken back")
    assert world.trial.read() == (RIGHT, ())
    assert world.host.were == [Files.of(RIGHT, ()), Files.of(WRONG, ()), Files.of(RIGHT, ())]
    until(no_thread, "nothing is left to do")
    told = [record.message for record in caplog.records]
    assert told == ["Proxy change reverted: the cloud could not be reached for 0.1 s after it"]


@pytest.mark.parametrize("cloud", [False, None])
def test_without_a_cloud_before_nothing_is_tried(cloud: bool | None) -> None:
    world = World()
    world.cloud = cloud
    world.trial.set(WRONG, ())
    assert world.kept is None and no_thread()


@pytest.mark.parametrize("boot", ["boot", "next boot"])
def test_a_trial_goes_on_after_a_restart(boot: str) -> None:
    world = World()
    world.trial.close()
    world.trial.set(WRONG, ())
    again = World(boot, world.host, world.memory)
    again.trial.start()
    until(lambda: again.kept is None, "taken back")
    assert again.host.now == NONE


def test_what_the_units_have_not_taken_up_is_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cloud and no trial: the agent died, or lost the bus, between the files and the units."""
    world, put = World(), []
    world.cloud = None
    world.host.now = Files.of(RIGHT, ())
    monkeypatch.setattr(world.host, "put", put.append)
    world.trial.start()
    assert put == [] and no_thread()
    world.memory.kept[UNSETTLED] = True
    world.trial.start()
    until(lambda: put == [Files.of(RIGHT, ())], "put once more")
    until(no_thread, "that was all")


def test_a_change_that_never_came_is_forgotten() -> None:
    world = World()
    world.memory.kept[KEY] = to_json(Trial(NONE, "boot", 0.0))
    world.cloud = False
    again = World("boot", world.host, world.memory)
    again.trial.start()
    until(lambda: again.kept is None, "forgotten")
    assert again.host.now == NONE


def test_the_note_is_there_before_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    world, noted = World(), []
    monkeypatch.setattr(world.host, "set", lambda proxy, no_proxy: noted.append(world.kept))
    world.trial.close()
    world.trial.set(WRONG, ())
    assert [from_json(each) for each in noted] == [from_json(world.kept)] != [None]


def test_what_the_host_refuses_is_not_on_trial() -> None:
    world = World()
    world.host.refuses = True
    with pytest.raises(RefusedByHost):
        world.trial.set(WRONG, ())
    assert world.kept is None and no_thread()


def test_what_cannot_be_put_back_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.host.refuses_to_put_back = True
    world.trial.set(WRONG, ())
    until(lambda: "cannot be put back yet" in caplog.text, "told")
    world.host.refuses_to_put_back = False
    until(lambda: world.kept is None, "taken back")
    assert world.host.now == NONE


def test_no_error_keeps_the_thread_from_its_work(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.host.breaks_on_putting_back = True
    world.trial.set(WRONG, ())
    until(lambda: "foreseen by nobody" in caplog.text, "told")
    world.host.breaks_on_putting_back = False
    until(lambda: world.kept is None, "taken back")
    assert world.host.now == NONE


def test_a_question_that_breaks_is_no_answer() -> None:
    world = World()
    world.trial.set(WRONG, ())
    world.cloud = BrokenAnswer()  # type: ignore[assignment]
    until(lambda: world.kept is None, "taken back")
    assert world.host.now == NONE


def test_an_error_that_nobody_has_foreseen_leaves_no_trial() -> None:
    world = World()
    world.host.breaks = True
    with pytest.raises(RuntimeError):
        world.trial.set(WRONG, ())
    assert world.kept is None and no_thread()


# ---- whether the cloud answers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "found"), [(200, True), (401, True), (404, True), (407, False), (502, False)]
)
def test_only_an_answer_of_the_cloud_counts(status: int, found: bool) -> None:
    def ask(*words: object) -> Json:
        if status == 200:
            return None
        raise RefusedByCloud("no", status)

    assert reached(HostFacts(api_endpoint="https://api.example.org"), ask) is found


def test_silence_and_no_cloud() -> None:
    def ask(*words: object) -> Json:
        raise Unavailable("nobody there")

    assert reached(HostFacts(api_endpoint="https://api.example.org"), ask) is False
    assert reached(HostFacts(), ask) is None
