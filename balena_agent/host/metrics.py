"""How the machine is doing, read from the kernel's own files: no program is run.

Theory: every figure is a small read that may fail by itself; what cannot be known is None and is
left out, never guessed (spec 30 §12). CPU load is what was worked between two readings, so a
`Meter` remembers the last one. Sizes are MiB rounded down, temperature whole degrees Celsius.

Nobody reads them but who is asked for them: `Readings` keeps the last ones for a moment, so that a
curious client costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..core.hardware import Metrics

FRESH_SECONDS = 10.0
COMPLAINT_SECONDS = 60.0
"""How long a look into the kernel's log counts: each opens the files of the journal."""

_clock = time.monotonic
_MIB = 1024
_SENSORS = ("coretemp", "k10temp", "cpu_thermal", "soc_thermal")
_SERIALS = (
    "proc/device-tree/serial-number", "proc/device-tree/product-sn",
    "sys/devices/soc0/serial_number", "sys/class/dmi/id/board_serial",
)  # fmt: skip


class Meter:
    """`root` is for tests; `data` is the mount point of the data partition. Used by one thread."""

    def __init__(self, data: str, root: str = "/") -> None:
        self._root = Path(root)
        self._data = data
        self._last = self._times()

    def read(self) -> Metrics:
        """All but `is_undervolted`. Never raises."""
        total, used = self._memory()
        device, size, filled = self._storage()
        return Metrics(
            cpu_usage=self._load(),
            memory_usage=used,
            memory_total=total,
            storage_usage=filled,
            storage_total=size,
            storage_block_device=device,
            cpu_temp=self._temperature(),
            cpu_id=self._first(_SERIALS).lower(),
        )

    # ---- processor ------------------------------------------------------------------------

    def _times(self) -> Mapping[str, tuple[int, int]]:
        """Busy and total ticks of every core; waiting for a disk is idle."""
        found = {}
        for line in self._text("proc/stat").splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name != "cpu" and len(fields) >= 6:
                user, nice, system, idle, iowait, irq = map(int, fields[:6])
                busy = user + nice + system + irq
                found[name] = (busy, busy + idle + iowait)
        return found

    def _load(self) -> int | None:
        before, self._last = self._last, self._times()
        shares = []
        for name, (busy, total) in self._last.items():
            old_busy, old_total = before.get(name, (busy, total))
            if total > old_total:
                shares.append(100 * (busy - old_busy) / (total - old_total))
        return round(sum(shares) / len(shares)) if shares else None

    def _temperature(self) -> int | None:
        """The processor's own sensor, else the first thermal zone."""
        for chip in sorted(self._glob("sys/class/hwmon/*")):
            if self._text(f"{chip}/name") in _SENSORS:
                for sensor in sorted(self._glob(f"{chip}/temp*_input")):
                    if (degrees := self._degrees(sensor)) is not None:
                        return degrees
        return self._degrees("sys/class/thermal/thermal_zone0/temp")

    def _degrees(self, name: str) -> int | None:
        text = self._text(name)
        return round(int(text) / 1000) if text.lstrip("-").isdigit() else None

    def undervolted(self) -> bool | None:
        """What the Raspberry Pi's voltage monitor says now; None without one."""
        chips = self._glob("sys/class/hwmon/*")
        monitors = [chip for chip in chips if self._text(f"{chip}/name") == "rpi_volt"]
        alarms = [self._text(f"{chip}/in0_lcrit_alarm") == "1" for chip in monitors]
        return any(alarms) if alarms else None

    # ---- memory and storage ---------------------------------------------------------------

    def _memory(self) -> tuple[int | None, int | None]:
        """Total and used: what is neither free nor a cache."""
        lines = (line.split() for line in self._text("proc/meminfo").splitlines())
        known = {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
        if "MemTotal:" not in known:
            return None, None
        spare = ("MemFree:", "Cached:", "Buffers:", "SReclaimable:")
        total = known["MemTotal:"]
        return total // _MIB, (total - sum(known.get(name, 0) for name in spare)) // _MIB

    def _storage(self) -> tuple[str, int | None, int | None]:
        """Device, size and use of the file system that holds the data partition. Use counts every
        mounted part of the same disk."""
        mounts = list(self._mounts())
        device, place = max(
            ((d, m) for d, m in mounts if _covers(m, self._data)),
            key=lambda found: len(found[1]),
            default=("", ""),
        )
        if not device.startswith("/dev/"):
            return "", None, None
        size, _ = self._filled(place)
        used = [self._filled(m)[1] for d, m in _distinct(mounts) if d.startswith(device)]
        return device, size, sum(filter(None, used)) if size is not None else None

    def _mounts(self) -> Iterator[tuple[str, str]]:
        for line in self._text("proc/self/mounts").splitlines():
            device, place, *_ = line.split(" ")
            yield device, place.replace("\\040", " ")

    def _filled(self, place: str) -> tuple[int | None, int | None]:
        with contextlib.suppress(OSError):
            found = os.statvfs(place)
            size = found.f_blocks * found.f_frsize
            return size >> 20, (size - found.f_bfree * found.f_frsize) >> 20
        return None, None

    # ---- files ----------------------------------------------------------------------------

    def _glob(self, pattern: str) -> list[str]:
        return [str(path.relative_to(self._root)) for path in self._root.glob(pattern)]

    def _first(self, names: tuple[str, ...]) -> str:
        return next(filter(None, map(self._text, names)), "")

    def _text(self, name: str) -> str:
        """A file's text without NULs and blanks at its ends; "" where it cannot be read."""
        with contextlib.suppress(OSError):
            text = (self._root / name).read_bytes().decode(errors="replace")
            return text.replace("\0", "").strip()
        return ""


class Readings:
    """The machine's figures for whoever asks, from any thread. `complaint` says whether the kernel
    has complained of under-voltage; it is asked where there is no monitor for it."""

    def __init__(
        self, meter: Meter, complaint: Callable[[], bool], clock: Callable[[], float] = _clock
    ) -> None:
        self._meter = meter
        self._complaint = complaint
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[float, Metrics] | None = None
        self._complained: tuple[float, bool] | None = None

    def read(self) -> Metrics:
        """At most `FRESH_SECONDS` old. Never raises."""
        with self._lock:
            now = self._clock()
            if self._known is None or now - self._known[0] >= FRESH_SECONDS:
                self._known = (now, self._fresh(now))
            return self._known[1]

    def _fresh(self, now: float) -> Metrics:
        low = self._meter.undervolted()
        if low is None:
            low = self._complained_of(now)
        return replace(self._meter.read(), is_undervolted=low)

    def _complained_of(self, now: float) -> bool:
        if self._complained is None or now - self._complained[0] >= COMPLAINT_SECONDS:
            self._complained = (now, self._complaint())
        return self._complained[1]


def _covers(place: str, path: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")


def _distinct(mounts: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Every device once, with its first mount point."""
    seen: set[str] = set()
    for device, place in mounts:
        if device not in seen:
            seen.add(device)
            yield device, place
