"""Images without an outside registry: a busybox root, imported by the device's own engine.

Files get a fixed time, so that two builds of the same content share their layer and a pull of the
second has nothing to fetch but its configuration.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .outer import DeviceError

if TYPE_CHECKING:
    from .machine import Machine

# Prints a line every three seconds; the trap makes it end at once, so that stopping is no wait.
DEFAULT_CMD = (
    "/bin/sh", "-c",
    "trap 'echo bye; exit 0' TERM INT; n=0; while :; do echo tick $n; n=$((n+1));"
    " sleep 3 & wait $!; done",
)  # fmt: skip
APPLETS = (
    "ash", "cat", "chmod", "cp", "cut", "date", "dd", "df", "echo", "env", "false", "find",
    "flock", "free", "grep", "head", "hostname", "httpd", "id", "ip", "kill", "ln", "ls", "md5sum",
    "mkdir", "mount", "mv", "nc", "nslookup", "ping", "printf", "ps", "pwd", "readlink", "rm",
    "sed", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "sync", "tail", "tee", "test",
    "timeout", "touch", "tr", "true", "umount", "uname", "wc", "wget", "xargs", "yes",
)  # fmt: skip
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"


Content = str | bytes | Path


@dataclass(frozen=True, slots=True)
class Image:
    """What was built: the reference to put into a target, the engine's id, the registry's digest.

    `digest` is '' for an image that exists only in the engine.
    """

    reference: str
    id: str
    digest: str = ""


def build(
    machine: Machine,
    tag: str,
    *,
    cmd: Sequence[str] = DEFAULT_CMD,
    files: Mapping[str, Content] | None = None,
    changes: Sequence[str] = (),
    engine_only: bool = True,
    keep: bool = False,
    timeout: float = 60.0,
) -> Image:
    """Build `tag` in the device: into its engine, or pushed to its registry (then not kept local).

    `files` maps paths in the image to text, bytes, a file or a directory. `changes` are lines as
    in a Dockerfile, e.g. 'LABEL a=b', 'ENV x=y', 'EXPOSE 80', 'HEALTHCHECK CMD true'.
    """
    reference = tag if engine_only else f"{machine.registry}/{tag}"
    lines = [f"CMD {json.dumps(list(cmd))}", "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin", *changes]
    options = [word for line in lines for word in ("--change", line)]
    layer = _layer(machine.root / "bin/busybox", files or {})
    done = machine.exec_bytes(
        "docker", "import", *options, "-", reference, input=layer, timeout=timeout
    )
    image_id = done.decode().strip()
    if engine_only:
        return Image(reference, image_id)
    pushed = machine.exec("docker", "push", reference, timeout=timeout).stdout
    words = pushed.split()
    if "digest:" not in words:
        raise DeviceError(f"docker push said no digest:\n{pushed}")
    digest = words[words.index("digest:") + 1]
    if not keep:
        machine.exec("docker", "rmi", reference, timeout=timeout)
    return Image(reference, image_id, digest)


def from_directory(directory: Path) -> tuple[Sequence[str], dict[str, Path]]:
    """(command, files) of a directory: a top-level file `cmd` holds the command, if there is one.

    `cmd` is a JSON list, or a line for the shell.
    """
    files = {f"/{entry.name}": entry for entry in sorted(directory.iterdir())}
    cmd = files.pop("/cmd", None)
    return (parse_cmd(cmd.read_text(encoding="utf-8")) if cmd else DEFAULT_CMD), files


def parse_cmd(text: str) -> Sequence[str]:
    if text.lstrip().startswith("["):
        words = json.loads(text)
        if not words or not all(isinstance(word, str) for word in words):
            raise DeviceError(f"cmd is no list of strings: {text!r}")
        return tuple(words)
    return ("/bin/sh", "-c", text.strip())


def _layer(busybox: Path, files: Mapping[str, Content]) -> bytes:
    """The image's only layer, as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777)):
            _add(tar, name, mode=mode, kind=tarfile.DIRTYPE)
        _add(tar, "bin/busybox", busybox.read_bytes(), mode=0o755)
        for applet in APPLETS:
            _add(tar, f"bin/{applet}", kind=tarfile.SYMTYPE, target="busybox")
        _add(tar, "etc/passwd", PASSWD.encode())
        for name, content in files.items():
            if isinstance(content, Path):
                tar.add(content, name.lstrip("/"), filter=_neutral)
            else:
                data = content.encode() if isinstance(content, str) else content
                _add(tar, name.lstrip("/"), data, mode=0o755 if data[:2] == b"#!" else 0o644)
    return buffer.getvalue()


def _neutral(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = 0
    return entry


def _add(
    tar: tarfile.TarFile,
    name: str,
    data: bytes = b"",
    *,
    mode: int = 0o644,
    kind: bytes = tarfile.REGTYPE,
    target: str = "",
) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.type, entry.linkname, entry.size = mode, kind, target, len(data)
    tar.addfile(entry, io.BytesIO(data))
