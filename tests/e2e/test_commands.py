"""Service actions, update locks, reboots: over HTTP, D-Bus and balena-agentctl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_device import LOCK_FILES, Device
from e2e_targets import OTHER_IMAGE, pair, service, target

LOCKED = "Lockfile exists for { appId: 1, service: one }"
CHANGED = pair(environment={"COLOUR": "blue"})


@pytest.mark.parametrize("named", [{"serviceName": "one"}, {"imageId": 11}, {"imageId": "11"}])
def test_a_service_is_stopped_started_and_restarted(
    device: Device, named: dict[str, object]
) -> None:
    device.apply(pair())
    first, other = device.of("one")["Id"], device.of("two")["Id"]
    assert device.action("stop", **named).status == 200
    assert (device.of("one")["State"], device.of("one")["Id"]) == ("exited", first)
    device.apply(pair())
    assert device.of("one")["State"] == "exited"
    assert device.action("start", **named).status == 200
    assert (device.of("one")["State"], device.of("one")["Id"]) == ("running", first)
    answer = device.action("restart", **named)
    assert (answer.status, answer.text) == (200, "OK")
    assert device.of("one")["Id"] != first
    assert device.running("one", "two")
    device.settled()
    assert device.of("two")["Id"] == other
    assert device.lock_files() == []


def test_a_stopped_service_stays_stopped_until_a_new_commit(device: Device) -> None:
    device.apply(pair())
    assert device.action("stop", serviceName="one").status == 200
    device.restart()
    device.settled()
    assert device.of("one")["State"] == "exited"
    device.apply(pair(2, environment={"A": "1"}))
    assert device.running("one", "two")


def test_a_command_that_is_met_already_is_met(device: Device) -> None:
    device.apply(pair())
    before = device.ids()
    assert device.action("start", serviceName="one").status == 200
    assert device.action("stop", serviceName="one").status == 200
    assert device.action("stop", serviceName="one").status == 200
    assert device.ids() == before


def held(device: Device) -> None:
    """The update that is asked for waits for the user's lock, and says so."""
    device.until(lambda: device.plan()["failures"], 15, "the lock is met")
    (failure,) = device.plan()["failures"]
    assert (failure["step"], failure["locked"]) == ("take-locks", True)
    assert LOCKED in failure["error"] or "service: two" in failure["error"]
    assert device.get("UpdatePending") is True
    assert "Updates are locked, retrying in " in device.said()
    # With every attempt it takes what it can, and gives it back.
    users = lambda: sum(name.startswith("1/") for name in device.lock_files()) == 1  # noqa: E731
    device.until(users, 10, "the agent holds none")


def test_S11_S12_a_users_lock_holds_the_update_until_it_is_gone(device: Device) -> None:
    device.apply(pair())
    before = device.ids()
    path = device.lock("one")
    device.post(CHANGED)
    held(device)
    assert device.get("UpdateFailed") is True
    assert LOCKED in device.said()
    assert "one" in device.status_text() or "lock" in device.status_text()
    assert device.ids() == before and device.running("one", "two")
    path.unlink()
    device.settled()
    assert device.of("one")["Id"] != before["one_11_1_c1"]
    assert (device.get("UpdateFailed"), device.get("UpdatePending")) == (False, False)
    assert device.lock_files() == []


def test_S13_force_overrides_the_users_lock(device: Device) -> None:
    before = device.apply(pair())["one_11_1_c1"]["Id"]
    device.lock("one")
    device.post(CHANGED)
    held(device)
    device.apply(CHANGED, force=True)
    assert device.of("one")["Id"] != before
    assert device.lock_files() == []
    # The override ends with the update that it was given for.
    device.lock("one")
    device.post(pair(environment={"COLOUR": "red"}))
    held(device)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def plain(path: Path) -> None:
    assert path.is_file()


@pytest.mark.parametrize("name", LOCK_FILES)
@pytest.mark.parametrize("shape", [plain, directory, dangling])
def test_S14_S15_whatever_bears_the_name_is_a_lock(
    device: Device, shape: Callable[[Path], None], name: str
) -> None:
    device.apply(pair())
    before = device.ids()
    path = device.lock("one", name)
    shape(path)
    assert device.action("restart", serviceName="one").status == 423
    assert device.ids() == before
    assert path.is_symlink() or path.exists()
    assert device.action("restart", serviceName="one", force=True).status == 200
    assert device.ids() != before
    device.settled()
    assert device.lock_files() == []


def test_S16_leftover_locks_of_the_agent_do_not_count(device: Device) -> None:
    before = device.apply(pair())["one_11_1_c1"]["Id"]
    for name in LOCK_FILES:
        device.lock("one", name, uid=65534)
    device.apply(CHANGED)
    assert device.of("one")["Id"] != before
    assert device.lock_files() == []


def test_S16_leftover_locks_are_gone_after_a_start(device: Device) -> None:
    """A service could never take its own lock if they stayed."""
    device.apply(pair())
    for name in LOCK_FILES:
        device.lock("two", name, uid=65534)
    device.restart()
    device.settled()
    device.until(lambda: device.lock_files() == [], 10, "the leftovers are removed")


def test_S17_a_lock_of_one_service_holds_its_whole_app(device: Device) -> None:
    device.apply(pair())
    before = device.ids()
    path = device.lock("two")
    device.post(CHANGED)
    held(device)
    assert device.ids() == before
    path.unlink()
    device.settled()


def test_S18_images_are_fetched_under_a_lock(device: Device) -> None:
    device.apply(pair())
    device.engine("DELETE", "/images/fetched:1?force=1")
    device.engine("POST", f"/images/{OTHER_IMAGE}/tag?repo=fetched&tag=0")
    device.exec("systemctl", "start", "docker-registry")
    name = f"{device.machine.registry}/fetched:1"
    device.exec("docker", "tag", OTHER_IMAGE, name)
    device.exec("docker", "push", name)
    device.exec("docker", "rmi", name)
    path = device.lock("one")
    before = device.ids()
    device.post(pair(2, image=name))
    held(device)
    assert device.get("UpdateDownloaded") is True
    assert device.engine("GET", f"/images/{name}/json")["Id"]
    assert device.ids() == before
    path.unlink()
    device.settled()
    assert device.get("UpdateDownloaded") is False


def test_S20_locks_are_held_while_a_service_is_down(device: Device) -> None:
    slow = {"command": ["sleep", "3600"], "stop_grace_period": "8s"}
    device.apply(target(service("one", 1, **slow), service("two", 2)))
    device.post(target(service("one", 1, **slow, environment={"A": "1"}), service("two", 2)))
    locks = [f"1/{name}/{file}" for name in ("one", "two") for file in sorted(LOCK_FILES)]
    device.until(lambda: device.lock_files() == sorted(locks), 10, "every lock is taken")
    parent = device.machine.inner_path("/tmp/balena-supervisor/services/1/one")
    assert parent.stat().st_mode & 0o7777 == 0o1777
    assert {path.stat().st_uid for path in parent.iterdir()} == {65534}
    device.settled(60)
    assert device.lock_files() == []


def test_a_lock_refuses_commands_with_423(device: Device) -> None:
    device.apply(pair())
    before = device.ids()
    path = device.lock("one")
    for verb in ("stop", "restart"):
        answer = device.action(verb, serviceName="two")
        assert (answer.status, answer.json()) == (423, {"status": "failed", "message": LOCKED})
    reboot = device.api("POST", "/v1/reboot", {})
    assert (reboot.status, reboot.json()) == (423, {"Data": "", "Error": LOCKED})
    assert device.api("POST", "/v1/shutdown", {"force": False}).status == 423
    assert device.action("start", serviceName="two").status == 200
    assert device.ids() == before
    assert path.exists() and device.running("one", "two")
    # A refused command is not done later.
    path.unlink()
    device.apply(pair())
    assert device.ids() == before and device.running("one", "two")


def test_keys_open_what_they_are_for(device: Device) -> None:
    """A service's key: its own app and no other; no key of the device is in any container."""
    label = {"io.balena.features.supervisor-api": "1"}
    device.apply(pair(labels=label))
    variables = dict(v.split("=", 1) for v in device.inspect("one")["Config"]["Env"])
    key = variables["BALENA_SUPERVISOR_API_KEY"]
    assert key and key != device.machine.api_key
    state = device.api("GET", "/v2/applications/state", key=key)
    assert (state.status, list(state.json())) == (200, ["fleet"])
    body = {"serviceName": "two"}
    stranger = device.api("POST", "/v2/applications/2/stop-service", body, key=key)
    assert stranger.status == 401
    assert device.api("GET", "/v2/state/status", key="0" * 32).status in (200, 401)
    shown = json.dumps(device.api("GET", "/v2/local/target-state").json())
    assert key not in shown and device.machine.api_key not in shown
