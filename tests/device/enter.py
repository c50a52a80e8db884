"""Running a command inside a device that is on.

nsenter joins the namespaces of the device's PID 1. Joining the cgroup *namespace* is not enough: a
process whose cgroup lies outside of it looks to logind and the bus like nothing they know. So the
command first moves into a leaf cgroup `vdev` beside the device's own slices; systemd inside never
touches a cgroup that it did not make, and a power cut takes the command along.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .outer import CLEAN_ENV, PATH, DeviceError, cgroup_root

ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8"}
LEAF = "vdev"
# Whoever joins a pid namespace needs a child to be in it. nsenter itself would make one, but when
# that is stopped it stops as well, and nobody wakes it. systemd stops all processes for a moment
# before it kills them at the end of a shutdown: the killed child would stay a zombie, for which
# systemd waits, ten seconds to minutes. A shell just waits for its child.
FORK = ("/bin/sh", "-c", '"$@"; exit $?', "sh")
# nsenter brings the outer machine's capabilities along. With CAP_SYS_TIME a `date -s` inside would
# set the clock of the whole machine (it did). And if that shell is killed, so is the command.
LIMITS = ("setpriv", "--bounding-set", "-sys_time", "--pdeathsig", "KILL")


def command(leader: int, words: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
    """The whole command line that runs `words` inside, with exactly this environment."""
    variables = ENVIRONMENT | {"TERM": os.environ.get("TERM", "dumb")} | dict(env or {})
    return wrapped(leader, _leaf(leader) / "cgroup.procs", words, variables)


def wrapped(
    leader: int, procs: Path, words: Sequence[str], variables: Mapping[str, str]
) -> list[str]:
    """Into the cgroup, then the namespaces, then the limits, then a clean environment."""
    move = ["/bin/sh", "-c", 'echo 0 >"$0" && exec "$@"', str(procs)]
    join = ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p", "-C", "-F", "--", *FORK]
    assignments = [f"{name}={value}" for name, value in variables.items()]
    return [*move, *join, *LIMITS, "env", "-i", "-C", "/root", *assignments, *words]


def _leaf(leader: int) -> Path:
    """The device's cgroup for commands from outside, made on first use."""
    lines = Path(f"/proc/{leader}/cgroup").read_text().splitlines()
    own = next(line.partition("::")[2] for line in lines if line.startswith("0::"))
    root = cgroup_root()
    if root is None:
        raise DeviceError("cgroup v2 is not mounted")
    leaf = root / own.lstrip("/").removesuffix("init.scope") / LEAF
    leaf.mkdir(exist_ok=True)
    return leaf


def run(
    leader: int,
    words: Sequence[str],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 30.0,
) -> subprocess.CompletedProcess[bytes]:
    """Run to the end; after `timeout` the command and what it started in its session are killed."""
    with subprocess.Popen(
        command(leader, words, env), stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=CLEAN_ENV, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException as error:
            stop(process)
            stdout, stderr = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            told = (stdout + stderr).decode(errors="replace")[-2000:]
            raise DeviceError(
                f"`{' '.join(words)}` did not end within {timeout:.0f} s:\n{told}"
            ) from None
    return subprocess.CompletedProcess(list(words), process.returncode, stdout, stderr)


def stop(process: subprocess.Popen[Any]) -> None:
    """Kill a command started inside, and what it started: process groups span pid namespaces."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
