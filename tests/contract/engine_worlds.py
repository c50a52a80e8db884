"""Two worlds for one contract: the engine in memory, and the real one behind a socket.

The real one is named by BALENA_AGENT_TEST_ENGINE=/path/to/docker.sock; without it its half of the
suite is skipped. Everything that a world makes carries its token, and `clean` removes all of it.
Images come from a busybox file, downloads from a registry at 127.0.0.1:5000 (engine_front.py).
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from engine_front import REGISTRY, registry_answers
from engine_likeness import disagreements
from fakes.engine import FakeEngine

from balena_agent.core.compose import desired_app
from balena_agent.core.desired import DesiredApp, DesiredService
from balena_agent.core.effects import effect
from balena_agent.core.looks import Touch
from balena_agent.core.names import LOCK_ROOT, SUPERVISOR_NETWORK
from balena_agent.core.observed import Container, HostFacts, Observed
from balena_agent.core.steps import (
    CreateContainer,
    CreateNetwork,
    CreateVolume,
    Fetch,
    StartContainer,
)
from balena_agent.core.target import App, Release, Service
from balena_agent.core.traits import describe
from balena_agent.engine.adapter import DockerEngine
from balena_agent.engine.client import Client, Link, filters, path
from balena_agent.host.locks import UpdateLocks

ENGINE_VARIABLE = "BALENA_AGENT_TEST_ENGINE"
LIMIT = 20.0
SLEEP = ["/bin/busybox", "sleep", "600"]


def real_engine_socket() -> str:
    """The socket of the engine to test, or "" (then the real half is skipped)."""
    return os.environ.get(ENGINE_VARIABLE, "")


NO_ENGINE = f"no real engine: {ENGINE_VARIABLE}=/path/to/docker.sock names none"
NO_REGISTRY = "no registry answers at 127.0.0.1:5000"

needs_engine = pytest.mark.skipif(not real_engine_socket(), reason=NO_ENGINE)
needs_registry = pytest.mark.skipif(
    not (real_engine_socket() and registry_answers()), reason=f"{NO_ENGINE}, or {NO_REGISTRY}"
)


def eventually(condition: Callable[[], Any], limit: float = LIMIT) -> Any:
    """Wait for a true value and return it."""
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {limit} s: {condition}"
        time.sleep(0.01)
    return found


@dataclass
class Slip:
    """A ticket whose progress is kept and that a test can cancel."""

    told: list[float] = field(default_factory=list)
    cancelled: bool = False
    _actions: list[Callable[[], None]] = field(default_factory=list)

    def on_cancel(self, action: Callable[[], None]) -> None:
        self._actions.append(action)
        if self.cancelled:
            action()

    def progress(self, percent: float) -> None:
        self.told.append(percent)

    def cancel(self) -> None:
        self.cancelled = True
        for action in self._actions:
            action()


class World:
    """One app of its own in an engine, fake or real. `twin` is a second adapter on the engine."""

    def __init__(self, engine: FakeEngine | DockerEngine, twin: FakeEngine | DockerEngine) -> None:
        self.engine = engine
        self.twin = twin
        self.token = secrets.token_hex(8)
        self.uuid = self.token * 2
        self.app_id = secrets.randbelow(10**6) + 10**7
        self.image = f"contract/{self.token}:base"

    # ---- what is wanted --------------------------------------------------------------------------

    def app(
        self,
        services: Mapping[str, Mapping[str, Any]],
        networks: Mapping[str, Mapping[str, Any]] | None = None,
        volumes: Mapping[str, Mapping[str, Any]] | None = None,
        release_id: int = 1,
    ) -> DesiredApp:
        """The compiled app of these compositions; each sleeps unless it has a command."""
        made = {
            name: Service(
                name, 1, 1, self.image, composition={"command": SLEEP, "init": False, **asked}
            )
            for name, asked in services.items()
        }
        release = Release(self.token, release_id, made, networks or {}, volumes or {})
        wanted = App(self.uuid, self.app_id, "contract", release=release)
        images = self.engine.observe().image
        desired = desired_app(wanted, images, HostFacts(), lambda app_id, service: "")
        assert not desired.problem, desired.problem
        return desired

    def service(self, **composition: Any) -> DesiredService:
        return self.app({"web": composition}).services[0]

    # ---- what is done ----------------------------------------------------------------------------

    def do(self, step: Any) -> None:
        self.engine.perform(step, Slip())

    def checked(self, step: Any, twice: bool = True) -> None:
        """Do the step: the world is then what the model says. And again: no change, no error."""
        for _ in range(2 if twice else 1):
            before = self.engine.observe()
            self.do(step)
            found = disagreements(effect(step, before), self.engine.observe(), self)
            assert not found, "\n".join((describe(step), *found))

    def installed(self, app: DesiredApp) -> None:
        """All networks, volumes and containers of an app, not started."""
        for network in app.networks:
            self.do(CreateNetwork(app.uuid, app.app_id, network))
        for volume in app.volumes:
            self.do(CreateVolume(app.uuid, app.app_id, volume))
        for service in app.services:
            self.do(CreateContainer(service))

    def running(self, **composition: Any) -> Container:
        """The container of an app of one service `web`, started."""
        self.installed(self.app({"web": composition}))
        self.do(StartContainer(self.uuid, "web", self.container("web").id))
        return self.container("web")

    def container(self, service: str) -> Container:
        found = [c for c in self.engine.observe().containers.values() if self.is_mine(c, service)]
        assert len(found) == 1, f"{len(found)} containers of {service}"
        return found[0]

    def containers(self) -> list[Container]:
        found = self.engine.observe().containers.values()
        return [c for c in found if c.app_uuid == self.uuid]

    def is_mine(self, container: Container, service: str) -> bool:
        return container.key == (self.uuid, service)

    def step_start(self, service: str = "web") -> StartContainer:
        return StartContainer(self.uuid, service, self.container(service).id)

    # ---- what differs between the worlds ---------------------------------------------------------

    def provide(self, name: str) -> str:
        """A reference that can be fetched and is not present."""
        raise NotImplementedError

    def intrude(self, name: str, network: str = "") -> None:
        """Somebody else makes a container of that name, member of that network."""
        raise NotImplementedError

    def vanish(self, container_id: str) -> Touch:
        """A container is removed behind the agent's back."""
        raise NotImplementedError

    def clean(self) -> None:
        """Remove everything that carries the token."""


class FakeWorld(World):
    def __init__(self) -> None:
        engine = FakeEngine()
        super().__init__(engine, engine)
        self.fake = engine
        self.do(Fetch(self.image, self.uuid, self.app_id, "web"))

    def provide(self, name: str) -> str:
        return f"{REGISTRY}/{self.token}/{name}:1"

    def intrude(self, name: str, network: str = "") -> None:
        foreign = Container(
            "f" * 64, "elsewhere", 1, "other", 1, None, "created", self.service().spec,
            raw_name=name,
        )  # fmt: skip
        self.fake.change(lambda seen: _with(seen, foreign), Touch())

    def vanish(self, container_id: str) -> Touch:
        touch = Touch(containers=frozenset({container_id}))
        self.fake.change(lambda seen: _without(seen, container_id), touch)
        return touch


def _with(seen: Observed, container: Container) -> Observed:
    containers = {**seen.containers, container.id: container}
    return Observed(containers, seen.networks, seen.volumes, seen.images)


def _without(seen: Observed, container_id: str) -> Observed:
    containers = {k: v for k, v in seen.containers.items() if k != container_id}
    return Observed(containers, seen.networks, seen.volumes, seen.images)


class RealWorld(World):
    def __init__(self, socket_path: str) -> None:
        locks = UpdateLocks()

        def prepare(service: DesiredService) -> None:
            locks.prepare_directory(service.app_id, service.name)

        super().__init__(*(DockerEngine(socket_path, prepare) for _ in range(2)))
        self.client = Client(Link(socket_path))
        self.had_supervisor_network = bool(self._supervisor_networks())
        self.import_image(self.image)

    def import_image(self, reference: str, padding: int = 0) -> None:
        """An image of busybox, something that is no program, and so many random bytes."""
        repository, _, tag = reference.rpartition(":")
        api = self.client.link.api()
        answer = api.post(
            f"{api.base_url}/v1.41/images/create",
            params={"fromSrc": "-", "repo": repository, "tag": tag},
            data=_archive(padding),
            timeout=60,
        )
        assert answer.status_code == 200, answer.text

    def provide(self, name: str, padding: int = 0) -> str:
        reference = f"{REGISTRY}/{self.token}/{name}:1"
        self.import_image(reference, padding)
        target = path("images", reference.rpartition(":")[0], "push")
        api = self.client.link.api()
        url = f"{api.base_url}/v1.41{target}"
        answer = api.post(url, params={"tag": "1"}, headers={"X-Registry-Auth": "e30="}, timeout=60)
        assert '"error"' not in answer.text, answer.text
        self.client.request("DELETE", path("images", reference))
        return reference

    def digest(self, reference: str) -> str:
        """The reference by digest of one that `provide` made."""
        repository = reference.partition("/")[2].rpartition(":")[0]
        connection = HTTPConnection(REGISTRY, timeout=5)
        accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
        connection.request("GET", f"/v2/{repository}/manifests/1", headers=accept)
        manifest = connection.getresponse().read()
        connection.close()
        return f"{REGISTRY}/{repository}@sha256:{hashlib.sha256(manifest).hexdigest()}"

    def intrude(self, name: str, network: str = "") -> None:
        body = {
            "Image": self.image,
            "Cmd": SLEEP,
            "Labels": {"contract": self.token},
            "HostConfig": {"NetworkMode": network or "none"},
        }
        self.client.post("/containers/create", {"name": name}, body)

    def vanish(self, container_id: str) -> Touch:
        self.client.request("DELETE", path("containers", container_id), {"force": "1", "v": "1"})
        return Touch(containers=frozenset({container_id}))

    def clean(self) -> None:
        self._remove_containers()
        for network in self.client.get("/networks"):
            if self.token in network["Name"]:
                self.client.request("DELETE", path("networks", network["Id"]))
        for volume in self.client.get("/volumes")["Volumes"] or ():
            if volume["Name"].startswith(f"{self.app_id}_"):
                self.client.request("DELETE", path("volumes", volume["Name"]))
        for image in self.client.get("/images/json"):
            names = (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ()))
            if any(self.token in name for name in names):
                self.client.request("DELETE", path("images", image["Id"]), {"force": "1"})
        if not self.had_supervisor_network:
            for network in self._supervisor_networks():
                self.client.request("DELETE", path("networks", network["Id"]))
        shutil.rmtree(f"{LOCK_ROOT}/{self.app_id}", ignore_errors=True)
        for engine in (self.engine, self.twin):
            engine.close()

    def _remove_containers(self) -> None:
        for container in self.client.get("/containers/json", {"all": "1"}):
            marks = container["Labels"].values()
            if self.uuid in marks or self.token in marks:
                target = path("containers", container["Id"])
                self.client.request("DELETE", target, {"force": "1", "v": "1"})

    def _supervisor_networks(self) -> list[dict[str, Any]]:
        listed = self.client.get("/networks", filters(name=[SUPERVISOR_NETWORK]))
        return [network for network in listed if network["Name"] == SUPERVISOR_NETWORK]


def _archive(padding: int) -> bytes:
    busybox = next(p for p in ("/bin/busybox", "/usr/bin/busybox") if Path(p).exists())
    files = {
        "bin/busybox": Path(busybox).read_bytes(),
        "bad": b"this is no program\n",
        "padding": os.urandom(padding),
        "mark": secrets.token_bytes(8),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@contextmanager
def watching(world: World) -> Iterator[list[Touch]]:
    """Everything that the engine's events touch inside the block."""
    seen: list[Touch] = []
    stop, back = threading.Event(), threading.Event()
    thread = threading.Thread(target=world.engine.watch, args=(seen.append, stop, back.set))
    thread.start()
    assert back.wait(LIMIT)
    try:
        yield seen
    finally:
        stop.set()
        world.engine.close()
        thread.join(LIMIT)
        assert not thread.is_alive()
