"""The proxy's files and the time of its units, with units that do as they are told or hang."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from balena_agent.core.errors import AgentError, DeadlineExceeded, Unavailable
from balena_agent.core.networkconfig import NetworkChange
from balena_agent.core.redsocks import Proxy
from balena_agent.core.steps import SetNetworkConfig, limit
from balena_agent.host.proxy import CONFIG_UNITS, UNIT, HostProxy
from balena_agent.host.systemd import Systemd, UnitState
from balena_agent.runtime.executor import LIMIT_MARGIN

PROXY = Proxy({"type": "socks5", "ip": "192.0.2.1", "port": "1080"})
JOB: float = inspect.signature(Systemd.restart).parameters["timeout"].default


class Units:
    """Every job takes all of its time; that of a unit that hangs fails then."""

    def __init__(self, hangs: str = "") -> None:
        self.hangs = hangs
        self.active = "inactive"
        self.seconds = 0.0

    def units(self, names: Iterable[str], timeout: float = 25.0) -> Mapping[str, UnitState]:
        sub = "running" if self.active == "active" else "dead"
        load = {UNIT: "loaded", CONFIG_UNITS[0]: "loaded"}
        return {
            name: UnitState(name, load.get(name, "not-found"), self.active, sub, "/" + name)
            for name in names
        }

    def unit(self, name: str) -> UnitState:
        return self.units([name])[name]

    def unit_property(self, path: str, name: str) -> Any:
        return [] if name == "PartOf" else 0

    def restart(self, name: str, timeout: float = JOB) -> None:
        self.seconds += timeout
        if name == self.hangs:
            raise DeadlineExceeded(f"{name} has not ended in its time")
        self.active = "active"

    def stop(self, name: str, timeout: float = JOB) -> None:
        self.seconds += timeout
        if name == self.hangs:
            raise DeadlineExceeded(f"{name} has not ended in its time")
        self.active = "inactive"


def host(units: Units, top: Path) -> HostProxy:
    return HostProxy(cast(Systemd, units), str(top), steady=0.0)


def test_the_longest_change_ends_before_the_step_counts_as_stuck(tmp_path: Path) -> None:
    units = Units(hangs=UNIT)
    with pytest.raises(AgentError):
        host(units, tmp_path).set(PROXY, ())
    # The lock may be held by a revert, and after a name that is refused all is put back again.
    longest = 2 * units.seconds
    others = 4 * 10 + 2 * 10 + 10 + 90  # looks at redsocks, checks of the text, cloud, name
    assert longest + others <= limit(SetNetworkConfig(NetworkChange())) + LIMIT_MARGIN


def test_a_file_that_cannot_be_removed_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = Units()
    proxy = host(units, tmp_path)
    proxy.set(PROXY, ("10.0.0.1",))
    before = proxy.files()

    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(Unavailable, match=r"redsocks\.conf cannot be changed: Read-only"):
        proxy.set(None, ())
    assert proxy.files() == before and units.active == "active"
