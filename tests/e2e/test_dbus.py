"""io.balena.Agent1 as the host's own tools see it, and balena-agentctl."""

from __future__ import annotations

import itertools
import json
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from device import enter
from e2e_device import BUS, MANAGER, ROOT, UNIT, Device
from e2e_targets import pair

XML = Path(__file__).parents[2] / "dbus/io.balena.Agent1.xml"
APP_PATH = f"{ROOT}/app/_31"
ONE_PATH = f"{APP_PATH}/service/one"
JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "s": str, "b": bool, "q": int, "u": int, "d": (int, float), "a(ss)": list, "as": list,
    "ao": list,
}  # fmt: skip


def normal(interface: ET.Element) -> list[Any]:
    """An interface as plain values, whatever its order and layout."""

    def of(node: ET.Element) -> list[Any]:
        args = [(a.get("name"), a.get("type"), a.get("direction")) for a in node.findall("arg")]
        default = "in" if node.tag == "method" else "out"
        args = [(name, kind, direction or default) for name, kind, direction in args]
        notes = [(a.get("name"), a.get("value")) for a in node.findall("annotation")]
        return [node.tag, node.get("name"), node.get("type"), node.get("access"), args, notes]

    return sorted((of(n) for n in interface if n.tag != "annotation"), key=lambda n: (n[0], n[1]))


def interfaces(text: str) -> dict[str, list[Any]]:
    return {str(i.get("name")): normal(i) for i in ET.fromstring(text).findall("interface")}


def introspect(device: Device, path: str) -> dict[str, list[Any]]:
    done = device.exec("busctl", "introspect", "--xml-interface", BUS, path)
    return interfaces(done.stdout)


def job_of(device: Device, verb: str, *words: str) -> str:
    (path,) = device.call(verb, *words)
    return str(path)


def finished(device: Device, job: str) -> tuple[str, str]:
    """Wait for the end of a job; its state and message."""

    def read(name: str) -> str:
        return str(device.get(name, job, f"{BUS}.Job"))

    device.until(lambda: read("State") != "running", 20, "the job ends")
    return read("State"), read("Message")


def test_the_introspection_is_the_checked_in_interface(device: Device) -> None:
    device.apply(pair())
    (job,) = device.call("StopService", "usb", "1", "one", "false")
    found: dict[str, list[Any]] = {}
    for path in (ROOT, APP_PATH, ONE_PATH, job):
        found |= introspect(device, path)
    wanted = interfaces(XML.read_text())
    assert {name: found.get(name) for name in wanted} == wanted
    ours = {name for name in found if name.startswith(BUS)}
    assert ours == {name for name in wanted if name.startswith(BUS)}


def test_all_properties_have_their_types(device: Device) -> None:
    device.apply(pair())
    wanted = {p[1]: p[2] for p in interfaces(XML.read_text())[MANAGER] if p[0] == "property"}
    words = ("call", BUS, ROOT, "org.freedesktop.DBus.Properties", "GetAll", "s", MANAGER)
    (found,) = device.busctl(*words)
    assert {name: value["type"] for name, value in found.items()} == wanted
    for name, value in found.items():
        assert isinstance(value["data"], JSON_TYPES[value["type"]]), name
    told = {name: value["data"] for name, value in found.items()}
    assert (told["EngineState"], told["CloudState"]) == ("up", "unmanaged")
    assert (told["ApiPort"], told["Commit"], told["DeviceName"]) == (48484, "c1", "e2e")
    assert told["Healthy"] is True and told["Waiting"] == []
    assert device.machine.address in told["AddressList"]
    assert told["Status"].startswith("Settled")


def test_the_documents_tell_the_same_as_http(device: Device) -> None:
    found = device.apply(pair())
    (text,) = device.call("Describe")
    document = json.loads(text)
    (app,) = document["apps"]
    assert [service["name"] for service in app["services"]] == ["one", "two"]
    assert document["engine"]["state"] == "up" and document["settled"] is True
    assert device.machine.api_key not in text
    (rows,) = device.call("ListServices")
    one = [1, "one", "Running", found["one_11_1_c1"]["Id"], ONE_PATH]
    assert rows[0] == one and len(rows) == 2
    assert device.call("GetService", "us", "1", "one") == [ONE_PATH]
    assert device.call("GetApp", "u", "1") == [APP_PATH]
    (target,) = device.call("GetTargetState")
    shown = device.api("GET", "/v2/local/target-state").json()["state"]
    assert json.loads(target) == shown


def test_jobs_run_to_their_end(device: Device) -> None:
    device.apply(pair())
    first = device.of("one")["Id"]
    job = job_of(device, "StopService", "usb", "1", "one", "false")
    assert finished(device, job)[0] == "done"
    assert device.of("one")["State"] == "exited"
    assert finished(device, job_of(device, "StartService", "us", "1", "one"))[0] == "done"
    assert (device.of("one")["State"], device.of("one")["Id"]) == ("running", first)
    job = job_of(device, "RestartService", "usb", "1", "one", "false")
    assert finished(device, job)[0] == "done"
    assert device.of("one")["Id"] != first
    device.lock("one")
    job = job_of(device, "RestartService", "usb", "1", "one", "false")
    state, message = finished(device, job)
    assert state == "failed" and "service: one" in message
    assert device.get("Error", job, f"{BUS}.Job") == f"{BUS}.Error.Locked"
    assert "no app 77" in device.call("StopService", "usb", "77", "one", "false", check=False)
    assert "nobody" in device.call("StopService", "usb", "1", "nobody", "false", check=False)


def collect(stream: Iterable[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line)


def test_changes_are_announced(device: Device) -> None:
    device.apply(pair())
    watcher = device.machine.popen("stdbuf", "-oL", "busctl", "--json=short", "monitor", BUS)
    assert watcher.stdout is not None
    watcher.stdout.readline()  # it has begun
    lines: list[str] = []
    pump = threading.Thread(target=collect, args=(watcher.stdout, lines), daemon=True)
    pump.start()

    def announced() -> list[Any]:
        """All signals, when there is what comes last of each kind."""
        seen = [json.loads(line) for line in list(lines) if line.startswith("{")]
        signals = [each for each in seen if each["type"] == "signal"]
        of_one = [s for s in signals if (s["member"], s["path"]) == ("PropertiesChanged", ONE_PATH)]
        changed = any("ContainerId" in s["payload"]["data"][1] for s in of_one)
        members = [each["member"] for each in signals]
        since = itertools.dropwhile(lambda member: member != "StepStarted", members)
        return signals if changed and "UpdateFinished" in since else []

    try:
        device.apply(pair(environment={"A": "1"}))
        signals = device.until(announced, 20, "the end is announced")
    finally:
        enter.stop(watcher)
        watcher.wait()
        pump.join(5)
    steps = [s["payload"]["data"] for s in signals if s["member"] == "StepStarted"]
    assert [step[2] for step in steps if step[1] == "one"] == ["stop", "remove", "create", "start"]
    assert any("A" in step[3] for step in steps)


def test_an_ordinary_user_reads_but_does_nothing(device: Device) -> None:
    device.apply(pair())
    before, key = device.ids(), device.machine.api_key
    for name in ("Status", "EngineState", "Commit"):
        words = ("get-property", BUS, ROOT, MANAGER, name)
        assert isinstance(device.busctl(*words, user="user"), str)
    assert device.call("ListServices", user="user")
    refused = (
        ("StopService", "usb", "1", "one", "false"),
        ("RestartService", "usb", "1", "one", "true"),
        ("StartService", "us", "1", "one"),
        ("Reboot", "b", "true"),
        ("PowerOff", "b", "true"),
        ("GetTargetState",),
        ("SetTargetState", "sb", json.dumps(pair(environment={"A": "1"})), "true"),
        ("Update", "bb", "true", "true"),
        ("RegenerateApiKey",),
    )
    for member, *words in refused:
        told = device.call(member, *words, user="user", check=False)
        assert "Access denied" in told or "polkit" in told or "password" in told, (member, told)
    assert device.machine.api_key == key
    boot = device.boot_id()
    assert device.ids() == before and device.running("one", "two")
    assert device.boot_id() == boot
    words = ("service-log-level", UNIT, "debug")
    assert device.exec("systemctl", *words, user="user", check=False).returncode != 0


def test_the_log_level_can_be_changed_in_flight(device: Device) -> None:
    assert device.exec("systemctl", "service-log-level", UNIT).stdout.strip() == "info"
    device.exec("systemctl", "service-log-level", UNIT, "debug")
    device.mark()
    device.api("GET", "/ping")
    device.until(lambda: "GET /ping" in device.said(), 5, "debug messages are told")
    device.exec("systemctl", "service-log-level", UNIT, "info")


def test_balena_agentctl_tells_and_exits_as_promised(device: Device) -> None:
    device.apply(pair())

    def ctl(*words: str, user: str = "") -> tuple[int, str]:
        done = device.exec("balena-agentctl", *words, check=False, user=user, timeout=60)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    code, text = ctl("status")
    assert code == 0
    for word in ("one", "two", "Running", "fleet"):
        assert word in text
    code, text = ctl("--json", "status")
    assert code == 0 and json.loads(text)["settled"] is True
    assert ctl("services")[0] == 0
    assert ctl("stop", "one")[0] == 0 and device.of("one")["State"] == "exited"
    assert ctl("start", "one")[0] == 0 and device.of("one")["State"] == "running"
    assert ctl("restart", "1/one")[0] == 0
    assert json.loads(ctl("target", "show")[1])["local"]["apps"]["1"]["commit"] == "c1"
    file = device.machine.inner_path("/root/target.json")
    file.write_text(json.dumps(pair(environment={"B": "2"})))
    code, text = ctl("target", "diff", "/root/target.json")
    assert code == 0 and "B" in text
    code, text = ctl("target", "set", "/root/target.json")
    assert (code, text) == (0, "target: Settled: 2 services in 1 app\n")
    assert device.is_settled() and "B=2" in device.inspect("one")["Config"]["Env"]
    assert ctl("update")[0] == 0
    code, text = ctl("key", "regenerate")
    assert code == 0 and text.strip() == device.machine.api_key
    assert ctl("stop", "nobody")[0] == 1
    assert ctl("stop")[0] == 2
    assert ctl("frobnicate")[0] == 2
    device.lock("one")
    code, text = ctl("restart", "one")
    assert code == 3 and "service: one" in text
    assert ctl("reboot")[0] == 3
    assert ctl("restart", "--force", "one")[0] == 0
    assert ctl("status", user="user")[0] == 0
    code, text = ctl("stop", "one", user="user")
    assert code == 4 and "Allowed are root" in text
    device.exec("systemctl", "stop", UNIT)
    code, text = ctl("status")
    assert code == 5 and "not running" in text
    device.exec("systemctl", "start", UNIT)
    device.ready()


def test_balena_agentctl_monitors(device: Device) -> None:
    device.apply(pair())
    watcher = device.machine.popen("balena-agentctl", "--json", "monitor", "--count", "3")
    colours = itertools.count()

    def seen() -> bool:
        """Whether it has ended: there is something new to see until then."""
        device.apply(pair(environment={"COLOUR": str(next(colours))}))
        return watcher.poll() is not None

    try:
        device.until(seen, 60, "three signals are seen")
        out, _ = watcher.communicate(timeout=5)
    finally:
        enter.stop(watcher)
    lines = [json.loads(line) for line in out.splitlines()]
    assert watcher.returncode == 0 and len(lines) == 3
    assert all({"time", "signal", "path", "body"} <= set(line) for line in lines)
