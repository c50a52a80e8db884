"""The devices that the cases of the API run on, and what a case does to them first.

    M1  managed, not in local mode: app 1011 with the one service `main`
    M2  managed: app 1011 with two services, app 2022 with one, app 3033 with a volume alone
    U   unmanaged, without apps
    L   M1 in local mode

Managed devices get their target from their cloud, the small one of the tests, at the outer end of
the device's wire. A `Stage` is one device in one of these states; it puts back what a
case did to it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import api_cases
from cloud import FakeCloud
from device.client import InnerConnection
from e2e_device import CONFIG, LOCKS, Device
from e2e_targets import IMAGE, Json

UUID = "d0" * 16
DEVICE_KEY = "e2e-device-key"
ENGINE_UNITS = ("docker.socket", "docker.service")
BREADCRUMB = "/mnt/state/rollback-health-breadcrumb"
PORT = 48484

FIRST_LABEL = {"io.balena.features.supervisor-api": "1"}


def _service(service_id: int, image_id: int, labelled: bool = True, **composition: Any) -> Json:
    return {
        "id": service_id, "image_id": image_id, "image": IMAGE, "environment": {},
        "labels": FIRST_LABEL if labelled else {},
        "composition": {"stop_grace_period": "1s", **composition},
    }  # fmt: skip


def _app(app_id: int, name: str, kind: str, commit: str, release: Json) -> Json:
    return {"id": app_id, "name": name, "class": kind, "releases": {commit: release}}


def _apps(*apps: Json) -> Json:
    return {f"{app['id']:032x}": app for app in apps}


M1 = _apps(
    _app(1011, "fleet1", "fleet", "c0ffee01", {
        "id": 500, "volumes": {"data": {}}, "networks": {},
        "services": {"main": _service(11, 21, volumes=["data:/data"])},
    }),
)  # fmt: skip
M2 = _apps(
    _app(1011, "fleet1", "fleet", "c0ffee02", {
        "id": 501, "volumes": {}, "networks": {},
        "services": {"main": _service(11, 31), "side": _service(12, 32, labelled=False)},
    }),
    _app(2022, "other", "app", "dead0001", {
        "id": 700, "volumes": {}, "networks": {}, "services": {"solo": _service(13, 41)},
    }),
    _app(3033, "emptyapp", "app", "f00d0001", {
        "id": 800, "volumes": {"keep": {}}, "networks": {}, "services": {},
    }),
)  # fmt: skip
LOCAL = {"RESIN_SUPERVISOR_LOCAL_MODE": "1"}
SLOW = {"RESIN_SUPERVISOR_INSTANT_UPDATE_TRIGGER": "false"}
TARGETS: dict[str, Json | None] = {
    "M1": {"config": {}, "apps": M1},
    "slow": {"config": SLOW, "apps": M1},
    "M2": {"config": {}, "apps": M2},
    "U": None,
    "L": {"config": LOCAL, "apps": M1},
}


class Stage:
    """One device that plays the fixtures one after another."""

    def __init__(self, device: Device, cloud: FakeCloud) -> None:
        self.device = device
        self.cloud = cloud
        self.seen_keys: set[str] = set()
        self._plays = ""
        device.engine("POST", f"/images/{IMAGE}/tag?repo=img-main&tag=latest")
        self._engine_is_down = False
        self._keys: dict[str, str] = {}

    def play(self, case: Json) -> None:
        """Make the device what the case asks for, if it is not yet."""
        if "engine_down" not in case.get("setup", ()):
            self._engine_up()
        self._play("slow" if "slow" in case.get("setup", ()) else case["fx"])

    def _play(self, fixture: str) -> None:
        if self._plays == fixture:
            return
        self._plays = ""
        device, target = self.device, TARGETS[fixture]
        device.start_over(between=lambda: self._configure(None))
        device.clean()
        device.start_over(between=lambda: self._configure(target))
        if target is not None:
            device.until(self._applied, 30, f"{fixture} is applied")
        self._plays = fixture

    def _configure(self, target: Json | None) -> None:
        config: Json = {"uuid": UUID, "deviceType": "qemux86-64"}
        if target is not None:
            config |= {"apiEndpoint": self.cloud.url, "deviceApiKey": DEVICE_KEY}
            config |= {"deviceId": 1000, "registered_at": 1700000000000}
            self.cloud.targets[UUID] = {UUID: {"name": "lab-dev", **target}}
        machine = self.device.machine
        machine.inner_path("/mnt/boot").mkdir(parents=True, exist_ok=True)
        machine.inner_path(CONFIG).write_text(json.dumps(config))
        # The cases ask from where a managed device would refuse them.
        conf = machine.inner_path("/etc/balena-agent/agent.conf")
        conf.write_text(conf.read_text().replace("#firewall = yes", "firewall = no"))
        for program in ("iptables", "ip6tables"):
            self.device.exec(program, "-F", "BALENA-FIREWALL", check=False)
        slug = {"slug": "qemux86-64", "arch": "amd64"}
        machine.inner_path("/mnt/boot/device-type.json").write_text(json.dumps(slug))

    def _applied(self) -> bool:
        state = self.device.api("GET", "/v2/state/status").json()
        return state["appState"] == "applied" and bool(state["containers"])

    def keys(self) -> dict[str, str]:
        """The keys as they are now, by the names that the cases use."""
        if not self._engine_is_down:
            self._keys = self._read_keys()
        return self._keys | {"G": self.device.machine.api_key}

    def _read_keys(self) -> dict[str, str]:
        found = {"G": self.device.machine.api_key, "bad": "badkey"}
        for name, service in (("A", "main_"), ("B", "solo_")):
            for full, listed in self.device.containers().items():
                if full.startswith(service):
                    shown = self.device.engine("GET", f"/containers/{listed['Id']}/json")
                    variables = dict(v.split("=", 1) for v in shown["Config"]["Env"])
                    found[name] = variables.get("BALENA_SUPERVISOR_API_KEY", "")
        self.seen_keys |= set(found.values()) - {"badkey"}
        return found

    def ask(self, case: Json, keys: dict[str, str]) -> api_cases.Reply:
        """A case's request. Devices of developers are asked from inside: the test device has a
        production OS, which is only open to itself."""
        machine = self.device.machine
        inside = case["fx"] in ("U", "L")
        connection: http.client.HTTPConnection
        if inside:
            connection = InnerConnection(machine.leader, "127.0.0.1", PORT, 60.0)
        else:
            connection = http.client.HTTPConnection(machine.address, PORT, timeout=60.0)
        return api_cases.ask(connection, case, keys)

    @contextlib.contextmanager
    def prepared(self, case: Json) -> Iterator[None]:
        """Do what the case's setup says; undo it afterwards."""
        words = case.get("setup", ())
        with contextlib.ExitStack() as stack:
            for word in words:
                stack.enter_context(getattr(self, f"_{word}")())
            yield

    def settle(self) -> None:
        self.device.until(self._idle, 30, "the device is settled")

    def rest(self) -> None:
        """The same, where there is an engine to settle with."""
        if not self._engine_is_down:
            self.settle()

    def _idle(self) -> bool:
        answer = self.device.api("GET", "/v2/state/plan", inside=True)
        return answer.status == 200 and bool(answer.json()["settled"])

    # -- setups

    @contextlib.contextmanager
    def _file_lock(self, name: str, directory: bool = False) -> Iterator[None]:
        path = self.device.machine.inner_path(f"{LOCKS}/1011/main/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if directory else path.touch()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        return self._file_lock("updates.lock")

    def _legacylock(self) -> contextlib.AbstractContextManager[None]:
        return self._file_lock("resin-updates.lock")

    def _dirlock(self) -> contextlib.AbstractContextManager[None]:
        return self._file_lock("updates.lock", directory=True)

    @contextlib.contextmanager
    def _hup(self) -> Iterator[None]:
        path = self.device.machine.inner_path(BREADCRUMB)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        try:
            yield
        finally:
            path.unlink()

    @contextlib.contextmanager
    def _engine_down(self) -> Iterator[None]:
        """Stays until a case needs the engine again: stopping it takes longer than a case."""
        device = self.device
        if not self._engine_is_down:
            self._engine_is_down = True
            device.exec("systemctl", "stop", *ENGINE_UNITS)
            down = "the agent sees that the engine is gone"
            device.until(lambda: device.api("GET", "/v1/device").status == 503, 15, down)
        yield

    def _engine_up(self) -> None:
        if self._engine_is_down:
            self.device.exec("systemctl", "reset-failed", *ENGINE_UNITS, check=False)
            self.device.exec("systemctl", "start", *ENGINE_UNITS)
            self._engine_is_down = False
            self.device.ready()
            self.settle()

    @contextlib.contextmanager
    def _cloud_down(self) -> Iterator[None]:
        self.cloud.stop()
        unwell = lambda: self.device.api("GET", "/v1/healthy").status == 500  # noqa: E731
        try:
            self.device.until(unwell, 40, "the device misses its cloud")
            yield
        finally:
            self.cloud.start()
            self.device.until(lambda: not unwell(), 40, "the device has its cloud again")

    def _slow(self) -> contextlib.AbstractContextManager[None]:
        """Is a device of its own, see `play`."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _orphan(self) -> Iterator[None]:
        self.device.engine("POST", "/volumes/create", {"Name": "1011_old"})
        try:
            yield
        finally:
            self.device.engine("DELETE", "/volumes/1011_old?force=1")

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        self.settle()
        yield

    @contextlib.contextmanager
    def _settle1(self) -> Iterator[None]:
        self.device.until(lambda: len(self.device.containers()) == 1, 20, "one container")
        self.settle()
        yield

    @contextlib.contextmanager
    def _last(self) -> Iterator[None]:
        """The device reboots, and afterwards plays what it played before."""
        boots = self.device.machine.status["boots"]
        yield
        rebooted: Callable[[], bool] = lambda: self.device.machine.status["boots"] > boots  # noqa: E731
        self.device.until(rebooted, 60, "it boots again")
        self.device.ready(60)
