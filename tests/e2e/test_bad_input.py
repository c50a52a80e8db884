"""What is wrong is refused or reported, in words, and holds up nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from device import enter
from e2e_device import Device
from e2e_targets import app, apps, pair, service, target

PATH = "/v2/local/target-state"
JSON = {"Content-Type": "application/json"}


def deep(**more: Any) -> Any:
    return target({**service("one", 1), **more})


BROKEN = [
    (deep(environment={"A": 5}), "$.local.apps.1.services.1.environment.A"),
    (deep(environment={" A": "5"}), "$.local.apps.1.services.1.environment"),
    (deep(running="maybe"), "$.local.apps.1.services.1.running"),
    (deep(image=None), "$.local.apps.1.services.1.image"),
    (deep(labels=["a"]), "$.local.apps.1.services.1.labels"),
    (deep(serviceName="one two"), "$.local.apps.1.services.1.serviceName"),
    (target(volumes={"a b": {}}), "$.local.apps.1.volumes"),
    (apps({"abc": app()}), "$.local.apps.abc"),
    (apps({"1": None}), "$.local.apps.1"),
    ({"local": {"apps": []}}, "$.local.apps"),
    ({"local": 5}, "$.local"),
]


def test_S37_S38_a_bad_target_is_refused_with_the_path_of_its_fault(device: Device) -> None:
    device.apply(pair())
    before = device.ids()
    for document, path in BROKEN:
        answer = device.post(document, status=400)
        said = answer.json()["message"]
        assert said.startswith("Invalid target state.") and path in said, said
        assert "Traceback" not in answer.text
        assert device.is_settled() and device.ids() == before
        shown = device.api("GET", PATH).json()["state"]["local"]["apps"]
        assert shown == pair()["local"]["apps"]
    assert "Traceback" not in device.said()


def test_what_is_no_json_object_is_refused(device: Device) -> None:
    device.apply(pair())
    for raw in (b"{", b"\xff\xfe", b"5", b'"x"', b"null", b"[1", b"NaN"):
        answer = device.api("POST", PATH, raw, headers=JSON)
        assert answer.status in (400, 503), raw
        assert answer.json()["status"] == "failed"
        assert "Traceback" not in answer.text
    assert device.is_settled() and device.running("one", "two")
    assert "Traceback" not in device.said()


def test_odd_requests_do_no_harm(device: Device) -> None:
    device.apply(pair())
    for path in ("/v2/applications/x/stop-service", "/v2/applications/0/stop-service"):
        assert device.api("POST", path, {"serviceName": "one"}).status == 400
    assert device.action("stop").status == 400
    assert device.action("stop", serviceName="nobody").status == 404
    assert device.api("POST", "/v2/applications/99/stop-service", {"serviceName": "one"}).status
    assert device.api("GET", "/v2/%zz").status in (400, 404, 503)
    assert device.api("BREW", "/v2/version").status in (404, 501)
    huge = device.api("POST", PATH, b"[" + b" " * (11 * 2**20) + b"]", headers=JSON)
    assert huge.status in (400, 413, 503)
    nested = b"[" * 100_000
    assert device.api("POST", PATH, nested, headers=JSON).status in (400, 503)
    assert "Traceback" not in device.said()
    assert device.running("one", "two")


def good_comes_quickly(device: Device) -> None:
    """Nothing is wedged: a good target still applies at once."""
    begun = time.monotonic()
    device.apply(pair(9, environment={"GOOD": "1"}), seconds=30)
    assert device.running("one", "two")
    assert time.monotonic() - begun < 15.0
    assert device.plan()["failures"] == [] and device.plan()["waits"] == []


def test_an_absent_image_is_told_in_the_engines_words(device: Device) -> None:
    device.apply(pair())
    kept, begun = device.ids(), time.time()
    device.post(pair(2, image="192.168.231.254:1/none:1"))

    def failure() -> dict[str, Any]:
        """The first one that something waits for: nothing does while it is tried again."""
        plan = device.plan()
        reasons = [str(wait["reason"]) for wait in plan["waits"]]
        found = (f for f in plan["failures"] if any(f["error"] in reason for reason in reasons))
        return dict(next(found, {}))

    # A registry that nobody is behind: the engine needs its time to say so.
    told = device.until(failure, 30, "the failed download is told")
    assert (told["step"], told["service"]) == ("fetch", "one")
    assert "192.168.231.254:1" in told["error"]
    assert told["retryAt"] > begun
    assert device.ids() == kept and device.running("one", "two")
    assert "Failed to download image" in device.said()
    good_comes_quickly(device)
    assert "Traceback" not in device.said()


@pytest.fixture
def taken(device: Device) -> Iterator[int]:
    """A port of the device that another program listens on."""
    program = (
        "import socket,time; s = socket.socket();"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('0.0.0.0', 7007));"
        "s.listen(); print('listening', flush=True); time.sleep(3600)"
    )
    holder = device.machine.popen("python3", "-c", program)
    assert holder.stdout is not None and holder.stdout.readline() == "listening\n"
    yield 7007
    enter.stop(holder)
    holder.wait()


def test_a_port_in_use_is_told_and_holds_up_nobody_else(device: Device, taken: int) -> None:
    one = service("one", 1, ports=[f"{taken}:80"])
    other = app(service("other", 5), name="other")
    device.post(apps({"1": app(one, service("two", 2)), "2": other}))

    def failure() -> dict[str, Any]:
        found = [f for f in device.plan()["failures"] if f["service"] == "one"]
        return dict(found[0]) if found else {}

    device.until(failure, 20, "the failed start is told")
    assert failure()["step"] == "start"
    assert "address already in use" in failure()["error"]
    device.until(lambda: device.of("two").get("State") == "running", 10, "two runs")
    device.until(lambda: device.of("other").get("State") == "running", 10, "other runs")
    entries = [e for e in device.journal() if e.get("SERVICE") == "one" and e["PRIORITY"] == "4"]
    assert "address already in use" in str(entries[0]["MESSAGE"])
    device.until(lambda: "one: " in device.status_text(), 10, "the status names it")
    good_comes_quickly(device)
    assert "Traceback" not in device.said()


def test_a_port_that_becomes_free_is_used(device: Device, taken: int) -> None:
    device.post(target(service("one", 1, ports=[f"{taken}:80"])))
    device.until(lambda: device.plan()["failures"], 20, "the failed start is told")
    device.exec("sh", "-c", "kill $(ss -Hltnp sport = 7007 | sed 's/.*pid=\\([0-9]*\\).*/\\1/')")
    device.until(lambda: device.running("one"), 20, "the service has its port")
    device.settled()
    assert device.plan()["failures"] == []


def test_a_command_that_cannot_run_is_told(device: Device) -> None:
    device.post(pair(entrypoint=["/no/such/file"]))
    device.until(lambda: device.plan()["failures"], 20, "the failed start is told")
    (failure,) = device.plan()["failures"]
    assert (failure["step"], failure["service"]) == ("start", "one")
    assert "no such file" in failure["error"]
    device.until(lambda: device.of("two").get("State") == "running", 10, "two runs")
    good_comes_quickly(device)
