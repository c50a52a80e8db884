"""The API's port, when config.json names another one while the agent runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from balena_agent.core.errors import Unavailable
from balena_agent.core.observed import HostFacts
from balena_agent.daemon import Daemon

FIRST, TAKEN, OTHER = 48484, 80, 48999


class Server:
    def __init__(self, port: int) -> None:
        self.port = port

    def start(self) -> None:
        if self.port == TAKEN:
            raise Unavailable("port 80 is taken")

    def stop(self) -> None:
        pass


class Served(Daemon):
    """The part of the daemon that looks after the port."""

    def __init__(self) -> None:
        self.files: Any = SimpleNamespace(facts=HostFacts(api_port=FIRST))
        self.http: Any = Server(FIRST)
        self._named_port = FIRST
        self.built: list[int] = []

    def _http(self) -> Any:
        self.built.append(self.files.facts.api_port)
        return Server(self.built[-1])

    def looks(self, port: int) -> None:
        self.files.facts = HostFacts(api_port=port)
        for _ in range(3):
            self._host_looked(False)


def test_a_port_that_is_taken_is_tried_once_until_another_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("balena_agent.daemon.reserve_port", lambda port: "")
    daemon = Served()
    daemon.looks(TAKEN)
    assert daemon.built == [TAKEN] and daemon.http.port == FIRST
    assert caplog.text.count("The API stays on port 48484") == 1
    daemon.looks(FIRST)
    assert daemon.built == [TAKEN]
    daemon.looks(TAKEN)
    assert daemon.built == [TAKEN] * 2
    daemon.looks(OTHER)
    assert daemon.built == [TAKEN] * 2 + [OTHER] and daemon.http.port == OTHER
