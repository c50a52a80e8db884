"""The machine's figures: what a report takes of them, and how often they are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from balena_agent.core.hardware import Metrics
from balena_agent.core.metrics import device_metrics, text_of
from balena_agent.host.journal_kernel import UNDER_VOLTAGE
from balena_agent.host.metrics import COMPLAINT_SECONDS, FRESH_SECONDS, Meter, Readings

FULL = Metrics(39, 412, 1848, 2011, 14021, "/dev/mmcblk0p6", 41, "00ab")


@pytest.mark.parametrize(
    ("line", "matches"),
    [
        ("hwmon hwmon1: Under-voltage detected! (0x00050005)", True),
        ("Undervoltage detected!", True),
        ("Voltage normalised (0x00000000)", False),
        ("underrun", False),
    ],
)
def test_H60_what_the_kernel_says(line: str, matches: bool) -> None:
    assert bool(UNDER_VOLTAGE.search(line)) is matches


def test_gauges_are_in_base_units_and_obey_the_owner() -> None:
    text = text_of(device_metrics(FULL, wanted=True))
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        "balena_device_cpu_usage_percent 39",
        "balena_device_cpu_temperature_celsius 41",
        f"balena_device_memory_used_bytes {412 << 20}",
        f"balena_device_memory_bytes {1848 << 20}",
        f"balena_device_storage_used_bytes {2011 << 20}",
        f"balena_device_storage_bytes {14021 << 20}",
        "balena_device_undervolted 0",
    ]
    off = text_of(device_metrics(FULL, wanted=False))
    assert off.splitlines()[-1] == "balena_device_undervolted 0" and off.count("# TYPE") == 1


# ---- readings ------------------------------------------------------------------------------------


def test_figures_are_read_only_when_asked_and_not_too_often(tmp_path: Path) -> None:
    now, asked = [100.0], []
    (tmp_path / "proc").mkdir()
    memory = tmp_path / "proc/meminfo"
    memory.write_text("MemTotal: 2048 kB\n")

    def complaint() -> bool:
        asked.append(now[0])
        return False

    readings = Readings(Meter("/", str(tmp_path)), complaint, lambda: now[0])
    assert asked == []
    assert readings.read().memory_total == 2
    memory.write_text("MemTotal: 4096 kB\n")
    now[0] += FRESH_SECONDS - 0.1
    assert readings.read().memory_total == 2
    now[0] += 0.2
    assert readings.read().memory_total == 4


def test_the_kernels_log_is_opened_once_a_minute_at_most(tmp_path: Path) -> None:
    now, opened = [100.0], []

    def complaint() -> bool:
        opened.append(now[0])
        return now[0] > 150

    readings = Readings(Meter("/", str(tmp_path)), complaint, lambda: now[0])
    for _ in range(7):
        low = readings.read().is_undervolted
        now[0] += FRESH_SECONDS
    assert opened == [100.0, 100.0 + COMPLAINT_SECONDS] and low


@pytest.mark.parametrize(
    ("alarm", "complaint", "low"),
    [("", True, True), ("", False, False), ("1", False, True), ("0", True, False)],
)
def test_the_monitor_for_voltage_counts_before_the_kernels_messages(
    tmp_path: Path, alarm: str, complaint: bool, low: bool
) -> None:
    if alarm:
        chip = tmp_path / "sys/class/hwmon/hwmon1"
        os.makedirs(chip)
        (chip / "name").write_text("rpi_volt\n")
        (chip / "in0_lcrit_alarm").write_text(alarm)
    readings = Readings(Meter("/", str(tmp_path)), lambda: complaint)
    assert readings.read().is_undervolted is low
