"""A device under test, as its users see it: HTTP, D-Bus, journal, and the engine's own view.

Theory: a test says what shall become true and by when; `until` asks for it again and again and
fails with what the agent says about itself. Nothing waits for a fixed time. The engine is read
through its socket, past the agent, so the agent is never its own witness.
"""

from __future__ import annotations

import calendar
import contextlib
import http.client
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from device import DeviceError, Machine, images
from device.client import Answer
from e2e_targets import IMAGE, OTHER_IMAGE, Json, apps

UNIT = "balena-agent.service"
BUS = "io.balena.Agent1"
ROOT = "/io/balena/Agent1"
MANAGER = f"{BUS}.Manager"
CONFIG = "/mnt/boot/config.json"
STORE = "/var/lib/balena-agent/agent.sqlite"
LOCKS = "/tmp/balena-supervisor/services"
LOCK_FILES = ("updates.lock", "resin-updates.lock")
SUPERVISED = "io.balena.supervised"

T = TypeVar("T")


class _EngineConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20.0)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Device:
    """One machine with the agent on it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.exec = machine.exec
        self.api = machine.api
        self._mark = ""
        self.identity: Json | None = None
        """The config.json that this machine has when it must be made anew; None: none."""

    # -- life

    def furnish(self) -> None:
        """The two images that the targets name, where they are not there."""
        known = {
            tag for image in self.engine("GET", "/images/json") for tag in image["RepoTags"] or ()
        }
        for tag in (IMAGE, OTHER_IMAGE):
            if tag not in known:
                images.build(self.machine, tag, changes=[f"LABEL tag={tag}"])

    def clean(self) -> None:
        """Nothing of a test is left: apps, strangers, volumes, locks, and nothing that the agent
        would complain of; and it is at rest."""
        self.post(apps({}), force=True)
        self.raze()
        self.settled()
        self.raze()
        for volume in self.engine("GET", "/volumes")["Volumes"] or ():
            self.engine("DELETE", f"/volumes/{volume['Name']}?force=1")
        self.engine("POST", "/networks/prune")
        shutil.rmtree(self.machine.inner_path(LOCKS), ignore_errors=True)
        self.furnish()  # a device of a cloud keeps no image that nothing needs
        self.until(lambda: self.notices() == [], 10, "the agent has nothing to complain of")

    def raze(self) -> None:
        """Remove every container at once, whatever grace it was promised."""
        for container in self.engine("GET", "/containers/json?all=1"):
            self.engine("DELETE", f"/containers/{container['Id']}?force=1&v=1")

    def start_over(self, apps_json: Json | None = None, between: Callable[[], None] = int) -> None:
        """Bring the agent to the state of a device that never had a target."""
        self.exec("systemctl", "stop", UNIT)
        self.exec("sh", "-c", "rm -rf /var/lib/balena-agent/* /mnt/data/apps.json*")
        if apps_json is not None:
            text = json.dumps(apps_json)
            self.exec("sh", "-c", "cat >/mnt/data/apps.json", input=text)
        between()
        self.exec("systemctl", "start", UNIT)
        self.ready()

    def drop_in(self, text: str) -> None:
        """Settings of the unit for this test; "" takes them away. Restarts the agent."""
        path = self.machine.inner_path("/run/systemd/system/balena-agent.service.d/e2e.conf")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.exec("systemctl", "daemon-reload")
        self.restart()

    def configure(self, document: Json | None) -> None:
        """This is its config.json from now on. None takes it away, and all that the agent knows
        with it: what a file said that is merely lost would hold on."""
        path = self.machine.inner_path(CONFIG)
        if document is None:
            self.start_over(between=lambda: path.unlink(missing_ok=True))
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
        self.restart()

    def restart(self) -> None:
        self.exec("systemctl", "reset-failed", UNIT, check=False)
        self.exec("systemctl", "restart", UNIT, timeout=60.0)
        self.ready()

    def ready(self, seconds: float = 30.0) -> None:
        """Wait until the agent answers and has seen the engine."""
        self.machine.wait_agent(seconds)
        asked = "the agent sees the engine"

        def answers() -> bool:  # a managed device answers nobody else
            return self.api("GET", "/v2/state/status", inside=True).status == 200

        self.until(answers, seconds, asked)

    # -- HTTP

    def post(self, document: Any, *, force: bool = False, status: int = 200) -> Answer:
        """POST a target, and insist on the answer."""
        body = {**document, "force": True} if force else document
        answer = self.api("POST", "/v2/local/target-state", body)
        assert answer.status == status, answer
        return answer

    def apply(self, document: Json, *, force: bool = False, seconds: float = 30.0) -> Names:
        """POST a target and wait until it is applied; the containers by name."""
        self.post(document, force=force)
        return self.settled(seconds)

    def settled(self, seconds: float = 30.0) -> Names:
        """Wait until nothing is left to do or to wait for; the containers by name."""
        self.until(self.is_settled, seconds, "the target is applied")
        return self.containers()

    def is_settled(self) -> bool:
        return bool(self.plan()["settled"])

    def plan(self) -> Json:
        answer = self.api("GET", "/v2/state/plan")
        assert answer.status == 200, answer
        return dict(answer.json())

    def doing(self, step: str) -> bool:
        """Whether a step of this kind is under way."""
        return any(each["step"] == step for each in self.plan()["running"])

    def action(self, verb: str, **body: Any) -> Answer:
        """A service action on app 1."""
        return self.api("POST", f"/v2/applications/1/{verb}-service", body, timeout=60.0)

    # -- the engine's own view

    def engine(self, method: str, path: str, body: Json | None = None) -> Any:
        """One request to the engine; its JSON, or None. Errors of the engine are returned."""
        # /run, not /var/run: an absolute link would lead out of the device.
        connection = _EngineConnection(self.machine.inner_path("/run/docker.sock"))
        with contextlib.closing(connection):
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, {"Content-Type": "application/json"})
            raw = connection.getresponse().read()
            return json.loads(raw) if raw else None

    def containers(self) -> Names:
        """All containers of the device, the agent's or not, by name."""
        listed = self.engine("GET", "/containers/json?all=1")
        return {each["Names"][0].lstrip("/"): each for each in listed}

    def ids(self) -> dict[str, str]:
        return {name: each["Id"] for name, each in self.containers().items()}

    def of(self, name: str) -> Json:
        """The one container of a service, or {}."""
        found = [c for n, c in self.containers().items() if n.startswith(f"{name}_")]
        assert len(found) < 2, found
        return dict(found[0]) if found else {}

    def inspect(self, name: str) -> Json:
        """The one container of a service, in full. One that is just made, or made anew, is waited
        for: it may be listed before it can be had, and may be gone when it is asked for."""
        return self.until(lambda: self.inspected(name), 10, f"a container of {name}")

    def inspected(self, name: str) -> Json:
        """The same now; {} while there is none that the engine can tell of."""
        found = self.engine("GET", f"/containers/{self.of(name).get('Id', 'none')}/json")
        return dict(found) if "HostConfig" in found else {}

    def ended(self, name: str) -> float:
        """When the container of a service last ended, in seconds since the epoch."""
        at = str(self.inspect(name)["State"]["FinishedAt"])
        whole, _, fraction = at.removesuffix("Z").partition(".")
        return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction}")

    def networks(self) -> set[str]:
        """Engine networks that are not the engine's own."""
        names = {each["Name"] for each in self.engine("GET", "/networks")}
        return names - {"bridge", "host", "none"}

    def volumes(self) -> set[str]:
        return {each["Name"] for each in self.engine("GET", "/volumes")["Volumes"] or ()}

    def running(self, *names: str) -> bool:
        """Whether exactly these services have a container, and all of them run."""
        found = self.containers()
        states = {name.split("_")[0]: each["State"] for name, each in found.items()}
        return states == dict.fromkeys(names, "running") and len(found) == len(names)

    def stopped_in_order(self, *names: str) -> None:
        """Insist that the shutdown of the last boot stopped these services one after the other."""
        cause = "the host is shutting down"
        stops = [entry for entry in self.journal("-b", "-1") if entry.get("CAUSE") == cause]
        begun = [entry for entry in stops if str(entry["MESSAGE"]).startswith("Stopping ")]
        assert tuple(entry["SERVICE"] for entry in begun) == names
        for above, below in zip(names, begun[1:], strict=False):
            assert self.ended(above) <= int(below["__REALTIME_TIMESTAMP"]) / 1e6

    # -- update locks

    def lock_files(self) -> list[str]:
        """Every update lock there is, as app/service/file."""
        top = self.machine.inner_path(LOCKS)
        found = [path for name in LOCK_FILES for path in top.glob(f"*/*/{name}")]
        return sorted(str(path.relative_to(top)) for path in found)

    def lock(self, service: str, name: str = "updates.lock", uid: int = 0) -> Path:
        """Put a lock file in place as the service (or the agent, by its uid) would."""
        path = self.machine.inner_path(f"{LOCKS}/1/{service}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        shutil.chown(path, uid)
        return path

    # -- systemd, bus, journal

    def show(self, *properties: str, unit: str = UNIT) -> dict[str, str]:
        """Properties of a unit as systemd has them."""
        words = [word for name in properties for word in ("-p", name)]
        lines = self.exec("systemctl", "show", unit, *words).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def status_text(self) -> str:
        return self.show("StatusText")["StatusText"]

    def main_pid(self) -> int:
        return int(self.show("MainPID")["MainPID"])

    def boot_id(self) -> str:
        return self.machine.inner_path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def busctl(self, *words: str, user: str = "", check: bool = True) -> Any:
        """A call of busctl with JSON output; its data. Without `check` its error text."""
        done = self.exec("busctl", "--json=short", *words, user=user, check=check)
        if done.returncode != 0:
            return done.stderr.strip()
        return json.loads(done.stdout)["data"] if done.stdout.strip() else None

    def call(self, member: str, *words: str, user: str = "", check: bool = True) -> Any:
        """A method of the Manager."""
        return self.busctl("call", BUS, ROOT, MANAGER, member, *words, user=user, check=check)

    def notices(self) -> list[str]:
        """What the agent complains of."""
        return list(json.loads(self.call("Describe")[0])["notices"])

    def get(self, name: str, path: str = ROOT, interface: str = MANAGER) -> Any:
        return self.busctl("get-property", BUS, path, interface, name)

    def mark(self) -> None:
        """What `journal` tells begins here."""
        self.exec("journalctl", "--sync")
        # The cursor of an entry of the unit: after one that does not match the filter, journalctl
        # would leave out the first entry that does.
        shown = self.exec("journalctl", "-q", "-u", UNIT, "-n1", "--show-cursor").stdout
        self._mark = shown.rpartition("cursor: ")[2].strip()

    def journal(self, *words: str) -> list[Json]:
        """The agent's journal entries since `mark`, with all their fields, oldest first."""
        self.exec("journalctl", "--sync", check=False)
        after = [f"--after-cursor={self._mark}"] if self._mark and not words else []
        command = ("journalctl", "-q", "-o", "json", "-u", UNIT, *after, *words)
        return [json.loads(line) for line in self.exec(*command).stdout.splitlines()]

    def said(self, *words: str) -> str:
        """The messages of `journal` as text."""
        entries = self.journal(*words)
        return "\n".join(str(entry.get("MESSAGE")) for entry in entries)

    def until(self, probe: Callable[[], T], seconds: float, what: str) -> T:
        """Ask until the answer is true; what the probe cannot reach counts as "not yet"."""

        def asked() -> T | None:
            with contextlib.suppress(DeviceError, OSError, http.client.HTTPException):
                return probe()
            return None

        found = self.machine.wait_until(asked, seconds, what, unit=UNIT)
        assert found is not None
        return found

    @contextlib.contextmanager
    def engine_events(self) -> Iterator[list[Json]]:
        """What the engine announces during the block, complete at its end."""
        begin = time.time()
        seen: list[Json] = []
        yield seen
        # The engine remembers its last events: a closed interval in the past is told at once.
        span = f"since={begin:.6f}&until={time.time():.6f}"
        connection = _EngineConnection(self.machine.inner_path("/run/docker.sock"))
        with contextlib.closing(connection):
            connection.request("GET", f"/events?{quote(span, safe='=&')}")
            lines = connection.getresponse().read().splitlines()
        seen += [json.loads(line) for line in lines]


Names = Mapping[str, Json]


def evidence(device: Device, into: Path) -> None:
    """What a failed test leaves behind: journal, plan, containers."""
    into.mkdir(parents=True, exist_ok=True)
    machine = device.machine

    def keep(name: str, make: Callable[[], str]) -> None:
        try:
            (into / name).write_text(make())
        except Exception as error:  # the device may be in any state
            (into / name).write_text(f"could not be had: {error!r}\n")

    keep("agent-journal.txt", lambda: machine.journal("-u", UNIT, lines=1000))
    keep("journal.txt", lambda: machine.journal(lines=600))
    keep("plan.json", lambda: machine.api("GET", "/v2/state/plan", timeout=3.0).text)
    keep("docker-ps.txt", lambda: machine.exec("docker", "ps", "-a", "--no-trunc").stdout)
    inspect = "docker inspect $(docker ps -aq) </dev/null"
    keep("inspect.json", lambda: machine.exec("sh", "-c", inspect, check=False).stdout)
    keep("status.txt", lambda: machine.exec("systemctl", "status", UNIT, check=False).stdout)
