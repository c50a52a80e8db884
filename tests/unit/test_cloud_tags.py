"""The device's tags, against the small cloud of the tests: asked, kept, sent, tried again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cloud import FakeCloud
from waiting import until

from balena_agent.cloud import tags as module
from balena_agent.cloud.client import RefusedByCloud, request
from balena_agent.cloud.tags import CloudTags
from balena_agent.core.errors import AgentError, InvalidInput, Unavailable
from balena_agent.core.observed import HostFacts

UUID, KEY = "d0" * 16, "device-key"


class Settings:
    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def setting(self, key: str) -> Any:
        return self.kept.get(key)

    def set_setting(self, key: str, value: Any) -> None:
        self.kept[key] = value


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with FakeCloud(keys={UUID: KEY}) as made:
        made.tags[UUID] = [{"id": 5, "tag_key": "loc", "value": "lab"}]
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.05)
    monkeypatch.setattr(module, "FIRST_RETRY", 0.02)


def facts(endpoint: str) -> Callable[[], HostFacts]:
    return lambda: HostFacts(device_uuid=UUID, api_endpoint=endpoint, device_api_key=KEY)


Make = Callable[[str, Settings], CloudTags]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes tags of a cloud. No sender outlives its test: it would write into another one's log."""
    made: list[CloudTags] = []

    def tags(endpoint: str, settings: Settings) -> CloudTags:
        made.append(CloudTags(facts(endpoint), settings))
        return made[-1]

    yield tags
    for each in made:
        each.stop()
    until(lambda: "tags" not in {thread.name for thread in threading.enumerate()}, "they end")


def value(cloud: FakeCloud, name: str) -> Any:
    return {tag["tag_key"]: tag["value"] for tag in cloud.tags[UUID]}.get(name)


def test_tags_are_asked_from_the_cloud(cloud: FakeCloud, make: Make) -> None:
    tags = make(cloud.url, Settings())
    assert tags.get() == [{"id": 5, "name": "loc", "value": "lab"}]
    assert cloud.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_without_a_cloud(make: Make) -> None:
    settings = Settings()
    tags = make("", settings)
    with pytest.raises(Unavailable, match="not connected to a cloud"):
        tags.get()
    tags.put({"a": "b"})
    assert settings.kept[module.WANTED] == {"a": "b"}


def test_set_tags_are_sent_once(cloud: FakeCloud, make: Make) -> None:
    settings = Settings()
    tags = make(cloud.url, settings)
    tags.put({"a": "1", "b": "2"})
    until(lambda: value(cloud, "b") == "2" and settings.kept.get(module.REPORTED))
    tags.put({"a": "1"})
    tags.put({"a": "3"})
    until(lambda: value(cloud, "a") == "3")
    sent = cloud.asked("PATCH", "/device/v3/tags")
    assert [r.body for r in sent] == [{UUID: {"a": "1", "b": "2"}}, {UUID: {"a": "3"}}]
    assert sent[1].at - sent[0].at >= 0.05
    make(cloud.url, settings).start()


def test_what_a_dead_cloud_missed_is_sent_later(cloud: FakeCloud, make: Make) -> None:
    settings = Settings()
    cloud.stop()
    tags = make(cloud.url, settings)
    tags.put({"a": "1"})
    with pytest.raises(Unavailable, match="cannot be reached"):
        tags.get()
    cloud.start()
    until(lambda: value(cloud, "a") == "1")


def test_tags_survive_a_restart(cloud: FakeCloud, make: Make) -> None:
    settings = Settings()
    before = make(cloud.url, settings)
    before.stop()
    before.put({"a": "1"})
    assert not cloud.requests
    make(cloud.url, settings).start()
    until(lambda: value(cloud, "a") == "1")


def test_a_tag_set_during_its_transport_is_sent_again(cloud: FakeCloud, make: Make) -> None:
    cloud.delay = 0.1
    tags = make(cloud.url, Settings())
    tags.put({"a": "1"})
    until(lambda: cloud.asked("PATCH", "/device/v3/tags"))
    tags.put({"a": "2"})
    until(lambda: value(cloud, "a") == "2")


def test_another_cloud_is_told_everything(cloud: FakeCloud, make: Make) -> None:
    settings = Settings()
    make(cloud.url, settings).put({"a": "1"})
    until(lambda: settings.kept.get(module.REPORTED))
    with FakeCloud(keys={UUID: KEY}) as other:
        make(other.url, settings).start()
        until(lambda: other.tags.get(UUID))


@pytest.mark.parametrize(
    ("endpoint", "error"),
    [
        ("ftp://example", InvalidInput),
        ("nonsense", InvalidInput),
        ("http://127.0.0.1:99999", InvalidInput),
        ("http://127.0.0.1:1", Unavailable),
    ],
)
def test_bad_addresses(endpoint: str, error: type[AgentError]) -> None:
    with pytest.raises(error):
        request(endpoint, KEY, "GET", "/x")


def test_the_clouds_refusal(cloud: FakeCloud) -> None:
    with pytest.raises(RefusedByCloud, match="status 401"):
        request(cloud.url, "wrong", "GET", "/v7/device_tag")
    cloud.delay = 0.5
    with pytest.raises(Unavailable) as raised:
        request(cloud.url, KEY, "GET", "/v7/device_tag", limit=0.05)
    assert KEY not in str(raised.value)
