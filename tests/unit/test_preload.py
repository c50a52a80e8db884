"""`apps.json`: used once, when its images are there, and never over another target."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from agent import DEADLINE, Rig, image, observed, rig, service, target
from fakes.machine import FakeHost, FakeStore
from waiting import until

from balena_agent.core.boot import Board
from balena_agent.core.hostconfig import BootFile, HostConfig
from balena_agent.core.intent import Apply
from balena_agent.core.looks import Touch
from balena_agent.core.target import read_preload
from balena_agent.database import StoreUnavailable
from balena_agent.runtime.preload import PIN, Preload, pin

RELEASE = {"id": 1, "services": {"one": {
    "id": 1, "image_id": 1, "image": "busybox", "environment": {}, "labels": {},
}}}  # fmt: skip
FLEET = {"f1ee": {"id": 1, "name": "fleet", "class": "fleet", "releases": {"c1": RELEASE}}}
APPS = {"apps": target(service("one"))["local"]["apps"]}


def write(path: Path, content: object = APPS) -> Path:
    file = path / "apps.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def _submitted(*_: object) -> NoReturn:
    pytest.fail("something was submitted or stored")


NOTHING = (_submitted, _submitted)


def preload_of(agent: Rig, file: Path) -> Preload:
    return Preload(file, agent.reconciler.submit, agent.store.set_setting)


def test_S51_a_preloaded_app_runs_and_the_file_is_put_away(tmp_path: Path) -> None:
    file = write(tmp_path)
    with rig() as agent:
        preload = preload_of(agent, file)
        assert preload.read()
        agent.published.subscribe(preload.seen)
        preload.seen(agent.published.current)
        agent.until(lambda s: s.target is not None)
        agent.settled()
        assert agent.containers() == {"one": "running"}
        assert list(agent.store.targets) == ["preload"]
        agent.until(lambda s: file.read_text() == "{}\n")
    assert json.loads((tmp_path / "apps.json.preloaded").read_text()) == APPS


def test_S52_a_missing_image_leaves_the_file_until_it_appears(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path)
    with rig(observed()) as agent:
        preload = preload_of(agent, file)
        assert preload.read()
        agent.published.subscribe(preload.seen)
        preload.seen(agent.until(lambda s: s.looked))
        agent.until(lambda s: "waits for images: busybox:latest" in caplog.text)
        assert agent.store.targets == {}
        assert json.loads(file.read_text()) == APPS
        from dataclasses import replace

        agent.engine.change(
            lambda seen: replace(seen, images={"sha256:busybox": image("busybox")}),
            Touch(everything=True),
        )
        agent.reconciler.wake(Touch(everything=True))
        agent.until(lambda s: s.target is not None)
        agent.settled()
        assert agent.containers() == {"one": "running"}


def test_another_target_that_comes_first_wins(tmp_path: Path) -> None:
    file = write(tmp_path)
    with rig(observed()) as agent:
        preload = preload_of(agent, file)
        preload.read()
        agent.published.subscribe(preload.seen)
        agent.post({"local": {"apps": {}}})
        agent.settled()
        assert list(agent.store.targets) == ["local"]
        assert json.loads(file.read_text()) == APPS


@contextmanager
def refusing(store: FakeStore) -> Iterator[list[str]]:
    """A store without room; gives the sources of the targets that it refused."""
    asked: list[str] = []

    def full(source: str, raw: str) -> None:
        asked.append(source)
        raise StoreUnavailable("the disk is full")

    keep, store.save_target = store.save_target, full  # type: ignore[method-assign]
    yield asked
    store.save_target = keep  # type: ignore[method-assign]


PINNED = {"apps": FLEET, "pinDevice": True}


def test_what_a_full_store_refuses_is_tried_again_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, PINNED)
    with rig() as agent:
        preload = preload_of(agent, file)
        assert preload.read()
        agent.published.subscribe(preload.seen)
        with refusing(agent.store) as asked:
            preload.seen(agent.until(lambda s: s.looked))
            until(lambda: "was refused" in caplog.text)
            preload.catch_up()
            until(lambda: len(asked) == 2)
            agent.reconciler.submit(Apply()).result(DEADLINE)  # the second one has been refused
            assert caplog.text.count("was refused") == 1
        assert json.loads(file.read_text()) == PINNED
        preload.catch_up()
        agent.until(lambda s: s.target is not None)
        agent.settled()
        assert list(agent.store.targets) == ["preload"]
        until(lambda: file.read_text() == "{}\n")
        preload.catch_up()
        agent.reconciler.submit(Apply()).result(DEADLINE)
        assert agent.store.settings == {PIN: {"app": 1, "commit": "c1"}}


def test_a_refused_preload_gives_way_to_another_target(tmp_path: Path) -> None:
    file = write(tmp_path, PINNED)
    with rig() as agent:
        preload = preload_of(agent, file)
        preload.read()
        agent.published.subscribe(preload.seen)
        with refusing(agent.store) as asked:
            preload.seen(agent.until(lambda s: s.looked))
            until(lambda: asked)
        agent.post({"local": {"apps": {}}})
        agent.settled()
        preload.catch_up()
        agent.reconciler.submit(Apply()).result(DEADLINE)
        assert list(agent.store.targets) == ["local"]
        assert agent.store.settings.get(PIN) is None
        assert json.loads(file.read_text()) == PINNED


def test_the_wish_to_be_pinned_is_stored_before_the_target(tmp_path: Path) -> None:
    order: list[str] = []
    with rig() as agent:
        save = agent.store.save_target

        def target_too(source: str, raw: str) -> None:
            order.append(f"target of {source}")
            save(source, raw)

        agent.store.save_target = target_too  # type: ignore[method-assign]
        remember = lambda key, value: order.append(f"{key} {value}")  # noqa: E731
        preload = Preload(write(tmp_path, PINNED), agent.reconciler.submit, remember)
        preload.read()
        preload.seen(agent.until(lambda s: s.looked))
        agent.until(lambda s: s.target is not None)
    assert order == ["pinDevice {'app': 1, 'commit': 'c1'}", "target of preload"]


@pytest.mark.parametrize(
    "document",
    [{"apps": FLEET}, {"apps": FLEET, "pinDevice": False}, {"apps": FLEET, "pinDevice": "yes"}],
)
def test_who_does_not_ask_for_it_is_not_pinned(document: dict[str, Any]) -> None:
    assert pin(json.dumps(document), read_preload(document)) is None


def test_the_first_fleet_is_what_a_device_is_pinned_to() -> None:
    (fleet,) = FLEET.values()
    apps = {"a1": {**fleet, "id": 2, "class": "block"}, "b1": {**fleet, "id": 3}, **FLEET}
    document = {"apps": apps, "pinDevice": True}
    assert pin(json.dumps(document), read_preload(document)) == {"app": 3, "commit": "c1"}


LEGACY = {"appId": 1, "name": "a", "commit": "c", "imageId": "busybox", "env": {}}


@pytest.mark.parametrize(
    "document",
    [
        {**APPS, "config": {"RESIN_HOST_CONFIG_gpu_mem": "64"}},
        [{**LEGACY, "config": {"RESIN_HOST_CONFIG_gpu_mem": "64"}}],
    ],
    ids=["v2", "v1"],
)
def test_what_the_host_is_set_to_stays_but_for_what_the_file_says(
    tmp_path: Path, document: object
) -> None:
    text = "# mine\ngpu_mem=16\ndtparam=audio=on,spi=on\nodd-name=1\n"
    host = FakeHost(
        settings=HostConfig(
            "balenaos",
            "b1",
            Board("raspberrypi3"),
            {"appUpdatePollInterval": "600000"},
            {"config.txt": BootFile(text)},
        )
    )
    with rig(host=host) as agent:
        preload = preload_of(agent, write(tmp_path, document))
        assert preload.read()
        preload.seen(agent.until(lambda s: s.looked and s.host.boot))
        agent.until(lambda s: s.target is not None)
        agent.settled()
        assert agent.store.targets.keys() == {"preload"}
    assert host.settings.boot["config.txt"].text == text.replace("=16", "=64")
    assert host.settings.config == {"appUpdatePollInterval": "600000"}
    assert host.settings.reboot == ("HOST_CONFIG_gpu_mem",)


@pytest.mark.parametrize(
    "content", ["", "{", "[1", '{"apps": {"x": {}}}', '{"apps": []}', "[" * 100_000]
)
def test_a_broken_file_is_told_and_left(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, content)
    assert not Preload(file, *NOTHING).read()
    assert "is not used" in caplog.text
    assert file.read_text() == content


@pytest.mark.parametrize("content", ["{}", "[]", '{"apps": {}, "config": {}}'])
def test_an_empty_file_means_nothing(tmp_path: Path, content: str) -> None:
    assert not Preload(write(tmp_path, content), *NOTHING).read()


def test_no_file_or_a_directory_in_its_place_is_fine(tmp_path: Path) -> None:
    (tmp_path / "apps.json").mkdir()
    for path in (tmp_path / "apps.json", tmp_path / "none.json"):
        assert not Preload(path, *NOTHING).read()
