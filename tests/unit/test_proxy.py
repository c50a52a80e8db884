"""The proxy's files and the time of its units, with units that do as they are told or hang."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from balena_agent.core.errors import AgentError, DeadlineExceeded, RefusedByHost, Unavailable
from balena_agent.core.networkconfig import NetworkChange
from balena_agent.core.redsocks import LOCAL_PORT, Proxy, render
from balena_agent.core.steps import SetNetworkConfig
from balena_agent.core.traits import limit
from balena_agent.host.durable import RealFiles
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
        self.load = "loaded"
        self.seconds = 0.0

    def units(self, names: Iterable[str], timeout: float = 25.0) -> Mapping[str, UnitState]:
        sub = "running" if self.active == "active" else "dead"
        load = {UNIT: self.load, CONFIG_UNITS[0]: "loaded"}
        return {
            name: UnitState(name, load.get(name, "not-found"), self.active, sub, "/" + name)
            for name in names
        }

    def unit(self, name: str) -> UnitState:
        return self.units([name])[name]

    def unit_property(self, path: str, name: str) -> Any:
        return [] if name == "PartOf" else 0

    def service_property(self, path: str, name: str) -> Any:
        return "success"

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


def host(units: Units, top: Path, guard: str = "", port: int = LOCAL_PORT) -> HostProxy:
    """`port` is the one that redsocks listens on."""
    return HostProxy(cast(Systemd, units), str(top), 0.0, lambda: guard, lambda p: p == port)


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

    def unlink(files: RealFiles, path: str) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(RealFiles, "remove", unlink)
    with pytest.raises(Unavailable, match=r"redsocks\.conf cannot be removed: Read-only"):
        proxy.set(None, ("10.0.0.1",))
    assert proxy.files() == before and units.active == "active"


def test_nothing_is_written_beside_a_partition_that_is_not_mounted(tmp_path: Path) -> None:
    units, top = Units(), tmp_path / "system-proxy"
    proxy = host(units, top, "/mnt/boot is not mounted")
    for wanted in (PROXY, None):
        with pytest.raises(Unavailable, match="not changed: /mnt/boot is not mounted"):
            proxy.set(wanted, ("10.0.0.1",))
    assert not top.exists() and units.seconds == 0


def test_a_redsocks_that_does_not_listen_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balena_agent.host.proxy._CHECK_SECONDS", 0.3)
    with pytest.raises(
        RefusedByHost, match=r"active \(running\), but nobody listens on port 12345"
    ):
        host(Units(), tmp_path, port=1).set(PROXY, ())
    assert not (tmp_path / "redsocks.conf").exists()


def test_the_former_files_come_back_to_the_byte(tmp_path: Path) -> None:
    """They may be of another hand: its ends of lines, its characters, its port, its mode."""
    conf, exceptions = tmp_path / "redsocks.conf", tmp_path / "no_proxy"
    mine = render(PROXY).replace("\n", "\r\n").replace("12345", "31338").encode()
    mine = b"// f\xfcr den Proxy\r\n" + mine
    conf.write_bytes(mine)
    conf.chmod(0o644)
    exceptions.write_bytes(b"10.0.0.1\r\n")
    units = Units()
    known = host(units, tmp_path)
    assert known.read() == (PROXY, ("10.0.0.1",))
    before = known.files()
    known.set(Proxy({**PROXY.settings, "port": "1081"}), ())
    assert not exceptions.exists() and conf.stat().st_mode & 0o777 == 0o644
    host(units, tmp_path, port=31338).put(before)
    assert (conf.read_bytes(), exceptions.read_bytes()) == (mine, b"10.0.0.1\r\n")
    assert conf.stat().st_mode & 0o777 == 0o644


def test_the_exceptions_are_there_before_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OS that watches redsocks.conf restarts its units at once."""
    placed: list[str] = []
    rename = RealFiles.rename

    def seen(files: RealFiles, source: str, target: str) -> None:
        placed.append(Path(target).name)
        rename(files, source, target)

    monkeypatch.setattr(RealFiles, "rename", seen)
    host(Units(), tmp_path).set(PROXY, ("10.0.0.1",))
    assert placed == ["no_proxy", "redsocks.conf"]


def test_units_that_may_differ_from_their_files_are_noted(tmp_path: Path) -> None:
    units, notes = Units(), list[bool]()
    proxy = HostProxy(
        cast(Systemd, units), str(tmp_path), 0.0, listens=lambda _: True, unsettled=notes.append
    )
    proxy.set(PROXY, ())
    assert notes == [True, False]
    units.hangs = UNIT
    with pytest.raises(AgentError):
        proxy.set(None, ())
    assert notes[2:] == [True, True], "neither could the former files be taken up"
    units.hangs = ""
    proxy.put(proxy.files())
    assert notes[-1] is False
    with pytest.raises(RefusedByHost):
        units.load = "masked"
        proxy.set(Proxy({**PROXY.settings, "port": "2"}), ())
    assert notes[-1] is False, "nothing was begun"


def test_an_interrupted_write_counts(tmp_path: Path) -> None:
    text = render(PROXY).encode()
    digest = hashlib.md5(text).hexdigest()
    (tmp_path / f".redsocks.conf.AAAAAAAA.{digest}.md5sum").write_bytes(text)
    (tmp_path / "redsocks.conf").write_bytes(text[:9])
    assert host(Units(), tmp_path).read()[0] == PROXY
    assert [path.name for path in tmp_path.iterdir()] == ["redsocks.conf"]
