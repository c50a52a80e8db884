"""Who is let in (spec 10 §3): keys, how they are passed, and devices that are open without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import device_states
import pytest

from balena_agent.api.auth import Auth, Caller, is_near, passed_key
from balena_agent.core.errors import AccessDenied
from balena_agent.core.scopes import EVERYTHING, Scope
from balena_agent.core.snapshot import Snapshot

GLOBAL, OF_APP = "a" * 32, "b" * 32
LAN = Caller("192.168.1.20", "192.168.1.5")
HOST = Caller("::ffff:127.0.0.1", "::ffff:127.0.0.1")
BRIDGE = Caller("::ffff:10.114.104.9", "::ffff:10.114.104.1")


class FixedKeys:
    def global_key(self) -> str:
        return GLOBAL

    def service_key(self, app_id: int, service: str) -> str:
        return OF_APP

    def scopes_of(self, key: str) -> Scope | None:
        return {GLOBAL: EVERYTHING, OF_APP: Scope(app_id=1011)}.get(key)


def let_in(
    snapshot: Snapshot, caller: Caller, key: str | None = None, setting: str = "dev"
) -> bool:
    try:
        return Auth(FixedKeys(), setting).scope(snapshot, caller, key) is not None
    except AccessDenied:
        return False


@pytest.mark.parametrize(
    ("query", "header", "found"),
    [
        ({"apikey": ["k1"]}, "Bearer k2", "k1"),
        ({"apikey": [""]}, "Bearer k2", "k2"),
        ({"apikey": ["k1", "k3"]}, "Bearer k2", "k2"),
        ({"apikey[]": ["k1"]}, "Bearer k2", "k2"),
        ({"ApiKey": ["k1"]}, "", None),
        ({}, "ApiKey k_2", "k_2"),
        ({}, "bEaReR k2", "k2"),
        ({}, " Bearer k2 ", "k2"),
        ({}, "Basic k2", None),
        ({}, "Token k2", None),
        ({}, "Bearer  k2", None),
        ({}, "Bearer k2 k3", None),
        ({}, "Bearer a.b-c", None),
        ({}, "Bearer kä", None),
        ({}, "k2", None),
        ({}, "Bearer", None),
        ({}, "", None),
    ],
)
def test_how_a_key_is_passed(query: dict[str, list[str]], header: str, found: str | None) -> None:
    assert passed_key(query, header) == found


def test_scopes_of_keys() -> None:
    auth, managed = Auth(FixedKeys()), device_states.m1()
    assert auth.scope(managed, LAN, GLOBAL) == EVERYTHING
    assert auth.scope(managed, LAN, OF_APP) == Scope(app_id=1011)
    for key in ("nonsense", "", None):
        with pytest.raises(AccessDenied, match=r"^Unauthorized$"):
            auth.scope(managed, LAN, key)


@pytest.mark.parametrize("caller", [LAN, HOST, BRIDGE])
@pytest.mark.parametrize("setting", ["always", "dev", "never"])
def test_a_managed_device_always_wants_a_key(caller: Caller, setting: str) -> None:
    assert not let_in(device_states.m1(), caller, None, setting)
    assert let_in(device_states.m1(), caller, GLOBAL, setting)


@pytest.mark.parametrize(
    ("setting", "variant", "caller", "open_"),
    [
        ("dev", "prod", HOST, True),
        ("dev", "prod", BRIDGE, True),
        ("dev", "prod", LAN, False),
        ("dev", "dev", LAN, True),
        ("always", "prod", LAN, True),
        ("never", "dev", LAN, False),
        ("never", "dev", HOST, False),
        ("never", "dev", BRIDGE, False),
    ],
)
@pytest.mark.parametrize("fixture", [device_states.unmanaged, device_states.local_mode])
def test_devices_of_developers(
    fixture: Callable[[], Snapshot], setting: str, variant: str, caller: Caller, open_: bool
) -> None:
    now = fixture()
    now = replace(now, facts=replace(now.facts, os_variant=variant))
    assert let_in(now, caller, None, setting) == open_
    assert let_in(now, caller, "a.cloud-token", setting) == open_, "a foreign key is ignored"
    assert let_in(now, caller, GLOBAL, setting), "a good key always passes"


def test_an_open_device_ignores_the_scope_of_a_key() -> None:
    assert Auth(FixedKeys()).scope(device_states.unmanaged(), LAN, OF_APP) == EVERYTHING


@pytest.mark.parametrize(
    ("address", "own", "near"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.9.9.9", "", True),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "", True),
        ("192.168.1.5", "192.168.1.5", True),
        ("::ffff:192.168.1.5", "::ffff:192.168.1.5", True),
        ("fe80::1%eth0", "fe80::1", True),
        ("10.114.104.2", "10.114.104.1", True),
        ("10.114.104.129", "10.114.104.1", False),
        ("172.17.0.2", "172.17.0.1", False),
        ("192.168.1.6", "192.168.1.5", False),
        ("2001:db8::1", "2001:db8::2", False),
        ("", "", False),
        ("nonsense", "nonsense", False),
    ],
)
def test_who_is_near(address: str, own: str, near: bool) -> None:
    assert is_near(Caller(address, own)) is near


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="always, dev, never"):
        Auth(FixedKeys(), "sometimes")
