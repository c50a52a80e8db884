"""The unit: readiness, watchdog, stop, status line, journal; and wrong settings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from device import enter
from e2e_device import UNIT, Device
from e2e_targets import pair, service, target

FREEZE = Path(__file__).with_name("e2e_freeze.py")
CONF = "/etc/balena-agent/agent.conf"


def test_the_unit_is_well_formed(device: Device) -> None:
    # systemctl preset and the like read it too: not one word of complaint.
    done = device.exec("systemd-analyze", "verify", UNIT, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    shown = device.show("Type", "NotifyAccess", "WatchdogUSec", "Restart", "NeedDaemonReload")
    assert shown == {
        "Type": "notify", "NotifyAccess": "main", "WatchdogUSec": "3min", "Restart": "always",
        "NeedDaemonReload": "no",
    }  # fmt: skip


def test_networkmanager_gives_the_host_no_name_and_the_engine_no_addresses(device: Device) -> None:
    """Spec 30 §6.6 and §19.4; what others have said about devices before stays."""
    said = device.exec("NetworkManager", "--print-config").stdout
    assert "(lib: 50-balena-agent.conf)" in said and "\nhostname-mode=none\n" in said
    device.exec("ip", "link", "add", "balena9", "type", "bridge")
    try:
        state = ("nmcli", "-t", "-g", "GENERAL.STATE", "device", "show", "balena9")
        device.until(lambda: device.exec(*state).stdout.startswith("10 "), 10, "unmanaged")
    finally:
        device.exec("ip", "link", "delete", "balena9")


def test_a_stop_of_the_agent_leaves_the_containers_alone(device: Device) -> None:
    device.apply(pair())
    before = {name: device.inspect(name)["State"]["StartedAt"] for name in ("one", "two")}
    ids = device.ids()
    begun = time.monotonic()
    device.exec("systemctl", "stop", UNIT)
    assert time.monotonic() - begun < 15.0
    assert device.machine.unit_state(UNIT) == "inactive"
    assert device.show("Result")["Result"] == "success"
    assert device.ids() == ids and device.running("one", "two")
    device.exec("systemctl", "start", UNIT)
    device.ready()
    device.settled()
    assert device.ids() == ids
    assert {name: device.inspect(name)["State"]["StartedAt"] for name in before} == before
    assert "Traceback" not in device.said()


def test_a_stop_in_the_middle_of_work_is_quick_too(device: Device) -> None:
    slow = {"command": ["sleep", "3600"], "stop_grace_period": "20s"}
    device.apply(target(service("one", 1, **slow)))
    device.post(target(service("one", 1, **slow, environment={"A": "1"})))
    stopping = "the service is being stopped"
    device.until(lambda: device.plan()["running"], 10, stopping)
    begun = time.monotonic()
    device.exec("systemctl", "stop", UNIT)
    assert time.monotonic() - begun < 15.0  # the grace is longer
    device.engine("POST", f"/containers/{device.of('one')['Id']}/kill")
    device.exec("systemctl", "start", UNIT)
    device.ready()
    device.settled()
    assert device.running("one")
    assert "A=1" in device.inspect("one")["Config"]["Env"]


def test_the_status_line_follows_what_is_done(device: Device) -> None:
    slow = {"command": ["sleep", "3600"], "stop_grace_period": "5s"}
    device.apply(target(service("one", 1, **slow)))
    device.until(lambda: "Settled: 1 service in 1 app" in device.status_text(), 20, "settled")
    device.post(target(service("one", 1, **slow, environment={"A": "1"})))
    device.until(lambda: "Applying: stop one" in device.status_text(), 20, "stopping")
    device.settled()
    device.lock("one")
    device.post(target(service("one", 1)))

    def waits() -> bool:
        text = device.status_text()
        return text.startswith("Waiting: ") and "Lockfile exists" in text

    device.until(waits, 20, "waiting")


def test_the_status_line_may_hold_any_text(device: Device) -> None:
    """Long lines are cut with an ellipsis, and names are in any script."""
    device.apply(pair())
    found = device.api("POST", "/v2/local/target-state", pair(image="nirgendwo/äöü:1"))
    assert found.status in (200, 400)
    device.post(pair(image="192.168.231.254:1/" + "very-" * 30 + "long:1"))
    device.until(lambda: "…" in device.status_text(), 30, "a status that was cut")


def test_the_journal_has_fields_and_no_secrets(device: Device) -> None:
    label = {"io.balena.features.supervisor-api": "1"}
    secret = "s3cr3t-value-of-a-user"
    device.apply(pair(labels=label, environment={"DATABASE_PASSWORD": secret}))
    device.apply(pair(labels=label, environment={"DATABASE_PASSWORD": secret + "2"}))
    device.api("GET", f"/v2/state/status?apikey={device.machine.api_key}", key="")
    device.api("GET", "/v2/state/status", key="f" * 32)
    variables = dict(v.split("=", 1) for v in device.inspect("one")["Config"]["Env"])
    device.restart()
    entries = device.journal()
    stops = [e for e in entries if e.get("STEP") == "stop"]
    assert stops and all((e["APP"], e["SERVICE"]) == ("1", "one") for e in stops)
    assert "DATABASE_PASSWORD" in stops[0]["CAUSE"]
    creates = [e for e in entries if e.get("STEP") == "create"]
    assert {e["SERVICE"] for e in creates} == {"one", "two"}
    assert all(e["CAUSE"] for e in creates)
    everything = str(entries) + device.status_text()
    for hidden in (device.machine.api_key, variables["BALENA_SUPERVISOR_API_KEY"], secret):
        assert hidden not in everything
    told = device.exec("journalctl", "-q", "SERVICE=one", "STEP=create", "-o", "cat").stdout
    assert "Installed service" in told


@pytest.fixture
def impatient(device: Device) -> Iterator[Device]:
    """A device whose watchdog waits six seconds."""
    device.drop_in("[Service]\nWatchdogSec=6\nRestartSec=100ms\n")
    device.mark()
    yield device
    device.drop_in("")


@pytest.mark.parametrize(("which", "stuck"), [("first", {"bus"}), ("workers", {"reconciler"})])
def test_a_stuck_worker_is_named_and_the_agent_started_again(
    impatient: Device, which: str, stuck: set[str]
) -> None:
    """Threads that a debugger has frozen stand for a deadlock: no limit of ours can end them."""
    impatient.apply(pair())
    ids, pid = impatient.ids(), impatient.main_pid()
    holder = impatient.machine.popen("python3", "-", str(pid), which)
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdin.write(FREEZE.read_text())
    holder.stdin.close()
    try:
        assert holder.stdout.readline() == "frozen\n", holder.stdout.read()

        def named() -> bool:
            return stuck <= set(impatient.status_text().replace(",", " ").split())

        impatient.until(named, 40, "the stuck one is named")
        impatient.until(lambda: impatient.main_pid() not in (0, pid), 40, "it is started again")
    finally:
        enter.stop(holder)
        holder.wait()
    impatient.ready()
    said = impatient.said()
    assert "Stuck, systemd will restart the agent: " in said
    for name in stuck:
        assert f"{name} (" in said
    assert "Fatal Python error: Aborted" in said
    assert said.count("Thread 0x") > 4
    assert any(line.startswith("  File ") for line in said.splitlines())
    impatient.settled()
    assert impatient.ids() == ids and impatient.running("one", "two")


@pytest.fixture
def patient(device: Device) -> Iterator[Device]:
    """A device whose watchdog waits longer than a client may take for a request."""
    device.drop_in("[Service]\nWatchdogSec=20\n")
    yield device
    device.drop_in("")


def test_clients_that_say_half_a_word_do_not_get_the_agent_killed(patient: Device) -> None:
    """Every HTTP worker waits for the rest of a request: that is the world's fault, not ours."""
    patient.apply(pair())
    pid = patient.main_pid()
    program = (
        "import socket, time\n"
        "held = []\n"
        "for _ in range(12):\n"
        "    s = socket.create_connection(('127.0.0.1', 48484))\n"
        "    s.sendall(b'POST /v2/local/target-state HTTP/1.1\\r\\nHost: x\\r\\nContent-')\n"
        "    held.append(s)\n"
        "print('held', flush=True)\n"
        "time.sleep(3600)\n"
    )
    holder = patient.machine.popen("python3", "-c", program)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    try:
        patient.until(lambda: patient.api("GET", "/ping").status == 200, 15, "it answers again")
    finally:
        enter.stop(holder)
        holder.wait()
    assert patient.main_pid() == pid
    assert patient.machine.unit_state(UNIT) == "active"


@pytest.fixture
def conf(device: Device) -> Iterator[Path]:
    """The settings file; the installed one is back afterwards."""
    path = device.machine.inner_path(CONF)
    kept = path.read_text() if path.exists() else None
    yield path
    if kept is None:
        path.unlink()
    else:
        path.write_text(kept)
    device.restart()


def test_a_wrong_setting_is_told_and_its_default_used(device: Device, conf: Path) -> None:
    conf.write_text("[api]\nport = eighty\nprot = 1\n[agent]\nworkers = 99\n[enigne]\nx = 1\n")
    device.restart()
    said, status = device.said(), device.status_text()
    for words in (
        f'{CONF}: [api] port = "eighty": must be a whole number from 1 to 65535; using 48484',
        f'{CONF}: [agent] workers = "99": must be a whole number from 1 to 32; using 8',
        f"{CONF}: [api] unknown setting prot; ignored (did you mean port?)",
        f"{CONF}: unknown section [enigne]; ignored (did you mean engine?)",
    ):
        assert words in said, said
        assert words in status, status
    device.apply(pair())
    assert device.running("one", "two")


@pytest.mark.parametrize("text", ["[api\nport = 1", "\x00\x01\x02", "port = 48000\n"])
def test_a_garbled_settings_file_is_told_and_defaults_are_used(
    device: Device, conf: Path, text: str
) -> None:
    conf.write_text(text)
    device.restart()
    assert f"{CONF}: " in device.said() and f"{CONF}: " in device.status_text()
    assert device.get("ApiPort") == 48484


def test_a_right_setting_counts(device: Device, conf: Path) -> None:
    conf.write_text("[api]\ncompat_version = 12.3.4\n[agent]\nlog_level = debug\n")
    device.restart()
    assert device.api("GET", "/v2/version").json()["version"] == "12.3.4"
    assert "GET /ping" in device.said()
    assert CONF not in device.status_text()
