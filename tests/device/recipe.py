"""What a base root is made of, as data, and the key that names the result.

The key is a hash of everything here, so a change of a package, of a Python requirement or of a
file gives a new base by itself. Raise VERSION when base.py builds differently from the same data.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

VERSION = 1
SUITE = "bookworm"
VENV = "/opt/balena-agent/venv"

PACKAGES = (
    # the host that the agent talks to
    "systemd", "systemd-sysv", "libpam-systemd", "libnss-systemd", "dbus", "polkitd", "udev",
    "network-manager", "avahi-daemon", "avahi-utils", "docker.io", "redsocks", "openvpn",
    "iproute2", "iptables", "kmod", "ca-certificates",
    # images come from inside the device
    "docker-registry", "busybox-static",
    # the agent's own ground
    "python3", "python3-venv", "python3-systemd",
    # for people who look around
    "procps", "psmisc", "curl", "jq", "less", "nano", "iputils-ping",
)  # fmt: skip

# Debian's python3-systemd is this one, built for Debian's Python and libsystemd.
FROM_DEBIAN = ("systemd-python",)
# Beside what setup.py asks for: to build the agent offline, and to run tests inside.
EXTRA_REQUIREMENTS = ("pytest>=8,<9", "setuptools", "wheel")
FALLBACK_REQUIREMENTS = (
    "bottle>=0.12,<0.14", "cheroot>=10,<12", "configobj>=5,<6", "dbus-next==0.2.3", "docker>=7,<8",
    "requests", "sdnotify>=0.3,<0.4",
)  # fmt: skip

# chrony and timesyncd would step the clock of the outer machine if they could; the rest is slow or
# needs hardware.
MASKED = (
    "chrony.service", "systemd-timesyncd.service", "console-getty.service", "getty@.service",
    "getty.target", "serial-getty@.service", "container-getty@.service", "apt-daily.timer",
    "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "systemd-pstore.service", "systemd-networkd.service",
    "systemd-resolved.service", "systemd-firstboot.service", "systemd-udevd.service",
    "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
    "systemd-binfmt.service", "systemd-journald-audit.socket", "systemd-random-seed.service",
    "remote-fs.target", "wpa_supplicant.service",
    # these would reach the outer kernel
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount", "dev-hugepages.mount", "modprobe@.service",
    "systemd-modules-load.service", "kmod-static-nodes.service",
)  # fmt: skip
DISABLED = ("redsocks.service", "openvpn.service")

# Somebody without rights, for what the bus and polkit must refuse.
ORDINARY_USER = ("user", 1000)

REGISTRY = """\
version: 0.1
storage:
  filesystem:
    rootdirectory: /var/lib/docker-registry
  delete:
    enabled: true
http:
  addr: :5000
"""
# The range of network.py: the device pulls from its own registry by its address.
ENGINE = {"log-driver": "journald", "insecure-registries": ["192.168.231.0/24"]}
NETWORK_MANAGER = """\
[main]
plugins=keyfile
no-auto-default=*

[keyfile]
unmanaged-devices=interface-name:docker*;interface-name:br-*;interface-name:veth*;\
interface-name:supervisor*;interface-name:balena*
"""

FILES: Mapping[str, str] = {
    "/etc/docker/registry/config.yml": REGISTRY,
    "/etc/docker/daemon.json": json.dumps(ENGINE, indent=2) + "\n",
    "/etc/NetworkManager/conf.d/10-vdev.conf": NETWORK_MANAGER,
    "/etc/apt/apt.conf.d/10-vdev": 'APT::Periodic::Enable "0";\n',
}


def requirements(setup_py: Path) -> tuple[str, ...]:
    """What pip installs into the base: setup.py's install_requires, read without running it."""
    wanted = list(_install_requires(setup_py) or FALLBACK_REQUIREMENTS)
    kept = [item for item in wanted if not item.lower().startswith(FROM_DEBIAN)]
    return (*sorted(kept), *EXTRA_REQUIREMENTS)


def _install_requires(setup_py: Path) -> list[str]:
    if not setup_py.exists():
        return []
    for node in ast.walk(ast.parse(setup_py.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "install_requires":
            return [str(item) for item in ast.literal_eval(node.value)]
    return []


def key(packages: Iterable[str], python: Iterable[str], files: Mapping[str, str] = FILES) -> str:
    """Name of the base made from these: equal ingredients, equal name, in whatever order."""
    ingredients = {
        "version": VERSION, "suite": SUITE, "venv": VENV, "packages": sorted(packages),
        "python": sorted(python), "files": dict(files), "masked": sorted(MASKED),
        "disabled": sorted(DISABLED), "user": ORDINARY_USER,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
