"""The host's files on a real directory: what a step does is what the model says it does.

Each step is done by the adapter on files, and by `hostconfig.after` on the value that was seen
before; the two must end equal. So the fake host of the other tests, which is `after` and nothing
else, stands on a proof.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from host_places import Root
from waiting import until

from balena_agent.core.boot_devices import ODMDATA_OFFSETS, PNG
from balena_agent.core.errors import RefusedByHost, Unavailable
from balena_agent.core.hostconfig import HostConfig, HostPlan, after, boot_variables, plan_host
from balena_agent.core.steps import ChangeConfig, HostConfigStep, SetBootConfig
from balena_agent.host import bootfiles
from balena_agent.host.breadcrumbs import Breadcrumbs
from balena_agent.host.configfile import FIRMWARE_VOLUME, ConfigFile, mounted
from balena_agent.host.files import HostFiles
from balena_agent.host.ssdt import MODULE, load_tables
from balena_agent.host.watch import FileWatch

UUID = "9f" * 16


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def planned(files: HostFiles, config: dict[str, str], managed: bool = True) -> HostPlan:
    return plan_host(config, managed, files.settings.current)


def do(files: HostFiles, step: HostConfigStep) -> HostConfig:
    """The step, done for good and in the model."""
    before = files.settings.current
    files.settings.perform(step)
    seen = files.settings.current
    assert seen == after(step, before)
    files.refresh()
    assert files.settings.current == seen
    return seen


def applied(files: HostFiles, config: dict[str, str]) -> list[HostConfigStep]:
    """Every step until there is none, at most a handful; the dump is left out."""
    done: list[HostConfigStep] = []
    while steps := planned(files, config).steps:
        assert len(done) < 8
        for step in steps:
            do(files, step)
            done += [step] if isinstance(step, ChangeConfig | SetBootConfig) else []
    return done


def reboot(root: Root, files: HostFiles) -> HostFiles:
    """The files after a reboot: /run and /tmp are empty, the boot id is another one."""
    for name in ("run", "tmp"):
        for path in sorted((root.top / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    return started(root, files.settings.current.boot_id + "'")


def started(root: Root, boot_id: str) -> HostFiles:
    """What an agent that starts in this boot sees."""
    with patch("balena_agent.host.files.boot_id", lambda: boot_id):
        return root.files()


# ---- config.json ---------------------------------------------------------------------------------


def test_H01_what_is_there_is_kept(root: Root) -> None:
    known = {"uuid": UUID, "custom": {"x": 1}, "applicationId": "77"}
    root.balena_os(config=known)
    assert root.files().facts.device_uuid == UUID
    assert root.config() == known


def test_H02_an_unmanaged_device_gets_a_uuid_and_no_key(root: Root) -> None:
    root.balena_os(config={})
    files = root.files()
    assert root.config() == {"uuid": files.facts.device_uuid}
    assert len(bytes.fromhex(files.facts.device_uuid)) == 16
    assert root.files().facts.device_uuid == files.facts.device_uuid


def test_H03_a_managed_device_gets_both_in_one_write(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.balena_os(config={"apiEndpoint": "http://127.0.0.1:9"})
    writes: list[str] = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: writes.append(str(b)) or rename(a, b))
    files = root.files()
    assert root.config() == {
        "apiEndpoint": "http://127.0.0.1:9", "uuid": files.facts.device_uuid,
        "deviceApiKey": files.facts.device_api_key,
    }  # fmt: skip
    assert len(bytes.fromhex(files.facts.device_api_key)) == 16
    assert writes == [str(root.top / "mnt/boot/config.json")]


def test_H04_what_others_write_meanwhile_survives(root: Root) -> None:
    root.balena_os(config={"uuid": UUID})
    files = root.files()
    root.write("mnt/boot/config.json", {"uuid": UUID, "country": "FR"})
    files.config.merge({("hostname",): "kiosk"})
    assert root.config() == {"uuid": UUID, "country": "FR", "hostname": "kiosk"}


def test_H05_a_committed_write_is_finished_at_the_start(root: Root) -> None:
    content = json.dumps({"uuid": "b" * 32}).encode()
    digest = hashlib.md5(content).hexdigest()
    root.balena_os(config='{"uu')
    root.write(f"mnt/boot/.config.json.AAAAAAAA.{digest}.md5sum", content)
    assert root.files().facts.device_uuid == "b" * 32
    assert sorted(os.listdir(root.top / "mnt/boot")) == ["config.json", "device-type.json"]


def test_H08_a_broken_file_is_left_alone_and_the_last_good_one_holds(root: Root) -> None:
    root.balena_os(config={"uuid": UUID, "listenPort": 5000})
    files = root.files()
    root.write("mnt/boot/config.json", "{broken")
    for seen in (files, root.files()):
        seen.refresh()
        assert (seen.facts.device_uuid, seen.facts.api_port) == (UUID, 5000)
        assert seen.settings.current.problems == (
            f"{root.top}/mnt/boot/config.json is not valid JSON (line 1)",
        )
        assert planned(seen, {"SUPERVISOR_POLL_INTERVAL": "60000"}).steps[1:] == ()
        with pytest.raises(Unavailable, match="is not valid JSON"):
            seen.config.merge({("hostname",): "x"})
        assert root.read("mnt/boot/config.json") == "{broken"
    root.write("mnt/boot/config.json", {"uuid": UUID, "listenPort": 6000})
    assert files.refresh() and files.facts.api_port == 6000
    assert files.settings.current.problems == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{}", ""),
        ('{"os":{"kernel":{"extraFirmwareVol":"x"}}}', "x"),
        ('{"os":{"kernel":7}}', None),
        ('{"os":{"kernel":{"extraFirmwareVol":7}}}', None),
        ("{broken", None),
        (None, None),
    ],
)
def test_one_member_deep_in_the_file(root: Root, text: str | None, found: str | None) -> None:
    path = root.top / "config.json"
    if text is not None:
        path.write_text(text)
    config = ConfigFile(str(path))
    assert config.text(FIRMWARE_VOLUME) == found
    if found is None:
        with pytest.raises(Unavailable, match="cannot be set in it"):
            config.set(FIRMWARE_VOLUME, "extra-firmware")
        assert not path.exists() or path.read_text() == text
    else:
        config.set(FIRMWARE_VOLUME, "extra-firmware")
        assert ConfigFile(str(path)).text(FIRMWARE_VOLUME) == "extra-firmware"


def test_a_missing_file_is_never_made(root: Root) -> None:
    root.balena_os()
    files = root.files()
    assert files.settings.current.problems == (f"no {root.top}/mnt/boot/config.json",)
    assert files.facts.device_uuid and not (root.top / "mnt/boot/config.json").exists()
    root.write("mnt/boot/config.json", {})
    assert files.refresh()
    assert root.config() == {"uuid": files.facts.device_uuid}


@pytest.mark.parametrize("balena_os", [True, False])
def test_a_file_that_goes_away_is_like_a_broken_one_and_leaves_no_cloud(
    root: Root, balena_os: bool
) -> None:
    cloud = {"uuid": UUID, "apiEndpoint": "http://127.0.0.1:9", "deviceApiKey": "k"}
    root.balena_os(config=cloud) if balena_os else root.write("mnt/boot/config.json", cloud)
    files = root.files()
    assert files.facts.managed and files.settings.current.problems == ()
    (root.top / "mnt/boot/config.json").unlink()
    for seen in (files, root.files()):
        seen.refresh()
        assert (seen.facts.managed, seen.facts.device_uuid) == (True, UUID)
        assert seen.settings.current.problems == (
            f"no {root.top}/mnt/boot/config.json; what it said last holds",
        )
        with pytest.raises(Unavailable, match="there is none"):
            seen.config.merge({("hostname",): "x"})
        assert not (root.top / "mnt/boot/config.json").exists()
    root.write("mnt/boot/config.json", {"uuid": UUID})  # what `os-config leave` leaves
    assert files.refresh() and not files.facts.managed
    assert not root.files().facts.managed, "that is the last good one from now on"


def test_nothing_is_written_beside_a_partition_that_is_not_mounted(root: Root) -> None:
    root.balena_os("raspberrypi4-64", {})
    root.mounted = False
    files = root.files()
    assert root.config() == {}
    assert files.settings.current.problems == (f"{root.top}/mnt/boot is not mounted",)
    assert not any(
        isinstance(step, ChangeConfig | SetBootConfig)
        for step in planned(files, {"HOST_CONFIG_gpu_mem": "16"}).steps
    )
    root.mounted = True
    files.refresh()
    assert "uuid" in root.config() and files.settings.current.problems == ()


def test_a_name_that_cannot_be_remembered_is_refused_where_nothing_else_counts(root: Root) -> None:
    root.balena_os("raspberrypi4-64", {"uuid": "u"})
    files = root.files()
    files.remember_hostname("kiosk-1")
    assert root.config()["hostname"] == "kiosk-1"
    root.write("mnt/boot/config.json", "{broken")
    files.refresh()
    with pytest.raises(Unavailable, match=r"is not changed: .*not valid JSON"):
        files.remember_hostname("kiosk-2")
    (root.top / "mnt/boot/config.json").unlink()
    files.refresh()
    with pytest.raises(Unavailable, match="there is none"):
        files.remember_hostname("kiosk-2")


@pytest.mark.parametrize("former", [None, "old-name"])
def test_a_name_that_is_not_taken_leaves_config_json_as_it_was(
    root: Root, former: str | None
) -> None:
    root.balena_os("raspberrypi4-64", {"uuid": "u"} | ({"hostname": former} if former else {}))
    files, before = root.files(), root.config()
    restore = files.remember_hostname("kiosk-1")
    assert root.config()["hostname"] == "kiosk-1"
    restore()
    assert root.config() == before


def test_a_generic_host_can_have_a_name_without_config_json(root: Root) -> None:
    files = root.files()
    files.remember_hostname("kiosk-1")()
    assert not (root.top / "mnt/boot/config.json").exists()


def test_mount_points_are_told_from_directories(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "25 1 8:1 /boot /mnt/boot rw - ext4 x rw\n26 1 8:1 / /a\\040b rw - ext4 x rw\n"
    )
    assert mounted("/mnt/boot/", str(table)) and mounted("/a b", str(table))
    assert not mounted("/mnt", str(table)) and not mounted("/mnt/boot", str(tmp_path / "none"))
    assert mounted("/proc")


# ---- a generic host ------------------------------------------------------------------------------


def test_on_a_generic_host_what_is_not_there_is_no_error(root: Root) -> None:
    files = root.files()
    assert files.profile == "generic" and files.problems == ()
    assert files.settings.current.problems == () and files.settings.current.boot == {}
    found = planned(files, {"HOST_CONFIG_gpu_mem": "16", "SUPERVISOR_PERSISTENT_LOGGING": "1"})
    assert found.problems == ()
    assert applied(files, {"HOST_CONFIG_gpu_mem": "16"}) == []
    assert files.settings.current.absent == {
        "config.json": f"there is no {root.top}/mnt/boot/config.json",
        "boot configuration": "none for device type unknown",
        "splash image": "this device has none",
    }


def test_persistent_logging_needs_a_reboot_on_balena_os_alone(root: Root) -> None:
    wanted = {"SUPERVISOR_PERSISTENT_LOGGING": "on"}
    root.write("mnt/boot/config.json", {"uuid": UUID})
    applied(files := root.files(), wanted)
    assert root.config()["persistentLogging"] is True and files.settings.current.reboot == ()
    root.memory.known.clear()
    root.balena_os(config={"uuid": UUID})
    applied(files := root.files(), wanted)
    assert files.settings.current.reboot == ("SUPERVISOR_PERSISTENT_LOGGING",)


def test_persistent_logging_gets_one_reboot_whatever_else_is_rewritten(root: Root) -> None:
    """Somebody puts config.json back in every boot, each time with another poll interval."""
    root.balena_os(config={"uuid": UUID})
    files, wanted = root.files(), {"SUPERVISOR_PERSISTENT_LOGGING": "on"}
    asked = 0
    for boot in range(6):
        for step in applied(files, wanted):
            asked += isinstance(step, ChangeConfig) and step.reboot
        assert root.config()["persistentLogging"] is True
        root.write("mnt/boot/config.json", {"uuid": UUID, "appUpdatePollInterval": 1000 * boot})
        files = reboot(root, files)
    assert asked == 1


def test_what_else_changes_in_a_boot_does_not_forget_its_reboot(root: Root) -> None:
    root.balena_os(config={"uuid": UUID})
    files, wanted = root.files(), {"SUPERVISOR_PERSISTENT_LOGGING": "on"}
    applied(files, wanted)
    files = reboot(root, files)
    wanted |= {"SUPERVISOR_POLL_INTERVAL": "120000"}
    (step,) = applied(files, wanted)
    assert isinstance(step, ChangeConfig) and not step.reboot
    root.write("mnt/boot/config.json", {"uuid": UUID, "appUpdatePollInterval": 120000})
    files.refresh()
    (step,) = applied(files, wanted)
    assert isinstance(step, ChangeConfig) and not step.reboot


# ---- a store that is full ------------------------------------------------------------------------


def test_a_store_that_is_full_keeps_no_device_from_starting(root: Root) -> None:
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    root.write("mnt/boot/config.txt", CONFIG_TXT)
    root.memory.full = True
    files = root.files()
    assert files.facts.device_uuid == UUID
    root.memory.full = False
    applied(files, {"HOST_CONFIG_gpu_mem": "128"})
    root.memory.full = True
    later = reboot(root, files)
    assert later.settings.current.reboot == () and planned(later, {}).problems == ()


def test_what_needs_a_reboot_is_not_written_while_nothing_can_be_noted(root: Root) -> None:
    """Else it would be in the file, and the reboot that brings it into force forgotten."""
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    root.write("mnt/boot/config.txt", CONFIG_TXT)
    files, wanted = root.files(), {"HOST_CONFIG_gpu_mem": "128"}
    root.memory.full = True
    (step,) = [s for s in planned(files, wanted).steps if isinstance(s, SetBootConfig)]
    with pytest.raises(Unavailable, match="disk is full"):
        files.settings.perform(step)
    assert root.read("mnt/boot/config.txt") == CONFIG_TXT
    root.memory.full = False
    assert len(applied(files, wanted)) == 1 and files.settings.current.reboot


def test_a_note_that_cannot_be_kept_any_more_does_not_undo_the_reboot(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    root.write("mnt/boot/config.txt", CONFIG_TXT)
    files, wanted = root.files(), {"HOST_CONFIG_gpu_mem": "128"}
    (step,) = [s for s in planned(files, wanted).steps if isinstance(s, SetBootConfig)]
    kept, times = root.memory.set_setting, []

    def last(key: str, value: object) -> None:
        kept(key, value)
        times.append(key)
        root.memory.full = True

    monkeypatch.setattr(root.memory, "set_setting", last)
    files.settings.perform(step)
    assert times and files.settings.current.reboot == ("HOST_CONFIG_gpu_mem",)


# ---- variables in config.json --------------------------------------------------------------------


def test_H11_variables_are_written_once_and_in_their_type(root: Root) -> None:
    root.balena_os(config={"uuid": UUID, "appUpdatePollInterval": "600000x", "custom": 1})
    files = root.files()
    (step,) = applied(files, {"BALENA_SUPERVISOR_POLL_INTERVAL": "60000"})
    assert isinstance(step, ChangeConfig) and not step.reboot
    assert root.config() == {"uuid": UUID, "custom": 1, "appUpdatePollInterval": 60000}
    (step,) = applied(files, {"SUPERVISOR_POLL_INTERVAL": "10abc"})
    assert root.config()["appUpdatePollInterval"] == 900000
    assert applied(files, {"SUPERVISOR_POLL_INTERVAL": "10abc"}) == []


def test_the_dump_for_the_os_holds_both_spellings(root: Root) -> None:
    files = root.files()
    applied(files, {"RESIN_OVERRIDE_LOCK": "1", "OTHER": "x"})
    assert json.loads(root.read("tmp/balena-supervisor/target-state-config")) == {
        "RESIN_OVERRIDE_LOCK": "1", "SUPERVISOR_OVERRIDE_LOCK": "1", "OTHER": "x",
    }  # fmt: skip


# ---- boot files ----------------------------------------------------------------------------------

CONFIG_TXT = "# kept\ngpu_mem=16\n[pi4]\nx=1\n"


def test_H13_a_change_needs_one_reboot(root: Root) -> None:
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    root.write("mnt/boot/config.txt", CONFIG_TXT)
    files = root.files()
    wanted = {"HOST_CONFIG_gpu_mem": "128"}
    (step,) = applied(files, wanted)
    assert isinstance(step, SetBootConfig) and step.reboot
    assert root.read("mnt/boot/config.txt") == CONFIG_TXT.replace("16", "128")
    assert files.settings.current.reboot == ("HOST_CONFIG_gpu_mem",)
    assert (root.top / "tmp/balena-supervisor/reboot-after-apply").exists()
    assert boot_variables(files.settings.current) == wanted
    later = reboot(root, files)
    assert applied(later, wanted) == [] and later.settings.current.reboot == ()


def test_a_boot_file_that_is_finished_at_the_start_gets_its_reboot(root: Root) -> None:
    """The power went between commit and place: the firmware has read what was there before."""
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    root.write("mnt/boot/config.txt", CONFIG_TXT)
    content = CONFIG_TXT.replace("16", "128")
    digest = hashlib.md5(content.encode()).hexdigest()
    root.write(f"mnt/boot/.config.txt.AAAAAAAA.{digest}.md5sum", content)
    files = root.files()
    assert root.read("mnt/boot/config.txt") == content
    assert files.settings.current.reboot == ("config.txt",)
    assert reboot(root, files).settings.current.reboot == ()


def test_H14_a_wish_that_is_put_back_gets_no_second_reboot(root: Root) -> None:
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    files, wanted = root.files(), {"HOST_CONFIG_dtparam": "i2c_arm=on,spi=on"}
    applied(files, wanted)
    assert applied(files, wanted) == []
    root.write("mnt/boot/config.txt", CONFIG_TXT)  # something on the way down or up
    later = reboot(root, files)
    found = planned(later, wanted)
    assert any("different again after the reboot" in line for line in found.problems)
    (step,) = applied(later, wanted)
    assert isinstance(step, SetBootConfig) and not step.reboot
    assert later.settings.current.reboot == ()
    # It holds for a whole boot: the next time that it is lost, a reboot is worth it again.
    quiet = reboot(root, later)
    assert applied(quiet, wanted) == []
    last = reboot(root, quiet)
    assert applied(last, wanted) == []
    root.write("mnt/boot/config.txt", CONFIG_TXT)
    last.refresh()
    (step,) = applied(last, wanted)
    assert isinstance(step, SetBootConfig) and step.reboot


@pytest.mark.parametrize("restarts", [False, True])
def test_H14_who_writes_after_our_start_in_every_boot_gets_no_second_reboot(
    root: Root, restarts: bool
) -> None:
    """A container, say, with a config.txt of its own."""
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    files, wanted = root.files(), {"HOST_CONFIG_gpu_mem": "128"}
    asked = []
    for _ in range(4):
        asked += [step for step in applied(files, wanted) if step.reboot]  # type: ignore[union-attr]
        files = reboot(root, files)
        if restarts:
            files = started(root, files.settings.current.boot_id)
        root.write("mnt/boot/config.txt", CONFIG_TXT)
        files.refresh()
    assert len(asked) == 1


def test_another_wish_gets_its_own_reboot(root: Root) -> None:
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    files = root.files()
    applied(files, {"HOST_CONFIG_gpu_mem": "1"})
    root.write("mnt/boot/config.txt", "")
    later = reboot(root, files)
    (step,) = applied(later, {"HOST_CONFIG_gpu_mem": "2"})
    assert isinstance(step, SetBootConfig) and step.reboot


def test_H16_a_forbidden_name_holds_up_nothing(root: Root) -> None:
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    root.write("mnt/boot/config.txt", "kernel=good.img\n")
    files = root.files()
    wanted = {"HOST_CONFIG_kernel": "evil.img", "HOST_CONFIG_gpu_mem": "16"}
    assert len(applied(files, wanted)) == 1
    assert root.read("mnt/boot/config.txt") == "kernel=good.img\ngpu_mem=16\n"
    assert planned(files, wanted).problems == ("Ignoring HOST_CONFIG_kernel: managed by the OS",)


def test_H20_ssdt_is_written_once(root: Root) -> None:
    root.balena_os("up-board", {"uuid": UUID})
    files = root.files()
    wanted = {"HOST_CONFIGFS_ssdt": '"a","b"'}
    assert len(applied(files, wanted)) == 1
    before = (root.top / "mnt/boot/configfs.json").stat().st_mtime_ns
    for _ in range(10):
        assert files.refresh() is False and applied(files, wanted) == []
    assert json.loads(root.read("mnt/boot/configfs.json")) == {"ssdt": ["a", "b"]}
    assert (root.top / "mnt/boot/configfs.json").stat().st_mtime_ns == before


def test_H21_H22_the_splash_image_and_back(root: Root) -> None:
    root.balena_os("generic-amd64", {"uuid": UUID})
    original, other = PNG + b"original", PNG + b"other"
    logo = root.write("mnt/boot/splash/balena-logo.png", original)
    files = root.files()
    encoded = base64.b64encode(other).decode()
    assert len(applied(files, {"HOST_SPLASH_image": f"data:image/png;base64,{encoded}"})) == 1
    assert logo.read_bytes() == other
    assert applied(files, {"HOST_SPLASH_image": encoded}) == []
    found = planned(files, {"HOST_SPLASH_image": "bm8gcG5n"})
    assert len(found.problems) == 1 and applied(files, {"HOST_SPLASH_image": "bm8gcG5n"}) == []
    assert len(applied(files, {})) == 1
    assert logo.read_bytes() == original


def test_a_splash_directory_without_an_image(root: Root) -> None:
    root.balena_os("generic-amd64", {"uuid": UUID})
    (root.top / "mnt/boot/splash").mkdir()
    files, encoded = root.files(), base64.b64encode(PNG + b"x").decode()
    assert applied(files, {}) == []
    assert len(applied(files, {"HOST_SPLASH_image": encoded})) == 1
    assert len(applied(files, {})) == 1
    assert not (root.top / "mnt/boot/splash/balena-logo.png").exists()


def test_H23_the_fan_without_and_the_power_mode_with_a_reboot(root: Root) -> None:
    config = {"uuid": UUID, "os": {"sshKeys": ["k"], "power": {"more": 1}}}
    root.balena_os("jetson-agx-orin-devkit", config)
    files = root.files()
    applied(files, {"HOST_CONFIG_fan_profile": "cool"})
    assert files.settings.current.reboot == ()
    applied(files, {"HOST_CONFIG_fan_profile": "cool", "HOST_CONFIG_power_mode": "low"})
    assert files.settings.current.reboot == ("HOST_CONFIG_power_mode",)
    assert root.config()["os"] == {
        "sshKeys": ["k"], "power": {"more": 1, "mode": "low"}, "fan": {"profile": "cool"}
    }  # fmt: skip
    applied(files, {})
    assert root.config()["os"] == config["os"]


def test_acpi_tables_are_loaded_by_name(root: Root, caplog: pytest.LogCaptureFixture) -> None:
    root.write("boot/acpi-tables/spi.aml", b"table")
    kernel = root.top / "sys/kernel/config/acpi/table"
    kernel.mkdir(parents=True)
    (root.top / "evil.aml").touch()
    started: list[str] = []
    text = '{"ssdt":["gone","spi","../../evil"]}'
    assert load_tables(text, str(root.top), started.append) == ("spi",)
    assert (kernel / "spi/aml").read_bytes() == b"table" and os.listdir(kernel) == ["spi"]
    assert started == [MODULE]
    assert "Missing AML for 'gone'. Unable to load." in caplog.text
    assert load_tables('{"other":1}', str(root.top), started.append) == () and len(started) == 1

    def refuse(unit: str) -> None:
        raise RefusedByHost("no such unit")

    assert load_tables(text, str(root.top), refuse) == ("spi",)  # it is there already


@pytest.mark.parametrize(
    ("slug", "name", "content", "shown"),
    [
        (
            "raspberrypi4-64",
            "config.txt",
            b'hdmi_x=caf\xe9\ngpio=1=\xff\xfe,2\ngpio="\xe9"\ndtoverlay=\xe9,a=\xc3\xa9\n',
            {
                "HOST_CONFIG_hdmi_x": "caf\xe9",
                "HOST_CONFIG_gpio": '"1=\xff\xfe,2", "\\"\xe9\\""',
                "HOST_CONFIG_dtoverlay": '"\xe9,a=\xe9"',
            },
        ),
        (
            "jetson-nano",
            "extra_uEnv.txt",
            b"custom_fdt_file=\xe9.dtb\n",
            {"HOST_EXTLINUX_fdt": "\xe9.dtb"},
        ),
    ],
)
def test_bytes_that_are_no_text_are_shown_and_survive(
    root: Root, slug: str, name: str, content: bytes, shown: dict[str, str]
) -> None:
    """Shown in characters that every document can hold, and no change when they come back."""
    root.balena_os(slug, {"uuid": UUID}, version="6.0.0")
    path = root.write(f"mnt/boot/{name}", content)
    files = root.files()
    told = json.loads(json.dumps(boot_variables(files.settings.current)).encode("utf-8"))
    assert told == shown
    assert applied(files, told) == [] and path.read_bytes() == content
    more = {"HOST_CONFIG_new": "1"} if name == "config.txt" else {"HOST_EXTLINUX_isolcpus": "3"}
    assert len(applied(files, told | more)) == 1
    assert path.read_bytes().startswith(content)
    assert len(applied(files, told)) == 1 and path.read_bytes() == content


def test_half_a_character_is_no_value(root: Root) -> None:
    """JSON can spell it, no file can hold it."""
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    files, wanted = root.files(), {"HOST_CONFIG_a": "\ud800", "HOST_CONFIG_gpio": '"\udc41"'}
    assert applied(files, wanted) == []
    assert [text[:22] for text in planned(files, wanted).problems] == [
        "Ignoring HOST_CONFIG_a", "Ignoring HOST_CONFIG_g",
    ]  # fmt: skip


def test_odmdata_is_guarded_and_read_back(root: Root) -> None:
    root.balena_os("jetson-tx2", {"uuid": UUID})
    block = bytearray(20_000)
    for offset in (1659, 5243, 18043):
        block[offset] = 6
    device = root.write("dev/mmcblk0boot0", bytes(block))
    guard = root.write("sys/block/mmcblk0boot0/force_ro", "1")
    files = root.files()
    assert boot_variables(files.settings.current) == {"HOST_ODMDATA_configuration": "3"}
    assert len(applied(files, {"HOST_ODMDATA_configuration": "2"})) == 1
    found = device.read_bytes()
    assert [found[n] for n in (1659, 5243, 18043)] == [1, 1, 1] and len(found) == 20_000
    assert guard.read_text() == "1" and applied(files, {}) == []
    device.write_bytes(b"\1" * 5000)
    files.refresh()
    assert planned(files, {}).problems[0].startswith("ODMDATA is left alone: ")


class PowerCut(BaseException):
    """Nothing may catch it, as nothing runs after a power cut."""


def tx2(root: Root, *bytes_: int) -> Path:
    """A Jetson TX2 with these three bytes."""
    root.balena_os("jetson-tx2", {"uuid": UUID})
    block = bytearray(20_000)
    for offset, byte in zip(ODMDATA_OFFSETS, bytes_, strict=True):
        block[offset] = byte
    root.write("sys/block/mmcblk0boot0/force_ro", "1")
    return root.write("dev/mmcblk0boot0", bytes(block))


def odmdata(device: Path) -> tuple[int, ...]:
    return tuple(device.read_bytes()[offset] for offset in ODMDATA_OFFSETS)


def cut_off(
    root: Root, monkeypatch: pytest.MonkeyPatch, calls: int, act: Callable[[], Any]
) -> list[str] | None:
    """Do it; the power is cut at this call of a write, a sync or a note. The calls before; None:
    there were no more of them."""
    made: list[str] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            if len(made) == calls:
                raise PowerCut
            made.append(call.__name__)
            return call(*args)

        return wrapped

    with monkeypatch.context() as patch, contextlib.suppress(PowerCut):
        patch.setattr(bootfiles.os, "pwrite", counted(os.pwrite))
        patch.setattr(bootfiles.os, "fsync", counted(os.fsync))
        patch.setattr(root.memory, "set_setting", counted(root.memory.set_setting))
        act()
        return None
    return made


def test_a_power_cut_between_the_bytes_of_odmdata(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every call, and again at every call of the recovery; of what is not synced any part may
    be lost. In the end it is what was asked for, with a reboot."""
    cut, wanted = 0, {"HOST_ODMDATA_configuration": "2"}
    seen: set[tuple[int, ...]] = set()
    while True:
        root.memory.known.clear()
        device = tx2(root, 6, 6, 6)
        pristine = device.read_bytes()
        (step,) = (s for s in planned(root.files(), wanted).steps if isinstance(s, SetBootConfig))
        perform = partial(root.files().settings.perform, step)
        made = cut_off(root, monkeypatch, cut, perform)
        if made is None:
            break
        noted, reached = dict(root.memory.known), odmdata(device)
        synced = "pwrite" in made and "fsync" in made[made.index("pwrite") :]
        for mix in itertools.product(*({byte} if synced else {6, byte} for byte in reached)):
            for again in range(6):
                root.memory.known = dict(noted)
                tx2(root, *mix)
                cut_off(root, monkeypatch, again, root.files)
                found = boot_variables(root.files().settings.current)["HOST_ODMDATA_configuration"]
                assert found in ("2", "3"), (cut, mix)
                seen.add(mix)
            fresh = reboot(root, root.files())
            steps = applied(fresh, wanted)
            assert odmdata(device) == (1, 1, 1) and len(steps) == (found == "3")
            assert [s for s in steps if s.reboot] == steps
            assert len(device.read_bytes()) == len(pristine)
        cut += 1
    assert len(seen) == 8 and odmdata(device) == (1, 1, 1)
    assert "odmdata_write" not in {k for k, v in root.memory.known.items() if v is not None}


def test_a_mix_of_odmdata_that_is_not_ours_is_left_alone(root: Root) -> None:
    device = tx2(root, 6, 1, 6)
    root.memory.known["odmdata_write"] = ["020202", "010101"]
    files = root.files()
    assert "the three bytes of ODMDATA differ" in planned(files, {}).problems[0]
    assert odmdata(device) == (6, 1, 6)
    for nonsense in ("x", ["0", "1"], ["06", "01"], {}, [1, 2]):
        root.memory.known["odmdata_write"] = nonsense
        root.files()
        assert odmdata(device) == (6, 1, 6)


def test_odmdata_that_cannot_be_noted_is_not_written(root: Root) -> None:
    device = tx2(root, 6, 6, 6)
    store = bootfiles.OdmdataStore(str(root.top), root.memory)
    root.memory.full = True
    with pytest.raises(Unavailable, match="disk is full"):
        store.write("010101", {})
    assert odmdata(device) == (6, 6, 6)


def test_a_fault_of_one_file_leaves_the_others_alone(root: Root) -> None:
    root.balena_os("jetson-nano", {"uuid": UUID}, version="2.46.0")
    root.write("mnt/boot/extra_uEnv.txt", "custom_fdt_file=a.dtb\n")
    files = root.files()
    assert files.settings.current.problems == (
        "extlinux.conf is left alone: Could not find extlinux file. Device is possibly bricked",
    )
    assert len(applied(files, {"HOST_EXTLINUX_fdt": "b.dtb"})) == 1
    assert root.read("mnt/boot/extra_uEnv.txt") == "custom_fdt_file=b.dtb\n"


def test_a_write_that_does_not_hold_schedules_no_reboot(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.balena_os("raspberrypi4-64", {"uuid": UUID})
    files = root.files()
    (step,) = (
        s for s in planned(files, {"HOST_CONFIG_a": "1"}).steps if isinstance(s, SetBootConfig)
    )
    monkeypatch.setattr("balena_agent.host.bootfiles.TextStore.write", lambda *_: None)
    with pytest.raises(Unavailable, match="reads back otherwise"):
        files.settings.perform(step)
    assert files.settings.current.reboot == () and files.settings.current.attempts == {}
    assert not (root.top / "tmp/balena-supervisor/reboot-after-apply").exists()


# ---- the breadcrumb ------------------------------------------------------------------------------


def test_H24_the_age_of_the_breadcrumb_does_not_matter(tmp_path: Path) -> None:
    run, peer = tmp_path / "run", tmp_path / "peer"
    run.mkdir()
    crumb = Breadcrumbs(str(run), str(peer / "services"), "boot-1")
    assert crumb.reasons() == ()
    assert crumb.add(("a", "b")) == ("a", "b") and crumb.add(("b", "c")) == ("c",)
    os.utime(peer / "reboot-after-apply", (86_400, 86_400))
    assert crumb.reasons() == ("a", "b", "c")
    assert Breadcrumbs(str(run), str(peer / "services"), "boot-2").reasons() == ()
    crumb.drop(("b", "x"))
    assert crumb.reasons() == ("a", "c")
    crumb.drop(("a", "c"))
    assert os.listdir(run) == [] and os.listdir(peer) == []
    for damaged in ("", "[]", '{"boot_id":"boot-1"}', '{"boot_id":"boot-1","reasons":5}'):
        (run / "reboot-required").write_text(damaged)
        assert crumb.reasons() == ()


# ---- being told ----------------------------------------------------------------------------------


def test_changes_by_others_are_heard_of(tmp_path: Path) -> None:
    looks: list[float] = []
    watch = FileWatch(
        [str(tmp_path), str(tmp_path / "none")], lambda: looks.append(time.monotonic())
    )
    watch.start()
    try:
        until(lambda: len(looks) == 1)
        changes: tuple[Callable[[], Any], ...] = (
            lambda: (tmp_path / "config.json").write_text("{}"),
            lambda: (tmp_path / "config.json").rename(tmp_path / "other"),
            lambda: (tmp_path / "other").unlink(),
        )
        for number, change in enumerate(changes, 2):
            change()
            until(lambda number=number: len(looks) == number)
        for _ in range(70_000):  # more than a pipe holds
            watch.soon()
        until(lambda: len(looks) >= 5)
        (tmp_path / ".config.json.12345678.tmp").write_text("on its way")
    finally:
        watch.close()
    assert 5 <= len(looks) < 10
