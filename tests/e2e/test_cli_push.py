"""What the balena CLI does to a device of a developer, request by request (spec 11).

The tests play its side: the same order of requests, the same headers, from the network, over one
connection that is kept, with a token of its user that means nothing to us. What it reads from each
answer is compared field by field. Its builds and its live pushes go to the engine, not to us: they
are done with the engine's own means here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from device import images
from e2e_device import Device
from e2e_logs import FIRST
from e2e_targets import UUID, Json

TOKEN = "Bearer aaa.bbb-ccc"
HEADERS = {
    "Accept": "*/*", "Accept-Encoding": "compress, gzip", "User-Agent": "node",
    "sentry-trace": "0123456789abcdef-0123456789abcdef-0", "baggage": "sentry-release=1",
    "Authorization": TOKEN,
}  # fmt: skip
COMMIT = "10ca12e1ea5e"
ARCHITECTURES = ("amd64", "i386", "aarch64", "armv7hf", "rpi")
SAY = "trap 'exit 0' TERM; n=0; while :; do echo {}; sleep 1; done"


class Cli:
    """The CLI's connection to the agent. Every answer but 200 is a failure to it."""

    def __init__(self, device: Device) -> None:
        self._wire = http.client.HTTPConnection(device.machine.address, 48484, timeout=20)

    def ask(self, method: str, path: str, body: Json | None = None) -> http.client.HTTPResponse:
        sent = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        self._wire.request(method, path, sent, HEADERS | kind)
        answer = self._wire.getresponse()
        assert answer.status == 200, (path, answer.status, answer.read())
        return answer

    def json(self, method: str, path: str, body: Json | None = None) -> Json:
        answer = self.ask(method, path, body)
        assert answer.headers.get_content_type() == "application/json"
        found = dict(json.loads(answer.read()))
        assert found["status"] == "success", found
        return found

    def close(self) -> None:
        """Until the next request. The agent keeps an idle connection for ten seconds only, and a
        build may take longer."""
        self._wire.close()

    # -- the parts of a push

    def greet(self) -> None:
        assert self.ask("GET", "/ping").read() == b"OK"
        version = self.json("GET", "/v2/version")["version"]
        found = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)(\+.*)?", version)
        assert found and tuple(map(int, found.groups()[:3])) >= (9, 7, 0), "can be pushed to live"

    def device_info(self) -> None:
        info = self.json("GET", "/v2/local/device-info")["info"]
        assert set(info) == {"arch", "deviceType"} and info["arch"] in ARCHITECTURES
        assert isinstance(info["deviceType"], str) and info["deviceType"]

    def deploy(self, services: Json, **app: Any) -> Json:
        """Take the state, put the app into it, give it back; the state that was sent."""
        state = dict(self.json("GET", "/v2/local/target-state")["state"])
        local = state["local"]
        assert isinstance(local["name"], str) and isinstance(local["apps"], dict)
        assert all(isinstance(value, str) for value in local["config"].values())
        made = {"name": "localapp", "commit": COMMIT, "releaseId": "1", "services": services}
        state["local"] = {**local, "apps": {"1": {**made, "volumes": {}, "networks": {}, **app}}}
        answer = self.json("POST", "/v2/local/target-state", state)
        assert answer == {"status": "success", "message": "OK"}
        return state

    def status(self) -> Json:
        found = self.json("GET", "/v2/state/status")
        assert found["appState"] in ("applying", "applied")
        return found

    def applied(self, device: Device) -> dict[str, str]:
        """Poll as the CLI does; then the containers by service."""
        device.until(lambda: self.status()["appState"] == "applied", 40, "the app is applied")
        found = self.status()
        assert found["release"] == COMMIT
        return {each["serviceName"]: each["containerId"] for each in found["containers"]}


@pytest.fixture
def cli(device: Device) -> Iterator[Cli]:
    """The device has an OS for development, which is open to its network."""
    device.configure({"uuid": UUID, "developmentMode": True})
    with contextlib.closing(Cli(device)) as found:
        yield found
    device.configure(None)


@contextlib.contextmanager
def logs(device: Device) -> Iterator[http.client.HTTPResponse]:
    with contextlib.closing(Cli(device)) as listener:
        answer = listener.ask("GET", "/v2/local/logs")
        assert json.loads(answer.readline()) == FIRST, "the CLI waits for a line"
        yield answer


def until(stream: http.client.HTTPResponse, service: str, text: str) -> list[Json]:
    """The lines up to one that a service (or "", the system) has said, checked as the CLI reads
    them."""
    seen: list[Json] = []
    while not seen or (seen[-1].get("serviceName", ""), text) != (service, seen[-1]["message"]):
        assert len(seen) < 100, seen[-8:]
        raw = stream.readline()
        assert raw.endswith(b"\n"), "the stream never ends by itself"
        seen.append(json.loads(raw))
        assert isinstance(seen[-1]["message"], str)
        assert isinstance(seen[-1]["timestamp"], int) and seen[-1]["timestamp"] > 1e12
        assert isinstance(seen[-1].get("serviceName", ""), str)
    return seen


def build(device: Device, service: str, word: str, pulled: bool = False) -> str:
    """What the CLI makes of a service's directory; the image's id. Always the same names."""
    name = f"local_image_{service}:latest" if pulled else f"local_{service}"
    labels = [f"LABEL io.resin.local.service={service} io.resin.local.image=1 word={word}"]
    command = ("/bin/sh", "-c", SAY.format(word))
    return images.build(device.machine, name, cmd=command, changes=labels).id


def member(number: int, service: str, image: str, **compose: Any) -> Json:
    return {
        "environment": {}, "labels": {}, "tty": False, **compose, "imageId": number,
        "serviceId": number, "serviceName": service, "image": image, "running": True,
    }  # fmt: skip


def both(**environment: str) -> Json:
    web = member(1, "web", "local_web", environment={"MODE": "dev", **environment},
                 stop_grace_period="1s", ports=["18080:80"], volumes=["data:/data"])  # fmt: skip
    return {"1": web, "2": member(2, "cache", "local_image_cache:latest", restart="always")}


def test_a_push_from_beginning_to_end(device: Device, cli: Cli) -> None:
    cli.greet()
    cli.device_info()
    cli.close()
    build(device, "web", "first")
    build(device, "cache", "cached", pulled=True)
    cli.deploy(both(), volumes={"data": {}})
    with logs(device) as stream:
        cli.device_info()
        ids = cli.applied(device)
        assert ids == {"web": device.of("web")["Id"], "cache": device.of("cache")["Id"]}
        until(stream, "web", "first")

    names = set(device.containers())
    assert names == {f"web_1_1_{COMMIT}", f"cache_2_1_{COMMIT}"}
    assert all(re.match(r"[a-z]+_\d+_\d+", name) for name in names), "as device ssh looks for it"
    web = device.inspect("web")
    assert "MODE=dev" in web["Config"]["Env"]
    assert web["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"] == "18080"
    assert "1_data" in device.volumes()

    state = cli.json("GET", "/v2/local/target-state")["state"]
    assert state["local"]["apps"]["1"]["commit"] == COMMIT and state["local"]["config"]
    assert TOKEN.split()[1] not in device.said("-b"), "a user's token is never written down"


def test_a_push_without_changes_touches_nothing(device: Device, cli: Cli) -> None:
    build(device, "web", "first")
    build(device, "cache", "cached", pulled=True)
    cli.deploy(both(), volumes={"data": {}})
    before = cli.applied(device)
    with device.engine_events() as events:
        cli.greet()
        cli.deploy(both(), volumes={"data": {}})
        assert cli.applied(device) == before
    assert events == []


def test_changed_files_and_a_changed_recipe_are_pushed_live(device: Device, cli: Cli) -> None:
    """Changed files restart a container behind the agent's back; a changed recipe removes it, and
    the same target then brings back what its image has become."""
    build(device, "web", "first")
    build(device, "cache", "cached", pulled=True)
    cli.deploy(both(EXTRA="1"), volumes={"data": {}})
    before = cli.applied(device)
    cli.close()
    device.engine("POST", "/containers/create?name=helper", {
        "Image": "local_web", "Entrypoint": ["sleep", "1000"],
    })  # fmt: skip
    device.engine("POST", "/containers/helper/start")
    with logs(device) as stream:
        device.engine("POST", f"/containers/{before['web']}/kill")
        device.engine("POST", f"/containers/{before['web']}/start")
        until(stream, "web", "first")
        assert cli.applied(device) == before and device.inspect("web")["State"]["Running"]
        answer = cli.json("GET", "/v2/containerId?serviceName=web")
        assert answer == {"status": "success", "containerId": before["web"]}

        cli.close()
        fresh = build(device, "web", "second")
        answer = cli.json("GET", "/v2/containerId?serviceName=web")
        # Another one than before, if the agent has seen by itself that the image is another.
        device.exec("docker", "rm", "-f", answer["containerId"], check=False)
        cli.deploy(both(), volumes={"data": {}})  # what --env gave is lost here
        now = cli.status()
        assert now["appState"] == "applying" or device.inspect("web")["Image"] == fresh
        after = cli.applied(device)
        until(stream, "web", "second")
    assert after["web"] != before["web"] and after["cache"] == before["cache"]
    assert device.inspect("web")["Image"] == fresh
    assert "EXTRA=1" not in device.inspect("web")["Config"]["Env"]
    assert device.containers()["helper"]["State"] == "running", "it is not ours to touch"


def test_an_image_that_has_changed_is_enough(device: Device, cli: Cli) -> None:
    """A whole second push: nothing removed before, the same names, another image behind one."""
    build(device, "web", "first")
    build(device, "cache", "cached", pulled=True)
    cli.deploy(both(), volumes={"data": {}})
    before = cli.applied(device)
    cli.close()
    fresh = build(device, "web", "second")
    cli.greet()
    cli.deploy(both(), volumes={"data": {}})
    after = cli.applied(device)
    assert after["web"] != before["web"] and after["cache"] == before["cache"]
    assert device.inspect("web")["Image"] == fresh


def test_a_project_without_a_composition(device: Device, cli: Cli) -> None:
    """One service `main` with the labels of old, as the CLI makes it up."""
    build(device, "main", "alone")
    features = ("kernel-modules", "firmware", "dbus", "supervisor-api", "resin-api")
    labels = {f"io.resin.features.{name}": "1" for name in features}
    main = member(1, "main", "local_main", labels=labels, tty=True, restart="always",
                  network_mode="host", volumes=["resin-data:/data"])  # fmt: skip
    cli.deploy({"1": main}, volumes={"resin-data": {}})
    assert set(cli.applied(device)) == {"main"}
    made = device.inspect("main")
    assert made["Config"]["Tty"] and made["HostConfig"]["NetworkMode"] == "host"
    assert made["HostConfig"]["RestartPolicy"]["Name"] == "always"
    mounted = {each["Destination"]: each for each in made["Mounts"]}
    assert mounted["/data"]["Name"] == "1_resin-data"
    assert "/host/run/dbus" in mounted
    variables = dict(each.split("=", 1) for each in made["Config"]["Env"])
    assert variables["RESIN_SUPERVISOR_ADDRESS"] == variables["BALENA_SUPERVISOR_ADDRESS"]
    assert variables["BALENA_SUPERVISOR_ADDRESS"].endswith(":48484")


def test_what_is_wrong_with_a_target_is_said(device: Device, cli: Cli) -> None:
    """The CLI shows the message of a 400."""
    state = cli.json("GET", "/v2/local/target-state")["state"]
    wrong = {"name": "localapp", "commit": COMMIT, "releaseId": "1",
             "services": {"1": member(1, "bad name", "local_web")}}  # fmt: skip
    state["local"]["apps"] = {"1": wrong}
    answer = device.api("POST", "/v2/local/target-state", state, key="", headers=HEADERS)
    assert answer.status == 400 and answer.json()["status"] == "failed"
    assert "Invalid target state" in answer.json()["message"]
    assert "bad name" in answer.json()["message"]
