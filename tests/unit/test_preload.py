"""`apps.json`: used once, when its images are there, and never over another target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agent import image, observed, rig, service, target
from fakes.machine import FakeHost

from balena_agent.core.boot import Board
from balena_agent.core.hostconfig import BootFile, HostConfig
from balena_agent.core.looks import Touch
from balena_agent.runtime.preload import Preload

APPS = {"apps": target(service("one"))["local"]["apps"]}


def write(path: Path, content: object = APPS) -> Path:
    file = path / "apps.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_S51_a_preloaded_app_runs_and_the_file_is_put_away(tmp_path: Path) -> None:
    file = write(tmp_path)
    with rig() as agent:
        preload = Preload(file, agent.reconciler.submit)
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
        preload = Preload(file, agent.reconciler.submit)
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
        preload = Preload(file, agent.reconciler.submit)
        preload.read()
        agent.published.subscribe(preload.seen)
        agent.post({"local": {"apps": {}}})
        agent.settled()
        assert list(agent.store.targets) == ["local"]
        assert json.loads(file.read_text()) == APPS


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
        preload = Preload(write(tmp_path, document), agent.reconciler.submit)
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
    assert not Preload(file, lambda command: pytest.fail("submitted")).read()
    assert "is not used" in caplog.text
    assert file.read_text() == content


@pytest.mark.parametrize("content", ["{}", "[]", '{"apps": {}, "config": {}}'])
def test_an_empty_file_means_nothing(tmp_path: Path, content: str) -> None:
    assert not Preload(write(tmp_path, content), lambda c: pytest.fail("submitted")).read()


def test_no_file_or_a_directory_in_its_place_is_fine(tmp_path: Path) -> None:
    (tmp_path / "apps.json").mkdir()
    for path in (tmp_path / "apps.json", tmp_path / "none.json"):
        assert not Preload(path, lambda c: pytest.fail("submitted")).read()
