"""config.json, device variables and boot files on a device with the layout of balenaOS.

The device holds a block inhibitor, so that a pending reboot stays pending until a test lets it
happen. What is waited for is always the content of a file, or what the agent says about itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from device import Machine, balena_os, sweep
from e2e_device import UNIT, Device
from e2e_targets import Json, service, target

UUID = "9f" * 16
CRUMB = "/tmp/balena-supervisor/reboot-after-apply"
OURS = "/run/balena-agent/reboot-required"
HOLD = "hold-reboots.service"
HOLDER = f"""\
[Unit]
Before={UNIT}
After=systemd-logind.service dbus.service
[Service]
ExecStart=systemd-inhibit --what=shutdown --mode=block --who=test sleep infinity
[Install]
WantedBy=multi-user.target
"""
SAMPLE = """\
# our sample
dtparam=i2c_arm=on,spi=on
dtoverlay=vc4-kms-v3d,cma-384
dtparam=audio=on
gpu_mem=64
dtoverlay=w1-gpio
dtparam=gpiopin=18
dtparam=pullup=on
gpio=5=op,dh
gpio=6=ip
"""
SAMPLE_VARIABLES = {
    "HOST_CONFIG_dtparam": '"i2c_arm=on","spi=on","audio=on"',
    "HOST_CONFIG_dtoverlay": '"vc4-kms-v3d,cma-384","w1-gpio,gpiopin=18,pullup=on"',
    "HOST_CONFIG_gpu_mem": "64",
    "HOST_CONFIG_gpio": '"5=op,dh","6=ip"',
}
PNG = b"\x89PNG\r\n\x1a\n"


class Board(Device):
    """A device of balenaOS, seen through its boot partition too."""

    def begin(
        self,
        slug: str = "generic-amd64",
        config: Any = None,
        files: Mapping[str, str | bytes] | None = None,
        version: str = "6.0.1",
    ) -> None:
        """A new life: this boot partition, an empty store, no reboot pending, no target."""
        self.exec("systemctl", "stop", UNIT)
        self.raze()
        self.engine("POST", "/networks/prune")
        self.exec("sh", "-c", f"rm -rf /var/lib/balena-agent/* /tmp/balena-supervisor {OURS}")
        given = {"uuid": UUID} if config is None else config
        balena_os.furnish(self.machine, slug, given, files or {}, version)
        self.hold_reboots()
        self.mark()
        self.exec("systemctl", "start", UNIT)
        self.ready()

    def hold_reboots(self) -> None:
        """From now on, over power cuts too."""
        balena_os.write(self.machine, f"/etc/systemd/system/{HOLD}", HOLDER)
        self.exec("systemctl", "daemon-reload")
        self.exec("systemctl", "enable", "--quiet", "--now", HOLD)

    def reboot(self) -> None:
        """An orderly one, when nothing is under way: an engine that is stopped in the middle of
        making a network does not start again."""
        self.until(self.is_quiet, 15, "nothing is under way")
        self.exec("systemctl", "disable", "--quiet", "--now", HOLD)
        self.machine.reboot()
        self.ready()

    def ask(self, variables: Mapping[str, str], *services: Json, release: int = 1) -> None:
        document = target(*services, release=release) if services else {"local": {"apps": {}}}
        document["local"]["config"] = dict(variables)
        self.post(document)

    def read(self, name: str, where: str = "/mnt/boot") -> str:
        return self.machine.inner_path(f"{where}/{name}").read_text()

    def config(self) -> Json:
        return dict(json.loads(self.read("config.json")))

    def boot_names(self) -> list[str]:
        return sorted(os.listdir(self.machine.inner_path("/mnt/boot")))

    def is_quiet(self) -> bool:
        plan = self.plan()
        return not (plan["steps"] or plan["running"])

    def done(self, *variables: str) -> None:
        """Wait until the agent has nothing to do for these boot variables, whatever a reboot that
        it may want is waiting for."""

        def at_rest() -> bool:
            plan = self.plan()
            steps = [*plan["steps"], *plan["running"], *plan["failures"]]
            return not any("config" in str(step["step"]) for step in steps)

        self.until(at_rest, 15, f"done with {variables}")

    def writes(self) -> list[str]:
        """What the agent has done to boot files, as its journal tells."""
        return re.findall(r"Applied boot config: .*", self.said())

    def uuid(self) -> str:
        """The agent's idea of the device's uuid."""
        told = json.loads(self.exec("balena-agentctl", "status", "--json").stdout)
        return str(told["device"]["uuid"])

    def variables(self) -> dict[str, str]:
        state = self.api("GET", "/v2/local/target-state").json()["state"]
        return dict(state["local"]["config"])


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    sweep.collect()
    with Machine(f"balenaos-{os.getpid()}", owned=True) as machine:
        machine.up()
        device = Board(machine)
        device.furnish()
        device.exec("systemctl", "stop", UNIT)
        balena_os.make(machine)
        yield device


@pytest.fixture
def device(board: Board) -> Board:
    """Under the name by which a failed test's evidence is collected."""
    if not board.machine.on:
        board.machine.up()
    return board


# ---- config.json ---------------------------------------------------------------------------------


def test_H01_what_config_json_holds_is_kept(device: Board) -> None:
    known = {"uuid": UUID, "custom": {"x": 1}, "applicationId": "77"}
    device.begin(config=known)
    assert device.config() == known
    assert device.uuid() == UUID


def test_H02_an_unmanaged_device_gets_a_uuid_alone(device: Board) -> None:
    device.begin(config={})
    made = device.config()
    assert list(made) == ["uuid"] and re.fullmatch("[0-9a-f]{32}", made["uuid"])
    device.restart()
    assert device.config() == made


def test_H03_a_managed_device_gets_uuid_and_key(device: Board) -> None:
    device.begin(config={"apiEndpoint": "http://127.0.0.1:9"})
    made = device.config()
    assert re.fullmatch("[0-9a-f]{32}", made["uuid"])
    assert re.fullmatch("[0-9a-f]{32}", made["deviceApiKey"])
    assert made["deviceApiKey"] not in device.said()


def test_H04_what_others_write_meanwhile_survives(device: Board) -> None:
    device.begin()
    before = device.exec("hostname").stdout.strip()
    theirs = json.dumps({"uuid": UUID, "country": "FR", "os": {"sshKeys": ["k"]}})
    balena_os.write(device.machine, "/mnt/boot/config.json", theirs)
    try:
        body = {"network": {"hostname": "kiosk-4"}}
        answer = device.api("PATCH", "/v1/device/host-config", body, timeout=60.0)
        assert answer.status == 200, answer
        assert device.config() == {**json.loads(theirs), "hostname": "kiosk-4"}
    finally:
        device.exec("balena-agentctl", "hostname", before)


def test_H05_H06_an_interrupted_write_is_finished_or_cleared_away(device: Board) -> None:
    content = json.dumps({"uuid": "b" * 32})
    digest = hashlib.md5(content.encode()).hexdigest()
    device.begin(config='{"uu', files={f".config.json.AAAAAAAA.{digest}.md5sum": content})
    assert device.config() == {"uuid": "b" * 32}
    assert device.boot_names() == ["config.json", "device-type.json"]
    device.begin(files={f".config.json.AAAAAAAA.{'0' * 32}.md5sum": content})
    assert device.config() == {"uuid": UUID}
    assert device.boot_names() == ["config.json", "device-type.json"]


def test_H07_config_json_survives_kills_while_it_is_written(device: Board) -> None:
    seed = int(os.environ.get("E2E_SEED", time.time_ns() % 10**6))
    print(f"E2E_SEED={seed}")
    chance = random.Random(seed)
    device.begin(config={"uuid": UUID, "custom": [1, 2]})
    for number in range(25):
        device.ask({"SUPERVISOR_POLL_INTERVAL": str(60000 + number)})
        time.sleep(chance.uniform(0.0, 0.05))  # the moment of the kill, not a wait
        device.exec("systemctl", "kill", "-s", "KILL", "--kill-who=main", UNIT)
        device.machine.wait_agent()
        device.until(
            lambda wanted=60000 + number: device.config().get("appUpdatePollInterval") == wanted,
            20, "the interval is written",
        )  # fmt: skip
        known = device.config()
        assert (known["uuid"], known["custom"]) == (UUID, [1, 2])
    left = ["config.json", "device-type.json"]  # the way to there is cleared a moment later
    device.until(lambda: device.boot_names() == left, 20, "nothing else is left")


def test_H08_a_broken_config_json_is_left_alone_until_it_is_mended(device: Board) -> None:
    device.begin(config={"uuid": UUID, "developmentMode": True})
    balena_os.write(device.machine, "/mnt/boot/config.json", "{broken")
    said = "is not valid JSON (line 1)"
    device.until(lambda: said in device.status_text(), 10, "the status says so")
    pid = device.main_pid()
    device.ask({"SUPERVISOR_POLL_INTERVAL": "70000"}, service("web", 1))
    device.until(lambda: device.running("web"), 20, "apps are applied all the same")
    assert device.read("config.json") == "{broken"
    device.exec("systemctl", "restart", UNIT)
    device.ready()
    assert device.uuid() == UUID and said in device.status_text()
    assert pid != device.main_pid() != 0
    pid = device.main_pid()
    balena_os.write(device.machine, "/mnt/boot/config.json", json.dumps({"uuid": UUID}))
    device.until(lambda: "appUpdatePollInterval" in device.config(), 10, "it is used again")
    device.until(lambda: said not in device.status_text(), 10, "the status is clean")
    assert device.main_pid() == pid


def test_a_config_json_that_comes_late(device: Board) -> None:
    device.begin()
    device.exec("rm", "/mnt/boot/config.json")
    device.until(lambda: "no /mnt/boot/config.json" in device.status_text(), 10, "it is missed")
    assert "config.json" not in device.boot_names()
    balena_os.write(device.machine, "/mnt/boot/config.json", "{}")
    device.until(lambda: "uuid" in device.config(), 10, "it is completed")
    device.until(lambda: "no /mnt" not in device.status_text(), 10, "the status is clean")


def test_another_port_in_config_json_counts_at_once(device: Board) -> None:
    device.begin()
    pid = device.main_pid()
    changed = json.dumps({"uuid": UUID, "listenPort": 48999})
    balena_os.write(device.machine, "/mnt/boot/config.json", changed)
    ping = ("curl", "-sf", "http://127.0.0.1:48999/ping")
    device.until(lambda: device.exec(*ping).stdout == "OK", 10, "the API is on the new port")
    old = ("curl", "-s", "-m", "5", "http://127.0.0.1:48484/ping")
    refused = lambda: device.exec(*old, check=False).returncode == 7  # noqa: E731
    device.until(refused, 15, "the old one is closed")
    balena_os.write(device.machine, "/mnt/boot/config.json", json.dumps({"uuid": UUID}))
    device.ready()
    assert device.main_pid() == pid


def test_H58_the_old_unit_name_stops_the_agent_and_no_container(device: Board) -> None:
    device.begin()
    device.ask({}, service("web", 1))
    device.until(lambda: device.running("web"), 20, "web runs")
    began = time.monotonic()
    device.exec("systemctl", "stop", "balena-supervisor.service", timeout=60)
    assert time.monotonic() - began < 30
    assert device.show("ActiveState")["ActiveState"] == "inactive"
    assert device.running("web")
    device.exec("systemctl", "start", "balena-supervisor.service")
    device.ready()


# ---- variables -----------------------------------------------------------------------------------


def test_H09_the_prefix_decides(device: Board) -> None:
    device.begin()
    device.ask({"RESIN_SUPERVISOR_DELTA": "1", "BALENA_SUPERVISOR_DELTA": "0"})
    assert device.variables()["SUPERVISOR_DELTA"] == "false"
    device.ask({"RESIN_SUPERVISOR_DELTA": "1"})
    assert device.variables()["SUPERVISOR_DELTA"] == "true"
    assert 'Applied configuration change {"SUPERVISOR_DELTA":"true"}' in device.said()


def test_H10_H11_bad_values_are_told_once_and_hold_up_nothing(device: Board) -> None:
    device.begin()
    bad = {"BALENA_HOST_FIREWALL_MODE": "sideways", "SUPERVISOR_POLL_INTERVAL": "10abc"}
    device.ask(bad, service("web", 1))
    device.until(lambda: device.running("web"), 20, "apps are applied")
    device.settled()
    assert device.variables()["HOST_FIREWALL_MODE"] == "off"
    for told in (
        "firewallMode, value: 'sideways'. Falling back to default (off)",
        "appUpdatePollInterval, value: '10abc'. Falling back to default (900000)",
    ):
        assert device.said().count(told) == 1
    assert "Applying configuration change" not in device.said()
    assert device.config() == {"uuid": UUID}


def test_variables_that_the_os_reads_are_brought_to_it(device: Board) -> None:
    device.begin()
    device.ask({"RESIN_OVERRIDE_LOCK": "true", "RESIN_SUPERVISOR_PERSISTENT_LOGGING": "true"})
    device.until(lambda: device.config().get("persistentLogging") is True, 10, "it is written")
    name, where = "target-state-config", "/tmp/balena-supervisor"
    device.until(lambda: device.read(name, where), 10, "it is left for the OS")
    dump = json.loads(device.read(name, where))
    assert dump["SUPERVISOR_OVERRIDE_LOCK"] == dump["RESIN_OVERRIDE_LOCK"] == "true"
    device.done("persistentLogging")
    said = 'Reboot has been scheduled to apply changes: {"SUPERVISOR_PERSISTENT_LOGGING":"true"}'
    assert said in device.said()
    device.until(lambda: "a reboot is needed" in device.status_text(), 5, "the status says so")


# ---- config.txt ----------------------------------------------------------------------------------


def test_H12_what_is_right_already_is_not_written(device: Board) -> None:
    device.begin("raspberrypi4-64", files={"config.txt": SAMPLE})
    for number in range(3):
        device.ask(SAMPLE_VARIABLES, service("web", 1, environment={"N": str(number)}))
        device.settled()
    assert device.read("config.txt") == SAMPLE and device.writes() == []
    assert not device.machine.inner_path(CRUMB).exists()


def test_H13_H24_a_change_waits_for_a_reboot_whatever_the_clock_says(device: Board) -> None:
    device.begin("raspberrypi4-64", files={"config.txt": SAMPLE})
    wanted = SAMPLE_VARIABLES | {"HOST_CONFIG_gpu_mem": "128"}
    device.ask(wanted)
    after = SAMPLE.replace("gpu_mem=64", "gpu_mem=128")
    device.until(lambda: device.read("config.txt") == after, 10, "it is written")
    said = "a reboot is needed for HOST_CONFIG_gpu_mem"
    device.until(lambda: said in device.status_text(), 10, "a reboot is needed")
    device.until(lambda: device.machine.inner_path(CRUMB).exists(), 5, "others can see it too")
    device.exec("touch", "-d", "1970-01-02", CRUMB)
    device.restart()
    device.until(lambda: said in device.status_text(), 10, "it is still needed")
    device.reboot()
    assert said not in device.status_text()
    assert not device.machine.inner_path(OURS).exists()
    device.hold_reboots()
    device.restart()
    device.done("gpu_mem")
    assert device.read("config.txt") == after
    assert len(device.writes()) == 1


def test_H14_H15_lists_are_written_once_and_in_order(device: Board) -> None:
    device.begin("raspberrypi4-64")
    variables = {
        "HOST_CONFIG_dtparam": "i2c_arm=on,spi=on",
        "HOST_CONFIG_dtoverlay": '"vc4-kms-v3d,cma-384","w1-gpio,gpiopin=18"',
    }
    device.ask(variables)
    wanted = (
        "dtparam=i2c_arm=on\ndtparam=spi=on\ndtoverlay=vc4-kms-v3d\ndtparam=cma-384\n"
        "dtoverlay=w1-gpio\ndtparam=gpiopin=18\n"
    )
    device.until(lambda: device.read("config.txt") == wanted, 10, "it is written")
    device.reboot()
    device.hold_reboots()
    device.ask(variables, service("web", 1))
    device.until(lambda: device.running("web"), 20, "web runs")
    device.done("lists")
    assert len(device.writes()) == 1 and not device.machine.inner_path(OURS).exists()


def test_H14_what_is_put_back_at_the_reboot_gets_no_second_one(device: Board) -> None:
    device.begin("raspberrypi4-64", files={"config.txt": "gpu_mem=16\n"})
    device.ask({"HOST_CONFIG_gpu_mem": "64"})
    device.until(lambda: device.read("config.txt") == "gpu_mem=64\n", 10, "it is written")
    device.until(lambda: device.machine.inner_path(OURS).exists(), 5, "a reboot is noted")
    device.until(device.is_quiet, 15, "nothing is under way")
    device.exec("systemctl", "stop", UNIT)  # or it reboots as soon as nobody holds it up
    balena_os.write(device.machine, "/mnt/boot/config.txt", "gpu_mem=16\n")
    device.exec("systemctl", "disable", "--quiet", "--now", HOLD)
    device.machine.reboot()
    device.until(lambda: device.read("config.txt") == "gpu_mem=64\n", 10, "it is written again")
    device.done("gpu_mem")
    assert not device.machine.inner_path(OURS).exists()
    assert "different again after the reboot for it; there is no second one" in device.said()


def test_H16_H17_forbidden_names_and_filters_stay(device: Board) -> None:
    text = "kernel=good.img\ngpu_mem=16\n[pi4]\ngpu_mem=8\n# of pi4\n"
    device.begin("raspberrypi4-64", files={"config.txt": text})
    variables = {"HOST_CONFIG_kernel": "evil.img", "HOST_CONFIG_gpu_mem": "32",
                 "HOST_CONFIG_new": "1"}  # fmt: skip
    device.ask(variables, service("web", 1))
    device.until(lambda: device.running("web"), 20, "apps are applied")
    after = text.replace("gpu_mem=16", "gpu_mem=32") + "[all]\nnew=1\n"
    device.until(lambda: device.read("config.txt") == after, 10, "it is written")
    device.done("gpu_mem")
    assert device.said().count("Ignoring HOST_CONFIG_kernel: managed by the OS") == 1


def test_H18_without_variables_only_the_os_s_own_is_left(device: Board) -> None:
    device.begin("raspberrypi3", files={"config.txt": SAMPLE + "kernel=k.img\n"})
    device.ask({})
    wanted = "# our sample\nkernel=k.img\n"
    device.until(lambda: device.read("config.txt") == wanted, 10, "the rest is gone")


# ---- other boards --------------------------------------------------------------------------------


def test_H19_extra_uenv(device: Board) -> None:
    text = "custom_fdt_file=a.dtb\nfoo=1\nextra_os_cmdline=quiet isolcpus=1"
    device.begin("jetson-nano", files={"extra_uEnv.txt": text})
    device.ask({"HOST_EXTLINUX_fdt": "b.dtb", "HOST_EXTLINUX_isolcpus": "2,3"})
    wanted = "custom_fdt_file=b.dtb\nfoo=1\nextra_os_cmdline=quiet isolcpus=2,3\n"
    device.until(lambda: device.read("extra_uEnv.txt") == wanted, 10, "it is written")


def test_extlinux_on_an_old_jetson(device: Board) -> None:
    text = "DEFAULT a\nLABEL a\n  FDT /x.dtb\n  APPEND root=PARTUUID=b=c isolcpus=1\n"
    device.begin("jetson-tx1", files={"extlinux/extlinux.conf": text}, version="2.46.0")
    device.ask({"HOST_EXTLINUX_isolcpus": "3"})
    wanted = "DEFAULT a\nLABEL a\n  APPEND root=PARTUUID=b=c isolcpus=3\n"
    name = "extlinux/extlinux.conf"
    device.until(lambda: device.read(name) == wanted, 10, "it is written")


def test_H20_ssdt_is_written_once(device: Board) -> None:
    device.begin("up-board")
    device.ask({"HOST_CONFIGFS_ssdt": '"a","b"'})
    wanted = '{"ssdt":["a","b"]}'
    device.until(lambda: device.read("configfs.json") == wanted, 10, "it is written")
    before = device.machine.inner_path("/mnt/boot/configfs.json").stat().st_mtime_ns
    for number in range(10):
        device.ask({"HOST_CONFIGFS_ssdt": '"a","b"', "OTHER": str(number)})
        device.done("ssdt")
    assert device.machine.inner_path("/mnt/boot/configfs.json").stat().st_mtime_ns == before


def test_H21_H22_the_splash_image(device: Board) -> None:
    original, other = PNG + b"original", PNG + b"other"
    name = "/mnt/boot/splash/balena-logo.png"
    device.begin(files={"splash/balena-logo.png": original})
    image = device.machine.inner_path(name)
    device.ask({"HOST_SPLASH_image": base64.b64encode(b"not a PNG").decode()}, service("web", 1))
    device.until(lambda: device.running("web"), 20, "apps are applied")
    device.done("image")
    assert image.read_bytes() == original
    assert device.said().count("Ignoring HOST_SPLASH_image: the image is no PNG") == 1
    device.ask({"HOST_SPLASH_image": base64.b64encode(other).decode()})
    device.until(lambda: image.read_bytes() == other, 10, "it is written")
    device.ask({})
    device.until(lambda: image.read_bytes() == original, 10, "the default is back")


def test_H23_power_and_fan(device: Board) -> None:
    known = {"uuid": UUID, "os": {"sshKeys": ["k"], "network": {"wifi": {"x": 1}}}}
    device.begin("jetson-agx-orin-devkit", config=known)
    device.ask({"HOST_CONFIG_fan_profile": "cool"})
    wanted = {**known["os"], "fan": {"profile": "cool"}}  # type: ignore[dict-item]
    device.until(lambda: device.config()["os"] == wanted, 10, "the fan is set")
    device.done("fan")
    assert not device.machine.inner_path(OURS).exists()
    device.ask({"HOST_CONFIG_fan_profile": "cool", "HOST_CONFIG_power_mode": "low"})
    wanted["power"] = {"mode": "low"}
    device.until(lambda: device.config()["os"] == wanted, 10, "the power mode is set")
    device.until(lambda: device.machine.inner_path(CRUMB).exists(), 5, "a reboot is needed")


# ---- profiles ------------------------------------------------------------------------------------


def test_a_boot_partition_that_is_not_mounted_is_not_written(device: Board) -> None:
    device.begin("raspberrypi4-64")
    device.exec("systemctl", "stop", UNIT)
    device.exec("umount", "/mnt/boot")
    try:
        # systemd would mount it again for the unit.
        device.exec("systemctl", "mask", "--runtime", "--quiet", "mnt-boot.mount")
        drop_in = "/run/systemd/system/balena-agent.service.d/e2e.conf"
        balena_os.write(device.machine, drop_in, "[Unit]\nRequiresMountsFor=\n")
        device.exec("rm", f"/etc/systemd/system/{UNIT}.d/balena-os.conf")
        device.exec("systemctl", "daemon-reload")
        device.exec("systemctl", "start", UNIT)
        device.ready()
        device.ask({"HOST_CONFIG_gpu_mem": "16"}, service("web", 1))
        device.until(lambda: device.running("web"), 20, "apps are applied")
        device.settled()
        assert "/mnt/boot is not mounted" in device.status_text()
        assert "config.txt" not in device.boot_names()
    finally:
        device.exec("systemctl", "unmask", "--runtime", "--quiet", "mnt-boot.mount")
        device.exec("rm", "-f", drop_in)
        balena_os.make(device.machine)


# ---- power cuts ----------------------------------------------------------------------------------


def test_a_power_cut_leaves_the_old_or_the_new_files(device: Board) -> None:
    seed = int(os.environ.get("E2E_SEED", time.time_ns() % 10**6))
    print(f"E2E_SEED={seed}")
    chance = random.Random(seed)

    def texts(number: int) -> tuple[str, str]:
        config = {"uuid": UUID, "custom": "x" * 3000, "appUpdatePollInterval": 60000 + number}
        return json.dumps(config, separators=(",", ":")), f"# note\ngpu_mem={16 + number}\n"

    device.begin("raspberrypi4-64", files={"config.txt": texts(0)[1]}, config=texts(0)[0])
    for number in range(1, 9):
        _cut_and_recover(device, texts(number), chance.uniform(0.0, 0.06))
    device.furnish()


def _cut_and_recover(device: Board, wanted: tuple[str, str], moment: float) -> None:
    names = ("config.json", "config.txt")
    was = tuple(map(device.read, names))
    interval = str(json.loads(wanted[0])["appUpdatePollInterval"])
    memory = wanted[1].strip().rpartition("=")[2]
    device.ask({"SUPERVISOR_POLL_INTERVAL": interval, "HOST_CONFIG_gpu_mem": memory})
    time.sleep(moment)  # the moment of the power cut, not a wait
    device.machine.kill()
    disk = device.machine.root / balena_os.STORAGE.lstrip("/") / "boot"
    for name, old, new in zip(names, was, wanted, strict=True):
        assert (disk / name).read_text() in (old, new)
    # So many power cuts are more than the engine's own database can take.
    for path in (device.machine.root.parent / "docker").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    device.machine.up()
    done = "both files are as asked for"
    device.until(lambda: tuple(map(device.read, names)) == wanted, 20, done)
    left = [*names, "device-type.json"]  # the way to there is cleared a moment later
    device.until(lambda: device.boot_names() == left, 20, "nothing else is left")
    device.ready()
