"""Single members of config.json, read as they are now and written so that all others survive.

Theory (spec 30 §2.3): the file belongs to many, and the boot partition is FAT, where a rename over
a file is not safe from power cuts. So a write reads the file anew, changes one member, and follows
the OS's own `fatrw`: the whole content first goes into a file beside it whose name ends in the
digest of the content. From then on it is committed, whatever happens: whoever reads next finishes
it. A file that is not there, or that we cannot parse, is never written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
from pathlib import Path

from ..core.errors import Unavailable
from ..core.jsonread import Json
from .machine import interrupted_write

Members = tuple[str, ...]

FIRMWARE_VOLUME: Members = ("os", "kernel", "extraFirmwareVol")


class ConfigFile:
    """config.json at `path`. Callable from any thread."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._mutex = threading.Lock()
        self._seen: tuple[tuple[int, int, int], Json] | None = None

    def text(self, members: Members) -> str | None:
        """A text deep in the file, "" where it is not set; None where it can be neither told nor
        set: no such file, not JSON, or something else in the place of an object."""
        values = self._values()
        for name in members[:-1]:
            if not isinstance(values, dict):
                return None
            values = values.get(name, {})
        found = values.get(members[-1], "") if isinstance(values, dict) else None
        return found if isinstance(found, str) else None

    def set(self, members: Members, value: str) -> None:
        """Set one member; nothing is written when it is so already. Unavailable."""
        with self._mutex:
            raw = self._raw()
            here = whole = _parsed(raw)
            for name in members[:-1]:
                here = here.setdefault(name, {}) if isinstance(here, dict) else None
            if not isinstance(here, dict):
                raise Unavailable(f"{self._path}: {'.'.join(members)} cannot be set in it")
            if here.get(members[-1]) == value:
                return
            here[members[-1]] = value
            pretty = raw.lstrip().startswith(b"{\n")
            form = json.dumps(
                whole, indent=2 if pretty else None, separators=None if pretty else (",", ":"),
                ensure_ascii=False,
            )  # fmt: skip
            self._write(form.encode())

    def _values(self) -> Json:
        """The parsed file; parsed anew only when it has changed."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        mark = (found.st_mtime_ns, found.st_ino, found.st_size)
        seen = self._seen
        if seen is None or seen[0] != mark:
            try:
                seen = (mark, _parsed(self._raw()))
            except Unavailable:
                seen = (mark, None)
            self._seen = seen
        return seen[1]

    def _raw(self) -> bytes:
        try:
            return interrupted_write(self._path) or self._path.read_bytes()
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be read: {error.strerror}") from error

    def _write(self, content: bytes) -> None:
        name, token = self._path.name, secrets.token_hex(4)
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        committed = self._path.with_name(f".{name}.{token}.{digest}.md5sum")
        fresh = self._path.with_name(f".{name}.{token}.tmp")
        try:
            mode = os.stat(self._path).st_mode & 0o777
            _put(committed, content, mode)
            if committed.read_bytes() != content:
                raise Unavailable(f"{committed} does not hold what was written to it")
            for old in self._path.parent.glob(f".{name}.*.*.md5sum"):
                if old != committed:  # finished by this write, or garbage
                    old.unlink(missing_ok=True)
            _put(fresh, content, mode)
            os.replace(fresh, self._path)
            _sync(self._path.parent)
            committed.unlink()
            _sync(self._path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise Unavailable(f"{self._path} cannot be written: {error.strerror}") from error


def _parsed(raw: bytes) -> Json:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Unavailable("config.json is not valid JSON") from error


def _put(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    with open(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(handle)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
