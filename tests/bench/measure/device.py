"""The device under measurement: made for it alone, in local mode, with one small image."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(TESTS), str(TESTS.parent)]

from device import DeviceError, Machine, images, supported  # noqa: E402 - found by the line above
from device.client import InnerConnection  # noqa: E402

__all__ = ["DeviceError", "InnerConnection", "Machine"]

UNITS = {"agent": "balena-agent.service", "dockerd": "docker.service",
         "containerd": "containerd.service", "journald": "systemd-journald.service"}  # fmt: skip
CGROUPS = "/sys/fs/cgroup/system.slice"
IMAGE = "bench:1"
# Ends at once when it is told to, and writes nothing: what is measured is not the service.
COMMAND = ("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")


@contextmanager
def device(name: str) -> Iterator[Machine]:
    """A fresh device with a running agent. Exit status 77 where there can be none."""
    if reason := supported():
        print(f"no virtual device: {reason}", file=sys.stderr)
        raise SystemExit(77)
    with Machine(f"{name}-{os.getpid()}", owned=True) as machine:
        machine.up(agent=True)
        yield machine


def image(machine: Machine) -> str:
    """Put the image into the device's engine; its reference."""
    return images.build(machine, IMAGE, cmd=COMMAND).reference


def engine_socket(machine: Machine) -> str:
    return str(machine.inner_path("/run/docker.sock"))


def cpu(machine: Machine) -> dict[str, float]:
    """CPU seconds used so far by each unit that takes part."""
    return {name: _cpu(machine, unit) for name, unit in UNITS.items()}


def _cpu(machine: Machine, unit: str) -> float:
    text = machine.inner_path(f"{CGROUPS}/{unit}/cpu.stat").read_text()
    return int(text.split("usage_usec ")[1].split()[0]) / 1e6


def agent_pid(machine: Machine) -> int:
    """The agent's process as this side of the device numbers it."""
    unit = UNITS["agent"]
    return int(machine.inner_path(f"{CGROUPS}/{unit}/cgroup.procs").read_text().split()[0])


def wait_settled(machine: Machine, limit: float = 60.0) -> float:
    """When the agent says that nothing is left to do (monotonic)."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if machine.api("GET", "/v2/state/plan", inside=True).json()["settled"]:
            return time.monotonic()
        time.sleep(0.005)
    raise RuntimeError(f"not settled within {limit} s")
