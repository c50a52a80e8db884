"""Every case of the device API on a virtual device: the numbered ones of spec 10, and the table of
endpoints. One test per case, in the order of the data file, which groups them by device."""

from __future__ import annotations

import socketserver
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import api_cases
import pytest
from api_cases import load, problems
from cloud import FakeCloud
from device import balena_os
from device.client import Answer
from e2e_api import DEVICE_KEY, UUID, Stage
from e2e_device import Device
from e2e_proxies import Socks5, serving
from e2e_targets import Json

ORDER = ("M1", "M2", "U", "L")
TAG = {"id": 5, "tag_key": "loc", "value": "lab"}


def _in_order() -> list[Json]:
    """By device; what leaves a device behind that plays nothing any more comes last."""

    def rank(case: Json) -> tuple[bool, int, bool]:
        setup = case.get("setup", ())
        return "last" in setup, ORDER.index(case["fx"]), "slow" in setup

    return sorted(load(), key=rank)


@pytest.fixture(scope="module")
def stage(api_device: Device) -> Iterator[Stage]:
    address = api_device.machine.link.outer_address
    balena_os.redsocks(api_device.machine)
    with FakeCloud(address, keys={UUID: DEVICE_KEY}, tags={UUID: [dict(TAG)]}) as cloud:
        yield Stage(api_device, cloud)


@pytest.fixture(scope="module", autouse=True)
def no_secrets(stage: Stage) -> Iterator[None]:
    """After all cases the journal has neither a key nor a traceback in it."""
    yield
    keys = stage.seen_keys | {DEVICE_KEY}
    said = stage.device.said("-b", "all")
    assert "Traceback" not in said
    assert [key[:4] for key in keys if len(key) > 8 and key in said] == []


@pytest.mark.parametrize("case", _in_order(), ids=lambda case: f"test_{case['id']}")
def test_case(stage: Stage, case: Json) -> None:
    stage.play(case)
    stage.cloud.tags[UUID] = [dict(TAG)]
    keys = stage.keys()
    with stage.prepared(case):
        reply = stage.ask(case, keys)
        assert list(problems(case, reply)) == []
    if reply.status in (200, 202, 204) and case["method"] != "GET":
        stage.rest()


# -- what takes more than one request


def ask(stage: Stage, method: str, path: str, key: str, body: Json | None = None) -> Answer:
    return stage.device.api(method, path, body, key=key, timeout=60)


def test_a_service_renews_its_own_key(stage: Stage) -> None:
    """Old key out, new key in, at once; the container lives on, until the next update."""
    stage.play({"fx": "M1"})
    old, container = stage.keys()["A"], stage.device.of("main")["Id"]
    fresh = ask(stage, "POST", "/v1/regenerate-api-key", old).text
    assert fresh != old
    assert ask(stage, "GET", "/v2/device/name", old).status == 401
    assert ask(stage, "GET", "/v2/device/name", fresh).status == 200
    assert list(ask(stage, "GET", "/v2/applications/state", fresh).json()) == ["fleet1"]
    assert ask(stage, "POST", "/v2/applications/99999/stop-service", fresh, {}).status == 401
    stage.settle()
    assert stage.device.of("main")["Id"] == container
    assert ask(stage, "POST", "/v1/update", fresh, {}).status == 204
    renewed = lambda: stage.device.of("main").get("Id", container) != container  # noqa: E731
    stage.device.until(renewed, 20, "the container is made anew")
    stage.settle()
    assert stage.keys()["A"] == fresh
    stage.seen_keys |= {old, fresh}


def test_the_devices_key_is_renewed_for_local_tools_too(stage: Stage) -> None:
    stage.play({"fx": "M1"})
    old = stage.keys()["G"]
    fresh = ask(stage, "POST", "/v1/regenerate-api-key", old).text
    assert stage.device.machine.api_key == fresh != old
    assert ask(stage, "GET", "/v2/version", old).status == 401
    stage.device.restart()
    assert stage.device.machine.api_key == fresh
    assert ask(stage, "GET", "/v2/version", fresh).status == 200
    stage.seen_keys |= {old, fresh}


def test_a_stop_and_a_start_without_a_pause(stage: Stage) -> None:
    stage.play({"fx": "M1"})
    key = stage.keys()["G"]
    for path, body in (("/v1/apps/1011", {}), ("/v2/applications/1011", {"serviceName": "main"})):
        suffix = "-service" if body else ""
        assert ask(stage, "POST", f"{path}/stop{suffix}", key, body).status == 200
        assert ask(stage, "POST", f"{path}/start{suffix}", key, body).status == 200
        stage.settle()
        assert stage.device.running("main")


def test_tags_reach_the_cloud(stage: Stage) -> None:
    stage.play({"fx": "M1"})
    key = stage.keys()["A"]
    assert ask(stage, "PATCH", "/v2/device/tags", key, {"rack": "12"}).status == 202
    known = lambda: {t["tag_key"]: t["value"] for t in stage.cloud.tags[UUID]}  # noqa: E731
    stage.device.until(lambda: known().get("rack") == "12", 40, "the cloud has it")
    (sent, *_) = stage.cloud.asked("PATCH", "/device/v3/tags")
    assert sent.headers["authorization"] == f"Bearer {DEVICE_KEY}"


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/restart", {"appId": 1011}), ("/v2/applications/1011/restart", {})]
)
def test_two_restarts_at_once_are_done_one_after_the_other(
    stage: Stage, path: str, body: Json
) -> None:
    stage.play({"fx": "M1"})
    key, before = stage.keys()["G"], stage.device.of("main")["Id"]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, stage, "POST", path, key, body) for _ in range(2)]
        assert [(each.result().status, each.result().text) for each in asked] == [(200, "OK")] * 2
    assert stage.device.running("main") and stage.device.of("main")["Id"] != before
    stage.settle()


def test_the_key_of_an_app_cleans_up_that_app_alone(stage: Stage) -> None:
    stage.play({"fx": "M2"})
    device, key = stage.device, stage.keys()["A"]
    others = {"2022_old", "extra-firmware", "strange", "3033_keep"}
    for name in (*others, "1011_old"):
        device.engine("POST", "/volumes/create", {"Name": name})
    try:

        def cleaned() -> bool:  # once the agent has heard of what was made behind its back
            answer = ask(stage, "GET", "/v2/cleanup-volumes", key)
            assert (answer.status, answer.json()) == (200, {"status": "success"})
            return "1011_old" not in device.volumes()

        device.until(cleaned, 30, "the app's old volume is gone")
        assert others <= device.volumes()
    finally:
        for name in ("2022_old", "extra-firmware", "strange"):
            device.engine("DELETE", f"/volumes/{name}?force=1")


def test_a_target_shows_nobodys_key(stage: Stage) -> None:
    stage.play({"fx": "M2"})
    keys = stage.keys()
    for name in "GAB":
        text = ask(stage, "GET", "/v2/local/target-state", keys[name]).text
        assert not [other for other in "GAB" if keys[other] in text]


class _Names(socketserver.StreamRequestHandler):
    """A server that is asked by TCP, as names are."""

    def handle(self) -> None:
        (size,) = struct.unpack("!H", self.rfile.read(2))
        answer = b"answer to " + self.rfile.read(size)
        self.wfile.write(struct.pack("!H", len(answer)) + answer)


ASK = """\
import socket
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.settimeout(5)
wire.sendto(b"a query", ("127.0.0.1", 53))
print(wire.recv(4096).decode())
"""


def test_names_are_asked_for_through_the_proxy(stage: Stage) -> None:
    """What A71 sets is at work: a query by UDP arrives at the server by way of the proxy."""
    stage.play({"fx": "M1"})
    device, key = stage.device, stage.keys()["G"]
    outer, config = device.machine.link.outer_address, "/v1/device/host-config"
    with serving(outer, Socks5) as proxy, serving(outer, _Names) as names:
        led = ("OUTPUT", "-p", "tcp", "-d", outer, "--dport", str(names.port),
               "-j", "REDIRECT", "--to-ports", "12345")  # fmt: skip
        chosen = {"type": "socks5", "ip": outer, "port": proxy.port, "dns": f"{outer}:{names.port}"}
        device.exec("iptables", "-w", "-t", "nat", "-I", *led)
        try:
            assert ask(stage, "PATCH", config, key, {"network": {"proxy": chosen}}).status == 200
            assert device.exec("python3", "-c", ASK).stdout == "answer to a query\n"
            assert proxy.seen == [f"{outer}:{names.port}"]
        finally:
            assert ask(stage, "PATCH", config, key, {"network": {"proxy": {}}}).status == 200
            device.exec("iptables", "-w", "-t", "nat", "-D", *led)
    assert device.exec("python3", "-c", ASK, check=False).returncode == 1


def test_metrics_for_a_process_of_the_host(stage: Stage) -> None:
    stage.play({"fx": "M1"})
    device = stage.device
    inside = device.api("GET", "/metrics", key="", inside=True)
    assert inside.status == 200 and "balena_agent_engine_up 1" in inside.text
    assert device.api("GET", "/metrics", key="").status == 401


def test_the_runner_by_itself(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """As one would point it at another implementation."""
    stage.play({"fx": "M1"})
    words = ["--base", f"http://{stage.device.machine.address}:48484", "--fixture", "M1",
             "--only", "A1", "--only", "A7", "--only", "A23", "--only", "E1"]  # fmt: skip
    keys = [f"--key={name}={key}" for name, key in stage.keys().items()]
    assert api_cases.main([*words, *keys]) == 0
    assert "4 cases, 0 not as written" in capsys.readouterr().out
    assert api_cases.main([*words, "--key=A=wrong"]) == 1
    assert "A23 GET /v2/version: status 401" in capsys.readouterr().out
