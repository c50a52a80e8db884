"""The keeper: one detached process per device that is on. It boots it, and boots it again.

It runs systemd-nspawn, holds `keeper.lock` for as long as it lives (so "the lock is held" means
"the device is on or starting"), and writes what it sees to `status.json`. nspawn ends with status
133 when the device asked for a reboot; every other end leaves the device off. If the keeper itself
is killed, the kernel kills nspawn and with it the device.

Run as `python3 -m device.keeper NAME`; machine.py starts it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from . import cgroups
from .disk import Paths
from .network import Link
from .outer import CLEAN_ENV, read_json, write_json

REBOOT_STATUS = 133


def nspawn_command(paths: Paths, link: Link, machine_id: str) -> list[str]:
    """The start line; each option is there because something failed without it."""
    command = [
        "systemd-nspawn", "--quiet", "--boot", "-D", str(paths.root),
        f"--machine={link.outer_name}", f"--hostname={paths.name}", f"--uuid={machine_id}",
        # There is no machined and no unit to register with where PID 1 is not systemd.
        "--register=no", "--keep-unit", "--notify-ready=yes", "--settings=no",
        # Nothing of the outer machine may shine through.
        "--link-journal=no", "--resolv-conf=off", "--timezone=off",
        *link.nspawn_arguments(),
        # With CAP_SYS_TIME the device would step the clock of the whole machine.
        "--capability=all", "--drop-capability=CAP_SYS_TIME",
        # What runc calls to start a container.
        "--system-call-filter=add_key keyctl bpf @keyring",
        # overlay2 cannot live on an overlay.
        f"--bind={paths.engine}:/var/lib/docker", "--console=read-only",
    ]  # fmt: skip
    if Path("/dev/net/tun").exists():
        command.append("--bind=/dev/net/tun")
    return command


class Keeper:
    """Boots one device until it is switched off; owns its status file."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        record = read_json(paths.record)
        self._link = Link(int(record["index"]))
        self._machine_id = str(record["machine_id"])
        self._boots = int(read_json(paths.status).get("boots", 0))
        self._status: dict[str, object] = {}

    def keep(self) -> None:
        ended = "power off"
        try:
            while True:
                status = self._boot_once()
                if status != REBOOT_STATUS:
                    break
            if status != 0:
                ended = "killed" if status < 0 else f"systemd-nspawn ended with status {status}"
        except Exception as error:
            ended = f"failed: {error!r}"
            raise
        finally:
            self._link.remove()
            cgroups.remove(self._paths.cgroup)
            self._tell(phase="off", leader=0, ended=ended)

    def _tell(self, **changes: object) -> None:
        self._status |= changes
        write_json(self._paths.status, self._status)

    def _boot_once(self) -> int:
        """One life of the device, from power on to the end of nspawn; returns nspawn's status."""
        self._link.remove()
        self._boots += 1
        self._tell(phase="starting", leader=0, boots=self._boots, ended="")
        notify = self._paths.home / "notify"
        notify.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as messages,
            open(self._paths.console, "ab") as console,
        ):
            messages.bind(str(notify))
            console.write(f"--- boot {self._boots} ---\n".encode())
            console.flush()
            environment = CLEAN_ENV | {
                "NOTIFY_SOCKET": str(notify),
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            }
            # Its own cgroup, so that devices do not share nspawn's `payload`, and so that a
            # power cut is one write to cgroup.kill. It dies with this process.
            self._paths.cgroup.mkdir(exist_ok=True)
            enter = 'echo 0 >"$0" && exec setpriv --pdeathsig KILL -- "$@"'
            procs = str(self._paths.cgroup / "cgroup.procs")
            command = nspawn_command(self._paths, self._link, self._machine_id)
            with subprocess.Popen(
                ["/bin/sh", "-c", enter, procs, *command], stdin=subprocess.DEVNULL,
                stdout=console, stderr=console, env=environment, start_new_session=True,
            ) as nspawn:  # fmt: skip
                try:
                    self._follow(nspawn, messages)
                except BaseException:
                    cgroups.kill(self._paths.cgroup)  # or leaving the block would wait for ever
                    raise
                return nspawn.wait()

    def _follow(self, nspawn: subprocess.Popen[bytes], messages: socket.socket) -> None:
        """Act on what nspawn announces (leader known, boot complete) until it ends."""
        ending = os.pidfd_open(nspawn.pid)
        try:
            while True:
                ready, _, _ = select.select([messages.fileno(), ending], [], [])
                if messages.fileno() in ready:
                    self._note(messages.recv(8192).decode(errors="replace"))
                elif ending in ready:
                    return
        finally:
            os.close(ending)

    def _note(self, message: str) -> None:
        fields = dict(line.partition("=")[::2] for line in message.splitlines())
        if "X_NSPAWN_LEADER_PID" in fields:
            self._link.connect()
            self._tell(phase="booting", leader=int(fields["X_NSPAWN_LEADER_PID"]))
        if fields.get("READY") == "1":
            self._tell(phase="running", ready=time.time())


def main() -> int:
    paths = Paths(sys.argv[1])
    with open(paths.lock, "a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another keeper has this device", file=sys.stderr)
            return 1
        Keeper(paths).keep()
    return 0


if __name__ == "__main__":
    sys.exit(main())
