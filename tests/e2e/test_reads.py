"""Reads never call the engine: they show what the agent knows, and nobody waits for anything.

What a read is comes from the API's own description, so a new one is asked here too. The witness of
the first test is the engine, which notes every request when it is told to; of the second a clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from e2e_device import Device
from e2e_logs import LOGS, stream
from e2e_targets import Json, service, target

ENGINE = "docker.service"
NO_READS = {"cleanupVolumes": "removes volumes, though it is a GET"}
PATIENCE = 4.0
"""Seconds in which every read is answered, whatever the engine does: fewer than the agent itself
ever waits for the engine."""

ROUNDS = 20
LOOK_SECONDS = 60
"""From one full look of the agent at the engine to the next."""

WITHOUT_ENGINE = {
    "/v1/apps/1": 503, "/v1/device": 503, "/v2/applications/state": 503,
    "/v2/applications/1/state": 500, "/v2/containerId": 503, "/v2/state/status": 503,
    "/v2/local/target-state": 503,
}  # fmt: skip
"""What else is answered as with the engine (spec 10 §7)."""


def reads(device: Device) -> list[str]:
    """The path of every endpoint that shows something and ends."""
    document = device.api("GET", "/v2/openapi.json").json()
    return [
        path.replace("{appId}", "1")
        for path, methods in document["paths"].items()
        if "get" in methods and methods["get"]["operationId"] not in NO_READS and path != LOGS
    ]


def expected(path: str) -> int:
    """The status with the engine; the tags of a device without a cloud cannot be read."""
    return 500 if path == "/v2/device/tags" else 200


def one(environment: Json | None = None) -> Json:
    return target(service("web", 1, environment=environment or {}))


@pytest.fixture
def noting(device: Device) -> Iterator[Device]:
    """A device whose engine writes down what it is asked."""
    conf = device.machine.inner_path("/etc/docker/daemon.json")
    kept = conf.read_text()
    conf.write_text(json.dumps(json.loads(kept) | {"debug": True}))
    device.exec("systemctl", "kill", "-s", "HUP", "--kill-who=main", ENGINE)
    device.until(lambda: device.engine("GET", "/info")["Debug"], 10, "the engine notes")
    yield device
    conf.write_text(kept)
    device.exec("systemctl", "kill", "-s", "HUP", "--kill-who=main", ENGINE)


def asked(device: Device, cursor: str = "") -> tuple[list[str], str]:
    """The requests that the engine has noted since the cursor, and the cursor of now."""
    device.exec("journalctl", "--sync")
    after = [f"--after-cursor={cursor}"] if cursor else ["-n0"]
    words = ("journalctl", "-q", "-o", "cat", "--show-cursor", *after)
    *lines, last = device.exec(*words).stdout.splitlines() or [""]
    found = last.startswith("-- cursor: ")
    calls = [line.partition("Calling ")[2] for line in lines if "Calling " in line]
    return calls, last.removeprefix("-- cursor: ") if found else cursor


def test_the_engine_hears_nothing_of_reads(noting: Device) -> None:
    device = noting
    _, begun = asked(device)
    device.apply(one())
    calls, _ = asked(device, begun)
    assert any("/containers/create" in call for call in calls), "the witness is awake"
    paths = reads(device)
    _quiet(device)
    _, before = asked(device)
    end = time.monotonic() + LOOK_SECONDS / 2
    for number in range(ROUNDS):
        if number and time.monotonic() > end:
            break  # the rounds are over before the agent looks again
        for path in paths:
            assert (device.api("GET", path).status, path) == (expected(path), path)
            assert device.api("HEAD", path).status == expected(path)
        with stream(device) as logs:
            assert logs.status == 200 and logs.line()
    assert asked(device, before)[0] == []


def _quiet(device: Device) -> None:
    """Just after a full look of the agent at the engine: the next one is a minute away."""
    _, begun = asked(device)
    device.post(one())  # is looked after, though nothing is to be done
    device.until(lambda: asked(device, begun)[0], 10, "the agent looks at the engine")
    device.settled()

    def rests() -> bool:
        _, since = asked(device)
        time.sleep(0.5)
        return asked(device, since)[0] == []

    device.until(rests, 20, "the agent looks no more")


def test_a_hanging_engine_holds_up_no_read(device: Device) -> None:
    """Not before the agent notices, not while, and not after."""
    device.apply(one())
    paths = reads(device)
    pid = device.show("MainPID", unit=ENGINE)["MainPID"]
    device.exec("kill", "-STOP", pid)
    try:
        _ask_all(device, paths, lambda path: {expected(path)})
        device.post(one({"A": "2"}))

        def noticed() -> bool:
            _ask_all(device, paths, _either)
            return bool(device.get("EngineState") == "down")

        device.until(noticed, 40, "the silence is noticed")
        for _ in range(5):
            _ask_all(device, paths, lambda path: {WITHOUT_ENGINE.get(path, expected(path))})
    finally:
        device.exec("kill", "-CONT", pid)
    device.settled(60)
    assert "A=2" in device.inspect("web")["Config"]["Env"]


def _either(path: str) -> set[int]:
    return {expected(path), WITHOUT_ENGINE.get(path, expected(path))}


def _ask_all(device: Device, paths: Sequence[str], wanted: Callable[[str], set[int]]) -> None:
    for path in paths:
        began = time.monotonic()
        answer = device.api("GET", path, timeout=PATIENCE)
        assert time.monotonic() - began < PATIENCE, path
        assert answer.status in wanted(path), (path, answer)
    with stream(device, seconds=PATIENCE) as logs:
        assert logs.status == 200 and logs.line()
