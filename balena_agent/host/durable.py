"""Files that a power cut leaves old or new, never mixed, never gone; on FAT too.

Theory: on FAT a rename over an existing name may lose both. So the content is first made durable
under a name that ends in its own digest. From then on the write counts, whatever happens: whoever
reads the file next finds the digest right and finishes it. The OS's own tool `fatrw` does the same
with the same names, so its interrupted writes are finished here and ours there (spec 30 §2.3).

    .NAME.<8 random>.<md5 of the content>.md5sum     the commit: whole if the digest is right
    .NAME.<8 random>.tmp                             on its way to NAME

One way for every file system: it costs a second write of a small file, and it is always tested.

All calls to the system go through `Files`, one small port, so that a test can cut the power before
and after each of them (tests/unit/test_durable.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import Protocol

from ..core.errors import Unavailable

_NEW_MODE = 0o600


class Files(Protocol):
    """The calls that reading and writing need; all raise OSError."""

    def names(self, directory: str) -> list[str]: ...

    def read(self, path: str) -> bytes: ...

    def mode(self, path: str) -> int: ...

    def create(self, path: str, content: bytes, mode: int) -> None:
        """A new file with this content, not durable yet."""

    def sync(self, path: str) -> None:
        """Make a file's content, or a directory's names, durable."""

    def rename(self, source: str, target: str) -> None: ...

    def remove(self, path: str) -> None: ...


class RealFiles:
    """`Files` of this machine."""

    def names(self, directory: str) -> list[str]:
        return os.listdir(directory)

    def read(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def mode(self, path: str) -> int:
        return os.stat(path).st_mode & 0o777

    def create(self, path: str, content: bytes, mode: int) -> None:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        with open(handle, "wb") as stream:
            with contextlib.suppress(PermissionError):  # FAT has no modes
                os.fchmod(handle, mode)
            stream.write(content)

    def sync(self, path: str) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def remove(self, path: str) -> None:
        os.unlink(path)


class DurableFile:
    """One file. Used by one thread at a time; other programs may write it in the same way."""

    def __init__(self, path: str, files: Files | None = None) -> None:
        self.path = path
        self._files = files or RealFiles()
        self._directory, self._name = os.path.split(path)
        pattern = rf"\.{re.escape(self._name)}\.[^.]+\.([0-9a-f]{{32}})\.md5sum"
        self._commit = re.compile(pattern)

    def read(self) -> bytes | None:
        """The content, after finishing a write that was interrupted; None where there is no file.

        Unavailable when it cannot be read. A write that cannot be finished (read-only partition)
        counts all the same.
        """
        try:
            pending = self._pending()
            if pending is not None:
                name, content = pending
                with contextlib.suppress(OSError):
                    self._finish(name, content)
                    self._sweep()
                return content
            return self._files.read(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be read: {error.strerror}") from error

    def write(self, content: bytes) -> None:
        """Replace the content. Durable when it returns; Unavailable when it cannot be.

        After an error the file holds the old or the new content, and the next `read` settles which.
        """
        files = self._files
        try:
            self._clear()
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            commit = self._beside(f"{secrets.token_hex(4)}.{digest}.md5sum")
            try:
                files.create(commit, content, self._mode())
                files.sync(commit)
                if files.read(commit) != content:
                    raise Unavailable(f"{self.path} cannot be written: it reads back otherwise")
            except BaseException:
                with contextlib.suppress(OSError):
                    files.remove(commit)
                raise
            files.sync(self._directory)
            self._finish(commit, content)
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """Take the file away, durably; no error where there is none. Unavailable."""
        try:
            self._clear()
            with contextlib.suppress(FileNotFoundError):
                self._files.remove(self.path)
            self._files.sync(self._directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be removed: {error.strerror}") from error

    def _finish(self, commit: str, content: bytes) -> None:
        """Bring a committed content to its place; may be cut off and done again."""
        files = self._files
        fresh = self._beside(f"{secrets.token_hex(4)}.tmp")
        files.create(fresh, content, self._mode())
        files.sync(fresh)
        files.rename(fresh, self.path)
        files.sync(self.path)
        files.sync(self._directory)
        files.remove(commit)
        files.sync(self._directory)

    def _pending(self) -> tuple[str, bytes] | None:
        """The commit of an interrupted write; what only looks like one is removed."""
        for name in sorted(self._files.names(self._directory)):
            found = self._commit.fullmatch(name)
            if not found:
                continue
            path = os.path.join(self._directory, name)
            content = self._files.read(path)
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == found[1]:
                return path, content
            with contextlib.suppress(OSError):
                self._files.remove(path)
        return None

    def _clear(self) -> None:
        """Finish what was interrupted, before something new is written."""
        while (pending := self._pending()) is not None:
            self._finish(*pending)
        self._sweep()

    def _sweep(self) -> None:
        """Remove what was on its way when a write was cut off."""
        leftover = re.compile(rf"\.{re.escape(self._name)}\.[0-9a-zA-Z]{{8}}\.tmp")
        for name in self._files.names(self._directory):
            if leftover.fullmatch(name):
                self._files.remove(os.path.join(self._directory, name))

    def _beside(self, ending: str) -> str:
        return os.path.join(self._directory, f".{self._name}.{ending}")

    def _mode(self) -> int:
        try:
            return self._files.mode(self.path)
        except FileNotFoundError:
            return _NEW_MODE
