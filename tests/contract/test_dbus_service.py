"""The exported interface over a real bus: forms, values, announcements, jobs, permissions."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from private_bus import Daemon, eventually

from balena_agent.api.dbus import AgentService
from balena_agent.api.dbus_host import Machine
from balena_agent.api.dbus_interface import OURS, READ_CONFIG, ROOT
from balena_agent.api.dbus_polkit import POLKIT, Authority
from balena_agent.api.dbus_tree import Facts
from balena_agent.core.errors import BusUnavailable, DeadlineExceeded, Locked, Unavailable
from balena_agent.core.intent import (
    CleanupVolumes,
    Command,
    ConfigureNetwork,
    Intent,
    Power,
    PurgeApp,
    RestartApp,
    RestartService,
    SetTarget,
    StartService,
    StopService,
)
from balena_agent.core.names import ContainerName
from balena_agent.core.networkconfig import NetworkChange, NetworkConfig, ProxyChange
from balena_agent.core.observed import Container, HostFacts, Observed
from balena_agent.core.plan import Plan, Wait
from balena_agent.core.redsocks import Proxy
from balena_agent.core.snapshot import Failure, Running, Snapshot
from balena_agent.core.spec import ContainerSpec
from balena_agent.core.steps import Fetch, StartContainer
from balena_agent.core.target import App, Release, Service, Target
from balena_agent.core.traits import identity
from balena_agent.ctl_client import Client, JobResult
from balena_agent.host.bus import Bus, Reply, Variant
from balena_agent.host.wire import BusRefusal, Call, Match, Signal, plain
from balena_agent.runtime.state import Published

XML = Path(__file__).parents[2] / "dbus/io.balena.Agent1.xml"
NAME = "io.balena.Agent1"
MANAGER, APP, SERVICE, JOB = (f"{NAME}.{word}" for word in ("Manager", "App", "Service", "Job"))
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
APP_PATH = f"{ROOT}/app/abc123"
WEB = f"{APP_PATH}/service/web"
DB = f"{APP_PATH}/service/my_2ddb"


def container(service: str, state: str = "running") -> Container:
    return Container(
        id=f"id-{service}",
        app_uuid="abc123",
        app_id=7,
        service=service,
        service_id=70,
        name=ContainerName(service, 71, 72, "c0ffee"),
        state=state,
        spec=ContainerSpec("sha256:1"),
        created_at="2024-01-01T00:00:00Z",
    )


def device(*services: str) -> Snapshot:
    """A device whose app runs the given services, settled."""
    release = Release(
        "c0ffee", 72, {name: Service(name, 70, 71, f"registry/{name}") for name in services}
    )
    app = App("abc123", 7, "shop", release=release)
    running = [container(name) for name in services]
    return Snapshot(
        target=Target("kitchen", apps={"abc123": app}),
        source="local",
        observed=Observed(containers={c.id: c for c in running}),
        plan=Plan(settled_apps=frozenset({"abc123"})),
        facts=HostFacts(device_uuid="d0d0", device_type="raspberrypi4-64", os_name="balenaOS 5"),
        commits={"abc123": "c0ffee"},
        engine_error="",
        looked=True,
    )


class Agent:
    """The service under test, what was submitted to it, and a client on the same bus."""

    def __init__(self, address: str) -> None:
        self.published = Published(device("web", "my-db"))
        self.submitted: list[tuple[Command, Future[str]]] = []
        self.healthy = True
        self.bus, self.client = Bus(address), Bus(address)
        facts = Facts(
            "1.2.3", lambda: self.healthy, lambda: ["10.0.0.5"], "balena-agent",
            lambda: ["[api] prt: no such setting"],
        )  # fmt: skip
        self.logger = logging.Logger("agent of a test", logging.INFO)
        self.config, self.blinks = NetworkConfig("kiosk"), 0
        self.obstacles: tuple[str, ...] = ()
        self.polls: list[tuple[tuple[bool, bool], Future[str]]] = []
        machine = Machine(
            lambda: self.config, self.blink, self.poll, lambda: "fresh", self.hindered
        )
        self.service = AgentService(
            self.bus, self.published, self.submit, facts, machine, self.logger
        )
        self.signals: list[Signal] = []

    def start(self) -> None:
        self.bus.start()
        self.client.start()
        self.client.subscribe(Match(sender=NAME), self.signals.append)
        self.service.start()

    def stop(self) -> None:
        self.service.stop()
        self.bus.close()
        self.client.close()

    def submit(self, command: Command) -> Future[str]:
        future: Future[str] = Future()
        self.submitted.append((command, future))
        return future

    def blink(self) -> None:
        self.blinks += 1

    def hindered(self) -> tuple[str, ...]:
        assert threading.current_thread().name != "bus", "it asks this very bus"
        return self.obstacles

    def poll(self, force: bool, cancel: bool) -> Future[str]:
        future: Future[str] = Future()
        self.polls.append(((force, cancel), future))
        return future

    def call(
        self, member: str, signature: str = "", *body: Any, at: str = ROOT, of: str = MANAGER
    ) -> list[Any]:
        return self.client.call(NAME, at, of, member, signature, body)

    def get_all(self, path: str, interface: str) -> dict[str, Any]:
        (found,) = self.call("GetAll", "s", interface, at=path, of=PROPERTIES)
        assert isinstance(found, dict)
        return found

    def publish(self, change: Callable[[Snapshot], Snapshot]) -> None:
        self.published.publish(change(self.published.current))

    def heard(self, member: str, path: str = ROOT) -> list[list[Any]]:
        """Bodies of the signals so far. The ping comes back after what was sent before it, so a
        round of announcements is here whole or not at all."""
        self.client.call(NAME, "/", "org.freedesktop.DBus.Peer", "Ping")
        mine = [s for s in list(self.signals) if s.member == member and s.path == path]
        return [plain(signal.body) for signal in mine]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.kill()


@pytest.fixture
def agent(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """Everybody is root here, whoever runs the tests; the permission tests say otherwise."""
    monkeypatch.setattr(Authority, "uid", uid(0))
    agent = Agent(daemon.address)
    agent.start()
    yield agent
    agent.stop()


def uid(number: int) -> Callable[[Authority, str], Any]:
    async def answer(self: Authority, sender: str) -> int:
        return number

    return answer


# -- forms ----------------------------------------------------------------------------------------


def form(interface: ET.Element) -> dict[str, Any]:
    """An interface's introspection without order and comments."""

    def args(element: ET.Element, default: str) -> list[tuple[str, str, str]]:
        found = element.findall("arg")
        return [(a.get("name", ""), a.get("type", ""), a.get("direction", default)) for a in found]

    def emits(prop: ET.Element) -> str:
        notes = {a.get("name"): a.get("value") for a in prop.findall("annotation")}
        return notes.get("org.freedesktop.DBus.Property.EmitsChangedSignal") or "true"

    return {
        "methods": {m.get("name"): args(m, "in") for m in interface.findall("method")},
        "signals": {s.get("name"): args(s, "out") for s in interface.findall("signal")},
        "properties": {
            p.get("name"): (p.get("type"), p.get("access"), emits(p))
            for p in interface.findall("property")
        },
    }


def forms(document: str) -> dict[str, dict[str, Any]]:
    found = ET.fromstring(document).findall("interface")
    return {str(interface.get("name")): form(interface) for interface in found}


def test_introspection_is_the_checked_in_document(agent: Agent) -> None:
    agent.call("StartService", "us", 7, "web")
    written = forms(XML.read_text())
    running: dict[str, Any] = {}
    for path in (ROOT, APP_PATH, WEB, f"{ROOT}/job/1"):
        (document,) = agent.call("Introspect", at=path, of="org.freedesktop.DBus.Introspectable")
        running |= forms(document)
    standard = {"Properties", "Introspectable", "Peer"}
    assert {f"org.freedesktop.DBus.{word}" for word in standard} <= running.keys()
    assert {k: v for k, v in running.items() if k.rpartition(".")[2] not in standard} == written


def test_objects_are_found_from_the_root_of_the_bus(agent: Agent) -> None:
    def walk(path: str) -> Iterator[str]:
        (document,) = agent.call("Introspect", at=path, of="org.freedesktop.DBus.Introspectable")
        element = ET.fromstring(document)
        if any(str(i.get("name")).startswith(NAME) for i in element.findall("interface")):
            yield path
        for node in element.findall("node"):
            yield from walk(path.rstrip("/") + "/" + str(node.get("name")))

    assert sorted(walk("/")) == [ROOT, APP_PATH, DB, WEB]


def test_every_property_has_the_type_it_promises(agent: Agent) -> None:
    agent.call("StartService", "us", 7, "web")
    for path, interface in (
        (ROOT, MANAGER),
        (APP_PATH, APP),
        (WEB, SERVICE),
        (f"{ROOT}/job/1", JOB),
        ("/org/freedesktop/LogControl1", "org.freedesktop.LogControl1"),
    ):
        promised = {p.name: p.signature for face in OURS if face.name == interface
                    for p in face.properties}  # fmt: skip
        found = agent.get_all(path, interface)
        assert {name: value.signature for name, value in found.items()} == promised
        for name, value in found.items():
            (one,) = agent.call("Get", "ss", interface, name, at=path, of=PROPERTIES)
            assert one == value


# -- values ---------------------------------------------------------------------------------------


def test_values_of_a_settled_device(agent: Agent) -> None:
    assert plain(agent.get_all(ROOT, MANAGER)) == {
        "Version": "1.2.3",
        "DeviceType": "raspberrypi4-64",
        "OSVersion": "balenaOS 5",
        "DeviceUuid": "d0d0",
        "DeviceName": "kitchen",
        "ApiPort": 48484,
        "ApiEndpoint": "",
        "Managed": False,
        "LocalMode": True,
        "CloudState": "unmanaged",
        "EngineState": "up",
        "Status": "Settled: 2 services in 1 app",
        "Commit": "c0ffee",
        "UpdatePending": False,
        "UpdateDownloaded": False,
        "UpdateFailed": False,
        "DownloadProgress": -1.0,
        "Waiting": [],
        "LastError": "",
        "AddressList": ["10.0.0.5"],
        "Healthy": True,
    }
    assert plain(agent.get_all(APP_PATH, APP)) == {
        "Id": 7,
        "Uuid": "abc123",
        "Name": "shop",
        "Commit": "c0ffee",
        "Class": "fleet",
        "Status": "settled",
        "Services": [DB, WEB],
    }
    assert plain(agent.get_all(WEB, SERVICE)) == {
        "Name": "web",
        "AppId": 7,
        "ServiceId": 70,
        "ReleaseId": 72,
        "Image": "registry/web",
        "ContainerId": "id-web",
        "Status": "Running",
        "DownloadProgress": -1.0,
        "Waiting": "",
    }


def test_lookups(agent: Agent) -> None:
    assert agent.call("GetApp", "u", 7) == [APP_PATH]
    assert agent.call("GetService", "us", 7, "my-db") == [DB]
    assert plain(agent.call("ListServices")) == [
        [[7, "my-db", "Running", "id-my-db", DB], [7, "web", "Running", "id-web", WEB]]
    ]
    assert json.loads(agent.call("Describe")[0])["version"] == "1.2.3"
    target = json.loads(agent.call("GetTargetState")[0])
    assert target["local"]["name"] == "kitchen"
    found = json.loads(agent.call("PreviewTarget", "s", json.dumps(target))[0])
    assert set(found) == {"steps", "untouched", "waits", "rejected", "warnings"}
    assert not agent.submitted
    (managed,) = agent.call("GetManagedObjects", of=OBJECT_MANAGER)
    assert set(managed) == {APP_PATH, DB, WEB}
    assert plain(managed[WEB][SERVICE]) == plain(agent.get_all(WEB, SERVICE))


@pytest.mark.parametrize(
    ("member", "signature", "body", "path", "interface", "error"),
    [
        ("GetApp", "u", [8], ROOT, MANAGER, f"{NAME}.Error.NoSuchApp"),
        ("GetService", "us", [8, "web"], ROOT, MANAGER, f"{NAME}.Error.NoSuchApp"),
        ("StopService", "usb", [7, "w", False], ROOT, MANAGER, f"{NAME}.Error.NoSuchService"),
        ("StopService", "us", [7, "w"], ROOT, MANAGER, "org.freedesktop.DBus.Error.InvalidArgs"),
        ("PreviewTarget", "s", ["{}x"], ROOT, MANAGER, "org.freedesktop.DBus.Error.InvalidArgs"),
        ("PreviewTarget", "s", ['{"local": 5}'], ROOT, MANAGER, f"{NAME}.Error.InvalidTarget"),
        ("Upgrade", "", [], ROOT, MANAGER, "org.freedesktop.DBus.Error.UnknownMethod"),
        ("Start", "", [], ROOT, MANAGER, "org.freedesktop.DBus.Error.UnknownMethod"),
        ("Start", "", [], APP_PATH, SERVICE, "org.freedesktop.DBus.Error.UnknownInterface"),
        ("Start", "", [], WEB + "x", SERVICE, "org.freedesktop.DBus.Error.UnknownObject"),
        (
            "Get", "ss", [MANAGER, "None"], ROOT, PROPERTIES,
            "org.freedesktop.DBus.Error.UnknownProperty",
        ),
        (
            "Set", "ssv", [MANAGER, "Status", Variant("s", "x")], ROOT, PROPERTIES,
            "org.freedesktop.DBus.Error.PropertyReadOnly",
        ),
        ("GetAll", "s", ["x.y"], ROOT, PROPERTIES, "org.freedesktop.DBus.Error.UnknownInterface"),
    ],
)  # fmt: skip
def test_wrong_calls_are_named(
    agent: Agent, member: str, signature: str, body: list[Any], path: str, interface: str,
    error: str,
) -> None:  # fmt: skip
    with pytest.raises(BusRefusal) as caught:
        agent.call(member, signature, *body, at=path, of=interface)
    assert caught.value.error_name == error
    assert not agent.submitted


def test_standard_properties_of_nothing_and_of_everything(agent: Agent) -> None:
    assert agent.get_all(ROOT, PROPERTIES) == {}
    assert plain(agent.get_all(ROOT, ""))["Version"] == "1.2.3"


# -- announcements --------------------------------------------------------------------------------


def test_only_what_has_changed_is_announced(agent: Agent) -> None:
    waiting = Plan(waits=(Wait("service abc123/web", "lock held"),))
    agent.publish(lambda now: replace(now, plan=waiting, last_error="web: no"))
    eventually(lambda: agent.heard("PropertiesChanged", WEB), "the change of the service")
    (body,) = agent.heard("PropertiesChanged")
    assert body[0] == MANAGER
    assert body[1] == {
        "Waiting": [["service abc123/web", "lock held"]],
        "LastError": "web: no",
        "Status": "Waiting: web: lock held",
    }
    assert agent.heard("PropertiesChanged", WEB) == [[SERVICE, {"Waiting": "lock held"}, []]]
    assert agent.heard("PropertiesChanged", APP_PATH) == [[APP, {"Status": "applying"}, []]]
    assert not agent.heard("PropertiesChanged", DB)


def test_a_storm_is_announced_at_most_four_times_a_second(agent: Agent) -> None:
    began = time.monotonic()
    for number in range(500):
        agent.publish(lambda now, n=number: replace(now, last_error=f"error {n}"))  # type: ignore[misc]
    eventually(
        lambda: any(b[1].get("LastError") == "error 499" for b in agent.heard("PropertiesChanged")),
        "the last of the storm",
    )
    assert len(agent.heard("PropertiesChanged")) <= 4 * (time.monotonic() - began) + 2


def test_reads_never_lag_behind(agent: Agent) -> None:
    for number in range(20):
        agent.publish(lambda now, n=number: replace(now, last_error=f"error {n}"))  # type: ignore[misc]
        assert plain(agent.get_all(ROOT, MANAGER))["LastError"] == f"error {number}"


def test_objects_come_and_go(agent: Agent) -> None:
    agent.publish(lambda now: device("web", "new one"))
    new = f"{APP_PATH}/service/new_20one"
    eventually(lambda: agent.heard("InterfacesRemoved"), "the removed object")
    assert agent.heard("InterfacesRemoved") == [[DB, [SERVICE]]]
    ((path, added),) = agent.heard("InterfacesAdded")
    assert (path, added[SERVICE]["Name"]) == (new, "new one")
    assert agent.heard("PropertiesChanged", APP_PATH)[-1][1] == {"Services": [new, WEB]}
    with pytest.raises(BusRefusal, match="no object"):
        agent.get_all(DB, SERVICE)


def test_the_agents_own_health_is_announced_too(agent: Agent) -> None:
    agent.healthy = False
    agent.publish(lambda now: now)
    eventually(lambda: agent.heard("PropertiesChanged"), "the change")
    assert agent.heard("PropertiesChanged") == [[MANAGER, {"Healthy": False}, []]]


def test_events_of_an_update(agent: Agent) -> None:
    fetch = Fetch("registry/web", "abc123", 7, "web", cause="image missing")
    start = StartContainer("abc123", "web", "id-web", cause="not running")
    agent.publish(lambda now: replace(
        now, update_pending=True, running={identity(fetch): Running(fetch, 12.0, 5.0)}
    ))  # fmt: skip
    agent.publish(lambda now: replace(
        now, running={identity(fetch): Running(fetch, 50.0, 5.0)}, update_failed=True,
        failures={identity(start): Failure(start, 1, "no such command", 9.0)},
        last_error="start web: no such command",
    ))  # fmt: skip
    locked = Failure(start, 2, "locked", 19.0, locked=True)
    agent.publish(lambda now: replace(now, failures={identity(start): locked}))
    agent.publish(lambda now: replace(now, update_failed=False, update_pending=False, running={}))
    eventually(lambda: len(agent.heard("UpdateFinished")) == 2, "the end of the update")
    assert agent.heard("UpdateStarted") == [["c0ffee"]]
    assert agent.heard("StepStarted") == [["abc123", "web", "fetch", "image missing"]]
    assert agent.heard("StepFailed") == [["abc123", "web", "start", "no such command"]]
    assert agent.heard("UpdateFinished") == [
        ["c0ffee", False, "start web: no such command"],
        ["c0ffee", True, ""],
    ]


def test_a_reboot_is_announced_and_called_off(agent: Agent) -> None:
    agent.publish(lambda now: replace(now, intent=Intent(power=Power())))
    agent.publish(lambda now: replace(now, intent=Intent()))
    eventually(lambda: len(agent.heard("PrepareForReboot")) == 2, "both signals")
    assert agent.heard("PrepareForReboot") == [[True], [False]]


# -- commands and jobs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "command", "kind"),
    [
        (("StartService", "us", 7, "web"), StartService(("abc123", "web")), "start"),
        (("StopService", "usb", 7, "web", True), StopService(("abc123", "web"), True), "stop"),
        (
            ("RestartService", "usb", 7, "my-db", False),
            RestartService(("abc123", "my-db")),
            "restart",
        ),
    ],
)
def test_a_job_follows_its_command(
    agent: Agent, call: tuple[Any, ...], command: Command, kind: str
) -> None:
    (path,) = agent.call(*call)
    assert [given for given, _ in agent.submitted] == [command]
    job = plain(agent.get_all(path, JOB))
    assert (job["Kind"], job["State"], job["Progress"]) == (kind, "running", -1.0)
    agent.submitted[0][1].set_result("met")
    eventually(lambda: agent.heard("Finished", path), "the end of the job")
    assert agent.heard("Finished", path) == [["done", "met"]]
    job = plain(agent.get_all(path, JOB))
    assert (job["State"], job["Message"], job["Progress"]) == ("done", "met", 100.0)


def test_a_service_object_knows_itself(agent: Agent) -> None:
    agent.call("Start", at=WEB, of=SERVICE)
    agent.call("Stop", "b", True, at=DB, of=SERVICE)
    agent.call("Restart", "b", False, at=WEB, of=SERVICE)
    assert [given for given, _ in agent.submitted] == [
        StartService(("abc123", "web")),
        StopService(("abc123", "my-db"), True),
        RestartService(("abc123", "web")),
    ]


@pytest.mark.parametrize(
    ("call", "where", "command", "kind"),
    [
        (("RestartApp", "ub", 7, True), {}, RestartApp(7, True), "restart-app"),
        (("PurgeApp", "ub", 7, False), {}, PurgeApp(7), "purge"),
        (("Restart", "b", False), {"at": APP_PATH, "of": APP}, RestartApp(7), "restart-app"),
        (("Purge", "b", True), {"at": APP_PATH, "of": APP}, PurgeApp(7, True), "purge"),
    ],
)
def test_a_job_about_a_whole_app(
    agent: Agent, call: tuple[Any, ...], where: dict[str, str], command: Command, kind: str
) -> None:
    (path,) = agent.call(*call, **where)
    assert [given for given, _ in agent.submitted] == [command]
    job = plain(agent.get_all(path, JOB))
    assert (job["Kind"], job["Subject"], job["State"]) == (kind, "7", "running")
    agent.submitted[0][1].set_exception(Locked("web"))
    eventually(lambda: agent.heard("Finished", path), "the end of the job")
    assert plain(agent.get_all(path, JOB))["Error"] == f"{NAME}.Error.Locked"


def test_an_app_that_is_not_there_gets_no_job(agent: Agent) -> None:
    with pytest.raises(BusRefusal) as refused:
        agent.call("PurgeApp", "ub", 8, False)
    assert refused.value.error_name == f"{NAME}.Error.NoSuchApp"
    assert agent.submitted == []


@pytest.mark.parametrize(("told", "names"), [("", []), ("1_a\n9_b", ["1_a", "9_b"])])
def test_clean_up_answers_with_the_names(agent: Agent, told: str, names: list[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(agent.call, "CleanupVolumes")
        eventually(lambda: agent.submitted, "the command")
        assert [given for given, _ in agent.submitted] == [CleanupVolumes()]
        agent.submitted[0][1].set_result(told)
        assert answer.result(10) == [names]


WEB_STARTS = StartContainer("abc123", "web", "id-web")
TARGET = '{"local": {"name": "kitchen", "apps": {}}}'


def accept(agent: Agent, future: Future[str]) -> None:
    """As the reconciler does: what is accepted is published before it is answered."""
    agent.publish(lambda now: replace(now, update_pending=True, looked=False, failures={}))
    future.set_result("accepted")


def over(agent: Agent, path: str) -> dict[str, Any]:
    eventually(lambda: agent.heard("Finished", path), "the end of the job")
    return dict(plain(agent.get_all(path, JOB)))


def test_the_job_of_a_target_ends_when_it_is_applied(agent: Agent) -> None:
    (path,) = agent.call("SetTargetState", "sb", TARGET, True)
    ((command, future),) = agent.submitted
    assert isinstance(command, SetTarget)
    assert (command.source, command.force, command.target.name) == ("local", True, "kitchen")
    assert json.loads(command.raw) == json.loads(TARGET)
    accept(agent, future)
    agent.publish(lambda now: replace(now, looked=True))
    job = plain(agent.get_all(path, JOB))
    assert (job["Kind"], job["Subject"], job["State"]) == ("set-target", "", "running")
    assert job["Message"].startswith("Settled")  # nothing is done just now, but not all is done
    agent.publish(lambda now: replace(now, update_pending=False))
    assert over(agent, path)["State"] == "done"


def test_the_job_of_an_update_fails_with_its_first_step(agent: Agent) -> None:
    (path,) = agent.call("Update", "bb", True, False)
    ((asked, future),) = agent.polls
    assert asked == (True, False)
    accept(agent, future)
    step = Fetch("registry/web", "abc123", 7, "web")
    for failure in (Failure(step, 0, "busy", 0.0), Failure(step, 1, "tidy", 0.0, muted=True)):
        agent.publish(lambda now, known=failure: replace(now, failures={"fetch": known}))
    assert plain(agent.get_all(path, JOB))["State"] == "running"
    agent.publish(lambda now: replace(now, failures={"fetch": Failure(step, 1, "no host", 0.0)}))
    job = over(agent, path)
    assert job["State"] == "failed" and "registry/web: no host" in job["Message"]
    assert job["Error"] == "org.freedesktop.DBus.Error.Failed"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"engine_error": "no socket"}, "EngineUnavailable"),
        ({"failures": {"start": Failure(WEB_STARTS, 1, "held", 0.0, True)}}, "Locked"),
    ],
)
def test_what_stands_in_the_way_of_an_update_has_a_name(
    agent: Agent, change: dict[str, Any], name: str
) -> None:
    (path,) = agent.call("Update", "bb", False, False)
    accept(agent, agent.polls[0][1])
    agent.publish(lambda now: replace(now, **change))
    assert over(agent, path)["Error"] == f"{NAME}.Error.{name}"


def test_an_update_without_an_answer_of_the_cloud_says_so(agent: Agent) -> None:
    (path,) = agent.call("Update", "bb", False, True)
    agent.polls[0][1].set_exception(Unavailable("no target from the cloud: nobody answers"))
    assert over(agent, path)["Message"] == "no target from the cloud: nobody answers"


def test_a_target_is_refused_before_there_is_a_job(agent: Agent) -> None:
    for text in ('{"local": []}', "{}", '{"apps": {}}'):
        for call in (("SetTargetState", "sb", text, False), ("PreviewTarget", "s", text)):
            with pytest.raises(BusRefusal, match=r"at \$\.local but") as caught:
                agent.call(*call)
            assert caught.value.error_name == f"{NAME}.Error.InvalidTarget"
    managed = HostFacts(api_endpoint="https://api.example")
    agent.publish(lambda now: replace(now, facts=managed))
    with pytest.raises(BusRefusal, match=r"https://api\.example") as caught:
        agent.call("SetTargetState", "sb", TARGET, False)
    assert caught.value.error_name == f"{NAME}.Error.NotInLocalMode"
    assert not agent.submitted


def test_what_is_wrong_in_the_settings_is_described(agent: Agent) -> None:
    def problems() -> list[str]:
        return list(json.loads(agent.call("Describe")[0])["problems"])

    assert problems() == ["[api] prt: no such setting"]
    agent.publish(lambda now: replace(now, notices=("[api] prt: no such setting",)))
    assert problems() == [], "told as a notice"
    agent.obstacles = ("The host cannot reboot: no",)
    assert problems() == ["The host cannot reboot: no"]


def test_a_new_key_is_answered(agent: Agent) -> None:
    assert agent.call("RegenerateApiKey") == ["fresh"]


def test_a_failed_job_keeps_the_name_of_its_error(agent: Agent) -> None:
    (path,) = agent.call("StopService", "usb", 7, "web", False)
    agent.submitted[0][1].set_exception(Locked("shop/web: /tmp/balena/updates.lock"))
    eventually(lambda: agent.heard("Finished", path), "the end of the job")
    job = plain(agent.get_all(path, JOB))
    assert job["State"] == "failed"
    assert job["Message"] == "shop/web: /tmp/balena/updates.lock"
    assert job["Error"] == f"{NAME}.Error.Locked"


def test_a_defect_in_a_job_stays_in_the_journal(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = agent.call("StartService", "us", 7, "web")
    agent.submitted[0][1].set_exception(ValueError("secret in /etc/passwd"))
    eventually(lambda: agent.heard("Finished", path), "the end of the job")
    assert agent.heard("Finished", path) == [["failed", "internal error"]]
    assert "secret" in caplog.text


def test_a_cancelled_job_leaves_the_command_alone(agent: Agent) -> None:
    (path,) = agent.call("StartService", "us", 7, "web")
    agent.call("Cancel", at=path, of=JOB)
    future = agent.submitted[0][1]
    assert not future.cancelled()
    future.set_result("met all the same")
    agent.client.probe()
    assert [state for state, _ in agent.heard("Finished", path)] == ["cancelled"]
    assert plain(agent.get_all(path, JOB))["State"] == "cancelled"


def test_a_stop_of_the_agent_ends_all_jobs(agent: Agent) -> None:
    (path,) = agent.call("StartService", "us", 7, "web")
    agent.service.stop()
    eventually(lambda: agent.heard("Finished", path), "the end of the job")
    assert agent.heard("Finished", path) == [["cancelled", "the agent is stopping"]]


def test_jobs_are_announced_as_objects(agent: Agent) -> None:
    (path,) = agent.call("StartService", "us", 7, "web")
    eventually(lambda: agent.heard("InterfacesAdded"), "the job's object")
    ((added, faces),) = agent.heard("InterfacesAdded")
    assert (added, faces[JOB]["Subject"]) == (path, "abc123/web")


def test_a_container_that_the_target_no_longer_has_takes_no_commands(agent: Agent) -> None:
    agent.publish(lambda now: replace(now, target=device("my-db").target))
    assert agent.call("GetService", "us", 7, "web") == [WEB]
    with pytest.raises(BusRefusal, match="not in the target release"):
        agent.call("StartService", "us", 7, "web")


def test_power_answers_when_the_host_has_accepted(agent: Agent) -> None:
    with pytest.raises(DeadlineExceeded):
        agent.client.call(NAME, ROOT, MANAGER, "Reboot", "b", [False], timeout=0.2)
    eventually(lambda: agent.submitted, "the command")
    command, _ = agent.submitted[0]
    assert isinstance(command, Power)
    assert not command.off and f"process {os.getpid()}" in command.who


def test_a_refused_reboot_comes_back_as_an_error(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(command: Command) -> Future[str]:
        future: Future[str] = Future()
        future.set_exception(Locked("shop/web holds a lock"))
        return future

    monkeypatch.setattr(agent.service._host, "_submit", refuse)
    with pytest.raises(BusRefusal, match="shop/web holds a lock") as caught:
        agent.call("PowerOff", "b", False)
    assert caught.value.error_name == f"{NAME}.Error.Locked"


def test_a_defect_never_reaches_the_caller(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(command: Command) -> Future[str]:
        raise KeyError("secret")

    monkeypatch.setattr(agent.service, "_submit", broken)
    with pytest.raises(BusRefusal) as caught:
        agent.call("StartService", "us", 7, "web")
    assert caught.value.words == "internal error; the agent's journal has the details"
    assert "secret" in caplog.text
    assert {record.name for record in caplog.records} == {"balena_agent.host.bus"}


# -- permissions ----------------------------------------------------------------------------------

PRIVILEGED = [
    ("Reboot", "b", False),
    ("PowerOff", "b", False),
    ("StartService", "us", 7, "web"),
    ("StopService", "usb", 7, "web", False),
    ("RestartService", "usb", 7, "web", False),
    ("Blink", ""),
    ("GetHostConfig", ""),
    ("SetHostname", "sb", "kiosk", False),
    ("SetProxy", "a{sv}b", {}, False),
    ("GetTargetState", ""),
    ("PreviewTarget", "s", "{}"),
]


@pytest.mark.parametrize("call", PRIVILEGED, ids=lambda call: str(call[0]))
def test_without_polkit_only_root_may(
    agent: Agent, call: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Authority, "uid", uid(1000))
    with pytest.raises(BusRefusal, match="no polkit") as caught:
        agent.call(*call)
    assert caught.value.error_name == "org.freedesktop.DBus.Error.AccessDenied"
    assert not agent.submitted


def test_a_preview_needs_the_engine_and_a_client_can_ask_for_it(agent: Agent) -> None:
    assert Client(agent.client).preview('{"local": {"apps": {}}}')["rejected"] == []
    agent.publish(lambda now: replace(now, engine_error="no socket"))
    with pytest.raises(BusRefusal, match="no socket") as caught:
        agent.call("PreviewTarget", "s", "{}")
    assert caught.value.error_name == f"{NAME}.Error.EngineUnavailable"


def test_reading_is_free(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Authority, "uid", uid(1000))
    assert agent.call("GetApp", "u", 7) and agent.call("Describe") and agent.call("ListServices")
    assert agent.get_all(ROOT, MANAGER)


def test_the_bus_knows_who_calls(daemon: Daemon) -> None:
    bus = Bus(daemon.address)
    bus.start()
    authority = Authority(bus)
    assert bus.run(authority.uid(bus.unique_name), 5) == os.getuid()
    bus.close()


class Polkit:
    """Answers CheckAuthorization with a given verdict and keeps what it was asked."""

    def __init__(self, address: str, allowed: bool, challenge: bool = False) -> None:
        self.asked: list[Any] = []
        self._verdict = [allowed, challenge, {}]
        self.bus = Bus(address)
        self.bus.start()
        self.bus.serve(self._answer)
        self.bus.request_name(POLKIT)

    async def _answer(self, call: Call) -> Reply:
        assert (call.member, call.signature) == ("CheckAuthorization", "(sa{sv})sa{ss}us")
        self.asked.append(plain(call.body))
        return "(bba{ss})", [self._verdict]


def test_polkit_decides_by_action_and_sender(
    daemon: Daemon, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Authority, "uid", uid(1000))
    polkit = Polkit(daemon.address, allowed=True)
    me = agent.client.unique_name
    assert agent.call("GetTargetState")
    agent.client.call(NAME, ROOT, MANAGER, "GetTargetState", interactive=True)
    subject = ["system-bus-name", {"name": me}]
    assert polkit.asked == [
        [subject, READ_CONFIG, {}, 0, ""],
        [subject, READ_CONFIG, {}, 1, ""],
    ]
    polkit.bus.close()


@pytest.mark.parametrize(
    ("challenge", "interactive", "error"),
    [
        (False, False, "AccessDenied"),
        (True, True, "AccessDenied"),
        (True, False, "InteractiveAuthorizationRequired"),
    ],
)
def test_polkit_refuses(
    daemon: Daemon,
    agent: Agent,
    monkeypatch: pytest.MonkeyPatch,
    challenge: bool,
    interactive: bool,
    error: str,
) -> None:
    monkeypatch.setattr(Authority, "uid", uid(1000))
    polkit = Polkit(daemon.address, allowed=False, challenge=challenge)
    with pytest.raises(BusRefusal) as caught:
        agent.client.call(NAME, WEB, SERVICE, "Start", interactive=interactive)
    assert caught.value.error_name == f"org.freedesktop.DBus.Error.{error}"
    assert not agent.submitted
    polkit.bus.close()


# -- log control ----------------------------------------------------------------------------------


def set_log(agent: Agent, name: str, value: str) -> None:
    body = ("org.freedesktop.LogControl1", name, Variant("s", value))
    agent.call("Set", "ssv", *body, at="/org/freedesktop/LogControl1", of=PROPERTIES)


def test_the_log_level_can_be_changed_by_root(agent: Agent) -> None:
    set_log(agent, "LogLevel", "debug")
    assert agent.logger.level == logging.DEBUG
    found = agent.get_all("/org/freedesktop/LogControl1", "org.freedesktop.LogControl1")
    assert plain(found) == {
        "LogLevel": "debug",
        "LogTarget": "journal",
        "SyslogIdentifier": "balena-agent",
    }
    with pytest.raises(BusRefusal, match="is none of"):
        set_log(agent, "LogLevel", "loud")
    with pytest.raises(BusRefusal, match="is none of"):
        set_log(agent, "LogTarget", "syslog")


def test_the_log_level_is_roots(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Authority, "uid", uid(1000))
    with pytest.raises(BusRefusal, match="only root"):
        set_log(agent, "LogLevel", "debug")
    assert agent.logger.level == logging.INFO


# -- balena-agentctl's client ---------------------------------------------------------------------


@pytest.fixture
def client(daemon: Daemon, agent: Agent) -> Iterator[Client]:
    client = Client.connect(daemon.address)
    yield client
    client.close()


def test_the_client_waits_for_the_end_of_a_job(agent: Agent, client: Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.service, "stop", 7, "web", True)
        eventually(lambda: agent.submitted, "the command")
        agent.submitted[0][1].set_exception(Locked("shop/web"))
        assert waiting.result(10) == JobResult("failed", "shop/web", f"{NAME}.Error.Locked")
    assert agent.submitted[0][0] == StopService(("abc123", "web"), True)


def test_the_client_reads_and_listens(agent: Agent, client: Client) -> None:
    assert client.describe()["version"] == "1.2.3"
    assert client.target()["local"]["name"] == "kitchen"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, client.events())

        def heard() -> bool:  # it may not listen yet, so there is something new each time
            agent.publish(lambda now: replace(now, update_pending=not now.update_pending))
            return first.done()

        eventually(heard, "a signal")
    assert first.result().name in ("UpdateStarted", "UpdateFinished", "PropertiesChanged")


def test_the_client_of_an_absent_agent_says_so(daemon: Daemon) -> None:
    client = Client.connect(daemon.address)
    for call in (client.describe, lambda: next(client.events())):
        with pytest.raises(BusUnavailable):
            call()
    client.close()


# -- the machine ----------------------------------------------------------------------------------


def test_the_hosts_configuration_is_typed(agent: Agent) -> None:
    assert plain(agent.call("GetHostConfig")[0]) == {"hostname": "kiosk"}
    settings = {"type": "socks5", "ip": "10.0.0.1", "port": "1080", "password": "s3cret"}
    agent.config = NetworkConfig("kiosk", Proxy(settings, "9.9.9.9:53"), ("10.0.0.0/8",))
    (found,) = agent.call("GetHostConfig")
    proxy = found["proxy"].value
    assert {k: (v.signature, v.value) for k, v in proxy.items()} == {
        "type": ("s", "socks5"), "ip": ("s", "10.0.0.1"), "port": ("q", 1080),
        "password": ("s", "s3cret"), "dns": ("s", "9.9.9.9:53"), "noProxy": ("as", ["10.0.0.0/8"]),
    }  # fmt: skip


def test_a_host_name_is_set_when_the_call_returns(agent: Agent) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(agent.call, "SetHostname", "sb", "kiosk-7", True)
        eventually(lambda: agent.submitted, "a command")
        command, answer = agent.submitted[0]
        assert command == ConfigureNetwork(NetworkChange("kiosk-7"), force=True)
        assert not call.done()
        answer.set_exception(Locked("Lockfile exists"))
        with pytest.raises(BusRefusal, match="Lockfile exists") as refused:
            call.result(10)
    assert refused.value.error_name == "io.balena.Agent1.Error.Locked"


def test_a_proxy_replaces_the_former_one(agent: Agent) -> None:
    given = {"type": Variant("s", "socks4"), "ip": Variant("s", "h"), "port": Variant("q", 9)}
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(agent.call, "SetProxy", "a{sv}b", given, False)
        eventually(lambda: agent.submitted, "a command")
        command, answer = agent.submitted[0]
        answer.set_result("done")
        assert call.result(10) == []
    assert isinstance(command, ConfigureNetwork) and command.change.proxy
    assert command.change.proxy.no_proxy == () and command.change.proxy.dns == ""
    assert command.change.proxy.settings == {
        "type": "socks4", "ip": "h", "port": "9", "login": "", "password": "",
    }  # fmt: skip


def test_no_key_clears_the_proxy(agent: Agent) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(agent.call, "SetProxy", "a{sv}b", {}, False)
        eventually(lambda: agent.submitted, "a command")
        command, answer = agent.submitted[0]
        answer.set_result("done")
        call.result(10)
    assert command == ConfigureNetwork(NetworkChange(proxy=ProxyChange(clear=True)))


@pytest.mark.parametrize(
    "member, signature, body",
    [
        ("SetHostname", "sb", ("a..b", False)),
        ("SetProxy", "a{sv}b", ({"host": Variant("s", "x")}, False)),
        ("SetProxy", "a{sv}b", ({"type": Variant("s", "ftp")}, False)),
    ],
)
def test_bad_settings_are_invalid_arguments(
    agent: Agent, member: str, signature: str, body: tuple[Any, ...]
) -> None:
    with pytest.raises(BusRefusal) as refused:
        agent.call(member, signature, *body)
    assert refused.value.error_name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert agent.submitted == []


def test_blink(agent: Agent) -> None:
    agent.call("Blink")
    assert agent.blinks == 1
