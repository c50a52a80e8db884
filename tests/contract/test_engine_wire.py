"""engine/ against a scripted engine: what a real one does only when it is ill."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_script import Answer, Handler, Script
from engine_worlds import FakeWorld, Slip, eventually

from balena_agent.core.access import CloudAccess
from balena_agent.core.desired import DesiredService
from balena_agent.core.errors import (
    Broken,
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    EngineUnavailable,
)
from balena_agent.core.looks import Touch
from balena_agent.core.observed import HostFacts
from balena_agent.core.steps import (
    CreateContainer,
    Fetch,
    RemoveNetwork,
    StartContainer,
    StopContainer,
)
from balena_agent.engine.adapter import DockerEngine
from balena_agent.engine.client import Client, Link
from balena_agent.engine.observe import Observer
from balena_agent.engine.pull import Puller


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    made = Script(tmp_path / "engine.sock")
    yield made
    made.close()


@pytest.fixture
def engine(script: Script) -> Iterator[DockerEngine]:
    made = DockerEngine(script.socket, nothing)
    yield made
    made.close()


def nothing(service: DesiredService) -> None:
    """A container here needs nothing of the host."""


def said(status: int, message: str = "") -> Answer:
    return lambda to: to.say(status, {"message": message} if message else None)


def stop_step(final: bool = False) -> StopContainer:
    return StopContainer("u", "web", "c1", grace=0, final=final)


# ---- an engine that hangs ------------------------------------------------------------------------


def test_an_engine_that_hangs_is_unavailable_within_seconds(script: Script) -> None:
    script.answers["GET /_ping"] = script.hang
    client = Client(Link(script.socket))
    began = time.monotonic()
    with pytest.raises(EngineUnavailable):
        client.ping(0.2)
    assert time.monotonic() - began < 4


def test_a_call_ends_at_its_deadline(script: Script) -> None:
    script.answers["GET /networks"] = script.hang
    client = Client(Link(script.socket)).bounded(0.2)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            client.get("/networks")
    assert time.monotonic() - began < 10


def test_nonsense_is_an_error_and_never_a_surprise(script: Script, engine: DockerEngine) -> None:
    script.answers["GET /containers/json"] = lambda to: to.say(200, [{"Names": ["x"]}])
    script.answers["GET /networks"] = lambda to: to.say(200, {"odd": 1})
    script.answers["GET /volumes"] = lambda to: to.break_off()
    with pytest.raises((Broken, EngineFailed)):
        engine.observe()
    with pytest.raises(Broken):
        engine.look(Touch(networks=frozenset({"x"})))
    with pytest.raises(EngineUnavailable):
        engine.look(Touch(volumes=frozenset({"x"})))


def test_a_container_that_vanishes_during_the_look_is_skipped(
    script: Script, engine: DockerEngine
) -> None:
    labels = {"io.balena.supervised": "true"}
    listed = [{"Id": "c1", "Labels": labels}]
    script.answers["GET /containers/json"] = lambda to: to.say(200, listed)
    script.answers["GET /networks"] = lambda to: to.say(200, [])
    script.answers["GET /volumes"] = lambda to: to.say(200, {"Volumes": None})
    assert engine.observe().containers == {}
    assert "GET /containers/c1/json" in script.record


@pytest.mark.parametrize("hangs", [True, False])
def test_one_container_that_hangs_or_fails_does_not_blind_us(
    script: Script, caplog: pytest.LogCaptureFixture, hangs: bool
) -> None:
    nil = said(500, "RWLayer of container c1 is unexpectedly nil")
    labels = {"io.balena.supervised": "true", "io.balena.app-id": "1", "io.balena.service-id": "1"}
    config = {"Labels": {**labels, "io.balena.service-name": "web"}}
    inspect = {"Id": "c1", "Name": "/web_1_1_a", "Config": config, "State": {"Status": "running"}}
    entry = {"Id": "c1", "Labels": config["Labels"], "State": "running"}
    listed = [{**entry, "Names": ["/web_1_1_a"]}]
    script.answers["GET /containers/json"] = lambda to: to.say(200, listed)
    script.answers["GET /containers/c1/json"] = lambda to: to.say(200, inspect)
    script.answers["GET /networks"] = lambda to: to.say(200, [])
    script.answers["GET /volumes"] = lambda to: to.say(200, {"Volumes": None})
    observer = Observer(Client(Link(script.socket)), frozenset, patience=10.0)
    seen = observer.everything()
    assert seen.containers["c1"].state == "running"
    observer._patience = 0.2
    script.answers["GET /containers/c1/json"] = script.hang if hangs else nil
    with caplog.at_level(logging.WARNING):
        assert observer.everything() == seen
    assert "cannot tell about container c1" in caplog.text
    fresh = Observer(Client(Link(script.socket)), frozenset, patience=0.2)
    found = fresh.everything().containers["c1"]
    assert (found.raw_name, found.state) == ("web_1_1_a", "running")
    assert ("unexpectedly nil" in found.unread) is not hangs
    script.answers["GET /containers/c1/json"] = lambda to: to.say(200, inspect)
    assert fresh.everything() == seen


# ---- the stop ladder -----------------------------------------------------------------------------


def test_a_stop_that_works_is_one_call(script: Script, engine: DockerEngine) -> None:
    script.answers["POST /containers/c1/stop"] = said(204)
    engine.perform(stop_step(final=True), Slip())
    assert script.record == ["POST /containers/c1/stop?t=0"]


def test_a_final_kill_takes_the_restart_policy_first(script: Script, engine: DockerEngine) -> None:
    script.answers["POST /containers/c1/stop"] = said(500, "cannot stop")
    script.answers["POST /containers/c1/update"] = said(500, "busy")
    script.answers["POST /containers/c1/kill"] = said(204)
    script.answers["POST /containers/c1/wait"] = lambda to: to.say(200, {"StatusCode": 137})
    engine.perform(stop_step(final=True), Slip())
    assert [line.rpartition("/")[2] for line in script.record] == [
        "stop?t=0", "update", "kill", "wait?condition=not-running",
    ]  # fmt: skip
    assert json.loads(script.bodies[1]) == {"RestartPolicy": {"Name": "no"}}


def test_a_failed_stop_is_followed_by_a_kill(script: Script, engine: DockerEngine) -> None:
    script.answers["POST /containers/c1/stop"] = said(500, "cannot stop")
    script.answers["POST /containers/c1/kill"] = said(204)
    script.answers["POST /containers/c1/wait"] = lambda to: to.say(200, {"StatusCode": 137})
    engine.perform(stop_step(), Slip())
    assert [line.rpartition("/")[2] for line in script.record] == [
        "stop?t=0", "kill", "wait?condition=not-running",
    ]  # fmt: skip


def test_a_container_that_survives_the_kill_is_removed_if_that_was_the_end(
    script: Script, engine: DockerEngine
) -> None:
    script.answers["POST /containers/c1/stop"] = said(500, "cannot stop")
    script.answers["POST /containers/c1/kill"] = said(500, "cannot kill")
    script.answers["DELETE /containers/c1"] = said(204)
    engine.perform(stop_step(final=True), Slip())
    assert script.record[-1] == "DELETE /containers/c1?force=1&v=1"
    with pytest.raises(EngineFailed, match="cannot stop"):
        engine.perform(stop_step(), Slip())


@pytest.mark.parametrize("status", [304, 404])
def test_a_container_that_does_not_run_is_stopped(
    script: Script, engine: DockerEngine, status: int
) -> None:
    script.answers["POST /containers/c1/stop"] = lambda to: to.say(status)
    engine.perform(stop_step(), Slip())


def test_a_kill_that_comes_too_late_is_fine(script: Script, engine: DockerEngine) -> None:
    script.answers["POST /containers/c1/stop"] = said(500, "cannot stop")
    script.answers["POST /containers/c1/kill"] = said(409, "container c1 is not running")
    engine.perform(stop_step(), Slip())


# ---- create and start ----------------------------------------------------------------------------


def wanted(*networks: str) -> DesiredService:
    world = FakeWorld()
    asked: dict[str, Any] = {"networks": list(networks)} if networks else {}
    return world.app({"web": asked}, {name: {} for name in networks}).services[0]


def test_what_the_engine_warns_of_is_logged_once(
    script: Script, engine: DockerEngine, caplog: pytest.LogCaptureFixture
) -> None:
    made = {"Id": "c1", "Warnings": ["no memory cgroup"]}
    script.answers["POST /containers/create"] = lambda to: to.say(201, made)
    with caplog.at_level(logging.WARNING):
        engine.perform(CreateContainer(wanted()), Slip())
    assert [r.getMessage() for r in caplog.records] == ["the engine about web: no memory cgroup"]


def test_a_container_that_cannot_join_is_removed(script: Script, engine: DockerEngine) -> None:
    service = wanted("a", "b")
    further = service.spec.endpoints[1].network
    script.answers["GET /networks"] = lambda to: to.say(200, [{"Name": further}])
    script.answers["POST /containers/create"] = lambda to: to.say(201, {"Id": "c1"})
    script.answers[f"POST /networks/{further}/connect"] = said(500, "no address left")
    script.answers["DELETE /containers/c1"] = said(204)
    with pytest.raises(EngineFailed, match="no address left"):
        engine.perform(CreateContainer(service), Slip())
    assert script.record[-1] == "DELETE /containers/c1?force=1&v=1"


def test_an_image_for_another_processor_is_named_as_such(script: Script) -> None:
    engine = DockerEngine(
        script.socket, nothing, facts=lambda: HostFacts(device_type="raspberrypi4-64")
    )
    words = "OCI runtime create failed: exec /bin/web: exec format error: unknown"
    script.answers["POST /containers/c1/start"] = said(500, words)
    with pytest.raises(EngineFailed) as caught:
        engine.perform(StartContainer("u", "web", "c1"), Slip())
    assert str(caught.value) == (
        "Application architecture incompatible with raspberrypi4-64: exec format error"
    )
    assert caught.value.status == 500


# ---- pulls ---------------------------------------------------------------------------------------

FETCH = Fetch("registry.example/web:1", "u", 1, "web")
TOTAL = {"id": "Total", "progressDetail": {"current": 1, "total": 10}}


def test_a_stream_that_just_ends_is_no_success(script: Script, engine: DockerEngine) -> None:
    def pull(to: Handler) -> None:
        to.stream(TOTAL)
        to.end()

    script.answers["POST /images/create"] = pull
    with pytest.raises(EngineUnavailable, match="broke off"):
        engine.perform(FETCH, Slip())


def test_a_stream_that_breaks_off_is_no_success(script: Script, engine: DockerEngine) -> None:
    def pull(to: Handler) -> None:
        to.stream(TOTAL)
        to.break_off()

    script.answers["POST /images/create"] = pull
    with pytest.raises(EngineUnavailable):
        engine.perform(FETCH, Slip())


def test_a_finished_stream_without_the_image_is_no_success(
    script: Script, engine: DockerEngine
) -> None:
    def pull(to: Handler) -> None:
        to.stream({"status": "Status: Downloaded newer image for web:1"})
        to.end()

    script.answers["POST /images/create"] = pull
    with pytest.raises(EngineFailed, match="not there"):
        engine.perform(FETCH, Slip())


def test_an_error_in_the_stream_comes_in_the_engines_words(
    script: Script, engine: DockerEngine
) -> None:
    words = "layers from manifest don't match image configuration"

    def pull(to: Handler) -> None:
        to.stream(TOTAL, {"errorDetail": {"message": words}, "error": words})
        to.end()

    script.answers["POST /images/create"] = pull
    with pytest.raises(EngineFailed) as caught:
        engine.perform(FETCH, Slip())
    assert (str(caught.value), caught.value.status) == (words, 0)


@pytest.mark.parametrize("when", ["before the answer", "in the stream"])
def test_a_pull_is_given_up_whatever_it_waits_for(
    script: Script, engine: DockerEngine, when: str
) -> None:
    def pull(to: Handler) -> None:
        if when == "in the stream":
            to.stream(TOTAL)
        script.hang(to)

    script.answers["POST /images/create"] = pull
    slip, ended = Slip(), threading.Event()

    def perform() -> None:
        with pytest.raises(Cancelled):
            engine.perform(FETCH, slip)
        ended.set()

    threading.Thread(target=perform).start()
    eventually(lambda: any("create" in line for line in script.record))
    slip.cancel()
    assert ended.wait(10)


def test_retries_without_end_are_given_up(script: Script) -> None:
    def pull(to: Handler) -> None:
        to.stream(TOTAL)
        while not script.over.wait(0.01):
            to.stream({"id": "a", "status": "Retrying in 5 seconds"})

    script.answers["POST /images/create"] = pull
    client, ticks = Client(Link(script.socket)), itertools.count(step=10.0)
    observer = Observer(client, frozenset)
    puller = Puller(client, observer, lambda registry: None, lambda: next(ticks), stall=30.0)
    with pytest.raises(DeadlineExceeded, match="not moved"):
        puller.fetch(FETCH, Slip())


def test_silence_is_given_up(script: Script) -> None:
    def pull(to: Handler) -> None:
        to.stream(TOTAL)
        script.hang(to)

    script.answers["POST /images/create"] = pull
    client = Client(Link(script.socket))
    puller = Puller(client, Observer(client, frozenset), lambda registry: None, stall=0.2)
    with pytest.raises(DeadlineExceeded):
        puller.fetch(FETCH, Slip())


@pytest.mark.parametrize("managed", [False, True])
def test_credentials_go_with_each_pull(script: Script, managed: bool) -> None:
    known = CloudAccess(api="https://api.cloud.example", username="d_1", password="k")
    access = known if managed else CloudAccess()
    script.answers["POST /images/create"] = said(500, "unauthorized: k")
    engine = DockerEngine(script.socket, nothing, access=lambda: access)
    step = Fetch("registry.cloud.example/web:1", "u", 1, "web")
    with pytest.raises(EngineFailed, match="unauthorized") as caught:
        engine.perform(step, Slip())
    sent = json.loads(base64.urlsafe_b64decode(script.headers[-1]["X-Registry-Auth"]))
    given = {"username": "d_1", "password": "k", "serveraddress": "registry.cloud.example"}
    assert sent == (given if managed else {})
    assert script.record[-1].endswith("?fromImage=registry.cloud.example%2Fweb&tag=1")
    assert str(caught.value) == ("unauthorized: (not shown)" if managed else "unauthorized: k")


# ---- events --------------------------------------------------------------------------------------


class Watcher:
    """A thread in `watch`, and what it told."""

    def __init__(self, engine: DockerEngine) -> None:
        self.engine = engine
        self.seen: list[Touch] = []
        self.opened = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        self.engine.watch(self.seen.append, self.stop, self._reconnected)

    def _reconnected(self) -> None:
        self.opened += 1

    def end(self) -> None:
        """The thread ends at once, whatever it waits for."""
        self.stop.set()
        self.engine.close()
        self.thread.join(5)
        assert not self.thread.is_alive()


def test_a_broken_stream_wakes_everything_and_is_opened_again(
    script: Script, engine: DockerEngine
) -> None:
    def events(to: Handler) -> None:
        to.stream({"Type": "volume", "Action": "create", "Actor": {"ID": "1_data"}})
        if len(script.record) < 3:
            to.break_off()
        else:
            script.hang(to)

    script.answers["GET /events"] = events
    watcher = Watcher(engine)
    eventually(lambda: watcher.opened == 3)
    eventually(lambda: len(watcher.seen) == 5)
    one, everything = Touch(volumes=frozenset({"1_data"})), Touch(everything=True)
    assert watcher.seen == [one, everything, one, everything, one]
    watcher.end()
    assert watcher.seen[-1] == one  # an end that we want wakes nobody


def test_strange_events_touch_everything(script: Script, engine: DockerEngine) -> None:
    def events(to: Handler) -> None:
        to.stream({"odd": 1}, ["list"], {"Type": "network", "Action": "create", "Actor": {}})
        script.hang(to)

    script.answers["GET /events"] = events
    watcher = Watcher(engine)
    eventually(lambda: len(watcher.seen) == 3)
    assert all(touch.everything for touch in watcher.seen)
    watcher.end()


@pytest.mark.parametrize("answer", ["hang", "refuse", "absent"])
def test_watching_an_ill_engine_ends_at_once(
    script: Script, engine: DockerEngine, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("balena_agent.engine.events.FIRST_PAUSE", 30.0)
    script.answers["GET /events"] = script.hang if answer == "hang" else said(500, "ill")
    if answer == "absent":
        os.unlink(script.socket)
    watcher = Watcher(engine)
    if answer != "absent":
        eventually(lambda: script.record)
    watcher.end()
    assert (watcher.opened, watcher.seen) == (0, [])


# ---- the lock directory --------------------------------------------------------------------------


# ---- networks that are kept by ghosts ------------------------------------------------------------


def test_a_network_kept_by_containers_that_are_gone_is_freed(
    script: Script, engine: DockerEngine
) -> None:
    answers = iter([(403, {"message": "network has active endpoints"}), (204, None)])
    script.answers["DELETE /networks/n1"] = lambda to: to.say(*next(answers))
    seen = {"Containers": {"ghost": {"Name": "web_1_1_c1"}}}
    script.answers["GET /networks/n1"] = lambda to: to.say(200, seen)
    for key in ("ghost", "web_1_1_c1"):
        script.answers[f"GET /containers/{key}/json"] = said(404, f"No such container: {key}")
    script.answers["POST /networks/n1/disconnect"] = said(200)
    engine.perform(RemoveNetwork("u", "1_default", "n1"), Slip())
    sent = dict(zip(script.record, script.bodies, strict=True))
    freed = json.loads(sent["POST /networks/n1/disconnect"])
    assert freed == {"Container": "web_1_1_c1", "Force": True}


@pytest.mark.parametrize("alive", ["c1", "web_1_1_c1"])
def test_a_network_that_is_really_in_use_stays(
    script: Script, engine: DockerEngine, alive: str
) -> None:
    """By the container itself, or by another that has the name of one that is gone."""
    script.answers["DELETE /networks/n1"] = said(403, "network has active endpoints")
    seen = {"Containers": {"c1": {"Name": "web_1_1_c1"}}}
    script.answers["GET /networks/n1"] = lambda to: to.say(200, seen)
    for key in ("c1", "web_1_1_c1"):
        script.answers[f"GET /containers/{key}/json"] = said(404, f"No such container: {key}")
    script.answers[f"GET /containers/{alive}/json"] = lambda to: to.say(200, {"Id": alive})
    with pytest.raises(EngineFailed, match="active endpoints"):
        engine.perform(RemoveNetwork("u", "1_default", "n1"), Slip())
    assert not any("disconnect" in line for line in script.record)
