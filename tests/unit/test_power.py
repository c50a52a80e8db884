"""Reboot and power-off: who may stop them, and what is asked where logind is absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from host_places import Root

from balena_agent.core.errors import BusUnavailable, DeadlineExceeded, Locked, RefusedByHost
from balena_agent.core.steps import ReleaseLocks, RequestPowerOff, RequestReboot, TakeLocks
from balena_agent.host.adapter import MachineHost
from balena_agent.host.breadcrumbs import Breadcrumbs
from balena_agent.host.configfile import ConfigFile
from balena_agent.host.handover import Handovers
from balena_agent.host.locks import BREADCRUMBS, UpdateLocks
from balena_agent.host.logind import IN_PROGRESS, BlockedByHost, Logind
from balena_agent.host.wire import BusRefusal

LOGIND, SYSTEMD = "org.freedesktop.login1", "org.freedesktop.systemd1"
UNCHANGED: Any = None
"""The host's name and proxy, which no test here touches."""

BLOCK = ["sleep:shutdown", "updater", "busy", "block", 0, 1]


class FakeBus:
    """Answers by member; an exception as an answer is raised. Keeps what was called."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {
            "ListInhibitors": [[]], "CanReboot": ["yes"], "CanPowerOff": ["yes"], **answers,
        }  # fmt: skip
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "",
        body: Sequence[Any] = (), timeout: float = 25.0, with_fds: bool = False,
    ) -> list[Any]:  # fmt: skip
        self.calls.append((destination, member, tuple(body)))
        answer = self.answers.get(member if destination == LOGIND else f"{SYSTEMD}.{member}", [])
        if isinstance(answer, Exception):
            raise answer
        return list(answer)


class Ticket:
    cancelled = False

    def on_cancel(self, action: Any) -> None: ...

    def progress(self, percent: float) -> None: ...


def logind(bus: FakeBus) -> Logind:
    return Logind(bus)  # type: ignore[arg-type]


def test_a_reboot_is_asked_without_password_prompts() -> None:
    bus = FakeBus()
    logind(bus).reboot()
    assert [member for _, member, _ in bus.calls] == ["ListInhibitors", "CanReboot", "Reboot"]
    assert bus.calls[-1] == (LOGIND, "Reboot", (False,))


def test_a_block_refuses_and_force_overrides_it() -> None:
    bus = FakeBus(ListInhibitors=[[BLOCK]])
    with pytest.raises(BlockedByHost, match=r"^Blocked by updater: busy$"):
        logind(bus).power_off()
    assert [member for _, member, _ in bus.calls] == ["ListInhibitors"]
    logind(bus).power_off(force=True)
    assert bus.calls[-1] == (LOGIND, "PowerOff", (False,))


def test_a_reboot_under_way_is_what_was_asked_for() -> None:
    logind(FakeBus(Reboot=BusRefusal(IN_PROGRESS, "already"))).reboot()


def test_logind_refusal_and_silence_are_told() -> None:
    with pytest.raises(RefusedByHost, match="no root here"):
        logind(FakeBus(Reboot=BusRefusal("org.x.No", "no root here"))).reboot()
    with pytest.raises(DeadlineExceeded):
        logind(FakeBus(ListInhibitors=DeadlineExceeded("late"))).reboot()


@pytest.mark.parametrize("force", [False, True])
def test_a_silent_bus_is_asked_for_no_reboot(force: bool) -> None:
    """It would be done when the bus comes back, long after the answer that said no."""
    bus = FakeBus(ListInhibitors=DeadlineExceeded("late"))
    with pytest.raises(DeadlineExceeded):
        logind(bus).reboot(force)
    assert [member for _, member, _ in bus.calls] == ["ListInhibitors"]


@pytest.mark.parametrize("force", [False, True])
def test_what_was_asked_for_counts_though_nobody_says_so(force: bool) -> None:
    bus = FakeBus(Reboot=DeadlineExceeded("late"))
    logind(bus).reboot(force)
    assert bus.calls[-1] == (LOGIND, "Reboot", (False,))


def test_a_forced_reboot_needs_no_list_of_inhibitors() -> None:
    bus = FakeBus(ListInhibitors=BusRefusal("org.x.No", "not for you"))
    logind(bus).reboot(force=True)
    assert bus.calls[-1] == (LOGIND, "Reboot", (False,))
    with pytest.raises(BusRefusal):
        logind(bus).reboot()


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("no", "logind does not allow it"),
        ("na", "logind says that this host is not able to"),
    ],
)
def test_what_the_host_cannot_do_is_refused_in_plain_words(word: str, why: str) -> None:
    bus = FakeBus(CanReboot=[word])
    with pytest.raises(RefusedByHost, match=f"^The host cannot reboot: {why}$"):
        logind(bus).reboot()
    assert bus.calls[-1] == (LOGIND, "CanReboot", ())
    assert logind(bus).obstacles() == (f"The host cannot reboot: {why}",)
    logind(bus).power_off()
    logind(bus).reboot(force=True)
    assert bus.calls[-1] == (LOGIND, "Reboot", (False,))


@pytest.mark.parametrize("word", ["yes", "challenge", "challenge-inhibitor-blocked"])
def test_other_words_are_no_obstacle(word: str) -> None:
    bus = FakeBus(CanReboot=[word])
    assert logind(bus).obstacles() == ()
    logind(bus).reboot()
    assert bus.calls[-1] == (LOGIND, "Reboot", (False,))


def test_no_word_about_what_can_be_done_is_no_refusal() -> None:
    bus = FakeBus(CanReboot=BusRefusal("org.x.No", "ask somebody else"))
    logind(bus).reboot()
    assert bus.calls[-1] == (LOGIND, "Reboot", (False,)) and logind(bus).obstacles() == ()
    with pytest.raises(DeadlineExceeded):
        logind(FakeBus(CanReboot=DeadlineExceeded("late"))).reboot()


def test_without_logind_systemd_is_asked() -> None:
    gone = BusUnavailable("no such name")
    bus = FakeBus(ListInhibitors=gone, CanReboot=gone, CanPowerOff=gone,
                  Reboot=gone, PowerOff=gone)  # fmt: skip
    logind(bus).reboot()
    assert bus.calls[-1] == (SYSTEMD, "Reboot", ())
    logind(bus).power_off()
    assert bus.calls[-1] == (SYSTEMD, "PowerOff", ())


def machine(top: Path, bus: FakeBus) -> MachineHost:
    """A host whose files are below `top`."""
    locks = top / "supervisor" / "services"
    update_locks = UpdateLocks(str(locks))
    return MachineHost(
        update_locks,
        Handovers(update_locks),
        logind(bus),
        str(top),
        Breadcrumbs(str(top / "run"), str(locks), "boot-1", 1000.0),
        ConfigFile(str(top / "config.json")),
        Root(top).files().settings,
        UNCHANGED,
    )


@pytest.mark.parametrize("step", [RequestReboot, RequestPowerOff])
@pytest.mark.parametrize("crumb", BREADCRUMBS)
def test_a_host_update_is_not_interrupted(tmp_path: Path, step: Any, crumb: str) -> None:
    (tmp_path / crumb).touch()
    bus = FakeBus()
    host = machine(tmp_path, bus)
    with pytest.raises(Locked, match=r"^Waiting for Host OS update to finish$"):
        host.perform(step(), Ticket())
    assert bus.calls == []
    host.perform(step(force=True), Ticket())
    assert [member for _, member, _ in bus.calls[1:]] == [step.__name__.removeprefix("Request")]
    (tmp_path / crumb).unlink()
    host.perform(step(), Ticket())


def test_lock_steps_reach_the_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("balena_agent.host.locks.os.fchown", lambda *_: None)
    host = machine(tmp_path, FakeBus())
    host.perform(TakeLocks("u", 7, ("web",)), Ticket())
    assert host.held_locks() == {7}
    host.perform(ReleaseLocks("u", 7), Ticket())
    assert host.held_locks() == frozenset()
