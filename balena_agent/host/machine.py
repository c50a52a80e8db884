"""What the machine is: config.json, device type, OS release, names; and durable files.

Theory: these files belong to others (the OS, its image builder, os-config), so reading never fails:
what is missing or malformed becomes a default and a line for the journal. No value of a key that
may be a secret stands in such a line. A device without `apiEndpoint` is unmanaged (spec 30 §1, §2).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from ..core.boot import Board
from ..core.configjson import ConfigJson
from ..core.errors import Unavailable
from ..core.observed import API_TIMEOUT, HostFacts
from .configfile import ConfigFile

BALENA_OS = "balena-os"
BOOT_ID = "/proc/sys/kernel/random/boot_id"

_LONGEST_TIMEOUT = 24 * 3600 * 1000

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "aarch64",
    "armv7l": "armv7hf",
    "armv6l": "rpi",
    "i686": "i386",
}


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


def read_config(path: str) -> ConfigJson:
    """config.json as it is now, also where another program's write of it was interrupted.

    That there is none is no problem: only balenaOS must have one.
    """
    file = ConfigFile(path)
    file.refresh()
    problem = file.state.problem
    return ConfigJson(file.state.values, [problem] if problem else [])


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
    files: Files,
    *,
    api_port: int,
    engine_socket: str,
    stored_uuid: str = "",
    root: str = "/",
    config: ConfigJson | None = None,
) -> tuple[HostFacts, tuple[str, ...]]:
    """The facts about this device, and lines about what could not be read.

    `stored_uuid` stands in where config.json has none; `listenPort` there wins over `api_port`.
    `config` is config.json where that has been read already.
    """
    config = read_config(files.config_json) if config is None else config
    release = read_os_release(files.os_release)
    slug, arch, problems = _device_type(files.device_type_json, config)
    port = config.number("listenPort", api_port)
    timeout = config.number("apiTimeout", API_TIMEOUT)
    found = HostFacts(
        device_uuid=config.text("uuid") or stored_uuid,
        device_type=slug,
        device_arch=arch,
        os_name=release.get("PRETTY_NAME", ""),
        os_variant=_variant(release, config),
        board_rev=release.get("BALENA_BOARD_REV") or release.get("RESIN_BOARD_REV", ""),
        hostname=read_hostname(files.hostname),
        api_port=port if 0 < port < 65536 else api_port,
        api_timeout=timeout if 0 < timeout <= _LONGEST_TIMEOUT else API_TIMEOUT,
        api_endpoint=config.text("apiEndpoint").rstrip("/"),
        device_api_key=config.text("deviceApiKey"),
        provisioning_key=_provisioning_key(config),
        registry_endpoint=config.text("registryEndpoint"),
        delta_endpoint=config.text("deltaEndpoint"),
        logs_endpoint=config.text("logsEndpoint").rstrip("/"),
        has_modules=os.path.isdir(os.path.join(root, "lib/modules")),
        has_firmware=os.path.isdir(os.path.join(root, "lib/firmware")),
        engine_socket=engine_socket,
        os_id=release.get("ID", ""),
        os_version=release.get("VERSION", ""),
        kernel_name=platform.system(),
        kernel_release=platform.release(),
        registered=bool(config.values.get("deviceId") and config.values.get("registered_at")),
    )
    return found, (*config.problems, *problems)


def board(files: Files, device_type: str) -> Board:
    """What decides which boot files count (spec 30 §4.1)."""
    release = read_os_release(files.os_release)
    return Board(device_type, release.get("META_BALENA_VERSION", ""))


def read_hostname(path: str) -> str:
    """The static host name, or the kernel's. The file may have remarks, as for systemd."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text(errors="replace").splitlines():
            name = line.strip()
            if name and not name.startswith("#"):
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
