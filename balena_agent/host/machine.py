"""What the machine is: config.json, device type, OS release, names; and durable files.

Theory: these files belong to others (the OS, its image builder, os-config), so reading never fails:
what is missing or malformed becomes a default and a line for the journal. No value of a key that
may be a secret stands in such a line. A device without `apiEndpoint` is unmanaged (spec 30 §1, §2).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from ..core.errors import Unavailable
from ..core.jsonread import Json, shown
from ..core.observed import HostFacts

T = TypeVar("T")

BALENA_OS = "balena-os"
BOOT_ID = "/proc/sys/kernel/random/boot_id"

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "aarch64",
    "armv7l": "armv7hf",
    "armv6l": "rpi",
    "i686": "i386",
}
_SECRETS = frozenset({"apiKey", "deviceApiKey", "deviceApiKeys", "os"})
_TRUE, _FALSE = ("1", "true", "on"), ("0", "false", "off")
_INTEGER = re.compile(r"\s*([+-]?[0-9]+)")


class Files(Protocol):
    """Where the facts are; `config.Host` is one."""

    @property
    def config_json(self) -> str: ...
    @property
    def device_type_json(self) -> str: ...
    @property
    def os_release(self) -> str: ...
    @property
    def hostname(self) -> str: ...


@dataclass(slots=True)
class ConfigJson:
    """The device's configuration with typed getters; `problems` collects what they met."""

    values: Mapping[str, Json] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def text(self, key: str, default: str = "") -> str:
        value = self.values.get(key)
        if isinstance(value, str):
            return value
        return default if value is None else self._bad(key, "text", default)

    def number(self, key: str, default: int) -> int:
        """A number, or the leading integer of a text (`"42abc"` is 42)."""
        value = self.values.get(key)
        found = _INTEGER.match(value) if isinstance(value, str) else None
        if found:
            return int(found[1])
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
            return int(value)
        return default if value is None else self._bad(key, "a number", default)

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        word = value.lower() if isinstance(value, str) else value
        if word is True or word == 1 or word in _TRUE:
            return True
        if word is None or word is False or word == 0 or word in _FALSE:
            return False
        return self._bad(key, "true or false", False)

    def _bad(self, key: str, rule: str, default: T) -> T:
        seen = "(not shown)" if key in _SECRETS else shown(self.values[key])
        self.problems.append(f"config.json: {key} must be {rule} but is {seen}; ignored")
        return default


def read_config(path: str) -> ConfigJson:
    """config.json as it is now, also where another program's write of it was interrupted.

    That there is none is no problem: only balenaOS must have one.
    """
    try:
        raw = interrupted_write(Path(path)) or Path(path).read_bytes()
        values = json.loads(raw)
    except FileNotFoundError:
        return ConfigJson({})
    except OSError as error:
        return ConfigJson({}, [f"{path} cannot be read: {error.strerror}"])
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        return ConfigJson({}, [f"{path} is not valid JSON (line {line})"])
    if not isinstance(values, dict):
        return ConfigJson({}, [f"{path} must hold a JSON object"])
    return ConfigJson(values)


def interrupted_write(path: Path) -> bytes | None:
    """The content of a committed but unfinished write by the OS's `fatrw` tool (spec 30 §2.3).

    It is committed when the name of the file beside `path` ends in the digest of its content.
    """
    for beside in sorted(path.parent.glob(f".{path.name}.*.*.md5sum")):
        with contextlib.suppress(OSError):
            content = beside.read_bytes()
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if beside.name.split(".")[-2] == digest:
                return content
    return None


def read_os_release(path: str) -> Mapping[str, str]:
    """`KEY=value` lines with one pair of quotes stripped; {} where there is no such file."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return {}
    pairs = (line.strip().split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: _unquoted(value) for key, value in pairs if not key.startswith("#")}


def profile(wanted: str, os_release: str) -> str:
    """`balenaos` or `generic`: what the administrator says, else what the OS says."""
    if wanted != "auto":
        return wanted
    return "balenaos" if read_os_release(os_release).get("ID") == BALENA_OS else "generic"


def facts(
    files: Files, *, api_port: int, engine_socket: str, stored_uuid: str = "", root: str = "/"
) -> tuple[HostFacts, tuple[str, ...]]:
    """The facts about this device, and lines about what could not be read.

    `stored_uuid` stands in where config.json has none; `listenPort` there wins over `api_port`.
    """
    config = read_config(files.config_json)
    release = read_os_release(files.os_release)
    slug, arch, problems = _device_type(files.device_type_json, config)
    port = config.number("listenPort", api_port)
    found = HostFacts(
        device_uuid=config.text("uuid") or stored_uuid,
        device_type=slug,
        device_arch=arch,
        os_name=release.get("PRETTY_NAME", ""),
        os_variant=_variant(release, config),
        board_rev=release.get("BALENA_BOARD_REV") or release.get("RESIN_BOARD_REV", ""),
        hostname=read_hostname(files.hostname),
        api_port=port if 0 < port < 65536 else api_port,
        api_endpoint=config.text("apiEndpoint").rstrip("/"),
        device_api_key=config.text("deviceApiKey"),
        provisioning_key=_provisioning_key(config),
        registry_endpoint=config.text("registryEndpoint"),
        delta_endpoint=config.text("deltaEndpoint"),
        has_modules=os.path.isdir(os.path.join(root, "lib/modules")),
        has_firmware=os.path.isdir(os.path.join(root, "lib/firmware")),
        engine_socket=engine_socket,
        os_id=release.get("ID", ""),
        os_version=release.get("VERSION", ""),
        kernel_name=platform.system(),
        kernel_release=platform.release(),
    )
    return found, (*config.problems, *problems)


def read_hostname(path: str) -> str:
    """The static host name, or the kernel's."""
    with contextlib.suppress(OSError):
        name = Path(path).read_text(errors="replace").strip()
        if name:
            return name
    return socket.gethostname()


def boot_id() -> str:
    """What tells one boot from another; clock steps do not touch it. "" where unknown."""
    with contextlib.suppress(OSError):
        return Path(BOOT_ID).read_text().strip()
    return ""


def write_durable(path: str | Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file so that a power cut leaves the old or the new content. Unavailable."""
    final = Path(path)
    fresh = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _removed_on_failure(fresh):
            handle = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
            with open(handle, "wb") as stream:
                os.fchmod(handle, mode)
                stream.write(content)
                stream.flush()
                os.fsync(handle)
            os.replace(fresh, final)
        _sync_directory(final.parent)
    except OSError as error:
        raise Unavailable(f"{final} cannot be written: {error.strerror}") from error


def _device_type(path: str, config: ConfigJson) -> tuple[str, str, tuple[str, ...]]:
    """Slug and architecture from device-type.json, else from config.json and the kernel."""
    machine = platform.machine()
    slug = config.text("deviceType") or "unknown"
    arch = _ARCHITECTURES.get(machine, machine or "unknown")
    try:
        known = json.loads(Path(path).read_bytes())
        return str(known.get("slug") or slug), str(known.get("arch") or arch), ()
    except FileNotFoundError:
        return slug, arch, ()  # a generic host has none
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return slug, arch, (f"{path} is of no use ({error}); taking {slug}, {arch}",)


def _variant(release: Mapping[str, str], config: ConfigJson) -> str:
    said = release.get("VARIANT_ID")
    return said or ("dev" if config.flag("developmentMode") else "prod")


def _provisioning_key(config: ConfigJson) -> str:
    """The key that stands in for the device's own until the cloud knows that (spec 20 §18.7)."""
    registered = config.values.get("registered_at") is not None
    return "" if registered else config.text("apiKey")


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


@contextlib.contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
