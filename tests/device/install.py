"""Putting the agent of this checkout and its configuration into a device's root.

The way a distribution would: a wheel into the venv without any network, commands into
/usr/local/bin, units and policies by `units/install.sh` with DESTDIR, the unit enabled. The wheel
is built once per content of the tree. All of it works on a root that is off as well as on a
running one, because both are the same mounted directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .outer import CACHE, CHECKOUT, CLEAN_ENV, DeviceError, lock, run, say
from .recipe import VENV

COMMANDS = ("balena-agent", "balena-agentctl")
UNIT = "balena-agent.service"
API_KEY = "/run/balena-agent/api-key"
API_PORT = 48484
DEVICE_TYPE = {"slug": "generic-amd64", "arch": "amd64"}
Content = Path | str | dict[str, Any] | list[Any]


def check(checkout: Path = CHECKOUT) -> None:
    """A DeviceError, before anything is made, when this checkout cannot be installed."""
    needed = ("setup.py", "units/install.sh", f"units/{UNIT}", "balena_agent/__main__.py")
    missing = [name for name in needed if not (checkout / name).exists()]
    if missing:
        raise DeviceError(f"no agent to install (see --no-agent): {', '.join(missing)} missing")


def install_agent(root: Path, checkout: Path = CHECKOUT) -> None:
    """Install into `root`; a second time replaces what is there."""
    check(checkout)
    wheel = _wheel(root, checkout)
    inside = root / "opt/balena-agent" / wheel.name
    shutil.copyfile(wheel, inside)
    pip = [f"{VENV}/bin/pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall"]
    run(["chroot", str(root), *pip, f"/opt/balena-agent/{wheel.name}"], timeout=120)
    inside.unlink()
    for name in COMMANDS:
        link = root / "usr/local/bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"{VENV}/bin/{name}")
    install = ["sh", str(checkout / "units/install.sh")]
    run(install, env=CLEAN_ENV | {"DESTDIR": str(root)})
    run(["chroot", str(root), "systemd-sysusers", "balena-agent.conf"])
    run(["chroot", str(root), "systemctl", "enable", "--quiet", UNIT])


def tree_hash(checkout: Path = CHECKOUT) -> str:
    """Names and contents of everything that goes into the wheel."""
    digest = hashlib.sha256()
    for path in _sources(checkout):
        digest.update(f"{path.relative_to(checkout)}\0{path.stat().st_mode:o}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _sources(checkout: Path) -> list[Path]:
    package = (path for path in (checkout / "balena_agent").rglob("*") if path.is_file())
    kept = sorted(path for path in package if "__pycache__" not in path.parts)
    extra = ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE")
    return kept + [checkout / name for name in extra if (checkout / name).is_file()]


def _wheel(root: Path, checkout: Path) -> Path:
    """Wheel of this tree, built with the device's own Python if this tree is new."""
    kept = CACHE / "wheels" / tree_hash(checkout)
    with lock("wheel"):
        if not kept.is_dir():
            say("building the agent's wheel")
            kept.parent.mkdir(exist_ok=True)
            _build_wheel(root, checkout, kept)
            _forget_old_wheels(kept.parent)
    return next(kept.glob("*.whl"))


def _build_wheel(root: Path, checkout: Path, kept: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root / "var/tmp", prefix="vdev-wheel-") as name:
        work = Path(name)
        for path in _sources(checkout):
            target = work / "src" / path.relative_to(checkout)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        inside = f"/{work.relative_to(root)}"
        pip = [f"{VENV}/bin/pip", "wheel", "--quiet", "--no-deps", "--no-index"]
        command = [*pip, "--no-build-isolation", "-w", f"{inside}/out", f"{inside}/src"]
        run(["chroot", str(root), *command], timeout=120)
        partial = Path(tempfile.mkdtemp(dir=kept.parent, prefix=".making-"))
        for wheel in (work / "out").glob("*.whl"):
            shutil.copyfile(wheel, partial / wheel.name)
        partial.rename(kept)


def _forget_old_wheels(directory: Path, keep: int = 20) -> None:
    by_age = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def personalise(root: Path, name: str, machine_id: str, keyfile: str) -> None:
    """What makes this root one device: its name, identity and network."""
    _write(root / "etc/hostname", name + "\n")
    _write(root / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n")
    _write(root / "etc/machine-id", machine_id + "\n")
    connection = root / "etc/NetworkManager/system-connections/host0.nmconnection"
    # NetworkManager ignores a connection that others can read.
    _write(connection, keyfile, mode=0o600)
    _write(root / "mnt/boot/device-type.json", json.dumps(DEVICE_TYPE) + "\n")


def configure(
    root: Path, apps: Content | None, config: Content | None, conf: Content | None
) -> None:
    """The files that an owner of a device writes: preload, config.json, the agent's settings."""
    targets = {"mnt/data/apps.json": apps, "mnt/boot/config.json": config,
               "etc/balena-agent/agent.conf": conf}  # fmt: skip
    for name, content in targets.items():
        if content is not None:
            _write(root / name, _text(content))


def _text(content: Content) -> str:
    if isinstance(content, Path):
        try:
            return content.read_text(encoding="utf-8")
        except OSError as error:
            raise DeviceError(f"cannot read {content}: {error.strerror}") from error
        except UnicodeError as error:
            raise DeviceError(f"{content} is not a text in UTF-8") from error
    return content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        os.fchmod(handle.fileno(), mode)
        handle.write(text)
