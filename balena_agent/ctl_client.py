"""balena-agentctl's end of the bus: the agent's methods as Python methods.

Theory: calls may ask the user for a password (polkit), so they may take minutes; a job is followed
by its properties, and the Finished signal only shortens the wait. Errors are those of Bus.call.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from .host.bus import Bus
from .host.wire import DAEMON, PEER, PROPERTIES, BusRefusal, Match, Signal, Variant, plain

NAME = "io.balena.Agent1"
ROOT = "/io/balena/Agent1"
MANAGER = NAME + ".Manager"
JOB = NAME + ".Job"

_QUICK, _INTERACTIVE = 25.0, 300.0
_CHANGE = 540.0
_POLL = 0.5
_PROXY_TYPES = {"port": "q", "noProxy": "as"}
_METHODS = {"start": "StartService", "stop": "StopService", "restart": "RestartService"}
Progress = Callable[[float, str], None]
"""Told how far a job has come: percent (-1: nothing to measure), and what is being done."""

_APP_METHODS = {"restart-app": "RestartApp", "purge": "PurgeApp"}


@dataclass(frozen=True, slots=True)
class JobResult:
    """`state` is done, failed or cancelled; `error` the D-Bus name of a failure."""

    state: str
    message: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """A signal of the agent. `time` is wall time, `body` without variants."""

    time: float
    name: str
    path: str
    body: Sequence[Any]


class Client:
    """Made by `connect`; `bus` has been started."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._ask_here = contextlib.ExitStack()

    @classmethod
    def connect(cls, address: str = "") -> Client:
        """Connect to the system bus. BusUnavailable."""
        bus = Bus(address)
        bus.start()
        return cls(bus)

    def close(self) -> None:
        self._ask_here.close()
        self._bus.close()

    def describe(self) -> dict[str, Any]:
        return self._document("Describe")

    def target(self) -> dict[str, Any]:
        self._may_ask()
        return self._document("GetTargetState")

    def preview(self, target: str) -> dict[str, Any]:
        """What a local target, given as JSON text, would do."""
        self._may_ask()
        return self._document("PreviewTarget", "s", target)

    def log(self, options: Mapping[str, Any]) -> IO[bytes]:
        """The log that the options of OpenLog ask for, as a file to read. The caller closes it."""
        self._may_ask()
        kinds = {bool: "b", int: "u", str: "s"}
        typed = {name: Variant(kinds[type(value)], value) for name, value in options.items()}
        limit = _INTERACTIVE if os.geteuid() else _QUICK * 4
        (pipe,) = self._bus.call(
            NAME, ROOT, MANAGER, "OpenLog", "a{sv}", (typed,), limit,
            with_fds=True, interactive=True,
        )  # fmt: skip
        return os.fdopen(pipe, "rb")

    def power(self, off: bool, force: bool) -> None:
        """Reboot or power off; returns when the host has accepted."""
        self._may_ask()
        self._call("PowerOff" if off else "Reboot", "b", force)

    def blink(self) -> None:
        self._may_ask()
        self._call("Blink")

    def host_config(self) -> dict[str, Any]:
        """`hostname`, and `proxy` where there is one."""
        self._may_ask()
        return dict(plain(self._call("GetHostConfig")[0]))

    def set_hostname(self, name: str, force: bool) -> None:
        """Returns when the host is called so."""
        self._may_ask()
        self._call("SetHostname", "sb", name, force, limit=_CHANGE)

    def set_proxy(self, proxy: Mapping[str, Any], force: bool) -> None:
        """Returns when the host uses it. Keys as in `host_config`."""
        self._may_ask()
        given = {key: Variant(_PROXY_TYPES.get(key, "s"), value) for key, value in proxy.items()}
        self._call("SetProxy", "a{sv}b", given, force, limit=_CHANGE)

    def service(
        self,
        verb: str,
        app_id: int,
        name: str,
        force: bool = False,
        progress: Progress = lambda percent, message: None,
    ) -> JobResult:
        """Start, stop or restart a service, and wait for the end of the job."""
        how = ("us", app_id, name) if verb == "start" else ("usb", app_id, name, force)
        return self._job(progress, _METHODS[verb], *how)

    def app(self, verb: str, app_id: int, force: bool, progress: Progress) -> JobResult:
        """Restart (`restart-app`) or `purge` an app, and wait for the end of the job."""
        return self._job(progress, _APP_METHODS[verb], "ub", app_id, force)

    def update(self, force: bool, cancel: bool, progress: Progress) -> JobResult:
        """Fetch the target and apply it; wait until that is done or has failed."""
        return self._job(progress, "Update", "bb", force, cancel)

    def set_target(self, target: str, force: bool, progress: Progress) -> JobResult:
        """Set the local target, given as JSON text; wait until it is applied or that has failed."""
        return self._job(progress, "SetTargetState", "sb", target, force)

    def regenerate_key(self) -> str:
        """The new key of the device."""
        self._may_ask()
        return str(self._call("RegenerateApiKey")[0])

    def clean_up(self) -> list[str]:
        """Remove the volumes that nobody needs; their names."""
        self._may_ask()
        (removed,) = self._call("CleanupVolumes")
        return list(removed)

    def _job(self, progress: Progress, member: str, *how: Any) -> JobResult:
        self._may_ask()
        finished = threading.Event()
        match = Match(sender=NAME, interface=JOB, member="Finished")
        self._bus.subscribe(match, lambda signal: finished.set())
        (path,) = self._call(member, *how)
        while True:
            try:
                job = self._properties(path, JOB)
            except BusRefusal:  # jobs do not outlive the process that made them
                return JobResult("failed", "the agent was restarted meanwhile; see: services")
            running = job["State"] == "running"
            progress(job["Progress"] if running else -1.0, job["Message"] if running else "")
            if job["State"] != "running":
                return JobResult(job["State"], job["Message"], job["Error"])
            finished.wait(_POLL)
            finished.clear()

    def events(self) -> Iterator[Event]:
        """The agent's signals as they come, without end; also its own coming and going."""
        self._bus.call(NAME, ROOT, PEER, "Ping")  # not running: say so instead of waiting
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        gone = Match(sender=DAEMON, member="NameOwnerChanged", arg0=NAME)
        self._bus.subscribe(Match(sender=NAME), lambda signal: events.put(_event(signal)))
        self._bus.subscribe(gone, lambda signal: events.put(_coming_or_going(signal)))
        while True:
            yield events.get()

    def _document(self, member: str, signature: str = "", *body: Any) -> dict[str, Any]:
        document = json.loads(self._call(member, signature, *body)[0])
        assert isinstance(document, dict)
        return document

    def _properties(self, path: str, interface: str) -> dict[str, Any]:
        (found,) = self._bus.call(NAME, path, PROPERTIES, "GetAll", "s", [interface])
        return dict(plain(found))

    def _call(
        self, member: str, signature: str = "", *body: Any, limit: float = _QUICK * 4
    ) -> list[Any]:
        limit = max(limit, _INTERACTIVE) if os.geteuid() else limit
        return self._bus.call(NAME, ROOT, MANAGER, member, signature, body, limit, interactive=True)

    def _may_ask(self) -> None:
        """Let polkit ask for a password on this terminal, as systemctl does."""
        agent = shutil.which("pkttyagent")
        if os.geteuid() == 0 or agent is None or not sys.stdin.isatty():
            return
        reader, writer = os.pipe()
        command = [agent, "--fallback", "--notify-fd", str(writer)]
        process = subprocess.Popen(command, pass_fds=(writer,))
        self._ask_here.callback(process.terminate)
        os.close(writer)
        os.read(reader, 1)  # end of file: it is ready, or it has failed; both are fine
        os.close(reader)


def _event(signal: Signal) -> Event:
    return Event(time.time(), signal.member, signal.path, plain(list(signal.body)))


def _coming_or_going(signal: Signal) -> Event:
    name = "AgentStarted" if signal.body[2] else "AgentStopped"
    return Event(time.time(), name, "", ())
