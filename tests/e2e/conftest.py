"""Devices for the end-to-end tests, their cleaning, and the evidence of failures.

Most tests share one device, which is cleaned before each of them. Tests that reboot, cut the power
or take the bus away have a device of their own, so that no test stands on a damaged one.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from device import DeviceError, Machine, supported, sweep
from e2e_device import UNIT, Device, evidence
from e2e_targets import UUID

ARTEFACTS = Path(__file__).parents[1] / "artefacts"
DEFECTS = ("Traceback (most", "defect ", "status=7/BUS", "status=11/SEGV")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = supported() if here else ""
    if reason:
        for item in here:
            item.add_marker(pytest.mark.skip(reason=f"no virtual device: {reason}"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if not report.failed:
        return
    funcargs = getattr(item, "funcargs", {})
    for found in funcargs.values():
        if isinstance(device := getattr(found, "device", found), Device):
            into = ARTEFACTS / re.sub(r"[^\w.-]+", "_", item.name)[:80]
            if report.when != "teardown" or not into.exists():
                shutil.rmtree(into, ignore_errors=True)
                evidence(device, into)
            report.sections.append(("evidence", str(into)))


def _made(name: str) -> Iterator[Device]:
    sweep.collect()
    with Machine(f"{name}-{os.getpid()}", owned=True) as machine:
        machine.up()
        device = Device(machine)
        device.furnish()
        yield device
        _confess(device, ARTEFACTS / f"defects-{machine.name}.txt")


def _confess(device: Device, into: Path) -> None:
    """No test may have seen it: a defect that the agent has told of or died of."""
    try:
        lines = device.exec("journalctl", "-q", "-b", "all", "-u", UNIT).stdout.splitlines()
    except DeviceError:  # it was switched off by its last test
        return
    found = [number for number, line in enumerate(lines) if any(sign in line for sign in DEFECTS)]
    if found:
        around = {near for number in found for near in range(number - 30, number + 60)}
        into.write_text("\n".join(line for n, line in enumerate(lines) if n in around))
        warnings.warn(f"the agent has {len(found)} defects, see {into}", stacklevel=2)


@pytest.fixture(scope="session")
def shared_device() -> Iterator[Device]:
    yield from _made("e2e")


@pytest.fixture(scope="session")
def rough_device() -> Iterator[Device]:
    yield from _made("rough")


@pytest.fixture(scope="module")
def api_device() -> Iterator[Device]:
    """A device that may be made a managed one, for the tests of one module."""
    yield from _made("api")


@pytest.fixture
def device(shared_device: Device) -> Device:
    """A clean device that works, whatever the test before did to it."""
    return _fresh(shared_device)


@pytest.fixture(scope="module")
def module_device(shared_device: Device) -> Device:
    """The same for a fixture that does much on it once, for all tests of a module."""
    return _fresh(shared_device)


@pytest.fixture
def rough(rough_device: Device) -> Device:
    """The same for tests that reboot it, cut its power or break its bus."""
    return _fresh(rough_device)


@pytest.fixture(scope="module")
def identity(shared_device: Device) -> Iterator[None]:
    """The device remains itself when its agent loses the database."""
    shared_device.identity = {"uuid": UUID}
    shared_device.configure(shared_device.identity)
    yield
    shared_device.identity = None
    shared_device.configure(None)


def _fresh(device: Device) -> Device:
    """Clean, or else another one in its place: that is told, for a device should never need it."""
    try:
        device.clean()
    except (DeviceError, AssertionError, OSError) as error:
        name = f"unclean-{os.getpid()}-{time.monotonic():.0f}"
        evidence(device, ARTEFACTS / name)
        warnings.warn(f"the device is made anew, see {name}: {error}", stacklevel=2)
        device.machine.down()
        device.machine.up(config=device.identity)
        device.furnish()
        device.clean()
    device.mark()
    return device
