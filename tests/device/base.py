"""The base root: made once by debootstrap and pip, kept under its recipe's key, never changed.

It is built beside its final place and renamed when complete, under a lock: two builders at once
make one base, and a builder that was killed leaves only a `.making` directory, which the next one
removes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from . import recipe
from .outer import (
    CACHE,
    CHECKOUT,
    CLEAN_ENV,
    KEYRING,
    DeviceError,
    lock,
    proxy_environment,
    run,
    say,
)

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
CA_INSIDE = "/root/.vdev-ca.crt"
DEBIAN_SUITES = ("bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable")
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")


def current_key(checkout: Path = CHECKOUT) -> str:
    return recipe.key(recipe.PACKAGES, recipe.requirements(checkout / "setup.py"))


def base_path(key: str) -> Path:
    return CACHE / f"base-{key}"


@contextlib.contextmanager
def held(checkout: Path = CHECKOUT) -> Iterator[str]:
    """Key of a complete base root for this checkout, made now if it is not there yet.

    Within the block nobody sweeps it away; after it, the record of a device that names it counts.
    """
    key = current_key(checkout)
    with lock(f"base-{key}"):
        if not base_path(key).is_dir():
            _build(key, recipe.requirements(checkout / "setup.py"))
        yield key


def _build(key: str, requirements: Sequence[str]) -> None:
    making = CACHE / f"base-{key}.making"
    shutil.rmtree(making, ignore_errors=True)
    log = CACHE / f"base-{key}.log"
    started = time.monotonic()
    say(f"making the base root {base_path(key)} (once, about two minutes; log: {log})")
    log.write_text("")
    _debootstrap(making, log)
    _configure(making)
    _install_python(making, requirements, log)
    _clean(making)
    making.rename(base_path(key))
    say(f"base root complete after {time.monotonic() - started:.0f} s")


def _debootstrap(root: Path, log: Path) -> None:
    command = [
        "debootstrap", "--variant=minbase", "--components=main", "--merged-usr",
        f"--keyring={KEYRING}", f"--include={','.join(recipe.PACKAGES)}", recipe.SUITE, str(root),
        *debian_mirror(),
    ]  # fmt: skip
    _logged(command, log, CLEAN_ENV | proxy_environment(), show=("I: Retrieving", "I: Configuring"))


def debian_mirror(apt: Path = Path("/etc/apt")) -> list[str]:
    """Mirror that this machine itself uses; [] (debootstrap's default) if it is no Debian."""
    release = Path("/etc/os-release")
    if not release.exists() or "\nID=debian\n" not in "\n" + release.read_text():
        return []
    sources = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    uris = [
        uri.rstrip("/")
        for source in sources
        if source.suffix in (".list", ".sources") and source.is_file()
        for uri, suite in _apt_entries(source)
        if suite in DEBIAN_SUITES and urlsplit(uri).scheme in ("http", "https", "file")
    ]
    # Other vendors call their suites so too; Debian's archive and its mirrors end like this.
    return [uri for uri in uris if uri.endswith("/debian")][:1] or uris[:1]


def _apt_entries(source: Path) -> Iterator[tuple[str, str]]:
    """(uri, suite) of each binary source that has the component main."""
    text = source.read_text(encoding="utf-8", errors="replace")
    if source.suffix == ".sources":
        for stanza in text.split("\n\n"):
            pairs = (line.partition(":") for line in stanza.splitlines() if line[:1] not in "# \t")
            fields = {name.lower(): value.split() for name, _, value in pairs}
            if "deb" in fields.get("types", ()) and "main" in fields.get("components", ()):
                yield from ((uri, suite) for uri in fields.get("uris", ())
                            for suite in fields.get("suites", ()))  # fmt: skip
        return
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["deb"] and "main" in words:
            plain = [word for word in words[1:] if not word.startswith("[") and "=" not in word]
            yield plain[0], plain[1]


def _configure(root: Path) -> None:
    for name, content in recipe.FILES.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    units = root / "etc/systemd/system"
    for name in recipe.MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    for name in recipe.DISABLED:
        run(["chroot", str(root), "systemctl", "disable", "--quiet", name])
    # A fixed default, so that nothing depends on what a package left behind.
    run(["chroot", str(root), "systemctl", "set-default", "--quiet", "multi-user.target"])
    user, uid = recipe.ORDINARY_USER
    run(["chroot", str(root), "useradd", "-m", "-s", "/bin/bash", "-u", str(uid), user])
    (root / "var/log/journal").mkdir(exist_ok=True)
    for name in ("mnt/boot", "mnt/state", "mnt/data"):
        (root / name).mkdir(parents=True, exist_ok=True)


def _install_python(root: Path, requirements: Sequence[str], log: Path) -> None:
    """A venv on Debian's Python that also sees python3-systemd, filled by the venv's own pip."""
    env = CLEAN_ENV | proxy_environment() | pip_environment()
    for name in ("resolv.conf", "hosts"):
        if Path("/etc", name).exists():
            shutil.copyfile(Path("/etc", name), root / "etc" / name)
    if CA_BUNDLE.exists():
        shutil.copyfile(CA_BUNDLE, root / CA_INSIDE.lstrip("/"))
        env["PIP_CERT"] = CA_INSIDE
    say(f"installing {len(requirements)} Python requirements")
    inside = ["chroot", str(root)]
    _logged([*inside, "python3", "-m", "venv", "--system-site-packages", recipe.VENV], log, env)
    pip = [f"{recipe.VENV}/bin/pip", "install", "--no-cache-dir", "--no-input"]
    _logged([*inside, *pip, *requirements], log, env, show=("Collecting", "Successfully"))


def pip_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """This machine's pip settings as variables, for a pip that cannot see its files."""
    values: dict[str, str] = {}
    for command in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        try:
            listing = subprocess.run([*command, "config", "list"], capture_output=True, text=True,
                                     env=dict(environ), timeout=30, check=False)  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            continue
        if listing.returncode == 0:
            pairs = (line.partition("=") for line in listing.stdout.splitlines())
            values = {name.rpartition(".")[2]: value.strip("'") for name, _, value in pairs}
            break
    for name in PIP_SETTINGS:
        values.setdefault(name, environ.get(f"PIP_{name.upper().replace('-', '_')}", ""))
    wanted = {}
    for name in PIP_SETTINGS:
        # Local directories of this machine do not exist inside.
        words = [word for word in values[name].split() if not word.startswith(("file:", "/"))]
        if words:
            wanted[f"PIP_{name.upper().replace('-', '_')}"] = " ".join(words)
    return wanted | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}


def _clean(root: Path) -> None:
    """Nothing of the building machine may stay; caches are dead weight."""
    for name in ("etc/resolv.conf", "etc/hosts", "etc/hostname", CA_INSIDE.lstrip("/")):
        (root / name).unlink(missing_ok=True)
    for directory in ("var/cache/apt/archives", "var/lib/apt/lists", "var/log/journal"):
        for entry in (root / directory).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    # Each device gets its own; debootstrap's would make them all one machine.
    (root / "etc/machine-id").write_text("")
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    (root / "etc/apt/sources.list").write_text("")


def _logged(
    command: Sequence[str], log: Path, env: Mapping[str, str], show: tuple[str, ...] = ()
) -> None:
    """Run a long command: all lines to the log, about one matching line a second to the user."""
    shown = 0.0
    with (
        open(log, "a", encoding="utf-8") as sink,
        subprocess.Popen(list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         stdin=subprocess.DEVNULL, env=dict(env), errors="replace") as process,
    ):  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            sink.write(line)
            if line.startswith(show) and show and time.monotonic() - shown > 1.0:
                shown = time.monotonic()
                say("  " + line.strip()[:90])
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise DeviceError(f"{command[0]} ended with status {process.returncode}:\n{tail}")
