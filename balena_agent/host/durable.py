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
import errno
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

    def own(self, path: str, like: str) -> None:
        """Give a file the owner of another one, where the file system has owners."""

    def overwrite(self, path: str, content: bytes) -> None:
        """Other content in the file itself, not durable yet."""

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

    def own(self, path: str, like: str) -> None:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # new, FAT
            known = os.stat(like)
            os.chown(path, known.st_uid, known.st_gid)

    def overwrite(self, path: str, content: bytes) -> None:
        with open(path, "r+b", buffering=0) as stream:
            stream.write(content)
            stream.truncate()

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


class _Torn(Unavailable):
    """A file may hold anything now; what it shall hold stands in its commit."""


class DurableFile:
    """One file. Used by one thread at a time; other programs may write it in the same way.

    Where `path` is a link, the file it leads to is the one that is replaced.
    """

    def __init__(self, path: str, files: Files | None = None) -> None:
        self.path = path
        self.finished = False
        """Whether a `read` has come upon a write that was interrupted: until then whoever does not
        know our commits has read what was there before."""
        self._files = files or RealFiles()
        self._locate()

    def read(self) -> bytes | None:
        """The content, after finishing a write that was interrupted; None where there is no file.

        Unavailable when it cannot be read. A write that cannot be finished (read-only partition)
        counts all the same.
        """
        try:
            self._locate()
            pending = self._pending()
            if pending is not None:
                name, content = pending
                self.finished = True
                with contextlib.suppress(OSError, Unavailable):
                    self._finish(name, content)
                    self._sweep()
                return content
            return self._files.read(self._place)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be read: {error.strerror}") from error

    def write(self, content: bytes) -> None:
        """Replace the content. Durable when it returns; Unavailable when it cannot be.

        After an error the file holds the old content, or if the last call to the system has failed
        the new one; the next `read` settles which.
        """
        files = self._files
        try:
            self._locate()
            self._clear()
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            commit = self._beside(f"{secrets.token_hex(4)}.{digest}.md5sum")
            try:
                files.create(commit, content, self._mode())
                files.sync(commit)
                if files.read(commit) != content:
                    raise Unavailable(f"{self.path} cannot be written: it reads back otherwise")
                files.sync(self._directory)
                self._replace(content)
            except _Torn:
                raise
            except Exception:
                with contextlib.suppress(OSError):
                    files.remove(commit)
                raise
            self._settle(commit)
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """Take the file away, durably; no error where there is none. Unavailable."""
        try:
            self._locate()
            self._clear()
            with contextlib.suppress(FileNotFoundError):
                self._files.remove(self.path)
            self._files.sync(os.path.dirname(self.path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be removed: {error.strerror}") from error

    def _locate(self) -> None:
        self._place = os.path.realpath(self.path)
        self._directory, self._name = os.path.split(self._place)
        pattern = rf"\.{re.escape(self._name)}\.[^.]+\.([0-9a-f]{{32}})\.md5sum"
        self._commit = re.compile(pattern)

    def _finish(self, commit: str, content: bytes) -> None:
        """Bring a committed content to its place; may be cut off and done again."""
        self._replace(content)
        self._settle(commit)

    def _replace(self, content: bytes) -> None:
        """Another content. After an OSError the old one is there, and nothing else."""
        files = self._files
        fresh = self._beside(f"{secrets.token_hex(4)}.tmp")
        try:
            files.create(fresh, content, self._mode())
            files.own(fresh, self._place)
            files.sync(fresh)
            try:
                files.rename(fresh, self._place)
            except OSError as error:
                if error.errno != errno.EBUSY:  # it is a mount point
                    raise
                self._overwrite(content)
                with contextlib.suppress(OSError):
                    files.remove(fresh)
        except (OSError, _Torn):
            with contextlib.suppress(OSError):
                files.remove(fresh)
            raise

    def _overwrite(self, content: bytes) -> None:
        """What cannot be replaced is written over; a commit beside it stands in for it if that is
        cut off, or fails."""
        try:
            self._files.overwrite(self._place, content)
        except OSError as error:
            raise _Torn(f"{self.path} cannot be written: {error.strerror}") from error

    def _settle(self, commit: str) -> None:
        files = self._files
        files.sync(self._place)
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
            return self._files.mode(self._place)
        except FileNotFoundError:
            return _NEW_MODE
