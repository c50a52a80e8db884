"""A small root with the files of a host, for tests of the adapters that read and write them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balena_agent.core.errors import Unavailable
from balena_agent.host.files import HostFiles, Places


@dataclass(frozen=True)
class Names:
    config_json: str
    device_type_json: str
    os_release: str
    hostname: str


@dataclass
class Memory:
    """files.Memory in a dictionary."""

    known: dict[str, Any] = field(default_factory=dict)
    full: bool = False

    def setting(self, key: str) -> Any:
        return self.known.get(key)

    def set_setting(self, key: str, value: Any) -> None:
        if self.full:
            raise Unavailable("the state cannot be kept: the disk is full")
        self.known[key] = json.loads(json.dumps(value))


@dataclass
class Root:
    """`top` is the root of the host; its boot partition counts as mounted unless told otherwise."""

    top: Path
    memory: Memory = field(default_factory=Memory)
    mounted: bool = True

    def write(self, name: str, content: Any) -> Path:
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def read(self, name: str) -> str:
        return (self.top / name).read_text()

    def config(self) -> Any:
        return json.loads(self.read("mnt/boot/config.json"))

    def balena_os(
        self, slug: str = "generic-amd64", config: Any = None, version: str = "6.0.0"
    ) -> None:
        release = f'ID="balena-os"\nMETA_BALENA_VERSION="{version}"\n'
        self.write("etc/os-release", release)
        self.write("mnt/boot/device-type.json", {"slug": slug, "arch": "aarch64"})
        if config is not None:
            self.write("mnt/boot/config.json", config)

    def files(self) -> HostFiles:
        """What an agent that starts sees."""
        top = str(self.top)
        names = Names(
            f"{top}/mnt/boot/config.json", f"{top}/mnt/boot/device-type.json",
            f"{top}/etc/os-release", f"{top}/etc/hostname",
        )  # fmt: skip
        (self.top / "run").mkdir(exist_ok=True)
        places = Places(names, top, f"{top}/mnt/boot", f"{top}/run", f"{top}/tmp/balena-supervisor")
        return HostFiles(places, self.memory, lambda directory: self.mounted)
