"""A bus daemon of our own for one test: the real thing, without root and without systemd."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/>
    <deny own="test.Forbidden"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
"""


class Daemon:
    """A dbus-daemon on a socket of its own. Skips the test, loudly, where there is none."""

    def __init__(self) -> None:
        program = shutil.which("dbus-daemon")
        if program is None:
            pytest.skip("dbus-daemon is not installed: apt-get install dbus-daemon (or dbus)")
        self._directory = TemporaryDirectory(prefix="bus-")  # a short path: sockets have a limit
        directory = Path(self._directory.name)
        config = directory / "bus.conf"
        config.write_text(CONFIG.format(socket=directory / "bus"))
        self._process = subprocess.Popen(
            [program, f"--config-file={config}", "--nofork", "--nopidfile", "--print-address"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout
        self.address = self._process.stdout.readline().strip()  # printed once it listens
        assert self.address, "dbus-daemon did not start"

    def freeze(self, frozen: bool) -> None:
        """A bus that does not answer, or answers again."""
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout
        self._process.stdout.close()
        self._directory.cleanup()


def eventually(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait until `condition()` holds; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.005)
