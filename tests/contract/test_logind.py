"""host/logind.py against the real logind of a virtual device; nothing here shuts it down."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from balena_agent.core.errors import BusUnavailable, RefusedByHost
from balena_agent.host.bus import Bus
from balena_agent.host.logind import BlockedByHost, Logind

pytestmark = pytest.mark.skipif(
    os.environ.get("BALENA_AGENT_TEST_DEVICE") != "1",
    reason="needs a virtual device with logind: set BALENA_AGENT_TEST_DEVICE=1 inside one",
)


@pytest.fixture(scope="module")
def bus() -> Iterator[Bus]:
    bus = Bus()
    bus.start()
    yield bus
    bus.close()


@pytest.fixture
def logind(bus: Bus) -> Logind:
    return Logind(bus)


@contextmanager
def inhibited(mode: str, what: str = "shutdown") -> Iterator[None]:
    """Another program's inhibitor, as `systemd-inhibit` makes it."""
    who = ["systemd-inhibit", f"--what={what}", f"--mode={mode}", "--who=updater", "--why=busy"]
    holder = subprocess.Popen([*who, "sleep", "30"])
    try:
        eventually(lambda: "updater" in listing())
        yield
    finally:
        subprocess.run(["pkill", "-P", str(holder.pid)], check=False)
        holder.wait(10)
        eventually(lambda: "updater" not in listing())


def listing() -> str:
    command = ["systemd-inhibit", "--list", "--no-pager", "--no-legend"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def eventually(condition: Callable[[], bool], limit: float = 30.0) -> None:
    until = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


@contextmanager
def masked(target: str) -> Iterator[None]:
    """A host whose administrator has forbidden a target."""
    subprocess.run(["systemctl", "mask", "--runtime", target], check=True)
    try:
        yield
    finally:
        subprocess.run(["systemctl", "unmask", "--runtime", target], check=True)


def test_it_says_whether_a_reboot_is_possible(logind: Logind) -> None:
    assert logind.obstacles() == ()
    assert logind.preparing_for_shutdown() is False


@pytest.mark.parametrize("force", [False, True])
def test_a_masked_target_is_loginds_own_refusal(logind: Logind, force: bool) -> None:
    """Which this logind does not know before it is asked (spec 30 §19.2)."""
    with masked("poweroff.target"), pytest.raises(RefusedByHost, match="Permission denied"):
        logind.power_off(force)


def test_our_delay_is_visible_until_released(logind: Logind) -> None:
    lock = logind.delay_shutdown("stopping services")
    mine = [found for found in logind.inhibitors() if found.pid == os.getpid()]
    assert [(i.what, i.who, i.why, i.mode, i.uid) for i in mine] == [
        ("shutdown", "balena-agent", "stopping services", "delay", 0)
    ]
    lock.release()
    lock.release()
    eventually(lambda: all(found.pid != os.getpid() for found in logind.inhibitors()))


def test_a_delay_leaks_no_descriptor(logind: Logind) -> None:
    logind.delay_shutdown("first").release()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        logind.delay_shutdown("again").release()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_anothers_block_refuses_and_names_its_holder(logind: Logind) -> None:
    with inhibited("block"):
        assert [found.who for found in logind.blockers()] == ["updater"]
        for ask in (logind.reboot, logind.power_off):
            with pytest.raises(BlockedByHost, match=r"^Blocked by updater: busy$") as refusal:
                ask()
            assert refusal.value.http_status == 423
    assert logind.blockers() == ()


def test_what_does_not_concern_a_shutdown_is_no_block(logind: Logind) -> None:
    with inhibited("delay"):
        assert logind.blockers() == ()
    with inhibited("block", "sleep:handle-lid-switch"):
        assert logind.blockers() == ()
    with inhibited("block", "sleep:shutdown"):
        assert [found.who for found in logind.blockers()] == ["updater"]


def test_a_scheduled_shutdown_by_anybody_can_be_followed(logind: Logind, bus: Bus) -> None:
    """The signal itself comes only with a real shutdown; the subscription must be accepted."""
    told = threading.Event()
    logind.on_shutdown(lambda begins: told.set())
    assert not told.is_set()


def test_a_bus_that_is_closed_is_unavailable() -> None:
    bus = Bus()
    bus.start()
    bus.close()
    with pytest.raises(BusUnavailable):
        Logind(bus).inhibitors()
