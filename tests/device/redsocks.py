#!/usr/bin/python3
"""redsocks as balenaOS has it, on a device that has Debian's: a stand-in, for tests alone.

Debian's redsocks does not know the section `dnsu2t`, which takes DNS queries by UDP and asks a
server by TCP, so that they can go through a proxy. This program stands in its place on a virtual
device. It gives the rest of a configuration to the real redsocks, which `balena_os.redsocks` has
put aside, and serves `dnsu2t` itself. So all connections are redirected by the real one, and only
what DNS needs is ours. It understands `-c FILE` and `-t`; what it cannot read it refuses, as the
real one does.
"""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading

REAL = "/usr/sbin/redsocks.debian"
SECONDS = 10.0

_SECTION = re.compile(r"^dnsu2t\s*\{(.*?)^\}", re.MULTILINE | re.DOTALL)
_SETTING = re.compile(r"\s*(\w+)\s*=\s*([^;\s]+)\s*;\s*")
_NEEDED = {"remote_ip", "remote_port", "local_ip", "local_port"}

Address = tuple[str, int]


def split(text: str) -> tuple[str, tuple[Address, Address] | None]:
    """What the real redsocks shall read, and where DNS is taken and asked. ValueError."""
    found = _SECTION.findall(text)
    if len(found) > 1:
        raise ValueError("dnsu2t stands there twice")
    for inner in found:
        lines = [_SETTING.fullmatch(line) for line in inner.splitlines() if line.strip()]
        said = dict(line.groups() for line in lines if line)
        if None in lines or set(said) != _NEEDED:
            raise ValueError("dnsu2t cannot be read")
        places = [(said[f"{end}_ip"], int(said[f"{end}_port"])) for end in ("local", "remote")]
        for host, port in places:
            if not 0 < port < 65536 or ipaddress.ip_address(host).version != 4:
                raise ValueError(f"{host}:{port} is no place for DNS")
        return _SECTION.sub("", text), (places[0], places[1])
    return text, None


def serve(wire: socket.socket, remote: Address) -> None:
    """Answer for ever; a query that fails gets no answer, as with UDP."""
    while True:
        query, client = wire.recvfrom(4096)
        threading.Thread(target=_ask, args=(wire, remote, query, client), daemon=True).start()


def _ask(wire: socket.socket, remote: Address, query: bytes, client: Address) -> None:
    try:
        with socket.create_connection(remote, SECONDS) as there, there.makefile("rb") as answers:
            there.sendall(struct.pack("!H", len(query)) + query)
            (size,) = struct.unpack("!H", answers.read(2))
            wire.sendto(answers.read(size), client)
    except (OSError, struct.error) as error:
        print(f"dnsu2t: {remote}: {error}", file=sys.stderr)


def main(words: list[str]) -> int:
    path = words[words.index("-c") + 1] if "-c" in words else "/etc/redsocks.conf"
    try:
        with open(path, encoding="utf-8") as file:
            rest, dns = split(file.read())
    except (OSError, ValueError) as error:
        print(f"file parsing error: {error}", file=sys.stderr)
        return 1
    if dns is None:
        os.execv(REAL, [REAL, *words])
    with tempfile.NamedTemporaryFile("w", prefix="redsocks-", suffix=".conf") as file:
        file.write(rest)
        file.flush()
        command = [REAL, *("-t",) * ("-t" in words), "-c", file.name]
        if "-t" in words:
            return subprocess.run(command, check=False).returncode
        wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        wire.bind(dns[0])
        with subprocess.Popen(command) as real:
            signal.signal(signal.SIGTERM, lambda *_: real.terminate())
            threading.Thread(target=serve, args=(wire, dns[1]), daemon=True).start()
            return real.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
