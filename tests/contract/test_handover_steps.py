"""Hand-overs against the real thing: the engine's two steps, and the wait on real files."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from engine_worlds import RealWorld, Slip, World, needs_engine

from balena_agent.core.errors import Cancelled, EngineFailed
from balena_agent.core.names import retired_name
from balena_agent.core.steps import (
    AwaitHandover,
    CreateContainer,
    ReinstateContainer,
    RetireContainer,
    StartContainer,
)
from balena_agent.engine.client import path
from balena_agent.host.handover import FILES, Handovers
from balena_agent.host.locks import UpdateLocks

pytest_plugins = ["engine_fixtures"]

ALWAYS = {"Name": "always", "MaximumRetryCount": 0}
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="the directories are root's")


# ---- the engine ----------------------------------------------------------------------------------


def test_a_container_retires_and_is_reinstated(world: World) -> None:
    web = world.running(restart="always")
    assert web.name and not web.retired
    where = (world.uuid, "web", web.id)
    world.checked(RetireContainer(*where, web.name))
    old = world.container("web")
    assert (old.retired, old.name, old.raw_name) == (True, web.name, retired_name(web.name))
    assert (old.id, old.state) == (web.id, "running")
    assert old.spec.fields["HostConfig.RestartPolicy"]["Name"] == "no"
    world.checked(ReinstateContainer(*where, web.name, ALWAYS))
    again = world.container("web")
    assert (again.raw_name, again.retired, again.spec) == (web.raw_name, False, web.spec)


def test_the_policy_that_is_given_back_is_the_one_that_is_asked_for(world: World) -> None:
    web = world.running(restart="on-failure:3")
    assert web.name
    where, name = (world.uuid, "web", web.id), "HostConfig.RestartPolicy"
    world.do(RetireContainer(*where, web.name))
    world.do(ReinstateContainer(*where, web.name, web.spec.fields[name]))
    assert world.container("web").spec == web.spec


def test_the_new_container_runs_beside_the_retired_one(world: World) -> None:
    web = world.running()
    assert web.name
    world.checked(RetireContainer(world.uuid, "web", web.id, web.name))
    wanted = world.service(environment={"A": "b"})
    world.checked(CreateContainer(wanted), twice=False)
    new = next(c for c in world.containers() if c.id != web.id)
    world.checked(StartContainer(world.uuid, "web", new.id))
    assert [c.state for c in world.containers()] == ["running", "running"]
    assert {c.retired for c in world.containers()} == {True, False}


def test_a_name_that_is_taken_is_told(world: World) -> None:
    web = world.running()
    assert web.name
    world.intrude(retired_name(web.name))
    with pytest.raises(EngineFailed) as caught:
        world.do(RetireContainer(world.uuid, "web", web.id, web.name))
    assert caught.value.status == 409
    assert world.container("web").raw_name == web.raw_name


def test_a_container_that_is_gone_cannot_retire(world: World) -> None:
    name = world.service().container_name
    where = (world.uuid, "web", "0" * 64)
    for step in (RetireContainer(*where, name), ReinstateContainer(*where, name, ALWAYS)):
        with pytest.raises(EngineFailed) as caught:
            world.do(step)
        assert caught.value.status == 404


@needs_engine
def test_a_retired_container_that_ends_is_not_started_again(real: RealWorld) -> None:
    """The peer's way of taking the policy away changes nothing (spec 20 §15.3)."""
    web = real.running(restart="always")
    assert web.name
    real.do(RetireContainer(real.uuid, "web", web.id, web.name))
    # The main process ends by itself: a stop or kill by the API would end the policy as well.
    pid = real.client.get(path("containers", web.id, "json"))["State"]["Pid"]
    os.kill(pid, 9)
    real.client.request("POST", path("containers", web.id, "wait"), limit=20)
    time.sleep(1.0)  # the engine's first restart comes after 100 ms
    seen = real.client.get(path("containers", web.id, "json"))
    assert (seen["State"]["Status"], seen["RestartCount"]) == ("exited", 0)


@needs_engine
def test_a_name_that_is_left_is_free_for_another(real: RealWorld) -> None:
    """Creating does not remove the retired container for being "in the way"."""
    web = real.running()
    assert web.name
    real.do(RetireContainer(real.uuid, "web", web.id, web.name))
    real.do(CreateContainer(real.service()))
    assert {c.state for c in real.containers()} == {"running", "created"}


# ---- the wait ------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "balena-supervisor" / "services"


@pytest.fixture
def locks(place: Path) -> UpdateLocks:
    made = UpdateLocks(str(place))
    made.prepare_directory(7, "web")
    return made


def step(timeout: float = 20.0, service: str = "web") -> AwaitHandover:
    return AwaitHandover("app", 7, service, "old", "new", timeout)


@needs_root
@pytest.mark.parametrize("name", FILES)
def test_S35_either_file_ends_the_wait_and_is_removed(
    locks: UpdateLocks, place: Path, name: str
) -> None:
    signal, ended = place / "7" / "web" / name, threading.Event()

    def wait() -> None:
        Handovers(locks).wait(step(), Slip())
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not ended.wait(0.3)
    begun = time.monotonic()
    signal.touch()
    assert ended.wait(10) and time.monotonic() - begun < 5
    thread.join()
    assert not signal.exists()


@needs_root
@pytest.mark.parametrize("kind", ["directory", "dangling link", "of somebody else"])
def test_a_signal_of_any_kind_counts(locks: UpdateLocks, place: Path, kind: str) -> None:
    signal = place / "7" / "web" / FILES[0]
    if kind == "directory":
        signal.mkdir()
    elif kind == "dangling link":
        signal.symlink_to("/nowhere/at/all")
    else:
        signal.touch()
        os.chown(signal, 1000, 1000)
    Handovers(locks).wait(step(), Slip())
    assert not os.path.lexists(signal)


@needs_root
def test_S34_without_a_signal_the_wait_lasts_until_the_time_is_up(locks: UpdateLocks) -> None:
    begun = time.monotonic()
    Handovers(locks).wait(step(0.5), Slip())
    assert 0.5 <= time.monotonic() - begun < 5


@needs_root
def test_a_wait_that_is_given_up_ends_at_once(locks: UpdateLocks) -> None:
    slip = Slip()
    threading.Timer(0.2, slip.cancel).start()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        Handovers(locks).wait(step(), slip)
    assert time.monotonic() - begun < 5


@needs_root
def test_stale_signals_are_cleared(locks: UpdateLocks, place: Path) -> None:
    other = place / "7" / "web" / "mine"
    for name in FILES:
        (place / "7" / "web" / name).touch()
    other.touch()
    assert Handovers(locks).clear(7, "web")
    assert [p.name for p in (place / "7" / "web").iterdir()] == ["mine"]
    assert not Handovers(locks).clear(7, "web")


@needs_root
def test_a_directory_that_is_gone_or_a_link_holds_no_signal(
    locks: UpdateLocks, place: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / FILES[0]).touch()
    (place / "7" / "odd").symlink_to(elsewhere)
    for service in ("odd", "gone"):
        begun = time.monotonic()
        Handovers(locks).wait(step(0.3, service), Slip())
        assert time.monotonic() - begun >= 0.3
    assert (elsewhere / FILES[0]).exists()
