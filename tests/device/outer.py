"""The machine that devices run on: what it offers, its packages, its locks, its processes.

Everything that vdev changes outside of a device is named here or in network.py: apt packages, the
directory CACHE, a tmpfs on /run/systemd/nspawn, one cgroup and one veth end per running device,
and, until the next boot, how many inotify instances a user may have.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

CACHE = Path("/var/cache/balena-agent-vdev")
DEVICES = CACHE / "devices"
LOCKS = CACHE / "locks"
CHECKOUT = Path(__file__).resolve().parents[2]
NSPAWN_RUN = Path("/run/systemd/nspawn")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLEAN_ENV = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

# tool -> Debian package. Installed only when the tool is missing.
TOOLS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CAP_SYS_ADMIN = 21

INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
WANTED_INSTANCES = 1024
"""A device takes about 20 and each of its containers one, all from the 128 that root usually has on
the whole machine: with three devices at work there would be none left now and then."""

T = TypeVar("T")


class DeviceError(Exception):
    """A device did not do what was asked; the text carries the evidence."""


def say(text: str) -> None:
    """Progress for people; stdout belongs to results."""
    print(f"vdev: {text}", file=sys.stderr, flush=True)


def supported() -> str:
    """'' when virtual devices can run on this machine, else the reason in one line."""
    if not sys.platform.startswith("linux"):
        return "virtual devices need Linux"
    release = tuple(int(part) for part in os.uname().release.split(".", 2)[:2])
    if release < (5, 14):
        return "virtual devices need Linux 5.14 (cgroup.kill)"
    if os.geteuid() != 0:
        return "virtual devices need root"
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    if not int(effective, 16) >> CAP_SYS_ADMIN & 1:
        return "virtual devices need CAP_SYS_ADMIN"
    cgroups = cgroup_root()
    if cgroups is None or not os.access(cgroups, os.W_OK):
        return "virtual devices need a writable cgroup v2 hierarchy"
    if os.statvfs(cgroups).f_flag & os.ST_RDONLY:
        return f"{cgroups} is read-only"
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "true"],
        capture_output=True, text=True, env=CLEAN_ENV, check=False,
    )  # fmt: skip
    if probe.returncode != 0:
        return f"namespaces cannot be made here: {probe.stderr.strip()}"
    missing = missing_packages()
    if missing and not shutil.which("apt-get", path=PATH):
        return f"{', '.join(missing)} missing and no apt-get to install them"
    return ""


def cgroup_root() -> Path | None:
    """Where cgroup v2 is mounted: pure v2, or beside the v1 controllers (hybrid)."""
    mounts = {fields[1]: fields[2] for fields in mount_table()}
    for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if mounts.get(path) == "cgroup2":
            return Path(path)
    return None


def mount_table() -> list[list[str]]:
    return [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]


def is_mounted(path: Path) -> bool:
    return any(fields[1] == str(path) for fields in mount_table())


def unmount(path: Path) -> None:
    """Lazy, because a process that still looks into a dead device must not keep it alive."""
    while is_mounted(path):
        run(["umount", "--lazy", str(path)])


def missing_packages() -> list[str]:
    found = {package for tool, package in TOOLS.items() if not shutil.which(tool, path=PATH)}
    if not KEYRING.exists():
        found.add("debian-archive-keyring")
    return sorted(found)


def prepare() -> None:
    """Install missing tools and make the few directories that all devices share."""
    for directory in (CACHE, DEVICES, LOCKS):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with lock("outer"):
        missing = missing_packages()
        if missing:
            say(f"installing {' '.join(missing)}")
            env = CLEAN_ENV | proxy_environment() | {"DEBIAN_FRONTEND": "noninteractive"}
            run(["apt-get", "update", "-q"], env=env, timeout=300)
            command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing]
            run(command, env=env, timeout=600)
        raise_inotify_limit()


def raise_inotify_limit() -> None:
    if int(INOTIFY_INSTANCES.read_text()) < WANTED_INSTANCES:
        try:
            INOTIFY_INSTANCES.write_text(f"{WANTED_INSTANCES}\n")
        except OSError as error:
            say(f"few inotify instances, many devices may run out of them: {error}")


def mount_nspawn_run() -> None:
    """nspawn refuses a second start when its run directory lies on a disk file system."""
    with lock("outer"):
        NSPAWN_RUN.mkdir(parents=True, exist_ok=True)
        kind = run(["stat", "--file-system", "--format=%T", str(NSPAWN_RUN)]).stdout.strip()
        if kind not in ("tmpfs", "ramfs"):
            run(["mount", "-t", "tmpfs", "-o", "mode=755", "vdev-nspawn", str(NSPAWN_RUN)])


def unmount_nspawn_run() -> None:
    """Undo it; for when there is no device."""
    with lock("outer"):
        if not any(DEVICES.glob("*")) and is_mounted(NSPAWN_RUN):
            run(["umount", str(NSPAWN_RUN)], check=False)


def proxy_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in PROXY_VARIABLES if name in os.environ}


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float = 60.0,
    input: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command of the outer machine in a clean environment; its failure is a DeviceError."""
    try:
        done = subprocess.run(
            list(command), env=dict(CLEAN_ENV if env is None else env), input=input, text=True,
            stdin=subprocess.DEVNULL if input is None else None, errors="replace",
            capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"{' '.join(command)}: {error}") from error
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
        raise DeviceError(f"{' '.join(command)}: status {done.returncode}\n{tail}")
    return done


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the named lock; the kernel lets go of it when this process dies, however it dies."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    path = LOCKS / name
    while True:
        with open(path, "w", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # The last holder may have removed the file while we waited for it.
            if path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
                yield
                return


@contextlib.contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Whether the lock was free; if so it is held until the end of the block."""
    try:
        handle = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        yield True
        return
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def is_locked(path: Path) -> bool:
    with lock_if_free(path) as free:
        return not free


def write_json(path: Path, value: Any) -> None:
    """All or nothing: a reader never sees half a record."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)


def read_json(path: Path) -> dict[str, Any]:
    """The record, or {} when there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def process_start(pid: int) -> str:
    """Start time of a process: with the pid it names one process for ever. '' when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]


def wait_for(probe: Callable[[], T], seconds: float, what: str, pause: float = 0.05) -> T:
    """Ask until the answer is true; DeviceError when it is not in time."""
    end = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() >= end:
            raise DeviceError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)
