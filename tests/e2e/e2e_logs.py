"""Clients of the endless answers, and a journal without a rate limit to feed them."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator

from e2e_device import Device
from e2e_targets import Json

LOGS, JOURNAL = "/v2/local/logs", "/v2/journal-logs"
FIRST = {"message": "Streaming logs", "isSystem": True}


class Stream:
    """An open answer. `receive_buffer` makes a client that is quickly full."""

    def __init__(
        self,
        device: Device,
        method: str = "GET",
        path: str = LOGS,
        body: Json | None = None,
        receive_buffer: int = 0,
        seconds: float = 20.0,
    ) -> None:
        address = (device.machine.address, 48484)
        self.connection = http.client.HTTPConnection(*address, timeout=seconds)
        if receive_buffer:
            self.connection.sock = socket.socket()
            self.connection.sock.settimeout(seconds)
            self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.connection.sock.connect(address)
        headers = {"Authorization": f"Bearer {device.machine.api_key}"}
        sent = None if body is None else json.dumps(body)
        if sent is not None:
            headers["Content-Type"] = "application/json"
        self.connection.request(method, path, sent, headers)
        self.wire = self.connection.sock
        self.answer = self.connection.getresponse()
        self.status = self.answer.status

    def line(self) -> Json:
        raw = self.answer.readline()
        assert raw.endswith(b"\n"), f"the stream has ended after {raw!r}"
        return dict(json.loads(raw))

    def until(self, text: str, service: str = "") -> list[Json]:
        """Every line up to one of the service whose message is the text."""
        lines = [self.line()]
        while (lines[-1]["message"], lines[-1].get("serviceName", "")) != (text, service):
            lines.append(self.line())
        return lines

    def drain(self, count: int) -> list[Json]:
        """What comes up to so many lines of services, or before a long silence. It is read as
        quickly as can be, and only then looked into."""
        raw, whole, seen = bytearray(), 0, 0
        with contextlib.suppress(TimeoutError):
            while seen < count and (part := self.answer.read1(1 << 16)):
                raw += part
                begin, whole = whole, raw.rfind(b"\n") + 1
                seen += raw.count(b'"serviceName"', begin, whole)
        return [json.loads(line) for line in raw[:whole].splitlines()]

    def rest(self) -> bytes:
        return self.answer.read()

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


@contextlib.contextmanager
def stream(device: Device, *words: str, **more: object) -> Iterator[Stream]:
    opened = Stream(device, *words, **more)  # type: ignore[arg-type]
    try:
        yield opened
    finally:
        opened.close()


def without_rate_limit(device: Device) -> None:
    """journald would throw away what a test writes on purpose."""
    conf = device.machine.inner_path("/run/systemd/journald.conf.d/50-e2e.conf")
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text("[Journal]\nRateLimitIntervalSec=0\n")
    restart_journald(device)


def restart_journald(device: Device) -> None:
    device.exec("systemctl", "reset-failed", "systemd-journald.service", check=False)
    device.exec("systemctl", "restart", "systemd-journald.service")


def counting(count: int, go: str = "true") -> list[str]:
    """A command that waits for `go`, prints the numbers up to `count` and goes on living."""
    script = f"until {go}; do sleep 0.1; done; seq 1 {count}; while :; do sleep 1; done"
    return ["/bin/sh", "-c", f"trap 'exit 0' TERM; {script}"]
