"""The HTTP API at the WSGI level: the numbered cases of spec 10, and what they leave out.

The application gets a hand-made snapshot and a reconciler that only records what it is asked for;
locks and the like are played by that recorder.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import device_states
import pytest
from e2e.api_cases import Reply as CaseReply
from e2e.api_cases import load, problems, sent

from balena_agent.api.around import Around, NoCloud
from balena_agent.api.auth import Auth
from balena_agent.api.body import BODY_LIMIT, read_body
from balena_agent.api.exchange import proxied
from balena_agent.api.host_config import HostNetwork
from balena_agent.api.http import LEFT, Application, Settings, build
from balena_agent.api.logs import LogStreams
from balena_agent.cloud.link import CloudLink
from balena_agent.cloud.probe import Probe
from balena_agent.core.errors import (
    AgentError,
    Broken,
    Cancelled,
    EngineFailed,
    EngineUnavailable,
    InvalidInput,
    Locked,
    NoSuchApp,
    NotFound,
    RefusedByHost,
)
from balena_agent.core.intent import (
    CleanupVolumes,
    Command,
    ConfigureNetwork,
    Power,
    PurgeApp,
    RestartApp,
    RestartService,
    SetTarget,
    StartService,
    StopService,
)
from balena_agent.core.networkconfig import NetworkConfig, applied
from balena_agent.core.plan import Plan, Wait
from balena_agent.core.scopes import EVERYTHING, Scope
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.steps import RemoveImage, StartContainer
from balena_agent.host.logind import BlockedByHost
from balena_agent.runtime.state import Published
from balena_agent.watchdog import Watchdog

_HOST_CONFIG = "/v1/device/host-config"


def needs_a_server(case: dict[str, Any]) -> bool:
    """The body of a stream is written by the server: tests/e2e/test_api_cases.py plays it."""
    opened = ("/v2/local/logs", "/v2/journal-logs")
    return case["path"] in opened and case["method"] != "OPTIONS" and 200 in case["status"]


CASES = [case for case in load() if not needs_a_server(case)]

KEYS = {"G": "a" * 32, "A": "b" * 32, "B": "c" * 32, "bad": "badkey"}
SCOPES = {"G": EVERYTHING, "A": Scope(app_id=1011), "B": Scope(app_id=2022)}
FIXTURES: dict[str, Callable[[], Snapshot]] = {
    "M1": device_states.m1,
    "M2": device_states.m2,
    "U": device_states.unmanaged,
    "L": device_states.local_mode,
}
LOCK_TEXT = "Lockfile exists for { appId: 1011, service: main }"


class FixedKeys:
    def global_key(self) -> str:
        return KEYS["G"]

    def service_key(self, app_id: int, service: str) -> str:
        return KEYS["A"]

    def scopes_of(self, key: str) -> Scope | None:
        return {KEYS[name]: scope for name, scope in SCOPES.items()}.get(key)


@dataclass
class Reconciler:
    """Records commands. `refuse` tells with which error a command ends; None: it is met, and
    `met` does what it asks for. With `hold` no command is ever met."""

    refuse: Callable[[Command], AgentError | None] = lambda _: None
    hold: bool = False
    met: Callable[[Command], None] = lambda _: None
    seen: list[Command] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)

    def submit(self, command: Command) -> Future[str]:
        self.seen.append(command)
        future: Future[str] = Future()
        error = self.refuse(command)
        if error:
            future.set_exception(error)
        elif not self.hold:
            self._meet(command, future)
        self.asked.set()
        return future

    def _meet(self, command: Command, future: Future[str]) -> None:
        try:
            self.met(command)
        except AgentError as error:
            future.set_exception(error)
        else:
            future.set_result("done")


class Reply(CaseReply):
    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Device:
    """The application under test, with all that it stands on."""

    published: Published
    reconciler: Reconciler
    app: Application

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str | None = "G",
        raw: bytes | None = None,
        address: str = "::ffff:192.168.1.20",
        **headers: str,
    ) -> Reply:
        sent = dict(headers)
        if key:
            sent["Authorization"] = f"Bearer {KEYS.get(key, key)}"
        if body is not None:
            raw = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        return self.call(environ_of(method, path, raw or b"", sent) | {"REMOTE_ADDR": address})

    def call(self, environ: dict[str, Any]) -> Reply:
        answers: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> None:
            answers.append((status, headers))

        body = b"".join(self.app(environ, start_response))
        ((status, headers),) = answers
        return Reply(int(status[:3]), dict(headers), body)


def environ_of(method: str, path: str, raw: bytes, headers: dict[str, str]) -> dict[str, Any]:
    where, _, query = path.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": where,
        "QUERY_STRING": query,
        "REMOTE_ADDR": "::ffff:192.168.1.20",
        "SERVER_ADDR": "::ffff:192.168.1.5",
        "SERVER_NAME": "balena-agent",
        "SERVER_PORT": "48484",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": "",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(raw),
        "wsgi.errors": io.StringIO(),
        "CONTENT_LENGTH": str(len(raw)),
    }
    for name, value in headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
    return environ


def device(snapshot: Snapshot, reconciler: Reconciler | None = None, **more: Any) -> Device:
    published = Published(snapshot)
    asked = reconciler or Reconciler()
    settings = more.pop("settings", None)
    app = build(published, asked.submit, Auth(FixedKeys()), settings=settings, **more)
    return Device(published, asked, app)


# -- the numbered cases, and the table of endpoints


def played(case: dict[str, Any]) -> Callable[[Command], AgentError | None]:
    """What locks and the host would say in a case's setup."""
    setup = set(case.get("setup", ()))

    def refuse(command: Command) -> AgentError | None:
        if isinstance(command, RestartApp | PurgeApp | CleanupVolumes):
            return refused_app(command)
        if isinstance(command, (SetTarget, StartService)) or getattr(command, "force", False):
            return None
        if isinstance(command, Power) and "hup" in setup:
            return Locked("Waiting for Host OS update to finish")
        of_all = isinstance(command, Power | ConfigureNetwork)
        of_main = of_all or command.key[0] == f"{1011:032x}"  # type: ignore[union-attr]
        if setup & {"lock", "dirlock", "legacylock"} and of_main:
            return Locked(LOCK_TEXT)
        return None

    def refused_app(command: RestartApp | PurgeApp | CleanupVolumes) -> AgentError | None:
        if command.app_id not in (None, 1011, 2022):
            return NoSuchApp(f"Application with ID {command.app_id} is not in the current state")
        forced = getattr(command, "force", True)
        return Locked(LOCK_TEXT) if "lock" in setup and not forced else None

    return refuse


class FakeNetwork:
    """A host's name and proxy: a change is applied as the model says."""

    def __init__(self) -> None:
        self.config = NetworkConfig("lab")

    def done(self, command: Command) -> None:
        if isinstance(command, ConfigureNetwork):
            self.config = applied(self.config, command.change, "d0d0d0d")


def device_for(case: dict[str, Any]) -> Device:
    setup = case.get("setup", ())
    snapshot = FIXTURES[case["fx"]]()
    if "engine_down" in setup:
        snapshot = replace(snapshot, engine_error="connection refused")
    if "settle1" in setup:
        document = device_states.local_document("web")
        snapshot = device_states.local_device(document)
    if "slow" in setup and snapshot.target:
        config = {"RESIN_SUPERVISOR_INSTANT_UPDATE_TRIGGER": "0"}
        snapshot = replace(snapshot, target=replace(snapshot.target, config=config))
    cloud = FakeTags() if snapshot.facts.managed and "cloud_down" not in setup else NoCloud()
    network = FakeNetwork()
    asked = Reconciler(played(case), met=network.done)
    around = Around(
        rotate=lambda key: "d" * 32 if key in KEYS.values() and key != "badkey" else _no_key(),
        addresses=lambda: ("192.168.1.5",),
        macs=lambda: ("02:00:5E:10:00:01",),
        host_config=HostNetwork(lambda: network.config, asked.submit),
        tags=cloud,
        version="0.0.1",
    )
    registered = replace(snapshot, facts=replace(snapshot.facts, registered=True))
    link = CloudLink(
        Published(registered), asked.submit, FakeSettings(), Watchdog(lambda state: None), "0.0.1",
        probe=Probe(lambda endpoint: "cloud_down" not in setup),
    )  # fmt: skip
    logs = LogStreams(_never, _never, _never, lambda: snapshot)  # type: ignore[arg-type]
    return device(snapshot, asked, healthy=link.healthy, around=around, more=logs.endpoints())


def _never(*_: Any) -> Any:
    raise AssertionError("no stream is opened here")


def _no_key() -> str:
    raise NotFound("No such key")


class FakeTags:
    def get(self) -> list[Any]:
        return [{"id": 5, "name": "loc", "value": "lab"}]

    def put(self, tags: Mapping[str, str]) -> None:
        pass


class FakeSettings(dict[str, Any]):
    setting = dict.get
    set_setting = dict.__setitem__


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"test_{case['id']}")
def test_case(case: dict[str, Any]) -> None:
    here = device_for(case)
    for earlier in before(case):
        play(here, earlier)
    assert list(problems(case, play(here, case))) == []


def play(here: Device, case: dict[str, Any]) -> Reply:
    path, body, headers = sent(case, KEYS)
    # The cases were recorded on the device itself.
    local = case["fx"] != "M1" and case["fx"] != "M2"
    address = "::ffff:127.0.0.1" if local else "::ffff:192.168.1.20"
    environ = environ_of(case["method"], path, body or b"", headers)
    return here.call(environ | {"REMOTE_ADDR": address})


def before(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases that a case builds upon: what was set before on the host of its fixture."""
    if case["path"] != _HOST_CONFIG:
        return []
    earlier = CASES[: CASES.index(case)]
    done = (each for each in earlier if 200 in each["status"])
    return [each for each in done if (each["path"], each["fx"]) == (_HOST_CONFIG, case["fx"])]


def test_texts_lose_what_the_clouds_proxy_does_not_pass() -> None:
    assert proxied("$.network.proxy.dns: why") == "network.proxy.dns: why"
    assert proxied(LOCK_TEXT) == "Lockfile exists for appId: 1011, service: main"
    assert proxied('a "b" {"c": 1}') == "a ?b? ??c?: 1?"


# -- what becomes of a request


ACTION = "/v2/applications/1011/{}-service"


@pytest.mark.parametrize(
    ("action", "body", "command"),
    [
        ("start", {}, StartService((f"{1011:032x}", "main"))),
        ("stop", {}, StopService((f"{1011:032x}", "main"))),
        ("stop", {"force": "on"}, StopService((f"{1011:032x}", "main"), True)),
        ("restart", {"force": 1}, RestartService((f"{1011:032x}", "main"), True)),
        ("restart", {"force": "yes"}, RestartService((f"{1011:032x}", "main"), False)),
    ],
)
def test_actions_become_commands(action: str, body: dict[str, Any], command: Command) -> None:
    here = device(device_states.m1())
    reply = here.ask("POST", ACTION.format(action), {"serviceName": "main", **body})
    assert (reply.status, reply.text) == (200, "OK")
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert here.reconciler.seen == [command]


V2_APP = "/v2/applications/1011/"


@pytest.mark.parametrize(
    ("path", "body", "command"),
    [
        ("/v1/restart", {"appId": 1011}, RestartApp(1011)),
        ("/v1/restart", {"appId": "1011", "force": "true"}, RestartApp(1011, True)),
        ("/v1/purge", {"appId": 1011, "force": 0}, PurgeApp(1011)),
        ("/v1/purge", {"appId": 1011, "force": True}, PurgeApp(1011, True)),
        (V2_APP + "restart", {}, RestartApp(1011)),
        (V2_APP + "restart", {"force": 1}, RestartApp(1011, True)),
        (V2_APP + "purge", {}, PurgeApp(1011)),
        (V2_APP + "purge", {"force": "on"}, PurgeApp(1011, True)),
    ],
)
def test_orders_about_apps_become_commands(
    path: str, body: dict[str, Any], command: Command
) -> None:
    here = device(device_states.m1())
    for key in "GA":
        assert here.ask("POST", path, body, key).status == 200
    assert here.reconciler.seen == [command, command]
    assert here.ask("POST", path, body, "B").json == {"status": "failed", "message": "Unauthorized"}
    assert len(here.reconciler.seen) == 2


@pytest.mark.parametrize("error", [EngineFailed("busy", 500), NoSuchApp("who"), Broken("oops")])
def test_what_goes_wrong_with_an_app_is_503(error: AgentError) -> None:
    here = device(device_states.m1(), Reconciler(lambda _: error))
    for path in ("/v1/restart", "/v1/purge", V2_APP + "restart", V2_APP + "purge"):
        reply = here.ask("POST", path, {"appId": 1011})
        assert (reply.status, reply.json) == (503, {"status": "failed", "message": error.message})


def test_clean_up_reaches_as_far_as_the_key() -> None:
    here = device(device_states.m1())
    for key in "GA":
        reply = here.ask("GET", "/v2/cleanup-volumes", key=key)
        assert (reply.status, reply.json) == (200, {"status": "success"})
    assert here.reconciler.seen == [CleanupVolumes(), CleanupVolumes(1011)]
    assert here.ask("POST", "/v2/cleanup-volumes").status == 404


@pytest.mark.parametrize(("path", "off"), [("/v1/reboot", False), ("/v1/shutdown", True)])
def test_power(path: str, off: bool) -> None:
    here = device(device_states.m1())
    reply = here.ask("POST", path, {"force": True}, key="A")
    assert (reply.status, reply.json) == (202, {"Data": "OK", "Error": ""})
    (power,) = here.reconciler.seen
    assert isinstance(power, Power)
    assert (power.off, power.force) == (off, True)
    assert power.who == "HTTP client ::ffff:192.168.1.20 with the key of app 1011"


def test_forced_power_without_the_engine() -> None:
    here = device(replace(device_states.m1(), engine_error="gone"))
    assert here.ask("POST", "/v1/reboot", {"force": "true"}).status == 202
    assert here.ask("POST", "/v1/reboot", {}).status == 500
    assert len(here.reconciler.seen) == 1


@pytest.mark.parametrize(
    ("error", "action", "query", "go"),
    [
        (Locked(LOCK_TEXT), 423, 423, 423),
        (EngineUnavailable("gone"), 503, 503, 500),
        (EngineFailed("no space"), 503, 503, 500),
        (RefusedByHost("not now"), 503, 503, 500),
        (BlockedByHost("Blocked by updater: busy"), 503, 503, 423),
        (Cancelled("new target"), 503, 503, 500),
        (Broken("bug"), 503, 503, 500),
    ],
)
def test_how_errors_look(error: AgentError, action: int, query: int, go: int) -> None:
    here = device(device_states.unmanaged(), Reconciler(lambda _: error))
    there = device(device_states.m1(), Reconciler(lambda _: error))
    failed = {"status": "failed", "message": str(error)}
    reply = there.ask("POST", ACTION.format("restart"), {"serviceName": "main"})
    assert (reply.status, reply.json) == (action, failed)
    reply = here.ask("POST", "/v2/local/target-state", {})
    assert (reply.status, reply.json) == (query, failed)
    reply = there.ask("POST", "/v1/reboot", {})
    assert (reply.status, reply.json) == (go, {"Data": "", "Error": str(error)})


def test_a_defect_is_told_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def crash(_: Command) -> AgentError:
        raise RuntimeError("secret detail")

    here = device(device_states.m1(), Reconciler(crash))
    reply = here.ask("POST", ACTION.format("start"), {"serviceName": "main"})
    assert reply.status == 503
    assert reply.json["status"] == "failed"
    assert "secret" not in reply.text
    assert "Traceback" not in reply.text
    assert "secret detail" in caplog.text, "the journal has it"


def test_a_defect_outside_of_the_endpoints() -> None:
    here = device(device_states.m1())
    here.published._current = None  # type: ignore[assignment]
    reply = here.ask("GET", "/v2/version")
    assert (reply.status, reply.json["status"]) == (503, "failed")


def test_trouble_with_the_keys() -> None:
    class Lost(FixedKeys):
        def scopes_of(self, key: str) -> Scope | None:
            raise Broken("disk gone")

    here = device(device_states.m1())
    here.app._auth = Auth(Lost())
    reply = here.ask("GET", "/v2/version")
    assert (reply.status, reply.text) == (503, "Unexpected error: disk gone")


# -- local targets


def test_a_target_is_submitted_as_it_came() -> None:
    here = device(device_states.unmanaged())
    document = device_states.local_document("web", "db") | {"unknown": [1]}
    reply = here.ask("POST", "/v2/local/target-state", document | {"force": "true"}, key=None)
    assert reply.json == {"status": "success", "message": "OK"}
    (command,) = here.reconciler.seen
    assert isinstance(command, SetTarget)
    assert (command.source, command.force) == ("local", True)
    assert json.loads(command.raw) == document
    release = command.target.apps["1"].release
    assert release
    assert sorted(release.services) == ["db", "web"]


def test_what_is_shown_can_be_posted_back() -> None:
    document = device_states.local_document("web", "db") | {"unknown": [1]}
    here = device(device_states.local_device(document))
    state = here.ask("GET", "/v2/local/target-state", key=None).json["state"]
    assert here.ask("POST", "/v2/local/target-state", state, key=None).status == 200
    (command,) = here.reconciler.seen
    assert isinstance(command, SetTarget)
    now = here.published.current.target
    assert now
    assert command.target.apps == now.apps
    assert json.loads(command.raw)["unknown"] == [1]


def test_half_characters_break_nothing() -> None:
    here = device(device_states.unmanaged())
    raw = b'{"local":{"name":"a\\ud800"},"\\udfff":1}'
    reply = here.ask("POST", TARGET, key=None, raw=raw, **{"Content-Type": JSON})
    assert reply.status == 200
    (command,) = here.reconciler.seen
    assert isinstance(command, SetTarget)
    now = here.published.current
    here.published.publish(
        replace(now, target=command.target, raw_target=command.raw, source="local")
    )
    state = here.ask("GET", TARGET, key=None).json["state"]
    assert state["local"]["name"] == "a?"


def test_a_bad_target_is_refused_with_every_problem() -> None:
    here = device(device_states.unmanaged())
    document = {"local": {"name": 5, "apps": {"1": None, "abc": {}}}}
    reply = here.ask("POST", "/v2/local/target-state", document, key=None)
    lines = reply.json["message"].split("\n")
    assert (reply.status, lines[0]) == (400, "Invalid target state.")
    assert len(lines) >= 4
    assert not here.reconciler.seen


def test_a_preview_tells_all_steps_and_changes_nothing() -> None:
    here = device(device_states.unmanaged())
    before = here.published.current
    document = device_states.local_document("web")
    reply = here.ask("POST", "/v2/state/plan", document | {"force": True}, key=None)
    assert reply.status == 200
    assert [step["step"] for step in reply.json["steps"]] == [
        "fetch", "create-network", "take-locks", "create", "start", "release-locks",
    ]  # fmt: skip
    assert (reply.json["status"], reply.json["untouched"]) == ("success", [])
    assert not here.reconciler.seen
    assert here.published.current is before


def test_a_preview_of_a_bad_target_names_every_problem() -> None:
    here = device(device_states.unmanaged())
    document = {"local": {"name": 5, "apps": {"1": None, "abc": {}}}}
    reply = here.ask("POST", "/v2/state/plan", document, key=None)
    lines = reply.json["message"].split("\n")
    assert (reply.status, lines[0]) == (400, "Invalid target state.")
    assert len(lines) >= 4


def test_a_preview_takes_the_engine_and_a_key_for_everything() -> None:
    document = device_states.local_document("web")
    here = device(device_states.m2())
    assert here.ask("POST", "/v2/state/plan", document, key="A").status == 401
    down = device(replace(device_states.unmanaged(), engine_error="down"))
    assert down.ask("POST", "/v2/state/plan", document, key=None).status == 503


@pytest.mark.parametrize("body", [None, {}, []])
def test_an_empty_target_removes_everything(body: Any) -> None:
    here = device(device_states.unmanaged())
    assert here.ask("POST", "/v2/local/target-state", body, key=None).status == 200
    (command,) = here.reconciler.seen
    assert isinstance(command, SetTarget)
    assert command.target.apps == {}


@pytest.mark.parametrize("path", ["/v2/local/target-state", "/v2/state/plan"])
def test_json_that_was_sent_as_a_form_is_no_empty_target(path: str) -> None:
    here = device(device_states.unmanaged())
    raw = json.dumps(device_states.local_document("web")).encode()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    replies = [here.ask("POST", path, key=None, raw=raw, **form)]
    replies.append(here.ask("POST", path, {"apps": {}, "config": {}}, key=None))
    for reply in replies:
        assert reply.status == 400 and "$.local" in reply.json["message"]
        assert "Content-Type: application/json" in reply.json["message"]
    assert not here.reconciler.seen


def test_no_local_target_outside_local_mode() -> None:
    reply = device(device_states.m1()).ask("POST", "/v2/local/target-state", {})
    assert reply.status == 400
    assert reply.json["message"] == "Target state can only set when device is in local mode"


def test_the_answer_waits_for_the_store() -> None:
    here = device(
        device_states.unmanaged(), Reconciler(hold=True), settings=Settings(answer_limit=0.01)
    )
    reply = here.ask("POST", "/v2/local/target-state", {}, key=None)
    assert (reply.status, reply.json["status"]) == (503, "failed")


def test_applying_from_the_moment_of_the_answer() -> None:
    here = device(device_states.unmanaged())
    here.published.publish(replace(here.published.current, update_pending=True))
    assert here.ask("GET", "/v2/state/status", key=None).json["appState"] == "applying"


# -- without the engine


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v2/applications/state", None),
        ("GET", "/v2/state/status", None),
        ("GET", "/v2/containerId", None),
        ("GET", "/v2/containerId?serviceName=main", None),
        ("GET", "/v2/local/target-state", None),
        ("POST", "/v2/local/target-state", {}),
        ("POST", ACTION.format("start"), {"serviceName": "main"}),
        ("POST", ACTION.format("stop"), {"serviceName": "main"}),
        ("POST", ACTION.format("restart"), {"serviceName": "main"}),
    ],
)
def test_engine_down(method: str, path: str, body: Any) -> None:
    here = device(replace(device_states.local_mode(), engine_error="connection refused"))
    reply = here.ask(method, path, body)
    assert reply.status == 503
    assert reply.json["status"] == "failed"
    assert "connection refused" in reply.json["message"]
    assert reply.headers["Retry-After"]
    assert not here.reconciler.seen


def test_the_plan_is_told_without_the_engine() -> None:
    here = device(replace(device_states.m1(), engine_error="connection refused"))
    assert here.ask("GET", "/v2/state/plan").status == 200


# -- order of checks, scopes


@pytest.mark.parametrize(
    ("path", "body", "key", "status"),
    [
        ("/v2/applications/0/start-service", {}, "A", 400),
        ("/v2/applications/2022/start-service", {}, "A", 401),
        ("/v2/applications/1011.0/start-service", {}, "A", 400),
        ("/v2/applications/99999/start-service", {}, "G", 400),
        ("/v2/applications/99999/start-service", {"serviceName": "x"}, "G", 404),
        ("/v2/applications/1011/start-service", {"imageId": 0}, "G", 400),
        ("/v2/applications/1011/start-service", {"serviceName": "x"}, "G", 404),
        ("/v2/applications/1011/start-service", {"serviceName": ["main"]}, "G", 400),
        ("/V2/Applications/1011/Start-Service/", {"serviceName": "main"}, "G", 200),
    ],
)
def test_order_of_checks(path: str, body: dict[str, Any], key: str, status: int) -> None:
    assert device(device_states.m1()).ask("POST", path, body, key).status == status


def test_the_target_is_shown_within_scope() -> None:
    here = device(device_states.m2())
    state = here.ask("GET", "/v2/local/target-state", key="A").json["state"]
    assert list(state["local"]["apps"]) == ["1011"]
    everything = here.ask("GET", "/v2/local/target-state", key="G").json["state"]
    assert list(everything["local"]["apps"]) == ["1011", "2022", "3033"]


def test_the_plan_within_scope() -> None:
    mine, other = f"{1011:032x}", f"{2022:032x}"
    plan = Plan(
        (
            StartContainer(mine, "main", "1", "was stopped"),
            StartContainer(other, "solo", "2", "was stopped"),
            RemoveImage("old:1", "unused"),
        ),
        (
            Wait(f"service {mine}/side", "waits for main"),
            Wait(f"service {other}/solo", "waits", 5.0),
        ),
    )
    here = device(replace(device_states.m2(), plan=plan))
    seen = here.ask("GET", "/v2/state/plan", key="A").json
    assert [step["service"] for step in seen["steps"]] == ["main"]
    subject = f"service {mine}/side"
    assert seen["waits"] == [{"subject": subject, "reason": "waits for main", "until": None}]
    everything = here.ask("GET", "/v2/state/plan", key="G").json
    assert [step["cause"] for step in everything["steps"]] == ["was stopped"] * 2 + ["unused"]
    assert everything["waits"][1]["until"] == 5.0
    assert (everything["status"], everything["settled"]) == ("success", False)


# -- waiting


@pytest.fixture
def held() -> Iterator[Device]:
    """A device whose reconciler never answers, with a single slot for waiting requests."""
    here = device(device_states.m1(), Reconciler(hold=True), settings=Settings(held_requests=1))
    yield here
    here.app.close()


def in_background(here: Device, results: list[Reply], path: str) -> threading.Thread:
    thread = threading.Thread(
        target=lambda: results.append(here.ask("POST", path, {"serviceName": "main"}))
    )
    thread.start()
    assert here.reconciler.asked.wait(10)
    return thread


def test_too_many_waiting_requests(held: Device) -> None:
    results: list[Reply] = []
    waiting = in_background(held, results, ACTION.format("start"))
    reply = held.ask("POST", ACTION.format("start"), {"serviceName": "main"})
    assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
    assert len(held.reconciler.seen) == 1, "nothing was asked for"
    assert held.ask("GET", "/ping", key=None).status == 200
    held.app.close()
    waiting.join(10)
    assert results[0].status == 503


def test_a_reboot_has_a_place_of_its_own(held: Device) -> None:
    """It is what people ask for when everything else is stuck."""
    waiting = in_background(held, [], ACTION.format("start"))
    held.reconciler.asked.clear()
    rebooting = in_background(held, [], "/v1/reboot")
    assert isinstance(held.reconciler.seen[-1], Power)
    assert held.ask("POST", "/v1/shutdown").status == 500, "and no more than one"
    assert held.ask("GET", "/ping", key=None).status == 200
    held.app.close()
    for thread in (waiting, rebooting):
        thread.join(10)


def test_closing_wakes_who_waits(held: Device) -> None:
    results: list[Reply] = []
    waiting = in_background(held, results, ACTION.format("restart"))
    held.app.close()
    waiting.join(10)
    assert results[0].json == {"status": "failed", "message": "The agent is stopping"}
    late = held.ask("POST", ACTION.format("restart"), {"serviceName": "main"})
    assert late.status == 503


def test_the_place_of_one_who_has_left_goes_to_the_next(held: Device) -> None:
    raw, headers = b'{"serviceName":"main"}', {"Content-Type": "application/json"}
    headers["Authorization"] = f"Bearer {KEYS['G']}"
    replies: list[Reply] = []

    def ask(path: str) -> None:
        environ = environ_of("POST", ACTION.format(path), raw, headers)
        replies.append(held.call({**environ, LEFT: lambda: True}))

    threads = [threading.Thread(target=ask, args=(path,)) for path in ("start", "stop", "restart")]
    for thread in threads:
        held.reconciler.asked.clear()
        thread.start()
        assert held.reconciler.asked.wait(10)
    for thread in threads[:2]:
        thread.join(10)
    assert len(replies) == 2 and threads[2].is_alive()
    for reply in replies:
        assert reply.status == 503 and "left" in reply.json["message"]
    held.app.close()
    threads[2].join(10)


def test_requests_wait_as_long_as_the_peer_lets_them() -> None:
    assert Settings().answer_limit == 900


def test_a_stop_is_answered_after_the_grace_period() -> None:
    here = device(device_states.m1(), Reconciler(hold=True), settings=Settings(answer_limit=0.01))
    assert here.ask("POST", ACTION.format("stop"), {"serviceName": "main"}).text == "OK"
    reply = here.ask("POST", ACTION.format("restart"), {"serviceName": "main"})
    assert reply.status == 503
    assert here.ask("POST", "/v1/reboot").status == 500


# -- bodies


TARGET = "/v2/local/target-state"
NAMED = b'{"local":{"name":"n"}}'
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


@pytest.mark.parametrize(
    ("raw", "headers", "name"),
    [
        (NAMED, {"Content-Type": "application/json"}, "n"),
        (NAMED, {"Content-Type": "Application/JSON; charset=UTF-8"}, "n"),
        (NAMED.decode().encode("utf-8-sig"), {"Content-Type": JSON}, "n"),
        (NAMED.decode().encode("utf-16"), {"Content-Type": JSON + "; charset=utf-16"}, "n"),
        (gzip.compress(NAMED), {"Content-Type": JSON, "Content-Encoding": "gzip"}, "n"),
        (b"local[name]=n", {"Content-Type": FORM}, "n"),
        (NAMED, {"Content-Type": "text/plain"}, None),
        (NAMED, {}, None),
        (b"", {"Content-Type": "application/json"}, None),
        (b"[]", {"Content-Type": "application/json"}, None),
    ],
    ids=(["json", "charset", "mark", "utf-16", "gzip", "form", "text", "no-type", "empty", "list"]),
)
def test_bodies_that_are_read(raw: bytes, headers: dict[str, str], name: str | None) -> None:
    here = device(device_states.unmanaged())
    assert here.ask("POST", TARGET, key=None, raw=raw, **headers).status == 200
    (command,) = here.reconciler.seen
    assert isinstance(command, SetTarget)
    assert command.target.name == name


@pytest.mark.parametrize(
    ("raw", "headers"),
    [
        (b'"x"', {"Content-Type": "application/json"}),
        (b"null", {"Content-Type": "application/json"}),
        (b"5", {"Content-Type": "application/json"}),
        (b'{"a":NaN}', {"Content-Type": "application/json"}),
        (b"[" * 100_000, {"Content-Type": "application/json"}),
        (b"\xff{}", {"Content-Type": "application/json"}),
        (b"{}", {"Content-Type": "application/json; charset=latin1"}),
        (b"{}", {"Content-Type": "application/json", "Content-Encoding": "br"}),
        (b"no gzip", {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
        (gzip.compress(b"{}")[:-4], {"Content-Type": JSON, "Content-Encoding": "gzip"}),
        (
            gzip.compress(b" " * (BODY_LIMIT + 1)),
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        ),
        (b"&".join([b"a=1"] * 2000), {"Content-Type": FORM}),
    ],
    ids=[
        "text",
        "null",
        "number",
        "no-number",
        "deep",
        "no-utf8",
        "latin1",
        "br",
        "no-gzip",
        "cut-off",
        "too-large",
        "fields",
    ],
)
def test_bodies_that_are_refused(raw: bytes, headers: dict[str, str]) -> None:
    reply = device(device_states.unmanaged()).ask("POST", TARGET, key=None, raw=raw, **headers)
    assert (reply.status, reply.json["status"]) == (503, "failed")


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"a[]=1&a[]=2", {"a": ["1", "2"]}),
        (b"a[0]=1&a[1]=2", {"a": ["1", "2"]}),
        (b"n[p][noProxy][]=1.1.1.1&n[p][ip]=x", {"n": {"p": {"noProxy": ["1.1.1.1"], "ip": "x"}}}),
        (b"a[0][b]=1&a[1][b]=2", {"a": [{"b": "1"}, {"b": "2"}]}),
        (b"a[1][b]=1", {"a": {"1": {"b": "1"}}}),
        (b"a[1]=1&a[0]=2", {"a": {"1": "1", "0": "2"}}),
        (b"a[]=1&a=2", {"a": "2"}),
        (b"0=1&a[b]=", {"0": "1", "a": {"b": ""}}),
    ],
)
def test_forms_may_have_lists(raw: bytes, body: dict[str, Any]) -> None:
    assert read_body(environ_of("POST", "/", raw, {"Content-Type": FORM})) == body


def test_a_form_is_not_nested_without_end() -> None:
    environ = environ_of("POST", "/", b"a" + b"[b]" * 100_000 + b"=1", {"Content-Type": FORM})
    with pytest.raises(InvalidInput, match="too deeply"):
        read_body(environ)


def test_a_body_of_nine_mebibytes_is_read() -> None:
    raw = b'{"local":{},"pad":"' + b"x" * (9 << 20) + b'"}'
    here = device(device_states.unmanaged())
    headers = {"Content-Type": "application/json"}
    assert here.ask("POST", TARGET, key=None, raw=raw, **headers).status == 200


def test_unread_bodies_are_drained() -> None:
    here = device(device_states.m1())
    environ = environ_of("POST", "/v1/reboot", b"x" * 200_000, {"Content-Type": "text/plain"})
    assert here.call(environ).status == 401
    assert environ["wsgi.input"].read() == b""


# -- paths and methods


@pytest.mark.parametrize("path", ["/ping", "/PING/", "/v2/version", "/v2/state/status"])
def test_head(path: str) -> None:
    here = device(device_states.m1())
    got, head = here.ask("GET", path), here.ask("HEAD", path)
    assert (head.status, head.body, head.headers) == (got.status, b"", got.headers)
    assert head.headers["Content-Length"] == str(len(got.body))


def test_options() -> None:
    here = device(device_states.m1())
    reply = here.ask("OPTIONS", "/v2/local/target-state")
    assert (reply.status, reply.text) == (200, "GET,HEAD,POST")
    assert here.ask("OPTIONS", "/v2/local/target-state", key=None).status == 401
    assert here.ask("OPTIONS", "/nosuch").status == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/version"),
        ("GET", "/v1/reboot"),
        ("PATCH", "/ping"),
        ("GET", "//ping"),
        ("GET", "/"),
    ],
)
def test_wrong_method_or_path(method: str, path: str) -> None:
    reply = device(device_states.m1()).ask(method, path)
    assert (reply.status, reply.text) == (404, f"Cannot {method} {path}")
    assert "Allow" not in reply.headers


def test_only_get_and_head_of_open_paths_are_open() -> None:
    assert device(device_states.m1()).ask("POST", "/ping", key=None).status == 401


@pytest.mark.parametrize("path", ["/nosuch", '/v1/a_b{c}|"%', "/v2/x\ny"])
def test_texts_pass_the_cloud_proxy(path: str) -> None:
    reply = device(device_states.m1()).ask("GET", path)
    assert re.fullmatch(r"[A-Za-z0-9\s:'.?!,/-]*", reply.text)


def test_unhealthy() -> None:
    def broken() -> bool:
        raise OSError("no watchdog")

    for healthy in (lambda: False, broken):
        reply = device(device_states.m1(), healthy=healthy).ask("GET", "/v1/healthy", key=None)
        assert (reply.status, reply.text) == (500, "Unhealthy")
        assert reply.headers["Content-Type"] == "text/html; charset=utf-8"


# -- reads follow the snapshot


def test_pages_follow_the_snapshot() -> None:
    here = device(device_states.m1())
    first = here.ask("GET", "/v2/applications/state")
    assert here.ask("GET", "/v2/applications/state").body == first.body
    here.published.publish(replace(here.published.current, target=None))
    assert here.ask("GET", "/v2/applications/state").json == {}
    assert here.ask("GET", "/v2/state/status", key="B").json["containers"] == []
    assert here.ask("GET", "/v2/state/status", key="A").json["containers"] != []


# -- the log


def test_one_line_per_request_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    here = device(device_states.m1())
    here.ask("GET", f"/v2/version?apikey={KEYS['G']}")
    here.ask("POST", "/v1/nosuch\nFAKE", {"token": "hidden"})
    here.ask("GET", "/ping", key=None)
    lines = [r for r in caplog.records if r.name == "balena_agent.api.http"]
    said = [record.getMessage().rsplit(" - ", 1)[0] for record in lines]
    assert said == ["GET /v2/version 200", "POST /v1/nosuch?FAKE 404", "GET /ping 200"]
    assert [record.levelno for record in lines] == [logging.INFO, logging.INFO, logging.DEBUG]
    assert lines[0].__dict__["HTTP_STATUS"] == "200"
    assert KEYS["G"] not in caplog.text
    assert "hidden" not in caplog.text


def test_a_request_just_after_the_start_waits_for_the_first_look() -> None:
    import threading

    from balena_agent.core.snapshot import NOT_ASKED

    looked = device_states.m1()
    here = device(replace(looked, engine_error=NOT_ASKED))
    threading.Timer(0.05, lambda: here.published.publish(looked)).start()
    assert here.ask("GET", "/v2/applications/state", key="G").status == 200


def test_a_first_look_that_takes_too_long_is_no_reason_to_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from balena_agent.api import http
    from balena_agent.core.snapshot import NOT_ASKED

    monkeypatch.setattr(http, "FIRST_LOOK_PATIENCE", 0.05)
    here = device(replace(device_states.m1(), engine_error=NOT_ASKED))
    answer = here.ask("GET", "/v2/applications/state", key="G")
    assert (answer.status, answer.json["status"]) == (503, "failed")
