"""Which of NetworkManager's signals are worth a look at the host."""

from __future__ import annotations

from typing import Any

import pytest

from balena_agent.host.bus import Bus
from balena_agent.host.networkmanager import PATH, SERVICE, NetworkManager
from balena_agent.host.wire import PROPERTIES, Match, Signal


class Hearing(Bus):
    """Hands a signal to whom it concerns."""

    def __init__(self) -> None:
        self.wanted: list[tuple[Match, Any]] = []

    def subscribe(self, match: Match, callback: Any) -> Any:
        self.wanted.append((match, callback))

    def say(self, signal: Signal) -> None:
        for match, callback in self.wanted:
            if match.accepts(signal):
                callback(signal)


def changed(*names: str, interface: str = SERVICE) -> Signal:
    body = [interface, dict.fromkeys(names), []]
    return Signal(SERVICE, PATH, PROPERTIES, "PropertiesChanged", body)


def own(member: str, *body: Any) -> Signal:
    return Signal(SERVICE, PATH, SERVICE, member, body)


@pytest.mark.parametrize(
    ("signal", "told"),
    [
        (own("DeviceAdded", "/d/1"), False),
        (own("DeviceRemoved", "/d/1"), False),
        (own("StateChanged", 70), True),
        (changed("Devices", "AllDevices"), False),
        (changed("ActiveConnections"), False),
        (changed("ActiveConnections", "Connectivity"), True),
        (changed("State"), True),
        (own("PropertiesChanged", {"Devices": []}), False),
        (own("PropertiesChanged", {"Devices": [], "State": 70}), True),
        (changed("AddressData", interface=SERVICE + ".IP4Config"), True),
        (changed("AddressData", interface=SERVICE + ".IP6Config"), True),
    ],
)
def test_containers_coming_and_going_are_no_news(signal: Signal, told: bool) -> None:
    bus, heard = Hearing(), []
    NetworkManager(bus).on_change(lambda: heard.append(signal))
    bus.say(signal)
    assert bool(heard) is told
