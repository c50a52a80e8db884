"""The layout of balenaOS inside a device, so that the agent's profile `balenaos` is tested too.

os-release, device-type.json, the three partitions as mounts of their own, and the unit as the OS
layer changes it (units/balena-agent.service says how). Directories stand in for partitions: they
are bind-mounted, which is a mount as any other and keeps its content over reboots and power cuts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .install import UNIT
from .machine import Machine

STORAGE = "/var/lib/balena-os"
PARTITIONS = ("boot", "state", "data")
RELEASE = """\
ID="balena-os"
NAME="balenaOS"
VERSION="6.0.1"
PRETTY_NAME="balenaOS 6.0.1"
VARIANT_ID=prod
META_BALENA_VERSION="{version}"
BALENA_BOARD_REV=abc1234
"""
_MOUNT = """\
[Unit]
Before=local-fs.target
[Mount]
What={storage}/{name}
Where=/mnt/{name}
Type=none
Options=bind
[Install]
WantedBy=local-fs.target
"""
_UNIT = """\
[Unit]
RequiresMountsFor=/mnt/boot /mnt/state /mnt/data
[Service]
EnvironmentFile=-/etc/balena-supervisor/supervisor.conf
RestartSec=50ms
"""
_REDSOCKS = """\
[Unit]
ConditionPathExists=/mnt/boot/system-proxy/redsocks.conf
[Service]
ExecStart=/usr/sbin/redsocks -c /mnt/boot/system-proxy/redsocks.conf
"""
ALIASES = ("balena-supervisor.service", "resin-supervisor.service")


def make(machine: Machine) -> None:
    """Make a running device one of balenaOS; it stays one over reboots."""
    write(machine, "/etc/os-release", RELEASE.format(version="6.0.1"))
    for name in PARTITIONS:
        machine.exec("mkdir", "-p", f"{STORAGE}/{name}", f"/mnt/{name}")
        text = _MOUNT.format(storage=STORAGE, name=name)
        write(machine, f"/etc/systemd/system/mnt-{name}.mount", text)
        machine.exec("systemctl", "enable", "--quiet", "--now", f"mnt-{name}.mount")
    write(machine, f"/etc/systemd/system/{UNIT}.d/balena-os.conf", _UNIT)
    for alias in ALIASES:
        target = f"/usr/lib/systemd/system/{UNIT}"
        machine.exec("ln", "-sf", target, f"/etc/systemd/system/{alias}")
    machine.exec("systemctl", "daemon-reload")


def redsocks(machine: Machine) -> None:
    """Give a running device a redsocks that reads the boot partition's file and knows `dnsu2t`:
    Debian's, with our stand-in (redsocks.py) for what that one lacks."""
    machine.exec("mv", "-n", "/usr/sbin/redsocks", "/usr/sbin/redsocks.debian")
    write(machine, "/usr/sbin/redsocks", Path(__file__).with_name("redsocks.py").read_bytes())
    machine.exec("chmod", "755", "/usr/sbin/redsocks")
    write(machine, "/etc/systemd/system/redsocks.service", _REDSOCKS)
    machine.exec("systemctl", "daemon-reload")


def furnish(
    machine: Machine, slug: str, config: Any, files: Mapping[str, str | bytes], version: str
) -> None:
    """A boot partition that holds this and nothing else. `config` is the text or the value of
    config.json, None for none; `files` are named from the partition's root."""
    machine.exec("sh", "-c", "rm -rf /mnt/boot/* /mnt/boot/.config* /mnt/state/* /mnt/data/*")
    write(machine, "/etc/os-release", RELEASE.format(version=version))
    known = {"slug": slug, "arch": "amd64"}
    write(machine, "/mnt/boot/device-type.json", json.dumps(known))
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config, separators=(",", ":"))
        write(machine, "/mnt/boot/config.json", text)
    for name, content in files.items():
        write(machine, f"/mnt/boot/{name}", content)


def write(machine: Machine, path: str, content: str | bytes) -> None:
    """A file in the running device, in whatever is mounted there; a link is replaced."""
    raw = content if isinstance(content, bytes) else content.encode()
    script = 'mkdir -p "$(dirname "$0")" && rm -f "$0" && cat >"$0"'
    machine.exec_bytes("sh", "-c", script, path, input=raw)
