"""One device: making, booting, entering, cutting its power, removing it.

A `Machine` object is only a name; all state is in the device's directory (record, status, keeper
lock), so any number of processes may hold a `Machine` of the same name. Every call has a deadline
and fails with a DeviceError that carries the last lines of the device.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import cgroups, client, disk, enter, evidence, install
from .network import Link
from .outer import (
    CHECKOUT,
    CLEAN_ENV,
    DEVICES,
    LOCKS,
    DeviceError,
    is_locked,
    lock,
    mount_nspawn_run,
    prepare,
    read_json,
    run,
    wait_for,
    write_json,
)

NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
REGISTRY_PORT = 5000
T = TypeVar("T")


class Machine:
    """A virtual device by name. As a context manager it is removed at the end of the block."""

    def __init__(self, name: str, *, owned: bool = False, checkout: Path = CHECKOUT) -> None:
        """`owned`: `gc` may remove the device when the process that made it is gone (tests)."""
        if not NAME.fullmatch(name):
            raise DeviceError(f"{name!r}: a name is a-z, 0-9 and -, at most 40 characters")
        self.name = name
        self._paths = disk.Paths(name)
        self._owned = owned
        self._checkout = checkout

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- facts ------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The device's disk, readable and writable from outside, on or off."""
        return self._paths.root

    @property
    def record(self) -> dict[str, Any]:
        return read_json(self._paths.record)

    @property
    def status(self) -> dict[str, Any]:
        return read_json(self._paths.status)

    @property
    def exists(self) -> bool:
        return bool(self.record.get("made"))

    @property
    def on(self) -> bool:
        return is_locked(self._paths.lock)

    @property
    def phase(self) -> str:
        """absent, making, off, starting, booting, running; `dead`: killed from outside (see gc)."""
        if not self._paths.home.exists():
            return "absent"
        if not self.exists:
            return "making" if is_locked(LOCKS / f"device-{self.name}") else "dead"
        phase = str(self.status.get("phase", "off"))
        return phase if phase == "off" or self.on else "dead"

    @property
    def link(self) -> Link:
        return Link(int(self._known()["index"]))

    @property
    def address(self) -> str:
        return self.link.address

    @property
    def registry(self) -> str:
        return f"{self.address}:{REGISTRY_PORT}"

    @property
    def leader(self) -> int:
        """Host pid of the device's PID 1."""
        leader = int(self.status.get("leader", 0)) if self.on else 0
        if not leader:
            raise DeviceError(f"device {self.name} is {self.phase}")
        return leader

    @property
    def api_key(self) -> str:
        """The device-wide key that the agent left in /run, '' if there is none."""
        try:
            return self.inner_path(install.API_KEY).read_text().strip()
        except (OSError, DeviceError):
            return ""

    def inner_path(self, path: str) -> Path:
        """A path of the running device as seen from outside, its tmpfs included."""
        return Path(f"/proc/{self.leader}/root{path}")

    def facts(self) -> dict[str, Any]:
        """What `up` prints."""
        return {
            "name": self.name, "root": str(self.root), "leader_pid": self.leader,
            "api": f"http://{self.address}:{install.API_PORT}", "api_key": self.api_key,
            "registry": self.registry,
        }  # fmt: skip

    def _known(self) -> dict[str, Any]:
        record = self.record
        if not record.get("made"):
            raise DeviceError(f"there is no device {self.name}")
        return record

    # -- life -------------------------------------------------------------------------------

    def up(
        self,
        *,
        agent: bool | None = None,
        apps: install.Content | None = None,
        config: install.Content | None = None,
        conf: install.Content | None = None,
        deadline: float = 60.0,
    ) -> dict[str, Any]:
        """Make the device if it is new, boot it if it is off, start the agent; then its facts.

        `agent`: True installs the checkout's agent, also over an installed one; False leaves the
        agent alone; None is True for a new device and "as it is" for an old one. `apps`, `config`
        and `conf` (Path, text or JSON value) become apps.json, config.json and agent.conf.
        """
        prepare()
        with lock(f"device-{self.name}"):
            if agent or (agent is None and not self.exists):
                install.check(self._checkout)
            if not self.exists:
                if self._paths.home.exists():
                    self._remove()  # half made by a process that is gone
                disk.make(self._paths, self._owned, self._checkout)
            try:
                self._finish(agent, (apps, config, conf), deadline)
            except DeviceError:
                # Left for inspection. Only an `up` that was killed leaves it incomplete, for `gc`.
                self._note(complete=True)
                raise
            self._note(complete=True)
        return self.facts()

    def _finish(
        self, agent: bool | None, files: Sequence[install.Content | None], deadline: float
    ) -> None:
        """From a disk that exists to a device that runs."""
        installed, new, was_on = bool(self.record["agent"]), not self.status, self.on
        wanted = (installed or new) if agent is None else agent
        if was_on and not agent and any(content is not None for content in files):
            raise DeviceError(f"{self.name} is on: its files can only be given when it is off")
        disk.mount(self._paths)
        install.configure(self.root, *files)
        if wanted and (agent or not installed):
            install.install_agent(self.root, self._checkout)
            self._note(agent=True)
            if was_on:
                self._start_new_agent()
        if not was_on:
            self._boot(deadline)
        if wanted:
            self.wait_agent(deadline)

    def _note(self, **changes: object) -> None:
        write_json(self._paths.record, self.record | changes)

    def _boot(self, deadline: float) -> None:
        """Start a keeper and wait until the device has finished booting."""
        mount_nspawn_run()
        cgroups.kill(self._paths.cgroup)  # what a killed keeper may have left
        boots = int(self.status.get("boots", 0))
        environment = CLEAN_ENV | {"PYTHONPATH": str(Path(__file__).parents[1]),
                                   "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        with open(self._paths.home / "keeper.log", "ab") as log:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "device.keeper", self.name], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env=environment, cwd="/", start_new_session=True,
            )  # fmt: skip
        self._wait_booted(boots, deadline, lambda: keeper.poll() is not None)

    def _wait_booted(
        self, boots: int, deadline: float, ended: Callable[[], bool] = lambda: False
    ) -> None:
        def booted() -> bool:
            status = self.status
            if ended() or (status.get("boots", 0) > boots and status.get("phase") == "off"):
                why = status.get("ended", "")
                raise DeviceError(f"{self.name} did not stay on: {why}\n{self.last_lines()}")
            return bool(status.get("boots", 0) > boots and status.get("phase") == "running")

        self.wait_until(booted, deadline, f"{self.name} booted", pause=0.02)

    def _start_new_agent(self) -> None:
        """What a package's post-install script does on a running system."""
        for words in (
            ["systemd-sysusers"], ["systemd-tmpfiles", "--create"], ["systemctl", "daemon-reload"],
            ["busctl", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "ReloadConfig"],
        ):  # fmt: skip
            self.exec(*words)
        # A failure shows in wait_agent, with the evidence.
        self.exec("systemctl", "restart", install.UNIT, check=False, timeout=120.0)

    def wait_agent(self, deadline: float = 60.0) -> None:
        """Until the agent's unit is active and its API answers; else the evidence."""

        def answers() -> bool:
            try:
                answer = self.api("GET", "/ping", timeout=2.0, inside=True)
            except DeviceError:
                return False
            return answer.status == 200 and self.unit_state(install.UNIT) == "active"

        self.wait_until(answers, deadline, f"the agent on {self.name} answers", unit=install.UNIT)

    def reboot(self, deadline: float = 60.0) -> None:
        """Orderly, asked inside as any program would; returns when it has booted again."""
        boots = int(self.status.get("boots", 0))
        self.exec("systemctl", "reboot", check=False)
        self._wait_booted(boots, deadline)
        if self.record.get("agent"):
            self.wait_agent(deadline)

    def poweroff(self, deadline: float = 60.0) -> None:
        """Orderly power-off, asked inside; the device stays off until `up`."""
        self.exec("systemctl", "poweroff", check=False)
        self.wait_until(lambda: not self.on, deadline, f"{self.name} off")

    def kill(self, deadline: float = 20.0) -> None:
        """Power cut: every process of the device at once. The disk keeps what was written.

        The page cache belongs to the outer machine, so written but unsynced data survives here,
        unlike on a real device.
        """
        if not self.on:
            return
        if self._paths.cgroup.exists():
            cgroups.kill(self._paths.cgroup)
        self.wait_until(lambda: not self.on, deadline, f"{self.name} off")

    def down(self) -> None:
        """Stop the device the quick way and remove all of it. A second time does nothing."""
        if self._paths.home.exists():
            with lock(f"device-{self.name}"):
                self._remove()
                # Safe while it is held: `lock` looks whether its file is still the one in place.
                (LOCKS / f"device-{self.name}").unlink(missing_ok=True)

    def _remove(self) -> None:
        # A keeper that is just starting has no cgroup yet: cut again until it is gone.
        def stopped() -> bool:
            cgroups.kill(self._paths.cgroup)
            return not self.on

        wait_for(stopped, 20.0, f"{self.name} off")
        cgroups.remove(self._paths.cgroup)
        if "index" in (record := self.record):
            Link(int(record["index"])).remove()
        disk.remove(self._paths)

    # -- inside -----------------------------------------------------------------------------

    def exec(
        self, *words: str, input: str | None = None, env: Mapping[str, str] | None = None,
        check: bool = True, timeout: float = 30.0, user: str = "",
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command inside; with `check` a failure is a DeviceError with what it printed.

        `user` runs it as that user; the base root has an ordinary one, `user`.
        """
        raw = None if input is None else input.encode()
        if user:
            env = {"HOME": f"/home/{user}", "USER": user} | dict(env or {})
            words = ("runuser", "-u", user, "--", *words)
        done = enter.run(self.leader, words, input=raw, env=env, timeout=timeout)
        text = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )  # fmt: skip
        if check and text.returncode != 0:
            raise DeviceError(
                f"`{' '.join(words)}` on {self.name}: status {text.returncode}\n"
                f"{(text.stdout + text.stderr)[-4000:]}"
            )
        return text

    def exec_bytes(self, *words: str, input: bytes, timeout: float = 30.0) -> bytes:
        """Like exec, for binary input and output."""
        done = enter.run(self.leader, words, input=input, timeout=timeout)
        if done.returncode != 0:
            told = done.stderr.decode(errors="replace")[-4000:]
            raise DeviceError(f"`{words[0]}` on {self.name}: status {done.returncode}\n{told}")
        return done.stdout

    def popen(self, *words: str) -> subprocess.Popen[str]:
        """Start a command inside whose output is read as it comes; end it with `enter.stop`."""
        return subprocess.Popen(
            self.shell_command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=CLEAN_ENV, text=True, bufsize=1, start_new_session=True,
        )  # fmt: skip

    def shell_command(self, *words: str, env: Mapping[str, str] | None = None) -> list[str]:
        """A command line for Popen or execv that runs `words` inside (streams, terminals)."""
        return enter.command(self.leader, words, env)

    def api(
        self, method: str, path: str, body: Any = None, *, key: str | None = None,
        headers: Mapping[str, str] | None = None, timeout: float = 10.0, inside: bool = False,
    ) -> client.Answer:  # fmt: skip
        """One request to the agent: from outside through the wire, or `inside` over loopback.

        `key`: None sends the device-wide key, '' sends none.
        """
        key = self.api_key if key is None else key
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        return client.request(
            method, path, body=body, headers=sent | dict(headers or {}), timeout=timeout,
            host="127.0.0.1" if inside else self.address, port=install.API_PORT,
            leader=self.leader if inside else 0,
        )  # fmt: skip

    def unit_state(self, unit: str) -> str:
        return self.exec("systemctl", "is-active", unit, check=False).stdout.strip()

    def journal(self, *arguments: str, lines: int = 200) -> str:
        """The device's journal; read from its disk when it is off."""
        words = ["journalctl", "--no-pager", "-q", "-o", "short-monotonic", "-n", str(lines)]
        if self.on:
            return self.exec(*words, *arguments).stdout
        directory = self.root / "var/log/journal"
        return run([*words, "-D", str(directory), *arguments], check=False).stdout

    def last_lines(self, unit: str = "") -> str:
        """Console, keeper, unit and journal: the evidence for an error message."""
        return evidence.last_lines(self, self._paths, unit)

    def wait_until(
        self, probe: Callable[[], T], deadline: float, what: str, *, unit: str = "",
        pause: float = 0.05,
    ) -> T:  # fmt: skip
        """Ask until the answer is true; DeviceError with the last lines when it is not in time."""
        try:
            return wait_for(probe, deadline, what, pause)
        except DeviceError as error:
            if str(error).startswith("not within"):
                raise DeviceError(f"{error}\n{self.last_lines(unit)}") from None
            raise


def machines() -> Iterator[Machine]:
    """All devices of this machine, whole or not."""
    if DEVICES.is_dir():
        for path in sorted(DEVICES.iterdir()):
            if path.is_dir() and NAME.fullmatch(path.name):
                yield Machine(path.name)
