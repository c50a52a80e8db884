"""The conformance cases of the compose mapping, M01 to M98, on a real engine (spec 21 §16).

Most of them stand side by side on one device (see e2e_compose.py): `test_compose[test_M07]` judges
what was seen of M07 there. Those that break something on the way have a test function of their own,
which `data/compose-cases.json` names. So that none is missing: every id is there exactly once.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from device import images
from e2e_compose import CASES, DATA, SIDE_BY_SIDE, Bench, faults, life
from e2e_device import Device
from e2e_targets import IMAGE, Json, app, apps, service, target

pytestmark = pytest.mark.usefixtures("identity")

SHORT = {"stop_grace_period": "1s"}


@pytest.fixture(scope="module")
def bench(identity: None, module_device: Device) -> Bench:
    made = Bench(module_device)
    made.run()
    return made


def _param(case: Json) -> object:
    marks = [pytest.mark.xfail(reason=case["xfail"], strict=True)] if "xfail" in case else []
    return pytest.param(case, id=f"test_{case['id']}", marks=marks)


@pytest.mark.parametrize("case", map(_param, SIDE_BY_SIDE))
def test_compose(case: Json, bench: Bench) -> None:
    if "needs" in case and not bench.info[case["needs"]]:
        pytest.skip(f"the engine of this machine has no {case['needs']}, says its /info")
    assert faults(bench, case) == []
    asked = {key for parts in case["services"].values() for key in parts.get("expect_with", {})}
    if missing := sorted(key for key in asked if not bench.info[key]):
        pytest.skip(f"stable, but the engine of this machine has no {', '.join(missing)}")


def test_every_case_is_there_exactly_once() -> None:
    first, last = DATA["ids"]["first"], DATA["ids"]["last"]
    assert [case["id"] for case in CASES] == [f"M{n:02}" for n in range(first, last + 1)]
    named = {case["test"] for case in CASES if "services" not in case}
    assert named == {name for name in globals() if name.startswith("test_M")}
    assert all(f"_{case['id']}_" in case["test"] for case in CASES if "test" in case)


def test_the_device_settles_with_all_cases_on_it(bench: Bench) -> None:
    for name, look in bench.looks.items():
        assert look.settled, (name, look.plan)
        assert not [line for line in look.said if "Traceback" in line], name


def test_M93_without_its_database_the_agent_adopts_everything(bench: Bench) -> None:
    """All cases at once: containers whose making the agent does not know any more."""
    before, after = bench.looks["second again"].containers, bench.looks["adopted"].containers
    assert set(before) == set(after)
    replaced = {key for key in before if life(before[key]) != life(after[key])}
    assert replaced == set()


# ---- cases that break something on the way -------------------------------------------------------


def shared(**one: object) -> Json:
    """Service `two` in the network of service `one`."""
    two = service("two", 2, network_mode="service:one", **SHORT)
    return target(service("one", 1, **SHORT, **one), two)


def test_M69_the_owner_of_a_shared_network_starts_again(device: Device) -> None:
    device.apply(shared(command=["sh", "-c", "exec sleep 3600"]))
    one, before = device.inspect("one")["Id"], device.inspect("two")["Id"]
    device.exec("docker", "restart", "-t", "1", one)
    interfaces = ("docker", "exec", before, "ip", "-o", "addr")
    device.until(lambda: "eth0" in device.exec(*interfaces).stdout, 30, "two has a network again")
    assert (device.inspect("one")["Id"], device.inspect("two")["Id"]) == (one, before)
    device.settled()
    assert "Restarting service two: network of one was recreated" in device.said()
    began = [device.inspect(name)["State"]["StartedAt"] for name in ("one", "two")]
    for _ in range(2):
        device.apply(shared(command=["sh", "-c", "exec sleep 3600"]))
    assert [device.inspect(name)["State"]["StartedAt"] for name in ("one", "two")] == began
    assert began[0] < began[1]


def test_M77_a_gpu_that_is_not_there(device: Device) -> None:
    """The request reaches the engine, and where no driver answers, the engine's words are told."""
    device.post(target(service("one", 1, labels={"io.balena.features.gpu": "1"})))
    device.until(lambda: device.of("one"), 10, "the container is made")
    (asked,) = device.inspect("one")["HostConfig"]["DeviceRequests"]
    assert (asked["Count"], asked["Capabilities"]) == (1, [["gpu"]])
    device.until(lambda: device.plan()["failures"] or device.running("one"), 10, "an outcome")
    if not device.running("one"):
        (failure,) = device.plan()["failures"]
        assert (failure["step"], failure["service"]) == ("start", "one")
        assert "could not select device driver" in failure["error"]
    assert "Traceback" not in device.said()


def networked(*names: str) -> Json:
    one = service("one", 1, networks=list(names), **SHORT)
    return target(one, networks={"a": {}, "b": {}})


def members(device: Device) -> set[str]:
    return set(device.inspect("one")["NetworkSettings"]["Networks"])


def test_M91_a_network_that_was_taken_away_by_hand(device: Device) -> None:
    before = device.apply(networked("a", "b"))["one_11_1_c1"]["Id"]
    device.exec("docker", "network", "disconnect", "1_b", before)
    device.until(lambda: members(device) == {"1_a", "1_b"}, 30, "one is a member again")
    device.settled()
    after = device.inspect("one")
    assert (after["Id"], after["State"]["Status"]) == (before, "running")
    assert "one" in after["NetworkSettings"]["Networks"]["1_b"]["Aliases"]


def test_a_network_that_was_joined_by_hand_is_left_and_a_strangers_is_not(device: Device) -> None:
    document = target(service("one", 1, networks=["a"]), networks={"a": {}, "b": {}})
    before = device.apply(document)["one_11_1_c1"]["Id"]
    device.exec("docker", "network", "create", "theirs")
    try:
        for name in ("theirs", "1_b"):
            device.exec("docker", "network", "connect", name, before)
        device.until(lambda: members(device) == {"1_a", "theirs"}, 30, "one is out of 1_b again")
        device.settled()
        assert device.of("one")["Id"] == before
    finally:
        device.exec("docker", "network", "disconnect", "-f", "theirs", before, check=False)
        device.exec("docker", "network", "rm", "theirs")


def test_M92_a_restart_policy_that_was_changed_by_hand(device: Device) -> None:
    before = device.apply(target(service("one", 1)))["one_11_1_c1"]["Id"]
    device.exec("docker", "update", "--restart", "no", before)

    def policy() -> str:
        return str(device.inspect("one")["HostConfig"]["RestartPolicy"]["Name"])

    device.until(lambda: policy() == "always", 30, "the policy is as asked for")
    device.settled()
    assert device.of("one")["Id"] == before


def test_a_restart_policy_that_was_changed_while_the_agent_was_away(device: Device) -> None:
    """What the container was asked to be is known from the store."""
    before = device.apply(target(service("one", 1)))["one_11_1_c1"]["Id"]
    device.exec("systemctl", "stop", "balena-agent.service")
    device.exec("docker", "update", "--restart", "no", before)
    device.exec("systemctl", "start", "balena-agent.service")
    device.ready()
    device.settled()
    after = device.inspect("one")
    assert (after["Id"], after["HostConfig"]["RestartPolicy"]["Name"]) == (before, "always")


def test_M94_a_network_that_vanishes_while_a_container_is_made(device: Device) -> None:
    """Whoever removes the second network again and again never gets a half-joined container."""
    seen: list[set[str]] = []
    hit = False
    end = time.monotonic() + 8.0
    for pause in (0.01, 0.02, 0.03, 0.05) * 5:
        device.raze()
        device.post(networked("a", "b"))
        for _ in range(12):
            device.engine("DELETE", "/networks/1_b")
            if device.of("one").get("State") == "running":
                seen.append(members(device))
                break
            time.sleep(pause)
        hit = hit or any("1_b" in failure["error"] for failure in device.plan()["failures"])
        if hit or time.monotonic() > end:
            break
    device.post(networked("a", "b"))
    device.settled()
    assert all(found == {"1_a", "1_b"} for found in seen)
    assert members(device) == {"1_a", "1_b"} and device.running("one")
    if not hit:
        pytest.skip("settled, but the network never went between the creation and the joining")


def test_M95_a_program_for_another_architecture(device: Device, tmp_path: Path) -> None:
    program = tmp_path / "alien"
    # The head of a 64-bit little-endian ELF file for machine 0xfeed.
    program.write_bytes(b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xed\xfe\1\0\0\0" + bytes(200))
    program.chmod(0o755)
    images.build(device.machine, "alien:1", cmd=("/alien",), files={"/alien": program})
    device.post(target(service("one", 1, image="alien:1"), service("two", 2)))

    def ended() -> bool:  # the agent makes it anew when its start has failed
        return bool(device.inspected("one").get("RestartCount") or device.plan()["failures"])

    device.until(ended, 15, "the program cannot run")
    if not device.plan()["failures"]:
        assert "exec format error" in device.machine.journal(lines=200)
        pytest.skip("runc of this machine lets the start succeed, the program then fails by itself")
    (failure,) = device.plan()["failures"]
    assert failure["error"].startswith("Application architecture incompatible with ")
    assert failure["error"].endswith("exec format error")
    assert failure["error"] in device.said()
    device.until(lambda: device.of("two").get("State") == "running", 10, "two runs")


def test_M96_a_container_that_the_peer_made(device: Device) -> None:
    """A container whose making the agent does not know, with the body that the peer sends."""
    document = apps({"7": app(service("main", 3), name="app")})
    device.apply(document)
    variables = device.inspect("main")["Config"]["Env"]
    image = device.inspect("main")["Image"]
    device.start_over(between=lambda: _made_by_the_peer(device, image, variables))
    before = device.of("main")["Id"]
    device.apply(document)
    assert device.of("main")["Id"] == before
    asked = (
        "import sqlite3; db = sqlite3.connect('/var/lib/balena-agent/agent.sqlite');"
        "print(db.execute('SELECT container_id FROM container_intent').fetchall())"
    )
    assert device.exec("python3", "-c", asked).stdout.strip() == str([(before,)])


def _made_by_the_peer(device: Device, image: str, variables: list[str]) -> None:
    """The body of spec 21 §12.1, with the variables that tell who the device is as they were."""
    device.raze()
    labels = {
        "supervised": "true", "app-id": "7", "service-id": "3", "service-name": "main",
        "app-uuid": "7",
    }  # fmt: skip
    locks = "/tmp/balena-supervisor/services/7/main"
    host = {
        "CapAdd": [], "CapDrop": [], "Binds": [f"{locks}:/tmp/resin", f"{locks}:/tmp/balena"],
        "Mounts": [], "CgroupParent": "", "Devices": [], "DeviceRequests": [], "Dns": [],
        "DnsOptions": [], "DnsSearch": [], "PortBindings": {}, "ExtraHosts": [], "GroupAdd": [],
        "NetworkMode": "7_default", "PidMode": "", "PidsLimit": 0, "SecurityOpt": [], "Sysctls": {},
        "Ulimits": [], "RestartPolicy": {"Name": "always", "MaximumRetryCount": 0}, "CpuShares": 0,
        "CpuQuota": 0, "CpusetCpus": "", "Memory": 0, "MemoryReservation": 0,
        "OomKillDisable": False, "OomScoreAdj": 0, "Privileged": False, "ReadonlyRootfs": False,
        "ShmSize": 67108864, "Tmpfs": {}, "UsernsMode": "", "NanoCpus": 0, "IpcMode": "shareable",
    }  # fmt: skip
    endpoints = {"7_default": {"IPAMConfig": {}, "Aliases": ["main"]}}
    body = {
        "Tty": True, "Cmd": list(images.DEFAULT_CMD), "Entrypoint": [], "Volumes": {},
        "ExposedPorts": {}, "Image": image, "Env": variables,
        "Labels": {f"io.balena.{key}": value for key, value in labels.items()},
        "NetworkingConfig": {"EndpointsConfig": endpoints}, "StopSignal": "SIGTERM",
        "StopTimeout": 10, "Domainname": "", "Hostname": "", "MacAddress": "", "User": "",
        "WorkingDir": "", "Healthcheck": {"Test": ["NONE"]}, "HostConfig": host,
    }  # fmt: skip
    made = device.engine("POST", "/containers/create?name=main_13_1_c1", body)
    device.engine("POST", f"/containers/{made['Id']}/start")


def test_M98_a_stranger_has_our_name(device: Device) -> None:
    device.exec("docker", "run", "-d", "--name", "main_4_5_c0ffee", IMAGE)
    stranger = device.of("main")["Id"]
    main = {**service("main", 3), "imageId": 4}
    device.post(apps({"7": {**app(main, release=5), "commit": "c0ffee"}}))
    device.until(lambda: device.plan()["failures"], 15, "the failed creation is told")
    (failure,) = device.plan()["failures"]
    assert failure["service"] == "main"
    assert "main_4_5_c0ffee" in failure["error"] and stranger[:12] in failure["error"]
    assert device.of("main")["Id"] == stranger and device.of("main")["State"] == "running"
