"""HTTP to a device, from outside through its address or from inside through its loopback.

"Inside" needs no tool in the device: a socket belongs to the network namespace it was made in, so
a short-lived thread enters the device's namespace, makes the socket there and hands it back.
"""

from __future__ import annotations

import ctypes
import errno
import http.client
import json
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .outer import DeviceError

CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        return json.loads(self.body)


class InnerConnection(http.client.HTTPConnection):
    """A connection whose socket is made in the network namespace of the process `leader`."""

    def __init__(self, leader: int, host: str, port: int, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._leader = leader

    def connect(self) -> None:
        outcome: list[socket.socket | OSError] = []

        def enter_and_connect() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                namespace = os.open(f"/proc/{self._leader}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if libc.setns(namespace, CLONE_NEWNET) != 0:
                        number = ctypes.get_errno()
                        raise OSError(number, os.strerror(number))
                finally:
                    os.close(namespace)
                outcome.append(_connected(self.host, self.port, self.timeout))
            except OSError as error:
                outcome.append(error)

        thread = threading.Thread(target=enter_and_connect, name="vdev-connect")
        thread.start()
        thread.join()
        if isinstance(outcome[0], OSError):
            raise outcome[0]
        self.sock = outcome[0]


def _connected(host: str, port: int, timeout: float | None) -> socket.socket:
    """A connection over the device's loopback.

    A client that asks again and again where nobody listens yet may get that very port for its own
    end: then it is connected to itself, and what it leaves behind for a minute would keep the
    agent from listening. Such a connection counts as refused, and leaves the port usable.
    """
    wire = socket.socket()
    try:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wire.settimeout(timeout)
        wire.connect((host, port))
        if wire.getsockname() == wire.getpeername():
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
    except OSError:
        wire.close()
        raise
    return wire


def request(
    method: str,
    path: str,
    *,
    host: str,
    port: int,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    leader: int = 0,
) -> Answer:
    """One request, whole answer. With `leader` it is made from inside that process's network."""
    connection = (
        InnerConnection(leader, host, port, timeout)
        if leader
        else http.client.HTTPConnection(host, port, timeout=timeout)
    )
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes | str):
        body = json.dumps(body)
        sent.setdefault("Content-Type", "application/json")
    try:
        connection.request(method, path, body=body, headers=sent)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())
    except (OSError, http.client.HTTPException) as error:
        raise DeviceError(f"{method} http://{host}:{port}{path}: {error!r}") from error
    finally:
        connection.close()
