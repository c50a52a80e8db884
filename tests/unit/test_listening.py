"""The API's port, when config.json names another one while the agent runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from balena_agent.core.errors import Unavailable
from balena_agent.core.observed import HostFacts
from balena_agent.faces import Faces

FIRST, TAKEN, OTHER = 48484, 80, 48999


class Server:
    def __init__(self, port: int) -> None:
        self.port = port

    def start(self) -> None:
        if self.port == TAKEN:
            raise Unavailable("port 80 is taken")

    def stop(self) -> None:
        pass


class Served(Faces):
    """The part of the faces that looks after the port."""

    def __init__(self) -> None:
        self._files: Any = SimpleNamespace(facts=HostFacts(api_port=FIRST))
        self.http: Any = Server(FIRST)
        self._named_port = FIRST
        self.built: list[int] = []

    def _http(self) -> Any:
        self.built.append(self._files.facts.api_port)
        return Server(self.built[-1])

    def looks(self, port: int) -> None:
        self._files.facts = HostFacts(api_port=port)
        for _ in range(3):
            self.follow_port()


def test_a_port_that_is_taken_is_tried_once_until_another_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("balena_agent.faces.reserve_port", lambda port: "")
    faces = Served()
    faces.looks(TAKEN)
    assert faces.built == [TAKEN] and faces.http.port == FIRST
    assert caplog.text.count("The API stays on port 48484") == 1
    faces.looks(FIRST)
    assert faces.built == [TAKEN]
    faces.looks(TAKEN)
    assert faces.built == [TAKEN] * 2
    faces.looks(OTHER)
    assert faces.built == [TAKEN] * 2 + [OTHER] and faces.http.port == OTHER
