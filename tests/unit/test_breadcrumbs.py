"""Word on the host that a change waits for a reboot, and config.json's volume of firmware."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from test_power import FakeBus, Ticket, machine

from balena_agent.core.errors import Locked, Unavailable
from balena_agent.core.steps import RequestReboot, RequireReboot, SetFirmwareVolume, TakeLocks
from balena_agent.host.breadcrumbs import Breadcrumbs
from balena_agent.host.configfile import FIRMWARE_VOLUME, ConfigFile


def crumbs(top: Path, boot: str = "boot-1", booted: float | None = 1000.0) -> Breadcrumbs:
    (top / "supervisor").mkdir(exist_ok=True)
    return Breadcrumbs(str(top / "run"), str(top / "supervisor" / "services"), boot, booted)


def peers(top: Path, mtime: float) -> Path:
    path = top / "supervisor" / "reboot-after-apply"
    path.touch()
    os.utime(path, (mtime, mtime))
    return path


def test_word_counts_in_its_own_boot_whatever_clocks_do(tmp_path: Path) -> None:
    here = crumbs(tmp_path)
    assert not here.reboot_required()
    here.add(("1/web: label",))
    here.add(("1/db: label",))
    here.add(("1/web: label",))
    assert here.reasons() == ("1/web: label", "1/db: label")
    assert (tmp_path / "supervisor" / "reboot-after-apply").stat().st_size == 0
    peers(tmp_path, 1.0)
    assert here.reboot_required()
    assert crumbs(tmp_path).reboot_required()
    later = crumbs(tmp_path, "boot-2")
    assert not later.reboot_required()
    assert later.reasons() == ()


def test_the_peers_word_counts_when_it_is_younger_than_the_boot(tmp_path: Path) -> None:
    here = crumbs(tmp_path)
    path = peers(tmp_path, 999.0)
    assert not here.reboot_required()
    peers(tmp_path, 1001.0)
    assert here.reboot_required()
    path.unlink()
    path.mkdir()
    assert not here.reboot_required()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_nobody_else_can_have_the_device_rebooted(tmp_path: Path) -> None:
    here = crumbs(tmp_path)
    path = peers(tmp_path, 2000.0)
    os.chown(path, 1000, 1000)
    assert not here.reboot_required()
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="no reboot can be scheduled"):
        here.add(("x",))
    assert not (tmp_path / "elsewhere").exists()


def test_word_that_is_garbled_is_none(tmp_path: Path) -> None:
    here = crumbs(tmp_path)
    (tmp_path / "run").mkdir()
    for text in ("", "[]", '{"boot_id": 1}', "{"):
        (tmp_path / "run" / "reboot-required").write_text(text)
        assert not here.reboot_required()
    here.add(("x",))
    assert here.reasons() == ("x",)


def test_without_a_boot_id_the_peers_file_speaks(tmp_path: Path) -> None:
    here = crumbs(tmp_path)
    here.boot_id = ""
    here.add(("x",))
    assert here.reboot_required()


def test_the_boot_is_told_in_the_engines_form(tmp_path: Path) -> None:
    assert crumbs(tmp_path, booted=0.0).booted_at == "1970-01-01T00:00:00"
    assert len(crumbs(tmp_path, "", None).booted_at) == 19


def test_the_peers_file_does_not_outlive_the_reboot_that_it_asked_for(tmp_path: Path) -> None:
    """Where /tmp is on disk, and the clock starts in the past."""
    here = crumbs(tmp_path)
    path = peers(tmp_path, 1001.0)
    here.consume()
    assert not path.exists()
    assert crumbs(tmp_path).reboot_required()
    assert not crumbs(tmp_path, "boot-2", 0.0).reboot_required()


def test_nothing_is_consumed_that_asks_for_nothing(tmp_path: Path) -> None:
    here = crumbs(tmp_path)
    here.consume()
    path = peers(tmp_path, 1.0)
    here.consume()
    assert path.exists() and not here.reboot_required()


# ---- the machine ---------------------------------------------------------------------------------


def test_the_host_tells_its_state(tmp_path: Path) -> None:
    (tmp_path / "supervisor").mkdir()
    host = machine(tmp_path, FakeBus())
    assert host.state().boot_id == "boot-1"
    assert (host.state().reboot_required, host.state().host_update) == (False, False)
    host.perform(RequireReboot("1", "web", "c", "label"), Ticket())
    (tmp_path / "rollback-health-breadcrumb").touch()
    assert (host.state().reboot_required, host.state().host_update) == (True, True)


def test_a_flock_on_a_lock_file_of_ours_postpones_the_reboot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("balena_agent.host.locks.os.fchown", lambda *_: None)
    monkeypatch.setattr("balena_agent.host.locks.OWNER", os.geteuid())
    bus = FakeBus()
    host = machine(tmp_path, bus)
    host.perform(TakeLocks("u", 7, ("web",)), Ticket())
    path = tmp_path / "supervisor" / "services" / "7" / "web" / "updates.lock"
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(Locked, match=r"appId: 7, service: web"):
            host.perform(RequestReboot(), Ticket())
        assert bus.calls == []
        host.perform(RequestReboot(force=True), Ticket())
    host.perform(RequestReboot(), Ticket())
    assert [member for _, member, _ in bus.calls].count("Reboot") == 2


# ---- config.json ---------------------------------------------------------------------------------


def config(top: Path, text: str | None) -> ConfigFile:
    if text is not None:
        (top / "config.json").write_text(text)
    made = ConfigFile(str(top / "config.json"))
    made.refresh()
    return made


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, None),
        ("{", None),
        ("[]", None),
        ('{"os": 1}', None),
        ('{"os": {"kernel": []}}', None),
        ('{"os": {"kernel": {"extraFirmwareVol": 7}}}', None),
        ("{}", ""),
        ('{"os": {"kernel": {}}}', ""),
        ('{"os": {"kernel": {"extraFirmwareVol": "other"}}}', "other"),
    ],
)
def test_what_config_json_says_of_firmware(tmp_path: Path, text: str | None, found: str) -> None:
    assert config(tmp_path, text).text(FIRMWARE_VOLUME) == found


def test_a_change_of_the_file_is_seen(tmp_path: Path) -> None:
    here = config(tmp_path, "{}")
    assert here.text(FIRMWARE_VOLUME) == ""
    config(tmp_path, '{"os": {"kernel": {"extraFirmwareVol": "other"}}}')
    here.refresh()
    assert here.text(FIRMWARE_VOLUME) == "other"


@pytest.mark.parametrize("indent", [None, 2])
def test_everything_else_in_the_file_survives(tmp_path: Path, indent: int | None) -> None:
    before = {"uuid": "\u00fc", "os": {"sshKeys": ["k"], "kernel": {"x": 1}}, "new": [None]}
    separators = None if indent else (",", ":")
    text = json.dumps(before, indent=indent, separators=separators, ensure_ascii=False)
    config(tmp_path, text)
    (tmp_path / "config.json").chmod(0o640)
    host = machine(tmp_path, FakeBus())
    for _ in range(2):
        host.perform(SetFirmwareVolume(), Ticket())
        assert host.state().firmware_volume == "extra-firmware"
    after = json.loads((tmp_path / "config.json").read_text())
    assert after["os"]["kernel"].pop("extraFirmwareVol") == "extra-firmware"
    assert after == before
    form = (tmp_path / "config.json").read_text()
    assert ("\n" in form) == bool(indent)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (tmp_path / "config.json").stat().st_mode & 0o777 == 0o640


def test_nothing_is_written_when_it_is_so_already(tmp_path: Path) -> None:
    here = config(tmp_path, '{"os": {"kernel": {"extraFirmwareVol": "v"}}}  ')
    here.set(FIRMWARE_VOLUME, "v")
    assert (tmp_path / "config.json").read_text().endswith("  ")


@pytest.mark.parametrize("text", [None, "{", '{"os": []}', "[]"])
def test_a_file_that_is_not_understood_is_left_alone(tmp_path: Path, text: str | None) -> None:
    here = config(tmp_path, text)
    with pytest.raises(Unavailable, match=r"config\.json"):
        here.set(FIRMWARE_VOLUME, "v")
    assert (tmp_path / "config.json").exists() == (text is not None)
    if text is not None:
        assert (tmp_path / "config.json").read_text() == text
