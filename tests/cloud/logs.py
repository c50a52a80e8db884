"""The cloud's end of a log stream (spec 31 §8.1): one endless request, checked line by line."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

Json = dict[str, Any]

_MEMBERS = {"message", "timestamp", "isSystem", "isStdErr", "serviceId"}


class BadStream(Exception):
    """What the device sent is not what the cloud takes."""


@dataclass
class LogStream:
    """One request. `lines` are those that it has brought so far, each with the moment (monotonic)
    of its arrival under `at`; `whole`: its body has come to its proper end."""

    headers: dict[str, str]
    at: float
    lines: list[Json] = field(default_factory=list)
    whole: bool = False
    problem: str = ""


def refusal(headers: dict[str, str]) -> tuple[int, str] | None:
    """What the head of a request is refused for."""
    if headers.get("content-type") != "application/x-ndjson":
        return 415, "Unsupported media type"
    if headers.get("content-encoding") != "gzip":
        return 400, "the device always compresses"  # the real one does not mind; we do
    if headers.get("transfer-encoding") != "chunked":
        return 400, "a stream has no length"
    return None


def lines(wire: BinaryIO) -> Iterator[Json]:
    """The lines of a body as they come, until its proper end. BadStream, OSError."""
    unpacker, rest = zlib.decompressobj(wbits=31), b""
    for chunk in _chunks(wire):
        try:
            *whole, rest = (rest + unpacker.decompress(chunk)).split(b"\n")
        except zlib.error as error:
            raise BadStream(f"the body is not gzip: {error}") from error
        yield from map(_line, whole)
    if not unpacker.eof or unpacker.unused_data or rest:
        raise BadStream("the body ends in the middle")


def _chunks(wire: BinaryIO) -> Iterator[bytes]:
    while True:
        head = wire.readline(20)
        if not head.endswith(b"\r\n"):
            raise ConnectionError("the device has gone")
        size = int(head, 16)
        data = wire.read(size + 2)
        if len(data) != size + 2 or not data.endswith(b"\r\n"):
            raise ConnectionError("the device has gone")
        if size == 0:
            return
        yield data[:-2]


def _line(raw: bytes) -> Json:
    try:
        line = json.loads(raw)
    except ValueError:
        raise BadStream(f"not JSON: {raw!r}") from None
    if problem := _problem(line):
        raise BadStream(f"{problem}: {raw!r}")
    return {**line, "at": time.monotonic()}


def _problem(line: Any) -> str:
    """What is wrong with a line. The real cloud leaves such lines out without a word."""
    if not isinstance(line, dict) or not line.keys() <= _MEMBERS:
        return "odd members"
    if not isinstance(line.get("message"), str) or len(line["message"]) > 10_000:
        return "no such message"
    if type(line.get("timestamp")) is not int or not 10**12 < line["timestamp"] < 10**13:
        return "the timestamp is not in ms"
    if any(line.get(name, True) is not True for name in ("isSystem", "isStdErr")):
        return "only what is true is said"
    if line.get("isSystem") is ("serviceId" in line):
        return "either the system or a service"
    if "serviceId" in line and type(line["serviceId"]) is not int:
        return "no such service"
    return ""
