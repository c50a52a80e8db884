"""The wire to systemd: what is sent, and when nothing is."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from balena_agent.watchdog import Watchdog, systemd_notifier, watchdog_interval


class Wire:
    """A watchdog with a clock in the hand of the test, and what it sent."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[str] = []
        self.watchdog = Watchdog(self.sent.append, lambda: self.now)


def test_it_is_fed_only_while_every_worker_proves_its_work() -> None:
    wire = Wire()
    web, bus = wire.watchdog.pulse("web", 10.0), wire.watchdog.pulse("bus", 5.0)
    assert wire.watchdog.pet() == []
    wire.now = 6.0
    assert wire.watchdog.pet() == [bus]
    assert wire.sent == ["WATCHDOG=1", "STATUS=stuck: bus (starting)"]
    bus.beat("ping came back")
    assert wire.watchdog.pet() == [] and wire.sent[-1] == "WATCHDOG=1"
    web.within(60.0, "stopping")
    bus.rest()
    wire.now = 60.0
    assert wire.watchdog.pet() == []
    wire.now = 67.0
    assert wire.watchdog.stuck() == [web]
    wire.watchdog.forget(web)
    assert wire.watchdog.stuck() == []


def test_a_status_is_one_line_and_told_once() -> None:
    wire = Wire()
    for text in ("engine said:\nREADY=1\r\n no", "engine said: READY=1 no"):
        wire.watchdog.status(text)
    assert wire.sent == ["STATUS=engine said: READY=1 no"]


def test_systemd_gets_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        systemd_notifier()("STATUS=Küche … \ud800")
        assert systemd.recv(100) == "STATUS=Küche … ?".encode()


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    systemd_notifier()("READY=1")
    assert watchdog_interval(7.0) == 7.0
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert watchdog_interval() == 3.0
