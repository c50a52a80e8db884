"""The endless answers, black box: GET /v2/local/logs and POST /v2/journal-logs."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import pytest
from e2e_device import UNIT, Device
from e2e_logs import (
    FIRST,
    JOURNAL,
    LOGS,
    Stream,
    counting,
    restart_journald,
    stream,
    without_rate_limit,
)
from e2e_targets import Json, service, target

LINES = 50_000
SERVICES = 5
# The two streams are two pipes: without the pause either line may come first.
TALK = "echo hello; sleep 2; echo bad >&2; while :; do sleep 1; done"
SAY = ["/bin/sh", "-c", f"trap 'exit 0' TERM; {TALK}"]
GO = "/tmp/balena/go"


@pytest.fixture
def unlimited(device: Device) -> Iterator[Device]:
    without_rate_limit(device)
    yield device
    device.exec("rm", "/run/systemd/journald.conf.d/50-e2e.conf")
    restart_journald(device)


def journalctls(device: Device) -> list[str]:
    return device.exec("pgrep", "-a", "journalctl", check=False).stdout.splitlines()


# -- the log lines


def test_A166_the_first_line_comes_at_once_and_the_stream_stays_open(device: Device) -> None:
    with stream(device) as logs:
        assert logs.status == 200
        assert logs.answer.getheader("Content-Type") is None
        assert logs.answer.getheader("Transfer-Encoding") == "chunked"
        assert logs.answer.readline() == b'{"message":"Streaming logs","isSystem":true}\n'
        logs.wire.settimeout(1.0)
        with pytest.raises(TimeoutError):
            logs.answer.readline()


def test_lines_have_the_form_that_the_cli_reads(device: Device) -> None:
    with stream(device) as logs:
        assert logs.line() == FIRST
        before = time.time() * 1000
        device.apply(target(service("web", 7, command=SAY, tty=False)))
        lines = logs.until("bad", "web")
    out, err = (line for line in lines if line.get("serviceName") == "web")
    assert list(out) == ["serviceName", "message", "isStdErr", "timestamp", "serviceId"]
    assert (out["isStdErr"], err["isStdErr"], out["serviceId"]) == (False, True, 7)
    assert before - 2000 < out["timestamp"] < time.time() * 1000 + 2000
    system = [line["message"] for line in lines if line.get("isSystem")]
    for word in ("Creating network 'default'", "Taking update locks", "Starting service 'web'"):
        assert word in system
    assert all(isinstance(line["timestamp"], int) for line in lines)


def test_only_lines_after_the_connection_are_sent(device: Device) -> None:
    device.apply(target(service("web", 1, command=SAY, tty=False)))
    written = ("journalctl", "-o", "cat", "-t", device.of("web")["Id"][:12])
    device.until(lambda: "bad" in device.exec(*written).stdout.split(), 20, "both are written")
    with stream(device) as logs:
        logs.line()
        device.apply(target(service("web", 1, command=counting(1), tty=False)))
        lines = logs.until("1", "web")
    assert [line["message"] for line in lines if line.get("serviceName")] == ["1"]


def test_logging_that_is_switched_off_is_silent(device: Device) -> None:
    count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"
    web = service("web", 1, command=["/bin/sh", "-c", f"trap 'exit 0' TERM; {count}"], tty=False)
    silent, loud = target(web), target(web)
    silent["local"]["config"] = {"SUPERVISOR_LOG_CONTROL": "false"}
    with stream(device) as logs:
        logs.line()
        device.apply(silent)
        short = device.of("web")["Id"][:12]
        written = ("journalctl", "-o", "cat", "-t", short)
        device.until(lambda: "9" in device.exec(*written).stdout.split(), 20, "nine are written")
        device.post(loud)
        while not (line := logs.line()).get("serviceName"):
            assert line["message"] != "Starting service 'web'"
    assert int(line["message"]) > 5


def test_outside_local_mode_there_is_only_the_first_line(device: Device) -> None:
    managed = {"uuid": "c" * 32, "apiEndpoint": "http://127.0.0.1:9", "deviceApiKey": "k"}
    conf = device.machine.inner_path("/etc/balena-agent/agent.conf")
    kept = conf.read_text()
    device.apply(target(service("web", 1, command=SAY, tty=False)))
    try:
        # This test listens where a managed device would refuse it.
        conf.write_text(kept.replace("#firewall = yes", "firewall = no"))
        for program in ("iptables", "ip6tables"):
            device.exec(program, "-F", "BALENA-FIREWALL")
        device.configure(managed)
        with stream(device, seconds=3.0) as logs:
            assert logs.line() == FIRST
            device.exec("sh", "-c", "docker restart -t 1 $(docker ps -q)")
            with pytest.raises(TimeoutError):
                logs.line()
    finally:
        conf.write_text(kept)
        device.configure(None)


def test_every_line_reaches_a_subscriber_that_keeps_up_and_a_stalled_one_loses_its_own(
    unlimited: Device,
) -> None:
    """50,000 lines of five services, in order per service; the stalled client's are counted."""
    device, each = unlimited, LINES // SERVICES
    names = [f"s{n}" for n in range(1, SERVICES + 1)]
    wait = f"test -e {GO}"
    services = [
        service(name, n, command=counting(each, wait), tty=False) for n, name in enumerate(names, 1)
    ]
    end = service("end", SERVICES + 1, command=counting(1, wait), tty=False)
    device.apply(target(*services, end), seconds=60)
    with stream(device, seconds=60) as quick, stream(device, receive_buffer=4096) as stalled:
        quick.line()
        stalled.line()
        _go(device, *names)
        found = _numbers(quick.drain(LINES))
        for name in names:
            assert found[name] == [*range(1, each + 1)]
        assert found[""] == []
        _go(device, "end")
        late = _numbers(stalled.until("1", "end"))
    (marker,) = late[""]
    seen = sum(len(late[name]) for name in names)
    assert 0 < seen < LINES and marker + seen == LINES
    for name in names:
        assert late[name] == sorted(set(late[name]))


def _go(device: Device, *names: str) -> None:
    for name in names:
        (device.machine.inner_path(f"/tmp/balena-supervisor/services/1/{name}") / "go").touch()


def _numbers(lines: Iterable[Json]) -> Mapping[str, list[int]]:
    """The numbers of each service; under "" what was told as lost."""
    found: dict[str, list[int]] = defaultdict(list)
    for line in lines:
        if name := line.get("serviceName"):
            found[name].append(int(line["message"]))
        elif "lines were lost" in line["message"]:
            found[""].append(int(line["message"].split()[0]))
    return found


# -- the formatted journal


def test_A117_no_match_is_said(device: Device) -> None:
    asked = {"count": 1, "since": "2020-01-01", "until": "2020-01-02"}
    answer = device.api("POST", JOURNAL, asked)
    assert (answer.status, answer.text) == (200, "-- No entries --\n")
    assert "Content-Type" not in answer.headers


@pytest.mark.parametrize(
    "body",
    [{"count": 1, "format": "nonsense"}, {"since": "blah"}, {"unit": "a b"}, {"count": [1]},
     {"containerId": "--file=/etc/shadow"}, {"until": {"a": 1}}],
)  # fmt: skip
def test_A118_a_wrong_option_is_refused_by_name(device: Device, body: Json) -> None:
    answer = device.api("POST", JOURNAL, body)
    assert answer.status == 400 and answer.json()["status"] == "failed"
    assert answer.json()["message"]
    assert journalctls(device) == []


def test_A119_it_is_a_post(device: Device) -> None:
    assert device.api("GET", JOURNAL).status == 404


def test_H54_the_last_lines_of_a_unit(device: Device) -> None:
    unit = "e2e-count.service"
    device.exec("systemd-run", "--wait", f"--unit={unit}", "sh", "-c", "echo one; echo two")
    device.exec("journalctl", "--sync")
    answer = device.api("POST", JOURNAL, {"unit": unit, "count": 2, "format": "cat"})
    wanted = device.exec("journalctl", "-u", unit, "-n2", "-o", "cat").stdout
    assert answer.status == 200 and answer.text == wanted and len(wanted.splitlines()) == 2


def test_the_lines_of_a_container(device: Device) -> None:
    device.apply(target(service("web", 1, command=SAY, tty=False)))
    short = device.of("web")["Id"][:12]
    device.until(
        lambda: (
            device.api("POST", JOURNAL, {"containerId": short, "format": "cat"}).text
            == "hello\nbad\n"
        ),
        10,
        "the journal has the lines",
    )


def test_a_follower_gets_what_comes_and_its_child_ends_with_it(device: Device) -> None:
    unit = "e2e-say"
    # journalctl itself may miss the first entries of a unit that had none when it began.
    say(device, unit, "before")
    body = {"follow": True, "count": 1, "format": "cat", "unit": f"{unit}.service"}
    with stream(device, "POST", JOURNAL, body) as logs:
        assert logs.status == 200
        say(device, unit, "follow me")
        while (raw := logs.answer.readline()) != b"follow me\n":
            assert raw
        (child,) = journalctls(device)
        assert "--follow" in child and f"--unit={unit}.service" in child
    device.until(lambda: journalctls(device) == [], 10, "the child has ended")


def say(device: Device, unit: str, text: str) -> None:
    """A unit that says something, and lives until journald has asked whose words these are."""
    run = ("systemd-run", "--quiet", "--wait", f"--unit={unit}")
    device.exec(*run, "sh", "-c", f"echo {text}; sleep 0.5")
    device.exec("journalctl", "--sync")


def test_a_client_that_does_not_read_slows_only_its_own_child(device: Device) -> None:
    with stream(device, "POST", JOURNAL, {"all": True, "format": "json"}, receive_buffer=4096):
        device.until(lambda: len(journalctls(device)) == 1, 10, "the child runs")
        answer = device.api("POST", JOURNAL, {"count": 1, "format": "cat"})
        assert answer.status == 200 and answer.body
    device.until(lambda: journalctls(device) == [], 10, "the child has ended")


# -- many, stuck, and the end


def test_a_hundred_stuck_clients_never_make_ping_slow(device: Device) -> None:
    """No figure is asserted, but each ping has its deadline; the quota's refusal is clear."""
    stuck: list[socket.socket] = []
    key, address = device.machine.api_key, (device.machine.address, 48484)
    head = f"Host: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    body = json.dumps({"all": True, "format": "json"})
    requests = (
        f"GET {LOGS} HTTP/1.1\r\n{head}\r\n",
        f"POST {JOURNAL} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}",
    )
    try:
        for number in range(100):
            wire = socket.socket()
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.settimeout(10)
            wire.connect(address)
            wire.sendall(requests[number % 2].encode())
            stuck.append(wire)
        for _ in range(50):
            assert device.api("GET", "/ping", timeout=5.0).status == 200
        refused = device.api("GET", LOGS)
        assert refused.status == 503 and int(refused.headers["Retry-After"]) > 0
        assert "Too many streams" in refused.json()["message"]
        assert len(journalctls(device)) <= 5
        assert device.api("GET", "/v2/state/status").status == 200
    finally:
        for wire in stuck:
            wire.close()
    device.until(lambda: _is_open(device), 10, "there is room again")
    device.until(lambda: journalctls(device) == [], 10, "all children have ended")
    assert "Traceback" not in device.said()


def _is_open(device: Device) -> bool:
    with contextlib.closing(Stream(device)) as logs:
        return logs.status == 200


def test_without_listeners_nobody_reads_the_journal(device: Device) -> None:
    with stream(device) as logs:
        logs.line()
        assert {"journal", "streams"} <= set(_threads(device))
    device.until(
        lambda: not {"journal", "streams"} & set(_threads(device)), 10, "the threads have ended"
    )


def _threads(device: Device) -> list[str]:
    names = f"cat /proc/{device.main_pid()}/task/*/comm"
    return device.exec("sh", "-c", names).stdout.split()


def test_idle_clients_end_when_the_agent_stops(device: Device) -> None:
    follow = {"follow": True, "count": 1, "unit": "nobody.service"}
    with stream(device) as logs, stream(device, "POST", JOURNAL, follow) as journal:
        logs.line()
        rests: list[bytes] = []
        readers = [
            threading.Thread(target=lambda s=s: rests.append(s.rest())) for s in (logs, journal)
        ]  # type: ignore[misc]
        for reader in readers:
            reader.start()
        device.exec("systemctl", "stop", UNIT, timeout=20)
        for reader in readers:
            reader.join(10)
        assert len(rests) == 2  # read to their proper ends: http.client raises on a broken one
    assert journalctls(device) == []
    assert device.show("Result")["Result"] == "success"
    device.exec("systemctl", "start", UNIT)
    device.ready()


# -- the bus, and its command-line client


def test_the_command_line_shows_what_services_have_logged(device: Device) -> None:
    quiet = service("quiet", 2, command=["/bin/sh", "-c", "echo silence; sleep 1000"], tty=False)
    device.apply(target(service("web", 1, command=SAY, tty=False), quiet))
    ctl = ("balena-agentctl", "logs")

    def said(*words: str) -> list[str]:
        lines = device.exec(*ctl, *words).stdout.splitlines()
        return sorted(line.partition(" ")[2] for line in lines)

    wanted = ["quiet | silence", "web | bad", "web | hello"]
    device.until(lambda: said() == wanted, 10, "all lines are shown")
    assert said("-n", "1", "web") == ["web | bad"]
    raw = device.exec(*ctl, "--json", "web").stdout.splitlines()
    assert [json.loads(line)["message"] for line in raw] == ["hello", "bad"]
    unknown = device.exec(*ctl, "nobody", check=False)
    assert unknown.returncode == 1 and "nobody" in unknown.stderr


def test_the_command_line_follows_a_service_into_its_next_container(device: Device) -> None:
    device.apply(target(service("web", 1, command=SAY, tty=False)))
    out = "/run/e2e-follow"
    follow = f"exec balena-agentctl --json logs -f web >{out}"
    device.exec("systemd-run", "--quiet", "--unit=e2e-follow", "sh", "-c", follow)

    def messages() -> list[str]:
        text = device.machine.inner_path(out).read_text()
        return [json.loads(line)["message"] for line in text.splitlines()]

    try:
        device.until(lambda: messages() == ["hello", "bad"], 10, "the past is shown")
        device.apply(target(service("web", 1, command=counting(2), tty=False)))
        device.until(
            lambda: messages() == ["hello", "bad", "1", "2"], 10, "the next container is shown"
        )
    finally:
        device.exec("systemctl", "stop", "e2e-follow")
    device.until(lambda: "streams" not in _threads(device), 10, "the stream has ended")


def test_only_those_who_may_read_logs_open_them(device: Device) -> None:
    refused = device.call("OpenLog", "a{sv}", "0", user="user", check=False)
    assert "read-log" in refused or "Interactive" in refused or "Access" in refused
    wrong = device.call("OpenLog", "a{sv}", "1", "colour", "b", "true", check=False)
    assert "colour: no such option" in wrong
