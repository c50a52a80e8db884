"""The check for free space before a pull, against a scripted registry (spec 20 §18.6, §18.7)."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud_script import Asked, Cloud
from engine_balena import BalenaEngine, Remote
from engine_front import Front
from engine_worlds import RealWorld, Slip, needs_registry

from balena_agent.core.access import CloudAccess
from balena_agent.core.errors import Cancelled, DiskFull, InvalidInput
from balena_agent.core.reference import parse_reference
from balena_agent.core.steps import Fetch
from balena_agent.engine.client import Client, Link
from balena_agent.engine.observe import Observer
from balena_agent.engine.pull import Puller
from balena_agent.engine.registry import Registry
from balena_agent.engine.space import Space, check_space, measured

pytest_plugins = ["engine_fixtures"]

MIB = 1 << 20
CONFIG = "sha256:" + "c" * 64
NAME = base64.b64encode(b"d_1:SECRET").decode()


class World:
    """An engine with `free` bytes, and a registry of the cloud with an image `web:1`."""

    def __init__(self, engine: BalenaEngine, cloud: Cloud) -> None:
        self.played, self.cloud = engine, cloud
        self.engine = Client(Link(engine.script.socket))
        self.access = CloudAccess()
        self.space: Space | None = Space(total=1000 * MIB, free=400 * MIB)
        self.asked: list[str] = []
        self.reference = f"{cloud.host}/web:1"
        engine.remote[self.reference] = Remote(CONFIG)

    def measure(self, directory: str) -> Space | None:
        self.asked.append(directory)
        return self.space

    def fetch(self, reference: str = "") -> None:
        puller = Puller(
            self.engine,
            Observer(self.engine, frozenset),
            lambda host: self.access.credentials(host),
            measure=self.measure,
        )
        puller.fetch(Fetch(reference or self.reference, "u", 1, "web"), Slip())

    def registry(self, seconds: float = 5.0, **more: Any) -> Registry:
        reference = parse_reference(self.reference)
        return Registry(self.engine, reference, self.access.credentials, seconds=seconds, **more)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    engine, cloud = BalenaEngine(tmp_path / "engine.sock"), Cloud()
    yield World(engine, cloud)
    cloud.close()
    engine.close()


@pytest.mark.parametrize(
    ("size", "space", "fits"),
    [
        (100 * MIB, Space(1000 * MIB, 400 * MIB), True),
        (144 * MIB, Space(1000 * MIB, 400 * MIB), True),  # the reserve is 256 MiB at least
        (144 * MIB + 1, Space(1000 * MIB, 400 * MIB), False),
        (2000 * MIB, Space(10_000 * MIB, 3000 * MIB), True),  # and 10 %
        (2000 * MIB + 1, Space(10_000 * MIB, 3000 * MIB), False),
        (1, Space(1000 * MIB, 0), False),
    ],
)
def test_an_image_must_fit_beside_the_reserve(
    world: World, size: int, space: Space, fits: bool
) -> None:
    world.cloud.serve_image("web", "1", CONFIG, (size - 1, 1), ("l1", "l2"))
    world.space = space
    if fits:
        world.fetch()
    else:
        with pytest.raises(DiskFull):
            world.fetch()
    assert len(world.played.pulls) == int(fits)
    assert world.asked == ["/nowhere"]


def test_the_message_names_what_is_needed_and_what_is_free(world: World) -> None:
    world.cloud.serve_image("web", "1", CONFIG, (300 * MIB,), ("l1",))
    with pytest.raises(DiskFull) as caught:
        world.fetch()
    assert str(caught.value) == (
        f"not enough space for image {world.reference}: it needs 300 MiB, 400 MiB are free and"
        " 256 MiB of them are kept in reserve"
    )


@pytest.mark.parametrize(
    ("there", "fits"),
    [
        (["l1"], True),
        (["l1", "x"], True),
        (["x", "l1"], False),  # it stands on another layer
        (["l2"], False),
        ([], False),
    ],
)
def test_layers_that_are_there_need_no_space(world: World, there: list[str], fits: bool) -> None:
    world.cloud.serve_image("web", "1", CONFIG, (300 * MIB, 100 * MIB), ("l1", "l2"))
    world.played.hold("sha256:" + "e" * 64, "other:1")
    said = {"Id": "sha256:" + "e" * 64, "RootFS": {"Layers": there}}
    answers = world.played.script.answers
    answers[f"GET /images/sha256:{'e' * 64}/json"] = lambda to: to.say(200, said)
    if fits:
        world.fetch()
    else:
        with pytest.raises(DiskFull):
            world.fetch()


def no_image(cloud: Cloud) -> None:
    cloud.answers.clear()


def strange(cloud: Cloud) -> None:
    cloud.answers["/v2/web/manifests/1"] = lambda asked: (200, {"layers": [{"size": "x"}]})


def old_schema(cloud: Cloud) -> None:
    cloud.answers["/v2/web/manifests/1"] = lambda asked: (200, {"fsLayers": []})


def ill(cloud: Cloud) -> None:
    cloud.answers["/v2/web/manifests/1"] = lambda asked: (500, None)


def no_layers(cloud: Cloud) -> None:
    del cloud.answers[f"/v2/web/blobs/{CONFIG}"]


@pytest.mark.parametrize("silent", [no_image, strange, old_schema, ill, no_layers])
def test_what_cannot_be_known_is_no_reason_to_refuse(world: World, silent: Any) -> None:
    world.cloud.serve_image("web", "1", CONFIG, (900 * MIB,), ("l1",))
    silent(world.cloud)
    world.fetch()
    assert len(world.played.pulls) == 1


def test_free_space_that_cannot_be_known_is_no_reason_either(world: World) -> None:
    world.cloud.serve_image("web", "1", CONFIG, (900 * MIB,), ("l1",))
    world.space = None
    world.fetch()
    assert measured("/no/such/directory") is None


def test_a_registry_that_is_not_there_is_no_reason_either(world: World) -> None:
    world.played.remote["127.0.0.1:1/web:1"] = Remote(CONFIG)
    world.fetch("127.0.0.1:1/web:1")
    assert len(world.played.pulls) == 1 and world.asked == []


def test_the_default_registry_is_not_asked(world: World) -> None:
    world.played.remote["web:1"] = Remote(CONFIG)
    world.fetch("web:1")
    assert "GET /info" not in world.played.script.record


def test_a_slow_registry_is_not_waited_for(world: World) -> None:
    def slow(asked: Asked) -> tuple[int, None]:
        world.cloud.hold.wait(10)
        return 404, None

    world.cloud.answers["/v2/web/manifests/1"] = slow
    began = time.monotonic()
    assert world.registry(seconds=0.2).manifest() is None
    assert time.monotonic() - began < 8


def test_a_fetch_is_given_up_while_the_registry_thinks(world: World) -> None:
    def slow(asked: Asked) -> tuple[int, None]:
        slip.cancel()
        world.cloud.hold.wait(10)
        return 404, None

    slip = Slip()
    world.cloud.answers["/v2/web/manifests/1"] = slow
    began = time.monotonic()
    with pytest.raises(Cancelled):
        check_space(world.engine, "web", world.registry(30, ticket=slip), world.measure)
    assert time.monotonic() - began < 8


def test_of_several_processors_the_engines_own_counts(world: World) -> None:
    listed = [
        {"digest": "sha256:arm", "platform": {"os": "l", "architecture": "arm"}},
        {"digest": "sha256:x", "platform": {"os": "l", "architecture": "x"}},
    ]
    world.cloud.answers["/v2/web/manifests/1"] = lambda asked: (200, {"manifests": listed})
    world.cloud.serve_image("web", "sha256:arm", "arm", (1,))
    world.cloud.serve_image("web", "sha256:x", CONFIG, (2, 3))
    found = world.registry().manifest()
    assert found and (found.config, found.sizes) == (CONFIG, (2, 3))


# ---- who asks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("managed", [False, True])
def test_the_token_is_asked_for_by_name_only_in_the_cloud(world: World, managed: bool) -> None:
    world.cloud.serve_image("web", "1", CONFIG, (5,))
    world.cloud.with_token = True
    world.access = world.cloud.access() if managed else CloudAccess()
    assert world.registry().manifest()
    first, token, second = world.cloud.asked
    assert (first.who, second.who) == ("", "Bearer T")
    assert token.path == "/auth/v1/token" and token.who == (f"Basic {NAME}" if managed else "")
    assert token.query == (("service", "s"), ("scope", "a b"))


def test_the_name_is_not_sent_where_a_strange_realm_wants_it(world: World) -> None:
    """A registry of the cloud that sends us elsewhere for a token."""
    elsewhere = Cloud()
    try:
        world.access = CloudAccess(api="http://10.0.0.1", registry=world.cloud.host,
                                   username="d_1", password="SECRET")  # fmt: skip
        world.cloud.serve_image("web", "1", CONFIG, (5,))
        world.cloud.with_token = True
        world.cloud.realm = f"http://localhost:{elsewhere.host.rpartition(':')[2]}/auth/v1/token"
        assert world.registry().manifest()
        assert [asked.who for asked in elsewhere.asked] == [""]
    finally:
        elsewhere.close()


def test_a_redirect_to_another_host_goes_without_the_token(world: World) -> None:
    store = Cloud()
    try:
        world.cloud.serve_image("web", "1", CONFIG, (5,))
        world.cloud.with_token = True
        where = f"http://localhost:{store.host.rpartition(':')[2]}/blob"
        world.cloud.answers[f"/v2/web/blobs/{CONFIG}"] = lambda asked: (307, {"to": where})
        store.answers["/blob"] = lambda asked: (200, {"rootfs": {"diff_ids": ["l1"]}})
        registry = world.registry()
        manifest = registry.manifest()
        assert manifest and registry.layers(manifest) == ("l1",)
        assert [asked.who for asked in store.asked] == [""]
    finally:
        store.close()


# ---- unparsable references, and the real engine -------------------------------------------------


@pytest.mark.parametrize("reference", ["Bad Name", "a@sha256:12", "http://a.b/c"])
def test_what_is_no_reference_reaches_nobody(world: World, reference: str) -> None:
    with pytest.raises(InvalidInput, match="image reference"):
        world.fetch(reference)
    assert world.played.pulls == [] and world.cloud.asked == []


@needs_registry
def test_a_real_registry_tells_what_a_real_engine_would_need(real: RealWorld, front: Front) -> None:
    tagged = front.through(real.provide("one", padding=3_000_000))
    client = real.client
    reference = parse_reference(tagged)

    def registry() -> Registry:
        return Registry(client, reference, lambda host: None)

    manifest = registry().manifest()
    assert manifest and sum(manifest.sizes) > 1000
    need = sum(manifest.sizes)
    with pytest.raises(DiskFull):
        check_space(client, tagged, registry(), lambda d: Space(1000 * MIB, 256 * MIB + need - 1))
    check_space(client, tagged, registry(), lambda d: Space(1000 * MIB, 256 * MIB + need))
    real.do(Fetch(tagged, real.uuid, real.app_id, "web"))
    image = real.engine.observe().image(tagged)
    assert image and image.id == manifest.config
    check_space(client, tagged, registry(), lambda d: Space(1000 * MIB, 0))  # all of it is here
