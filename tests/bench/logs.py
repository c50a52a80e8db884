#!/usr/bin/env python3
"""What streaming log lines costs: CPU per 10,000 lines, memory, and whether all of them arrive.

  python tests/bench/logs.py [--lines N] [--services N]

One fresh virtual device whose journald has no rate limit. The services wait for a file, then write
their numbered lines as fast as they can. One client of GET /v2/local/logs reads as fast as it can,
another one connects and reads nothing. `arrived` and `in_order` are about the first, `lost_by_slow`
is what the second is told at the end. Memory is the agent's, in kB: before any client, the most
that was seen, and after the clients have left; `private` leaves out the journal's files, which are
mapped. Prints one JSON object; nothing here fails for being slow or big.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from measure import cpu, device, image, report, wait_settled
from measure.device import InnerConnection, Machine, agent_pid

LINES = 1_000_000
SERVICES = 20
PATH = "/v2/local/logs"
LOCKS = "/tmp/balena-supervisor/services"
CONF = "/run/systemd/journald.conf.d/50-bench.conf"
LIMIT = 600.0


class Memory(threading.Thread):
    """Watches the agent's memory until `done`."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(daemon=True)
        self._path = Path(f"/proc/{agent_pid(machine)}/smaps_rollup")
        self._done = threading.Event()
        self.most: dict[str, int] = {}

    def now(self) -> dict[str, int]:
        text = self._path.read_text()
        found = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
        return {"rss": found["Rss"], "private": found["Private_Clean"] + found["Private_Dirty"]}

    def run(self) -> None:
        while not self._done.wait(0.5):
            now = self.now()
            self.most = {name: max(value, self.most.get(name, 0)) for name, value in now.items()}

    def done(self) -> None:
        self._done.set()
        self.join()


class Client:
    """A listener."""

    def __init__(self, machine: Machine) -> None:
        self.wire = InnerConnection(machine.leader, "127.0.0.1", 48484, LIMIT)
        self.wire.connect()
        self.wire.request("GET", PATH, headers={"Authorization": f"Bearer {machine.api_key}"})
        self.answer: http.client.HTTPResponse = self.wire.getresponse()
        if self.answer.status != 200:
            raise RuntimeError(f"{PATH}: {self.answer.status}")
        self.answer.readline()

    def read(self, last: dict[str, int]) -> dict[str, Any]:
        """All lines until each of these services has said its last number."""
        seen: Counter[str] = Counter()
        arrived, lost, in_order, left = 0, 0, True, len(last)
        while left:
            raw = self.answer.readline()
            if not raw:
                raise RuntimeError("the stream has ended")
            line = json.loads(raw)
            name = line.get("serviceName")
            if name is None:
                found = re.match(r"(\d+) log lines were lost", line["message"])
                lost += int(found[1]) if found else 0
                continue
            number = int(line["message"])
            arrived += 1
            in_order = in_order and number == seen[name] + 1
            seen[name] = number
            left -= number == last.get(name)
        return {"arrived": arrived, "lost": lost, "in_order": in_order}

    def close(self) -> None:
        self.answer.close()
        self.wire.close()


def target(reference: str, services: int, each: int) -> dict[str, Any]:
    """The services, and one that says a single line when all of them have ended."""
    counts = {f"s{n}": each for n in range(1, services + 1)} | {"end": 1}
    made = {str(n): _service(n, name, reference, count)
            for n, (name, count) in enumerate(counts.items(), 1)}  # fmt: skip
    app = {"name": "bench", "commit": "c1", "releaseId": 1, "services": made, "volumes": {},
           "networks": {}}  # fmt: skip
    return {"local": {"name": "bench", "config": {}, "apps": {"1": app}}}


def _service(number: int, name: str, reference: str, count: int) -> dict[str, Any]:
    script = f"until test -e /tmp/balena/go; do sleep 0.1; done; seq 1 {count}; sleep 3600"
    return {
        "imageId": number, "serviceId": number, "serviceName": name, "image": reference,
        "tty": False, "environment": {}, "labels": {}, "running": True,
        "command": ["/bin/sh", "-c", script],
    }  # fmt: skip


def prepare(machine: Machine, services: int, each: int) -> None:
    conf = machine.inner_path(CONF)
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text("[Journal]\nRateLimitIntervalSec=0\n")
    machine.exec("systemctl", "restart", "systemd-journald.service")
    document = target(image(machine), services, each)
    answer = machine.api("POST", "/v2/local/target-state", document, inside=True)
    if answer.status != 200:
        raise RuntimeError(f"target refused: {answer.status} {answer.text}")
    wait_settled(machine, 120.0)


def go(machine: Machine, *names: str) -> None:
    for name in names:
        machine.inner_path(f"{LOCKS}/1/{name}/go").touch()


def measured(machine: Machine, services: int, each: int) -> dict[str, Any]:
    last = {f"s{n}": each for n in range(1, services + 1)}
    memory = Memory(machine)
    before = memory.now()
    quick, slow = Client(machine), Client(machine)
    memory.start()
    used, began = cpu(machine), time.monotonic()
    go(machine, *last)
    found = quick.read(last)
    seconds = time.monotonic() - began
    later = cpu(machine)
    go(machine, "end")
    told = slow.read({"end": 1})
    memory.done()
    quick.close()
    slow.close()
    time.sleep(2.0)
    total = services * each
    per = {name: round((later[name] - used[name]) / total * 10_000, 4) for name in used}
    return {
        "lines": total,
        "arrived": found["arrived"],
        "in_order": found["in_order"],
        "lost": found["lost"],
        "arrived_at_slow": told["arrived"] - 1,
        "lost_by_slow": told["lost"],
        "seconds": round(seconds, 2),
        "lines_per_s": round(total / seconds),
        "cpu_s_per_10000_lines": per,
        "memory_kb": {"before": before, "most": memory.most, "after": memory.now()},
    }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--lines", type=int, default=LINES, help="of all services together")
    options.add_argument("--services", type=int, default=SERVICES)
    asked = options.parse_args()
    each = max(1, asked.lines // asked.services)
    with device("bench-logs") as machine:
        prepare(machine, asked.services, each)
        print(f"{asked.services} services, {each} lines each", file=sys.stderr)
        figures = measured(machine, asked.services, each)
    report("logs", figures)


if __name__ == "__main__":
    main()
