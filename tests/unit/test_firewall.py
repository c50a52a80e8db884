"""The packet filter's rules as values, and when they are looked after."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from waiting import until

from balena_agent.core.firewall import (
    CHAIN,
    IPV4,
    IPV6,
    Present,
    Wish,
    read,
    rules,
    transaction,
    wish,
)
from balena_agent.core.observed import HostFacts
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.target import Target, read_local
from balena_agent.host.firewall import Firewall
from balena_agent.runtime.guard import Guard
from balena_agent.runtime.state import Published

MANAGED = HostFacts(api_endpoint="https://api.example.org")
PREFIX = f"-A {CHAIN} "


def plain(wanted: Wish, family: object = IPV4) -> list[str]:
    return [line.removeprefix(PREFIX) for line in rules(wanted, family)]  # type: ignore[arg-type]


def target(config: dict[str, str] | None = None, **service: object) -> Target:
    made = {"imageId": 1, "serviceName": "web", "serviceId": 1, "image": "busybox",
            "environment": {}, "labels": {}, "running": True, **service}  # fmt: skip
    app = {"name": "a", "commit": "c", "releaseId": 1, "services": {"1": made}, "volumes": {},
           "networks": {}}  # fmt: skip
    return read_local({"local": {"name": "d", "config": config or {}, "apps": {"1": app}}})


def snapshot(config: dict[str, str] | None = None, **service: object) -> Snapshot:
    return Snapshot(target=target(config, **service), facts=MANAGED)


def test_the_rules_of_a_managed_device() -> None:
    """The table of spec 30 §13, in its order."""
    api = "-p tcp -m tcp --dport 48484"
    assert plain(Wish(48484)) == [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-m addrtype --src-type LOCAL -j ACCEPT",
        f"-i resin-vpn {api} -j ACCEPT",
        f"-i tun0 {api} -j ACCEPT",
        f"-i docker0 {api} -j ACCEPT",
        f"-i lo {api} -j ACCEPT",
        f"-i supervisor0 {api} -j ACCEPT",
        f"{api} -j REJECT --reject-with icmp-port-unreachable",
        "-p tcp -m tcp --dport 22222 -j ACCEPT",
        "-p tcp -m tcp --dport 2375 -j ACCEPT",
        "-m addrtype --dst-type MULTICAST -j ACCEPT",
        "-p icmp -j ACCEPT",
        "-i balena0 -p udp -m udp --dport 53 -j ACCEPT",
        "-i balena0 -p tcp -m tcp --dport 53 -j ACCEPT",
        "-i docker0 -p udp -m udp --dport 53 -j ACCEPT",
        "-i docker0 -p tcp -m tcp --dport 53 -j ACCEPT",
        "-i br+ -p udp -m udp --dport 53 -j ACCEPT",
        "-i br+ -p tcp -m tcp --dport 53 -j ACCEPT",
        '-m comment --comment "Firewall disabled (off)" -j RETURN',
        "-j REJECT --reject-with icmp-port-unreachable",
    ]


def test_in_local_mode_the_api_is_for_everybody() -> None:
    lines = plain(Wish(1234, open_api=True))
    assert "-p tcp -m tcp --dport 1234 -j ACCEPT" in lines
    assert not [line for line in lines if line.startswith("-i lo")]


def test_closed_means_that_nothing_returns_before_the_last_refusal() -> None:
    lines = plain(Wish(48484, closed=True, why="on"))
    assert not [line for line in lines if "RETURN" in line]
    assert lines[-1].startswith("-j REJECT")


def test_ipv6_lets_neighbours_and_its_dhcp_in() -> None:
    lines = plain(Wish(48484, closed=True), IPV6)
    assert "-p ipv6-icmp -j ACCEPT" in lines and "-p icmp -j ACCEPT" not in lines
    assert "-p udp -m udp --dport 546 -j ACCEPT" in lines
    assert lines[-1].endswith("icmp6-port-unreachable")


@pytest.mark.parametrize(
    ("config", "mode", "closed"),
    [
        ({}, "off", False),
        ({"HOST_FIREWALL_MODE": "on"}, "on", True),
        ({"BALENA_HOST_FIREWALL_MODE": "on"}, "on", True),
        ({"RESIN_HOST_FIREWALL_MODE": " ON "}, "on", True),
        ({"HOST_FIREWALL_MODE": "off"}, "off", False),
        ({"HOST_FIREWALL_MODE": "auto"}, "auto", False),
        ({"HOST_FIREWALL_MODE": ""}, "off", False),
    ],
)
def test_the_mode_is_a_device_variable(config: dict[str, str], mode: str, closed: bool) -> None:
    seen = snapshot(config)
    assert (wish(seen).why, wish(seen).closed) == (mode, closed)


def test_h10_an_unknown_mode_is_off() -> None:
    """That is told with the other variables (variables.py)."""
    assert wish(snapshot({"HOST_FIREWALL_MODE": "sideways"})).why == "off"


def test_h49_auto_is_on_while_a_service_is_in_the_hosts_network() -> None:
    auto = {"HOST_FIREWALL_MODE": "auto"}
    assert wish(snapshot(auto, network_mode="host")).closed
    assert not wish(snapshot(auto, network_mode="bridge")).closed


def test_who_may_reach_the_api_follows_local_mode() -> None:
    assert not wish(snapshot()).open_api
    assert wish(snapshot({"SUPERVISOR_LOCAL_MODE": "1"})).open_api
    assert wish(dataclasses.replace(snapshot(), facts=HostFacts())).open_api


LISTING = f"""\
*filter
:INPUT ACCEPT [12:3456]
:{CHAIN} - [0:0]
:DOCKER-USER - [0:0]
-A INPUT -p tcp -j ACCEPT
-A INPUT -j {CHAIN}
-A {CHAIN} -p icmp -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""


def test_a_listing_is_read_back() -> None:
    assert read(LISTING) == Present((f"-A {CHAIN} -p icmp -j ACCEPT",), True)
    assert read("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n") == Present(None, False)
    assert read(f"*filter\n:{CHAIN} - [0:0]\nCOMMIT\n") == Present((), False)


@pytest.mark.parametrize("jump", [True, False])
def test_h48_no_foreign_chain_is_declared(jump: bool) -> None:
    text = transaction(rules(Wish(48484), IPV4), Present((), jump))
    declared = [line for line in text.splitlines() if line.startswith(":")]
    assert declared == [f":{CHAIN} - [0:0]"]
    assert (f"-I INPUT 1 -j {CHAIN}" in text) is not jump


# -- the adapter, on programs that a test writes


def programs(tmp_path: Path, save: str = "", restore: str = "") -> Firewall:
    for name, text in (("fake-save", save), ("fake-restore", restore)):
        if text:
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
    fake = str(tmp_path / "fake")
    return Firewall({"IPv4": fake, "IPv6": fake})


def test_a_host_without_the_programs_has_a_reason_and_no_error(tmp_path: Path) -> None:
    changed, problems = programs(tmp_path).keep(Wish(48484))
    assert changed == () and len(problems) == 2
    assert problems[0].startswith("IPv4: there is no ") and problems[1].startswith("IPv6: ")


def test_what_the_program_says_is_the_reason(tmp_path: Path) -> None:
    firewall = programs(tmp_path, "exit 0", "cat >/dev/null; echo 'no such table' >&2; exit 3")
    changed, problems = firewall.keep(Wish(48484))
    assert changed == () and "no such table" in problems[0]


def test_rules_that_are_listed_in_another_spelling_are_written_once(tmp_path: Path) -> None:
    """The listing never shows what was written; the second look must not write again."""
    count, state = tmp_path / "count", tmp_path / "state"
    save = f"test ! -e {state} || printf ':{CHAIN} -\\n-A INPUT -j {CHAIN}\\n-A {CHAIN} -j odd\\n'"
    firewall = programs(tmp_path, save, f"cat >/dev/null; touch {state}; echo x >>{count}")
    firewall.keep(Wish(48484))
    written = count.read_text()
    assert firewall.keep(Wish(48484)) == ((), ())
    assert count.read_text() == written


# -- the guard


class Kernel:
    """A firewall that remembers what was wanted."""

    def __init__(self) -> None:
        self.wanted: list[Wish] = []
        self.problems: tuple[str, ...] = ()
        self.present: Wish | None = None

    def keep(self, wanted: Wish) -> tuple[tuple[str, ...], tuple[str, ...]]:
        self.wanted.append(wanted)
        changed = self.present != wanted
        self.present = wanted
        return (("IPv4",) if changed else ()), self.problems


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_the_rules_stand_when_start_returns(kernel: Kernel) -> None:
    guard = Guard(Published(snapshot()), kernel)
    guard.start()
    guard.close()
    assert kernel.present == Wish(48484)


def test_a_change_that_matters_is_followed_and_no_other(kernel: Kernel) -> None:
    published = Published(snapshot())
    guard = Guard(published, kernel)
    guard.start()
    published.publish(dataclasses.replace(snapshot(), update_pending=True))
    published.publish(snapshot({"HOST_FIREWALL_MODE": "on"}))
    until(lambda: kernel.present == Wish(48484, closed=True, why="on"))
    published.publish(snapshot({"HOST_FIREWALL_MODE": "on", "SUPERVISOR_LOCAL_MODE": "1"}))
    until(lambda: kernel.present is not None and kernel.present.open_api)
    assert len(kernel.wanted) == 3
    guard.close()


def test_a_wish_that_is_taken_back_while_it_is_carried_out() -> None:
    """The rules of before are wanted again before the new ones stand."""
    published = Published(snapshot())
    taken_back = iter((snapshot(),))

    class Slow(Kernel):
        def keep(self, wanted: Wish) -> tuple[tuple[str, ...], tuple[str, ...]]:
            done = super().keep(wanted)
            if wanted.closed:
                published.publish(next(taken_back))
            return done

    slow = Slow()
    guard = Guard(published, slow)
    guard.start()
    published.publish(snapshot({"HOST_FIREWALL_MODE": "on"}))
    until(lambda: slow.wanted[1:] == [Wish(48484, closed=True, why="on"), Wish(48484)])
    guard.close()


def test_h50_what_others_have_changed_is_restored(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guard(Published(snapshot()), kernel, audit=0.01)
    guard.start()
    kernel.present = None
    until(lambda: kernel.present == Wish(48484))
    guard.close()
    until(lambda: "restored" in caplog.text)


def test_a_problem_is_told_once_and_tried_again(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.problems = ("IPv4: there is no iptables-save",)
    guard = Guard(Published(snapshot()), kernel, audit=0.01)
    guard.start()
    until(lambda: len(kernel.wanted) > 5)
    assert guard.problem == "IPv4: there is no iptables-save"
    assert caplog.text.count("Firewall mode not applied due to error") == 1
    kernel.problems = ()
    until(lambda: guard.problem == "")
    guard.close()
