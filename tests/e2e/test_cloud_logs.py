"""Log lines of a device in its cloud: all of them, each once, whatever happens (spec 31 §8)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from cloud import FakeCloud
from e2e_device import UNIT, Device
from e2e_logs import restart_journald, without_rate_limit
from test_cloud import FIRST, KEY, UUID, app, begin, cloud, device, service, settled, target, update

__all__ = ["cloud", "device"]

MARK = "/run/balena-agent/log-mark"

# Says what it finds in a file, then takes the file away.
TALK = "while :; do if [ -e $f ]; then sh $f; rm $f; fi; sleep 0.05; done"
SPEAKER = ["/bin/sh", "-c", f"trap 'exit 0' TERM; f=/tmp/balena/say; {TALK}"]


def speakers(**services: int) -> dict[str, Any]:
    """An app whose services do as they are told."""
    made = {name: service(number, command=SPEAKER, tty=False) for name, number in services.items()}
    return target({FIRST: app(1, "c1", **made)})


@pytest.fixture
def speaker(device: Device, cloud: FakeCloud) -> Iterator[Device]:
    """A device with one service that does as it is told."""
    cloud.targets[UUID] = speakers(main=1)
    begin(device, "main")
    yield device
    assert [stream.problem for stream in cloud.streams if stream.problem] == []


def do(device: Device, script: str, name: str = "main", wait: bool = True) -> None:
    """Have a service run a script, and wait for its end."""
    top = device.machine.inner_path("/tmp/balena-supervisor/services/1") / name
    draft = top / "draft"
    draft.write_text(script)
    os.replace(draft, top / "say")
    if wait:
        spoken(device, name)


def spoken(device: Device, name: str, seconds: float = 30) -> None:
    top = device.machine.inner_path("/tmp/balena-supervisor/services/1") / name
    device.until(lambda: not (top / "say").exists(), seconds, f"{name} has spoken")


def say(device: Device, *texts: str, name: str = "main") -> None:
    do(device, "\n".join(f"echo '{text}'" for text in texts), name)


def heard(device: Device, cloud: FakeCloud, *texts: str, seconds: float = 20) -> None:
    """Wait until the cloud has exactly these lines of the service."""
    device.until(lambda: cloud.messages(1)[-1:] == [texts[-1]], seconds, f"{texts[-1]} is there")
    assert cloud.messages(1) == list(texts)


def bookmarked(device: Device, cloud: FakeCloud) -> dict[str, Any]:
    """Wait until the agent has a place in the journal; what it has noted. Lines that containers of
    another test have written a moment ago keep it from that: it might yet find out whose they are.
    """

    def noted() -> dict[str, Any] | None:
        found = json.loads(device.exec("cat", MARK).stdout)
        return found if found["endpoint"] == cloud.url else None

    return device.until(noted, 20, "there is a mark") or {}


def noted_past(device: Device, cloud: FakeCloud, name: str) -> bool:
    """Whether no line of the service stands behind the agent's place in the journal: the cloud has
    a line a moment before the agent knows it."""
    cursor = bookmarked(device, cloud)["cursor"]
    # All entries: see `Device.mark` for what a filter does to a cursor.
    shown = device.exec("journalctl", "-q", "-o", "json", f"--after-cursor={cursor}").stdout
    entries = map(json.loads, shown.splitlines())
    return not any(str(e.get("CONTAINER_NAME")).startswith(f"{name}_") for e in entries)


def test_H53_C42_a_kill_loses_no_line_and_doubles_none(speaker: Device, cloud: FakeCloud) -> None:
    device = speaker
    device.drop_in("[Service]\nRestart=no\n")
    try:
        settled(device)
        bookmarked(device, cloud)
        say(device, "1", "2", "3")
        device.until(lambda: cloud.messages(1) == ["1", "2", "3"], 20, "three lines are there")
        device.until(lambda: noted_past(device, cloud, "main"), 20, "it is noted")
        device.exec("systemctl", "kill", "--signal=KILL", UNIT)
        dead = lambda: device.show("ActiveState")["ActiveState"] == "failed"  # noqa: E731
        device.until(dead, 10, "the agent is dead")
        say(device, "4", "5", "6")
        device.exec("journalctl", "--sync")
        assert cloud.messages(1) == ["1", "2", "3"]
        device.exec("systemctl", "reset-failed", UNIT)
        device.exec("systemctl", "start", UNIT)
        device.ready()
        say(device, "end")
        heard(device, cloud, "1", "2", "3", "4", "5", "6", "end")
    finally:
        device.drop_in("")


def test_C42_kills_while_lines_flow(speaker: Device, cloud: FakeCloud) -> None:
    """Nothing is missing; doubled is at most what was on the wire when a kill came."""
    device = speaker
    bookmarked(device, cloud)
    count = "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); sleep 0.02; done"
    do(device, count, wait=False)
    for number in (50, 150, 250):
        reached = lambda number=number: str(number) in cloud.messages(1)  # noqa: E731
        device.until(reached, 40, f"line {number} is there")
        pid = device.main_pid()
        device.exec("systemctl", "kill", "--signal=KILL", UNIT)
        device.until(lambda pid=pid: device.main_pid() not in (0, pid), 20, "it runs again")
    device.until(lambda: cloud.messages(1)[-1:] == ["399"], 40, "the last line is there")
    numbers = [int(text) for text in cloud.messages(1)]
    assert sorted(set(numbers)) == list(range(400))
    assert len(numbers) - 400 <= 200, numbers


def test_after_a_reboot_nothing_is_sent_twice(speaker: Device, cloud: FakeCloud) -> None:
    device = speaker
    bookmarked(device, cloud)
    say(device, "a", "b")
    device.until(lambda: cloud.messages(1) == ["a", "b"], 20, "the lines are there")
    stream = cloud.streams[-1]
    device.machine.reboot()
    device.ready(60)
    assert stream.whole
    device.until(lambda: device.running("main"), 30, "the service runs")
    say(device, "c")
    heard(device, cloud, "a", "b", "c", seconds=30)


def test_C37_C38_C39_lines_have_service_time_and_stream(speaker: Device, cloud: FakeCloud) -> None:
    device = speaker
    do(device, "i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); done; echo bad >&2")
    device.until(lambda: len(cloud.messages(1)) == 101, 20, "all lines are there")
    lines = [line for line in cloud.logs if line.get("serviceId") == 1]
    out = [line for line in lines if "isStdErr" not in line]
    assert [line["message"] for line in out] == [str(n) for n in range(100)]
    (bad,) = (line for line in lines if line.get("isStdErr"))
    assert bad["message"] == "bad"
    times = [line["timestamp"] for line in out]
    assert times == sorted(times)
    system = cloud.messages(None)
    for word in ("Creating network 'default'", "Installing service", "Starting service 'main'"):
        assert any(text.startswith(word) for text in system), system
    headers = cloud.streams[0].headers
    assert headers["authorization"] == f"Bearer {KEY}" and "user-agent" not in headers


def test_C40_a_refusal_at_once_costs_no_line(speaker: Device, cloud: FakeCloud) -> None:
    device = speaker
    refused = len(cloud.streams)
    cloud.log_status = 401
    cloud.cut_off()
    say(device, "a", "b")
    device.until(lambda: len(cloud.streams) > refused, 20, "a stream is refused")
    first, cloud.log_status = cloud.streams[refused], 0
    say(device, "c")
    heard(device, cloud, "a", "b", "c")
    again = cloud.streams[refused + 1]
    assert 5 <= again.at - first.at < 10 and len(again.lines) >= 3


def test_C43_who_floods_drowns_nobody(device: Device, cloud: FakeCloud) -> None:
    cloud.targets[UUID] = speakers(main=1, side=2)
    without_rate_limit(device)
    try:
        begin(device, "main", "side")
        say(device, "begin", name="side")
        device.until(lambda: cloud.messages(2) == ["begin"], 20, "lines are read")
        do(device, "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done", wait=False)
        for number in range(5):
            say(device, str(number), name="side")
            wanted = ["begin", *map(str, range(number + 1))]
            # Behind the whole flood, at 200 lines a second, it would take 100 s.
            device.until(lambda wanted=wanted: cloud.messages(2) == wanted, 30, "it is heard")
        spoken(device, "main", 90)
        device.until(lambda: sum(counted(cloud)) == 20_000, 60, "every line is there or counted")
    finally:
        device.exec("rm", "/run/systemd/journald.conf.d/50-e2e.conf")
        restart_journald(device)
    assert counted(cloud)[1] > 0
    numbers = [int(text) for text in cloud.messages(1) if "Suppressed" not in text]
    assert numbers == sorted(set(numbers))


def counted(cloud: FakeCloud) -> tuple[int, int]:
    """The lines of the first service that are there, and those that are told as left out."""
    markers = [text for text in cloud.messages(1) if "Suppressed" in text]
    told = sum(int(text.split()[2]) for text in markers)
    return len(cloud.messages(1)) - len(markers), told


def test_C22_what_is_no_target_is_told_in_the_cloud(speaker: Device, cloud: FakeCloud) -> None:
    device = speaker
    cloud.targets[UUID] = "<html>Please log in</html>"
    assert update(device) == 204
    told = "Could not move to new release: The cloud's answer is not a target state."
    device.until(lambda: told in cloud.messages(None), 20, "it is told")


def test_C45_C33_logging_can_be_switched_off(speaker: Device, cloud: FakeCloud) -> None:
    device = speaker
    say(device, "a")
    heard(device, cloud, "a")
    off = {"BALENA_SUPERVISOR_LOG_CONTROL": "false"}, {"RESIN_SUPERVISOR_LOCAL_MODE": "1"}
    for config, word in zip(off, ("b", "c"), strict=True):
        cloud.targets[UUID] = {UUID: {**speakers(main=1)[UUID], "config": config}}
        assert update(device) == 204
        device.until(lambda: cloud.streams[-1].whole, 20, "the stream has ended")
        device.until(lambda: "cloud-journal" not in threads(device), 20, "nothing is read")
        say(device, "silence")
        device.until(lambda: last(device).endswith("silence\n"), 20, "it is in the journal")
        cloud.targets[UUID] = speakers(main=1)
        assert update(device) == 204
        device.until(lambda: "cloud-journal" in threads(device), 20, "lines are read again")
        say(device, word)
        arrived = lambda word=word: cloud.messages(1)[-1] == word  # noqa: E731
        device.until(arrived, 20, "the next line is there")
    assert cloud.messages(1) == ["a", "b", "c"]


def last(device: Device) -> str:
    """The last line of the service that the device itself has."""
    return device.exec("balena-agentctl", "logs", "-n", "1", "main").stdout


def threads(device: Device) -> list[str]:
    names = f"cat /proc/{device.main_pid()}/task/*/comm"
    return device.exec("sh", "-c", names).stdout.split()


def test_C41_a_connection_that_breaks_loses_nothing(speaker: Device, cloud: FakeCloud) -> None:
    device = speaker
    cloud.cut_off()
    count = "i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.1; done"
    cloud.log_cut = 30
    do(device, count)
    wanted = [str(n) for n in range(60)]
    device.until(lambda: set(cloud.messages(1)) == set(wanted), 30, "all lines are there")
    assert len(cloud.streams) >= 2 and cloud.log_cut == 0


def test_a_dead_cloud_holds_up_no_local_reader(speaker: Device, cloud: FakeCloud) -> None:
    """What was written meanwhile arrives when it is back, bounded, and the gap is told."""
    device = speaker
    without_rate_limit(device)
    try:
        say(device, "a")
        heard(device, cloud, "a")
        cloud.stop()
        do(device, "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done")
        device.until(lambda: last(device).endswith("2999\n"), 20, "it is read here")
        cloud.start()
        device.until(lambda: cloud.messages(1)[-1] == "2999", 90, "the last line is there")
    finally:
        device.exec("rm", "/run/systemd/journald.conf.d/50-e2e.conf")
        restart_journald(device)
    late = cloud.messages(1)[cloud.messages(1).index("a") + 1 :]
    late = late[1:] if late[0] == "a" else late  # the ten seconds before the end are uncertain
    numbers = [int(text) for text in late if "Suppressed" not in text]
    told = sum(int(text.split()[2]) for text in late if "Suppressed" in text)
    assert numbers == sorted(set(numbers)) and told + len(numbers) in (3000, 3001)


def test_no_key_is_in_the_mark_and_only_root_reads_it(speaker: Device, cloud: FakeCloud) -> None:
    device = speaker
    say(device, "a")
    heard(device, cloud, "a")
    assert set(bookmarked(device, cloud)) == {"endpoint", "uuid", "cursor"}
    assert device.exec("stat", "-c", "%a %U", MARK).stdout == "600 root\n"
