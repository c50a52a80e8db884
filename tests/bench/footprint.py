#!/usr/bin/env python3
"""What the agent costs a device: memory, idle work, start-up, disk.

  python tests/bench/footprint.py [--seconds N] [--restarts N]

One fresh virtual device, with 0 and then with 20 services. `idle` is watched for so many seconds
after a pause in which worker threads end, and told per minute; a wake-up is a voluntary context
switch of any thread. `start` is taken from systemd: from the exec of the process to READY=1, and
to the first answer to /ping as a client sees it that tries again and again. `size` is the agent's
package and everything it requires, as installed beside the interpreter. `growth` is what memory
gains by many requests and by ten target changes. `managed` is `idle` once more for a device with a
cloud, which is asked for targets, told of the state and sent the logs. Prints one JSON object;
nothing here fails for being slow or big.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from measure import cpu, device, image, report, summary, target, wait_settled
from measure.device import UNITS, DeviceError, InnerConnection, Machine, agent_pid
from measure.managed import managed, want

SERVICES = 20
REQUESTS = 20_000
CONNECTIONS = 8
CHANGES = 10
PAUSE = 25.0
"""Longer than idle workers and idle connections live."""
UNIT = UNITS["agent"]
PAGE = "/v2/applications/state"

SIZE = """
import importlib.metadata as metadata, json, re
def name(text): return re.split(r"[^A-Za-z0-9._-]", text)[0].replace("_", "-").lower()
known = {name(d.metadata["Name"]): d for d in metadata.distributions()}
wanted, todo = set(), ["balena-agent"]
while todo:
    one = todo.pop()
    if one in wanted or one not in known: continue
    wanted.add(one)
    todo += [name(r) for r in known[one].requires or () if "extra ==" not in r]
def size(dist):
    paths = (dist.locate_file(f) for f in dist.files or ())
    return sum(p.stat().st_size for p in paths if p.is_file())
print(json.dumps({one: size(known[one]) for one in sorted(wanted)}))
"""


def memory(machine: Machine) -> dict[str, int]:
    """Megabytes would hide small leaks: kB. `private` is what would be free without the agent."""
    text = Path(f"/proc/{agent_pid(machine)}/smaps_rollup").read_text()
    found = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    private = found["Private_Clean"] + found["Private_Dirty"]
    return {"rss_kb": found["Rss"], "pss_kb": found["Pss"], "private_kb": private}


def threads(machine: Machine) -> dict[str, int]:
    """How many threads there are of each name (numbers at the end left out)."""
    tasks = Path(f"/proc/{agent_pid(machine)}/task").iterdir()
    names = (re.sub(r"-?\d+$", "", (task / "comm").read_text().strip()) for task in tasks)
    return dict(sorted(Counter(names).items()))


def wakeups(machine: Machine) -> int:
    """Voluntary context switches so far, of the threads that live now."""
    total = 0
    for task in Path(f"/proc/{agent_pid(machine)}/task").iterdir():
        status = (task / "status").read_text()
        total += int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return total


def idle(machine: Machine, seconds: float) -> dict[str, Any]:
    """A device on which nothing happens."""
    time.sleep(PAUSE)
    used, woken, began = cpu(machine), wakeups(machine), time.monotonic()
    time.sleep(seconds)
    minutes = (time.monotonic() - began) / 60
    later = cpu(machine)
    return {
        **memory(machine),
        "threads": threads(machine),
        "cpu_s_per_minute": round((later["agent"] - used["agent"]) / minutes, 4),
        "dockerd_cpu_s_per_minute": round((later["dockerd"] - used["dockerd"]) / minutes, 4),
        "wakeups_per_minute": round((wakeups(machine) - woken) / minutes),
    }


def start(machine: Machine, restarts: int) -> dict[str, Any]:
    """Seconds from exec, over several starts; and the CPU seconds until then."""
    ready, ping, used = [], [], []
    for _ in range(restarts):
        machine.exec("systemctl", "stop", UNIT)
        machine.exec("systemctl", "start", "--no-block", UNIT)
        answered = _first_ping(machine)
        machine.wait_until(lambda: machine.unit_state(UNIT) == "active", 30.0, "agent active")
        stamps = _stamps(machine)
        began = stamps["ExecMainStartTimestampMonotonic"] / 1e6
        ready.append(stamps["ActiveEnterTimestampMonotonic"] / 1e6 - began)
        ping.append(answered - began)
        wait_settled(machine)
        used.append(cpu(machine)["agent"])
    return {"ready_s": summary(ready), "first_ping_s": summary(ping),
            "cpu_s_until_settled": summary(used)}  # fmt: skip


def _first_ping(machine: Machine) -> float:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if machine.api("GET", "/ping", inside=True, key="", timeout=2.0).status == 200:
                return time.monotonic()
        except DeviceError:
            time.sleep(0.002)
    raise RuntimeError("no answer to /ping")


def _stamps(machine: Machine) -> dict[str, int]:
    names = "ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic"
    lines = machine.exec("systemctl", "show", "-p", names, UNIT).stdout.split()
    return {name: int(value) for name, _, value in (line.partition("=") for line in lines)}


def requests(machine: Machine, path: str, count: int) -> float:
    """So many requests over kept connections; per second."""
    headers = {"Authorization": f"Bearer {machine.api_key}"}
    failures: list[str] = []

    def ask() -> None:
        wire = InnerConnection(machine.leader, "127.0.0.1", 48484, 10.0)
        for _ in range(count // CONNECTIONS):
            wire.request("GET", path, headers=headers)
            answer = wire.getresponse()
            answer.read()
            if answer.status != 200:
                failures.append(f"{path}: {answer.status}")
                break
        wire.close()

    began = time.monotonic()
    clients = [threading.Thread(target=ask) for _ in range(CONNECTIONS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    if failures:
        raise RuntimeError(failures[0])
    return round(count / (time.monotonic() - began))


def change(machine: Machine, reference: str, count: int, value: str) -> None:
    document = target(reference, count, value)
    answer = machine.api("POST", "/v2/local/target-state", document, inside=True)
    if answer.status != 200:
        raise RuntimeError(f"target refused: {answer.status} {answer.text}")
    wait_settled(machine, 120.0)


def growth(machine: Machine, reference: str) -> dict[str, Any]:
    """Memory in kB after work, less what it was before."""
    rss = [memory(machine)["rss_kb"]]
    rate = requests(machine, PAGE, REQUESTS)
    ping = requests(machine, "/ping", REQUESTS)
    rss.append(memory(machine)["rss_kb"])
    for number in range(CHANGES):
        change(machine, reference, SERVICES, f"value {number}")
    rss.append(memory(machine)["rss_kb"])
    return {"requests_per_s": {PAGE: rate, "/ping": ping},
            "rss_kb_by_requests": rss[1] - rss[0], "rss_kb_by_changes": rss[2] - rss[1],
            "rss_kb_at_end": rss[2]}  # fmt: skip


def size(machine: Machine) -> dict[str, Any]:
    told = machine.exec("/opt/balena-agent/venv/bin/python", "-", input=SIZE).stdout
    bytes_of = json.loads(told)
    return {"bytes": sum(bytes_of.values()), "of": bytes_of}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--restarts", type=int, default=5)
    asked = options.parse_args()
    figures: dict[str, Any] = {}
    with device("bench-footprint") as machine:
        reference = image(machine)
        figures["start"] = start(machine, asked.restarts)
        print("idle without services", file=sys.stderr)
        figures["idle"] = {"0": idle(machine, asked.seconds)}
        change(machine, reference, SERVICES, "old")
        print(f"idle with {SERVICES} services", file=sys.stderr)
        figures["idle"][str(SERVICES)] = idle(machine, asked.seconds)
        figures["start"][f"with {SERVICES} services"] = start(machine, asked.restarts)
        print("requests and changes", file=sys.stderr)
        figures["growth"] = growth(machine, reference)
        change(machine, reference, 0, "")
        with managed(machine, reference) as cloud:
            figures["managed"] = {}
            for count in (0, SERVICES):
                want(machine, cloud, reference, count)
                print(f"managed, {count} services", file=sys.stderr)
                figures["managed"][str(count)] = idle(machine, asked.seconds)
        figures["size"] = size(machine)
    report("footprint", figures)


if __name__ == "__main__":
    main()
