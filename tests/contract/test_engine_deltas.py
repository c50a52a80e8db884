"""Deltas of version 3, with a played balenaEngine and a scripted cloud (spec 20 §18.8, 60 §3).

No engine that can be had here applies deltas, so what the real one does is played; which calls the
agent makes, and what it makes of the answers, is real.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud_script import Cloud
from engine_balena import BalenaEngine, Remote
from engine_worlds import Slip, eventually

from balena_agent.core.deltas import DeltaSettings
from balena_agent.core.errors import (
    AgentError,
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    StillProcessing,
    Unavailable,
)
from balena_agent.core.observed import Obtained
from balena_agent.core.steps import Fetch, RemoveImage
from balena_agent.engine.adapter import DockerEngine
from balena_agent.engine.obtained import Nowhere, Records

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64
OLD_DIGEST, NEW_DIGEST = "sha256:" + "1" * 64, "sha256:" + "2" * 64


class World:
    """One device with image `old` of a service, which shall get `new` from the cloud."""

    def __init__(self, engine: BalenaEngine, cloud: Cloud) -> None:
        self.played, self.cloud = engine, cloud
        self.settings = DeltaSettings(wanted=True, request_timeout=5.0)
        self.access = cloud.access()
        self.clock = 0.0
        self.old = f"{cloud.host}/v2/old@{OLD_DIGEST}"
        self.new = f"{cloud.host}/v2/new@{NEW_DIGEST}"
        self.delta = f"{cloud.host}/v2/delta-1:latest"
        self.step = Fetch(self.new, "u", 7, "web", source=self.old)
        self.records = Records({}, Nowhere())
        self.engine = DockerEngine(
            engine.script.socket,
            lambda service: None,
            access=lambda: self.access,
            deltas=lambda: self.settings,
            records=self.records,
            now=lambda: self.clock,
        )
        engine.hold(OLD, self.old)
        engine.remote[self.new] = Remote(NEW)
        engine.remote[self.delta] = Remote(NEW, base=OLD)
        cloud.serve_image("v2/new", NEW_DIGEST, NEW)
        cloud.answers["/api/v3/delta"] = lambda asked: (200, {"name": self.delta})

    def fetch(self) -> Slip:
        slip = Slip()
        self.engine.perform(self.step, slip)
        return slip

    def pulled(self) -> list[str]:
        return [name for name, _ in self.played.pulls]

    def answer(self, status: int, document: Any = None) -> None:
        self.cloud.answers["/api/v3/delta"] = lambda asked: (status, document)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    engine, cloud = BalenaEngine(tmp_path / "engine.sock"), Cloud()
    made = World(engine, cloud)
    yield made
    made.engine.close()
    cloud.close()
    engine.close()


def test_an_image_comes_as_a_delta(world: World) -> None:
    assert world.engine.observe().image(world.new) is None
    slip = world.fetch()
    assert world.pulled() == [world.delta]
    image = world.engine.observe().image(world.new)
    assert image and image.id == NEW
    assert image.tags == {f"{world.cloud.host}/v2/new:latest"} and not image.digests
    assert image.obtained == {Obtained(world.new, 7, "web")}
    assert slip.told[-1] == 100
    world.fetch()  # it is here: nobody is asked again
    assert len(world.cloud.asked) == 3 and len(world.played.pulls) == 1


def test_who_is_told_what(world: World) -> None:
    """The device's name goes to the token service alone, the token to the others."""
    world.fetch()
    token, delta, manifest = world.cloud.asked
    name = base64.b64encode(b"d_1:SECRET").decode()
    assert (token.path, token.who) == ("/auth/v1/token", f"Basic {name}")
    assert token.query == (
        ("service", world.cloud.host),
        ("scope", "repository:v2/new:pull"),
        ("scope", "repository:v2/old:pull"),
    )
    assert (delta.path, delta.who) == ("/api/v3/delta", "Bearer T")
    assert delta.query == (("src", world.old), ("dest", world.new))
    assert (manifest.path, manifest.who) == (f"/v2/v2/new/manifests/{NEW_DIGEST}", "Bearer T")
    _, auth = world.played.pulls[0]
    assert json.loads(base64.urlsafe_b64decode(auth)) == {"registrytoken": "T"}


def test_what_came_as_a_delta_is_removed_without_a_trace(world: World) -> None:
    world.fetch()
    world.engine.perform(RemoveImage(world.new), Slip())
    assert world.played.images.keys() == {OLD}
    assert world.records.ids() == frozenset()
    world.engine.perform(RemoveImage(world.new), Slip())


@pytest.mark.parametrize("by_id", [True, False])
def test_what_lost_its_name_is_removed_by_its_id(world: World, by_id: bool) -> None:
    world.fetch()
    world.played.images[NEW].tags.clear()
    image = world.engine.observe().images[NEW]
    assert image.nameless and image.answers_to(world.new)
    world.engine.perform(RemoveImage(NEW if by_id else world.new), Slip())
    assert NEW not in world.engine.observe().images
    assert world.records.ids() == frozenset()


def test_a_note_about_an_image_that_is_gone_is_dropped_by_a_full_look(world: World) -> None:
    world.fetch()
    del world.played.images[NEW]
    assert world.engine.observe().image(world.new) is None
    assert world.records.ids() == frozenset()


def test_tokens_are_kept_for_ten_minutes(world: World) -> None:
    for seconds, tokens in ((0.0, 1), (599.0, 1), (601.0, 2)):
        world.clock = seconds
        world.fetch()
        world.engine.perform(RemoveImage(world.new), Slip())
        assert world.cloud.paths().count("/auth/v1/token") == tokens


@pytest.mark.parametrize("status", [502, 504])
def test_a_delta_in_the_making_is_no_failure(world: World, status: int) -> None:
    world.answer(status)
    with pytest.raises(StillProcessing, match="Delta still processing") as it:
        world.fetch()
    assert it.value.pause == 10.0
    assert world.pulled() == []


@pytest.mark.parametrize("status", [400, 403, 404, 409])
def test_a_server_that_has_no_delta_means_the_whole_image(
    world: World, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    world.answer(status)
    with caplog.at_level(logging.INFO):
        world.fetch()
    assert world.pulled() == [world.new]
    image = world.engine.observe().image(world.new)
    assert image and image.digests and image.tags
    assert f"status {status}; it is downloaded as a whole" in caplog.text


@pytest.mark.parametrize("status", [301, 401, 500, 503])
def test_what_passes_by_itself_is_an_error(world: World, status: int) -> None:
    world.answer(status, {"to": "/elsewhere"})
    with pytest.raises(Unavailable, match=f"status {status}") as caught:
        world.fetch()
    assert not isinstance(caught.value, StillProcessing)
    assert world.pulled() == [] and "/elsewhere" not in world.cloud.paths()


def test_a_refused_token_is_asked_for_anew(world: World) -> None:
    world.answer(401)
    for _ in range(2):
        with pytest.raises(Unavailable):
            world.fetch()
    assert world.cloud.paths().count("/auth/v1/token") == 2


@pytest.mark.parametrize("said", [(200, {}), (401, None), (500, {"token": "T"})])
def test_no_token_is_an_error_without_secrets(world: World, said: tuple[int, Any]) -> None:
    world.cloud.answers["/auth/v1/token"] = lambda asked: said
    with pytest.raises(Unavailable, match="no token") as caught:
        world.fetch()
    assert "SECRET" not in str(caught.value) and world.pulled() == []


@pytest.mark.parametrize("document", [{}, {"name": ""}, {"name": "NO NAME"}, {"name": 5.5}, [1]])
def test_a_strange_answer_is_an_error(world: World, document: Any) -> None:
    world.answer(200, document)
    with pytest.raises(AgentError):
        world.fetch()


def test_errors_in_the_stream_are_tried_three_times(world: World) -> None:
    world.played.remote[world.delta].errors = ["layers do not match", "again"]
    world.fetch()
    assert world.pulled() == [world.delta] * 3
    assert world.cloud.paths().count("/api/v3/delta") == 1


def test_after_three_errors_the_whole_image_comes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.played.remote[world.delta].errors = ["one", "two", "three"]
    with caplog.at_level(logging.INFO):
        slip = world.fetch()
    assert world.pulled() == [world.delta] * 3 + [world.new]
    assert "could not be applied: three; it is downloaded as a whole" in caplog.text
    assert slip.told[-1] == 100


def test_an_error_of_the_network_is_passed_on(world: World) -> None:
    world.played.remote[world.delta].errors = [500]
    with pytest.raises(EngineFailed, match="the network is ill") as caught:
        world.fetch()
    assert caught.value.status == 500 and world.pulled() == [world.delta]


def test_an_engine_that_only_stores_deltas_is_found_out(world: World) -> None:
    bogus = "sha256:" + "c" * 64
    world.played.remote[world.delta] = Remote(bogus, base=OLD, applied=False)
    world.fetch()
    assert world.pulled() == [world.delta, world.new]
    assert bogus not in world.played.images


def test_a_delta_that_makes_another_image_is_thrown_away(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "sha256:" + "d" * 64
    world.played.remote[world.delta] = Remote(wrong, base=OLD)
    with caplog.at_level(logging.INFO):
        world.fetch()
    assert world.pulled() == [world.delta, world.new]
    assert wrong not in world.played.images and NEW in world.played.images
    assert f"it made {wrong} instead of {NEW}" in caplog.text


def test_a_registry_that_does_not_tell_leaves_it_at_that(world: World) -> None:
    del world.cloud.answers[f"/v2/v2/new/manifests/{NEW_DIGEST}"]
    world.fetch()
    assert world.pulled() == [world.delta]
    assert world.engine.observe().image(world.new)


def test_a_delta_server_that_is_not_there_is_left_alone_for_an_hour(world: World) -> None:
    world.access = world.cloud.access(deltas="http://127.0.0.1:1")
    for seconds, reached in ((0.0, True), (3599.0, False), (3601.0, True)):
        world.clock = seconds
        before = world.cloud.paths().count("/auth/v1/token")
        world.fetch()
        world.engine.perform(RemoveImage(world.new), Slip())
        asked = world.cloud.paths().count("/auth/v1/token") - before
        assert (asked > 0) == reached
    assert world.pulled() == [world.new] * 3


@pytest.mark.parametrize("case", ["docker", "off", "v2", "foreign", "gone", "v2 image", "no cloud"])
def test_no_delta_is_asked_for_where_there_can_be_none(
    world: World, tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    match case:
        case "docker":
            answers = world.played.script.answers
            answers["GET /version"] = lambda to: to.say(200, {"Version": "26.1"})
        case "off":
            world.settings = DeltaSettings(wanted=False)
        case "v2":
            world.settings = DeltaSettings(wanted=True, version=2)
        case "foreign":
            world.access = world.cloud.access(api="http://api.cloud.example")
        case "gone":
            del world.played.images[OLD]
        case "v2 image":
            world.played.images[OLD].size = 39
        case "no cloud":
            world.access = type(world.access)()
    with caplog.at_level(logging.INFO):
        world.fetch()
    assert world.pulled() == [world.new]
    assert not {"/api/v3/delta", "/auth/v1/token"} & set(world.cloud.paths())
    assert "it is downloaded as a whole" in caplog.text


def test_a_source_that_came_as_a_delta_itself(world: World) -> None:
    """It has no digest: only our note tells what it is."""
    world.played.hold(OLD, f"{world.cloud.host}/v2/old:latest")
    world.records.add(OLD, Obtained(world.old, 7, "web"))
    world.fetch()
    assert world.pulled() == [world.delta]


def test_a_delta_is_given_up_while_the_server_thinks(world: World) -> None:
    def slow(asked: Any) -> tuple[int, None]:
        world.cloud.hold.wait(10)
        return 404, None

    world.cloud.answers["/api/v3/delta"] = slow
    slip, failure = Slip(), []

    def perform() -> None:
        try:
            world.engine.perform(world.step, slip)
        except AgentError as error:
            failure.append(error)

    thread = threading.Thread(target=perform)
    thread.start()
    eventually(lambda: "/api/v3/delta" in world.cloud.paths())
    slip.cancel()
    thread.join(5)
    assert not thread.is_alive() and isinstance(failure[0], Cancelled)
    assert world.pulled() == []


def test_a_server_that_thinks_too_long_is_asked_again_later(tmp_path: Path, world: World) -> None:
    def slow(asked: Any) -> tuple[int, None]:
        world.cloud.hold.wait(10)
        return 404, None

    world.cloud.answers["/api/v3/delta"] = slow
    world.settings = DeltaSettings(wanted=True, request_timeout=2.0)
    with pytest.raises(DeadlineExceeded):
        world.fetch()
    assert world.pulled() == []
