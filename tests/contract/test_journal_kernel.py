"""host/journal_kernel.py on the real journal of a device.

A virtual device has no kernel log of its own, and nobody can send an entry that claims to come from
the kernel: journald sets `_TRANSPORT` itself. So the same reading is tested on another transport.
"""

from __future__ import annotations

import os
import subprocess
import time
import uuid

import pytest

from balena_agent.host.journal_kernel import KernelLog
from balena_agent.host.machine import boot_id

pytestmark = pytest.mark.skipif(
    os.environ.get("BALENA_AGENT_TEST_DEVICE") != "1",
    reason="needs a virtual device with a journal: set BALENA_AGENT_TEST_DEVICE=1 inside one",
)


def say(text: str) -> None:
    subprocess.run(["systemd-cat", "-t", "probe", "echo", text], check=True)
    subprocess.run(["journalctl", "--sync"], check=True)


def found_soon(log: KernelLog) -> bool:
    deadline = time.monotonic() + 30
    while not log.found():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_H60_a_line_of_this_boot_is_found_once_it_is_there() -> None:
    log = KernelLog(boot_id(), transport="stdout")
    assert not log.found()
    say(f"hwmon hwmon1: Voltage normalised {uuid.uuid4()}")
    assert not log.found()
    say("hwmon hwmon1: Under-voltage detected! (0x00050005)")
    assert found_soon(log)
    assert found_soon(KernelLog(boot_id(), transport="stdout")), "from the beginning of the boot"
    other = KernelLog(uuid.uuid4().hex, transport="stdout")
    assert not other.found(), "not what happened in another boot"
    assert not KernelLog(boot_id()).found(), "and not what a service says"


def test_H60_only_what_is_new_is_read() -> None:
    log = KernelLog(boot_id(), transport="syslog")
    log.found()
    place = log._cursor
    subprocess.run(["logger", "something else"], check=True)
    subprocess.run(["journalctl", "--sync"], check=True)
    log.found()
    assert place and log._cursor != place
    begun = log._cursor
    log.found()
    assert log._cursor == begun
