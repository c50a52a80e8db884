"""10,000 malformed requests, slow clients and half-open connections: the agent does not mind.

What is sent is made from a fixed seed, so a failure can be had again. All the time somebody else
asks `/ping`, as a watchdog would, and never waits long.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from e2e_device import Device
from e2e_targets import pair

PORT = 48484
REQUESTS = 10_000
WORKERS = 8
HALF_OPEN, SLOW_HEADS, SLOW_BODIES, SILENT_BODIES, DEAF = 200, 40, 12, 2, 12
STRANGERS = 100
"""Slow bodies of those who have no key."""
GROWTH = 5 * 1024
"""kB"""
PATIENCE = 8.0
"""Seconds that an answer to `/ping` may take on a machine that does other things, too. Below the
ten after which silent clients go: whoever had to wait for those would take longer."""

JSON = b"Content-Type: application/json\r\n"
ZIPPED = b"Content-Encoding: gzip\r\n"
PATHS = (
    b"/v1/restart", b"/v1/purge", b"/v1/reboot", b"/v1/shutdown", b"/v1/update",
    b"/v2/local/target-state", b"/v2/applications/1/restart-service", b"/v2/device/tags",
    b"/v2/state/plan", b"/v1/device/host-config", b"/v1/regenerate-api-keys",
)  # fmt: skip
"""Every request to these is malformed in a way that must keep it from being done."""
BAD_JSON = (
    b"{", b"[1,", b"nul", b'{"a":NaN}', b"\xff\xfe", b'"x"', b"5", b"[" * 5000, b'{"a":"\\ud800"}x',
    b'{"local":{"apps":{"1":' + b'{"a":' * 200,
)  # fmt: skip
WRONG_TYPES = (
    b'{"local":5}', b'{"local":{"apps":[]}}', b'{"local":{"name":{}}}', b'{"appId":{}}',
    b'{"appId":[[1]]}', b'{"serviceName":{}}', b'{"imageId":1e999}', b'{"network":"x"}',
    b'{"local":{"apps":{"1":{"services":[]}}}}', b'{"a":{"b":[]}}', b'{"a b":"c"}',
    b'{"appId":"' + b"9" * 5000 + b'"}', b'{"local":{"apps":{"x":{}}}}',
)  # fmt: skip
"""None of these is a target."""

NO_TARGETS = (
    *WRONG_TYPES[:3], b'{"local":{"apps":{"1":{"services":[]}}}}', b'{"local":{"apps":{"x":{}}}}',
    b'{"local":{"name":"\\n"}}', b'{"local":[{}]}', b'{"local":{"config":{"1 A":"b"}}}',
)  # fmt: skip
NO_TAGS = (b'{"a":5}', b'{"a b":"c"}', b'{"a":{"b":[]}}', b'["a"]', b'{"a":null}')
NO_NETWORKS = (
    b'{"network":"x"}', b'{"network":[]}', b'{}', b'{"network":{"hostname":5}}',
    b'{"network":{"hostname":"a b"}}', b'{"network":{"proxy":"x"}}',
    b'{"network":{"proxy":{"type":"x"}}}', b'{"network":{"proxy":{"port":{}}}}',
)  # fmt: skip
NO_QUERIES = (
    b'{"unit":["a"]}',
    b'{"format":{}}',
    b'{"format":"x"}',
    b'{"since":"$(id)"}',
    b'{"count":[[1]]}',
)


def request(method: bytes, path: bytes, headers: bytes = b"", body: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return method + b" " + path + b" HTTP/1.1\r\nHost: x\r\n" + headers + length + b"\r\n" + body


def malformed(dice: random.Random, key: bytes) -> bytes:
    """One request that nobody in his right mind would send; most of them with a good key."""
    auth = b"Authorization: Bearer " + dice.choice((key, key, key, b"nonsense")) + b"\r\n"
    path = dice.choice(PATHS)
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: request(b"POST", path, auth + JSON, dice.choice(BAD_JSON)),
        lambda: request(b"PATCH", path, auth + JSON, dice.choice(BAD_JSON)),
        lambda: request(b"POST", b"/v2/applications/1/stop-service", auth + JSON,
                        dice.choice(WRONG_TYPES[3:])),
        lambda: request(b"POST", b"/v2/state/plan", auth + JSON, dice.choice(WRONG_TYPES[:3])),
        lambda: request(b"POST", b"/v2/local/target-state", auth + JSON, dice.choice(NO_TARGETS)),
        lambda: request(b"PATCH", b"/v2/device/tags", auth + JSON, dice.choice(NO_TAGS)),
        lambda: request(b"PATCH", b"/v1/device/host-config", auth + JSON,
                        dice.choice(NO_NETWORKS)),
        lambda: request(b"POST", b"/v2/journal-logs", auth + JSON, dice.choice(NO_QUERIES)),
        lambda: request(b"GET", b"/v%d/%x" % (dice.randrange(9), dice.getrandbits(64)), auth),
        lambda: request(b"GET", b"/" + bytes(dice.randrange(33, 127) for _ in range(60)), auth),
        lambda: request(b"GET", b"/ping", b"X: " + b"y" * dice.randrange(10_000, 40_000) + b"\r\n"),
        lambda: request(b"GET", b"/ping", b"X-%d: y\r\n" % dice.randrange(9) * 2000),
        lambda: request(b"GET", b"/" + b"a" * dice.randrange(20_000), auth),
        lambda: request(b"BREW" * dice.randrange(1, 9), b"/ping", auth),
        lambda: dice.randbytes(dice.randrange(1, 3000)) + b"\r\n\r\n",
        lambda: b"GET /ping HTTP/9.9\r\n\r\n",
        lambda: b"GET /ping HTTP/1.1\r\nno colon\r\n\r\n",
        lambda: b"GET /ping HTTP/1.1\r\n folded: at once\r\n\r\n",
        lambda: request(b"POST", path, auth + JSON + b"Transfer-Encoding: chunked\r\n")
        + b"f" * dice.randrange(1, 9) + b";" + b"x" * 100_000,
        lambda: b"POST " + path + b" HTTP/1.1\r\n" + auth + JSON + b"Content-Length: 9\r\n\r\n",
        lambda: request(b"POST", path, auth + JSON + b"Transfer-Encoding: chunked\r\n") + b"zz\r\n",
        lambda: request(b"POST", path, auth + JSON + b"Transfer-Encoding: chunked\r\n")
        + b"%x\r\n{" % dice.getrandbits(70),
        lambda: request(b"POST", path, auth + JSON + b"Content-Length: 1\r\n", b"{]"),
        lambda: request(b"GET", b"/ping", b"X-Nul: a\0b\r\nX-Old: a\r\n folded\r\n"),
        lambda: b"POST " + path + b" HTTP/1.1\r\n" + auth + b"Content-Length: -5\r\n\r\n",
        lambda: b"POST " + path + b" HTTP/1.1\r\n" + auth + JSON + b"Content-Length: 9\r\n\r\n{",
        lambda: request(b"GET", b"/v2/containerId?serviceName=%ff%00" + b"&a=b" * 300, auth),
        lambda: request(b"POST", path, auth + JSON + ZIPPED, b"\x1f\x8b\x00"),
    )  # fmt: skip
    return dice.choice(kinds)()


def send_all(address: str, seed: int, count: int, key: bytes) -> int:
    """Send so many, each over a connection of its own; how many got an answer of HTTP."""
    dice, answered = random.Random(seed), 0
    for _ in range(count):
        raw = malformed(dice, key)
        with contextlib.suppress(OSError), socket.create_connection((address, PORT), 10) as wire:
            wire.sendall(raw)
            wire.shutdown(socket.SHUT_WR)
            answered += wire.recv(12).startswith(b"HTTP/1.")
    return answered


class Watch:
    """Asks for a page again and again in a thread of its own; notes failures and times."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self.times: list[float] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            began = time.monotonic()
            try:
                connection = http.client.HTTPConnection(self._address, PORT, timeout=20)
                with contextlib.closing(connection):
                    connection.request("GET", "/ping")
                    if connection.getresponse().read() != b"OK":
                        self.failures.append("another answer")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            self.times.append(time.monotonic() - began)


@contextlib.contextmanager
def besieged(address: str, key: bytes) -> Iterator[None]:
    """Clients that connect and say nothing, or little, and go on with it."""
    ended = threading.Event()

    def drip(opening: bytes, drop: bytes, count: int) -> None:
        wires: list[socket.socket] = []
        while not ended.wait(0.2):
            while len(wires) < count:
                wires.append(socket.create_connection((address, PORT), 10))
                wires[-1].sendall(opening)
                wires[-1].setblocking(False)
            for wire in list(wires):
                try:
                    wire.send(drop)
                    gone = not wire.recv(1)
                except BlockingIOError:
                    gone = False
                except OSError:
                    gone = True
                if gone:  # it was shut out: it comes again
                    wires.remove(wire)
                    wire.close()
        for wire in wires:
            wire.close()

    head = b"GET /v2/version HTTP/1.1\r\nX-Slow: "
    body = b"POST /v1/update HTTP/1.1\r\nAuthorization: Bearer " + key + b"\r\n" + JSON
    known = body + b"Content-Length: 100000\r\n\r\n{"
    unknown = b"POST /v1/update HTTP/1.1\r\nContent-Length: 100000\r\n\r\n{"
    pings = b"GET /ping HTTP/1.1\r\n\r\n" * 400
    chunks = body + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n{"
    clients = [
        threading.Thread(target=drip, args=args)
        for args in (
            (b"", b"", HALF_OPEN),
            (head, b"x", SLOW_HEADS),
            (known, b"x", SLOW_BODIES),
            (unknown, b"x", STRANGERS),
            (pings, pings, DEAF),
            (known, b"", SILENT_BODIES),
            (chunks, b"", SILENT_BODIES),
        )
    ]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        ended.set()
        for client in clients:
            client.join()


def resident(device: Device) -> int:
    """kB"""
    status = device.machine.inner_path(f"/proc/{device.main_pid()}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1])


def connections(device: Device) -> int:
    words = ("ss", "-tnH", "state", "established", "sport", "=", f":{PORT}")
    return len(device.exec(*words).stdout.splitlines())


def attack(device: Device, count: int, seed: int) -> int:
    key = device.machine.api_key.encode()
    with ThreadPoolExecutor(WORKERS) as pool:
        shares = [count // WORKERS] * WORKERS
        address = device.machine.address
        sent = pool.map(
            lambda pair: send_all(address, *pair, key),
            [(seed + n, s) for n, s in enumerate(shares)],
        )
        return sum(sent)


def test_ten_thousand_malformed_requests(device: Device) -> None:
    device.apply(pair())
    pid, ids = device.main_pid(), device.ids()
    attack(device, 2000, seed=1000)  # what is loaded lazily is there now
    before = resident(device)
    with Watch(device.machine.address) as watch:
        answered = attack(device, REQUESTS, seed=1)
    assert answered > REQUESTS / 2
    assert watch.failures == [] and max(watch.times) < PATIENCE
    device.until(lambda: resident(device) - before < GROWTH, 30, "the memory is given back")
    assert device.main_pid() == pid and device.ids() == ids
    assert "Traceback" not in device.said()
    assert device.machine.api_key not in device.said()
    assert device.is_settled()


def test_slow_and_silent_clients_keep_nobody_out(device: Device) -> None:
    device.apply(pair())
    pid, before = device.main_pid(), resident(device)
    address, key = device.machine.address, device.machine.api_key.encode()
    with besieged(address, key):
        device.until(lambda: connections(device) >= HALF_OPEN, 20, "the siege is complete")
        with Watch(address) as watch:
            attack(device, 500, seed=2)
            time.sleep(12.0)  # longer than idle connections live
        assert device.api("GET", "/v2/version", timeout=PATIENCE).status == 200
        assert device.action("restart", serviceName="one").status == 200
        device.until(lambda: connections(device) >= HALF_OPEN, 20, "they come again and again")
    assert watch.failures == [] and max(watch.times) < PATIENCE
    assert len(watch.times) > 10
    device.until(lambda: resident(device) - before < GROWTH, 30, "the memory is given back")
    assert device.main_pid() == pid
    assert "Traceback" not in device.said()
    assert device.settled()
