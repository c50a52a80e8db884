"""The engine's contract, second part: downloads, from a real registry by a real engine.

What an engine does only when it is ill is in test_engine_wire.py.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from engine_front import Front
from engine_worlds import RealWorld, Slip, World, eventually, needs_registry

from balena_agent.core.access import CloudAccess
from balena_agent.core.errors import AgentError, Cancelled, EngineFailed
from balena_agent.core.steps import Fetch, RemoveImage
from balena_agent.engine.adapter import DockerEngine

pytest_plugins = ["engine_fixtures"]


def fetch(world: World, reference: str) -> Fetch:
    return Fetch(reference, world.uuid, world.app_id, "web")


def test_a_present_image_is_fetched_without_progress(world: World) -> None:
    world.checked(fetch(world, world.image))
    world.checked(RemoveImage(world.image))


@needs_registry
def test_a_download(real: RealWorld) -> None:
    reference = real.provide("one", padding=3_000_000)
    slip = Slip()
    before = real.engine.observe()
    real.engine.perform(fetch(real, reference), slip)
    assert slip.told[-1] == 100 and slip.told == sorted(slip.told)
    assert before.image(reference) is None
    image = real.engine.observe().image(reference)
    assert image and image.digests  # they go with the tag
    real.checked(fetch(real, reference))
    real.checked(RemoveImage(reference))
    assert image.id not in real.engine.observe().images


@needs_registry
def test_a_download_by_digest_can_be_removed_again(real: RealWorld) -> None:
    tagged = real.provide("one")
    reference = real.digest(tagged)
    real.do(fetch(real, reference))
    image = real.engine.observe().image(reference)
    assert image and image.tags == {f"{reference.partition('@')[0]}:latest"}
    elsewhere = "registry.example/other@" + reference.partition("@")[2]
    real.do(fetch(real, elsewhere))  # the same digest is the same image, whatever its name
    real.do(RemoveImage(reference))
    assert real.engine.observe().image(reference) is None
    assert image.id not in real.engine.observe().images
    real.do(RemoveImage(reference))


@needs_registry
def test_a_present_image_makes_no_traffic(real: RealWorld, front: Front) -> None:
    reference = front.through(real.provide("one"))
    real.do(fetch(real, reference))
    asked = front.requests
    assert asked > 0
    real.do(fetch(real, reference))
    assert front.requests == asked


@needs_registry
def test_an_image_that_does_not_exist(real: RealWorld, front: Front) -> None:
    with pytest.raises(EngineFailed, match="not found") as caught:
        real.do(fetch(real, f"{front.address}/{real.token}/nothing:1"))
    assert caught.value.status == 404


@needs_registry
def test_an_error_inside_the_stream_is_an_error(real: RealWorld, front: Front) -> None:
    reference = front.through(real.provide("one", padding=100_000))
    front.without_layers = True
    with pytest.raises(EngineFailed) as caught:
        real.do(fetch(real, reference))
    assert caught.value.status == 0 and str(caught.value)
    assert real.engine.observe().image(reference) is None


@needs_registry
def test_a_running_download_is_given_up_at_once(real: RealWorld, front: Front) -> None:
    reference = front.through(real.provide("big", padding=20_000_000))
    front.pace = 2_000_000
    slip = Slip()
    failure: list[AgentError] = []
    thread = threading.Thread(target=_perform, args=(real, fetch(real, reference), slip, failure))
    thread.start()
    eventually(lambda: len(slip.told) >= 2)
    began = time.monotonic()
    slip.cancel()
    thread.join(8)
    assert time.monotonic() - began < 8
    assert isinstance(failure[0], Cancelled)
    assert real.engine.observe().image(reference) is None
    sent = front.sent
    eventually(lambda: _still(lambda: front.sent), 20)
    assert front.sent - sent < 10_000_000


def _still(value: Callable[[], int]) -> bool:
    before = value()
    time.sleep(0.5)
    return value() == before


def _perform(world: World, step: Any, slip: Slip, failure: list[AgentError]) -> None:
    try:
        world.engine.perform(step, slip)
    except AgentError as error:
        failure.append(error)


@needs_registry
def test_progress_comes_at_a_bounded_pace(real: RealWorld, front: Front) -> None:
    reference = front.through(real.provide("big", padding=6_000_000))
    front.pace = 3_000_000
    slip = Slip()
    began = time.monotonic()
    real.engine.perform(fetch(real, reference), slip)
    took = time.monotonic() - began
    assert 3 <= len(slip.told) <= took * 2 + 2  # besides: one at the beginning, one at the end
    assert slip.told == sorted(slip.told)


@needs_registry
@pytest.mark.parametrize("known", [True, False])
def test_the_engine_asks_the_token_service_in_the_devices_name(
    real: RealWorld, front: Front, known: bool
) -> None:
    """C59: the name reaches the token service of the cloud's registry, and nobody else's."""
    reference = front.through(real.provide("private"))
    front.with_token = True
    front.name = "Basic " + base64.b64encode(b"d_4f0c:SECRET").decode()
    api = f"http://{front.address}" if known else "https://api.cloud.example"
    access = CloudAccess(api=api, username="d_4f0c", password="SECRET")
    engine = DockerEngine(real.client.link.socket, lambda service: None, access=lambda: access)
    try:
        if known:
            engine.perform(fetch(real, reference), Slip())
            assert set(front.names) == {front.name}
        else:
            with pytest.raises(EngineFailed) as caught:
                engine.perform(fetch(real, reference), Slip())
            assert "SECRET" not in str(caught.value)
            assert front.names and front.name not in front.names
    finally:
        engine.close()
    assert (real.engine.observe().image(reference) is not None) == known
