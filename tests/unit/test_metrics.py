"""Figures of the machine from a tree of kernel files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from balena_agent.core.hardware import Metrics
from balena_agent.host.metrics import Meter


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


STAT = "cpu  9 9 9 9 9 9\ncpu0 {0} 0 0 {1} 0 0 0\ncpu1 {2} 0 0 {3} 0 0 0\nintr 1\n"
MEMINFO = (
    "MemTotal:  4096000 kB\nMemFree:  1024000 kB\nBuffers:  102400 kB\nCached:  512000 kB\n"
    "SReclaimable:  10240 kB\nHugePages_Total:  0\n"
)


def test_load_is_the_mean_of_the_cores_since_the_last_reading(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/stat": STAT.format(100, 100, 0, 0)})
    meter = Meter("/mnt/data", str(tmp_path))
    tree(tmp_path, {"proc/stat": STAT.format(150, 150, 100, 0)})
    assert meter.read().cpu_usage == 75
    assert meter.read().cpu_usage is None, "no time has passed"


def test_memory_counts_caches_as_free(tmp_path: Path) -> None:
    found = Meter("/mnt/data", str(tree(tmp_path, {"proc/meminfo": MEMINFO}))).read()
    assert (found.memory_total, found.memory_usage) == (4000, 2390)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    meter = Meter("/mnt/data", str(tmp_path))
    assert (meter.read(), meter.undervolted()) == (Metrics(), None)


def test_storage_is_the_disk_of_the_data_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = "/dev/sda1 / ext4 rw 0 0\n/dev/sda6 /mnt/data ext4 rw 0 0\n/dev/sda6 /x ext4 rw 0 0\n"
    tree(tmp_path, {"proc/self/mounts": mounts})

    def statvfs(place: str) -> os.statvfs_result:
        assert place == "/mnt/data"
        return os.statvfs_result((4096, 4096, 256 * 1000, 256 * 400, 256 * 300, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    found = Meter("/mnt/data/somewhere", str(tmp_path)).read()
    assert (found.storage_block_device, found.storage_total, found.storage_usage) == (
        "/dev/sda6", 1000, 600,
    )  # fmt: skip


def test_storage_without_a_device_is_left_out(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/mounts": "overlay / overlay rw 0 0\n"})
    found = Meter("/mnt/data", str(tmp_path)).read()
    assert (found.storage_block_device, found.storage_total) == ("", None)


@pytest.mark.parametrize(
    "files, degrees",
    [
        ({"sys/class/hwmon/hwmon1/name": "coretemp",
          "sys/class/hwmon/hwmon1/temp1_input": "48500"}, 48),
        ({"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": "9000",
          "sys/class/thermal/thermal_zone0/temp": "51600"}, 52),
        ({"sys/class/thermal/thermal_zone0/temp": "unreadable"}, None),
    ],
)  # fmt: skip
def test_temperature(tmp_path: Path, files: dict[str, str], degrees: int | None) -> None:
    assert Meter("/", str(tree(tmp_path, files))).read().cpu_temp == degrees


def test_serial_number(tmp_path: Path) -> None:
    files = {"proc/device-tree/serial-number": "10000000ABCDEF01\0"}
    assert Meter("/", str(tree(tmp_path, files))).read().cpu_id == "10000000abcdef01"


def test_low_voltage(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon3"
    tree(tmp_path, {f"{chip}/name": "rpi_volt", f"{chip}/in0_lcrit_alarm": "1\n"})
    assert Meter("/", str(tmp_path)).undervolted()
