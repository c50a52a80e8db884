#!/usr/bin/env python3
"""How quickly the device API answers while an update is under way.

  python tests/bench/api.py [--seconds N] [--services N]

One fresh virtual device. All the time its target changes: one variable of all services, as soon as
the change before has settled. Meanwhile each page is asked over 1, 8 and 64 connections, which
stay open and always have one request under way each. Times are those of a client on the device's
loopback, which is one process with one thread and so not the bottleneck before 10,000 requests per
second. `cpu_ms` is what the agent used per answer, the update's part included. Prints one JSON
object; a slow machine is no failure.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from measure import cpu, device, image, report, target, wait_settled
from measure.device import DeviceError, InnerConnection, Machine

PAGES = ("/ping", "/v2/applications/state", "/v1/device")
CONNECTIONS = (1, 8, 64)
PORT = 48484
LIMIT = 30.0


@dataclass
class Client:
    """One connection with at most one request under way."""

    machine: Machine
    request: bytes
    times: list[float] = field(default_factory=list)
    reconnects: int = 0
    _wire: socket.socket | None = None
    _sent: float = 0.0
    _read: bytes = b""

    def connect(self) -> socket.socket:
        connection = InnerConnection(self.machine.leader, "127.0.0.1", PORT, LIMIT)
        connection.connect()
        self._wire = connection.sock
        assert self._wire is not None
        return self._wire

    def send(self) -> None:
        assert self._wire is not None
        self._read, self._sent = b"", time.monotonic()
        self._wire.sendall(self.request)

    def receive(self) -> bool:
        """Read what is there; whether the answer is complete."""
        assert self._wire is not None
        self._read += self._wire.recv(1 << 18)
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end:
            return False
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r")[0])
        if len(body) < length:
            return False
        self.times.append(time.monotonic() - self._sent)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"answer {head[:40]!r}")
        return True

    @property
    def closing(self) -> bool:
        """Whether the server will close the connection after this answer."""
        return b"connection: close" in self._read.partition(b"\r\n\r\n")[0].lower()

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()


def load(machine: Machine, page: str, connections: int, seconds: float) -> dict[str, Any]:
    """The figures of one page over so many connections."""
    key = machine.api_key
    request = f"GET {page} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    clients = [Client(machine, request) for _ in range(connections)]
    used, began = cpu(machine)["agent"], time.monotonic()
    with selectors.DefaultSelector() as ready:
        for client in clients:
            ready.register(client.connect(), selectors.EVENT_READ, client)
            client.send()
        while time.monotonic() - began < seconds:
            for event, _ in ready.select(LIMIT):
                client = event.data
                if not client.receive():
                    continue
                if client.closing:
                    ready.unregister(event.fileobj)
                    client.close()
                    client.reconnects += 1
                    ready.register(client.connect(), selectors.EVENT_READ, client)
                client.send()
    took, used = time.monotonic() - began, cpu(machine)["agent"] - used
    for client in clients:
        client.close()
    return _figures(clients, took, used)


def _figures(clients: list[Client], took: float, used: float) -> dict[str, Any]:
    times = sorted(value for client in clients for value in client.times)
    return {
        "requests_per_second": round(len(times) / took),
        "p50_ms": round(1000 * times[len(times) // 2], 2),
        "p99_ms": round(1000 * times[int(len(times) * 0.99)], 2),
        "max_ms": round(1000 * times[-1], 1),
        "cpu_ms": round(1000 * used / len(times), 3),
        "reconnects": sum(client.reconnects for client in clients),
    }


@contextmanager
def updates(machine: Machine, reference: str, count: int) -> Iterator[list[float]]:
    """Change the target again and again during the block; the times that each change took."""
    ended, took = threading.Event(), []

    def run() -> None:
        while not ended.is_set():
            began = time.monotonic()
            document = target(reference, count, f"value {len(took)}")
            try:
                machine.api("POST", "/v2/local/target-state", document, inside=True, timeout=60)
                took.append(wait_settled(machine, 120.0) - began)
            except DeviceError:
                continue  # told by the figures, if it matters

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join()


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--seconds", type=float, default=5.0, help="for each page and load")
    options.add_argument("--services", type=int, default=20)
    asked = options.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    with device("bench-api") as machine:
        reference = image(machine)
        machine.api("POST", "/v2/local/target-state", target(reference, asked.services, "first"),
                    inside=True)  # fmt: skip
        wait_settled(machine)
        quiet = {page: load(machine, page, 8, asked.seconds) for page in PAGES}
        with updates(machine, reference, asked.services) as took:
            for page in PAGES:
                figures[page] = {
                    f"{count} connections": load(machine, page, count, asked.seconds)
                    for count in CONNECTIONS
                }
    loads = [entry for page in figures.values() for entry in page.values()]
    report("api", {
        "services": asked.services, "seconds": asked.seconds,
        "without an update, 8 connections": quiet, "during updates": figures,
        "slowest_answer_ms": max(entry["max_ms"] for entry in loads),
        "updates": {"count": len(took), "seconds": [round(t, 1) for t in took]},
    })  # fmt: skip


if __name__ == "__main__":
    main()
