"""Update locks: files with which services forbid, and the agent claims, the right to change them.

Theory (spec 20 §17): a service's lock directory holds two files, `updates.lock` and
`resin-updates.lock`. Whoever makes one holds the lock; a directory or link of that name counts too.
The agent's own files belong to uid 65534. They are made elsewhere and linked into place, so that
none is ever seen half-made, and after a crash they are known as ours and adopted. A file on which
somebody holds a flock is that somebody's, whoever owns it: so the host's own `safe_reboot` and
we respect each other.

All sub-directories of an app count, whether its target still names them or not, and an app is
taken as a whole or not at all.

What cannot be removed, for want of descriptors say, is owed: it is tried again by and by
(`catch_up`), because nobody would ask for it any more, and the services could never lock.

Invariants: anybody may write below /tmp and containers write into their directories, so every part
of a path below the anchor is opened relative to its parent, never through a link, and the parts
above the service belong to root; nothing but a regular file is ever opened for reading.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..core.errors import Broken, Locked, Unavailable
from ..core.names import LOCK_ROOT
from ..core.observed import Lock

OWNER = 65534
FILES = ("updates.lock", "resin-updates.lock")
BREADCRUMBS = ("rollback-health-breadcrumb", "rollback-altboot-breadcrumb")
LEGACY = "resin-supervisor"

_TEMPORARY = ".balena-agent-lock-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UpdateLocks:
    """The lock directories below `directory`, host path. Callable from any thread."""

    def __init__(self, directory: str = LOCK_ROOT) -> None:
        self._directory = Path(directory)
        self._mutex = threading.Lock()
        self._held: set[int] = set()
        self._owed: set[int] = set()
        """Apps of which a release has begun and has not come to its end."""

    def take(self, app_id: int, services: Iterable[str], force: bool = False) -> None:
        """Take the locks of all these services, and of all others that the app has directories of.

        Locked: somebody holds one; then none of the app is ours. With `force` the others' locks
        are removed for good. Unavailable: the directories cannot be made or are not safe to use.
        """
        with self._mutex, _translated():
            try:
                for service in sorted({*services, *self._services(app_id)}):
                    with self._service(app_id, service, make=True) as here:
                        if not _take_both(here, force):
                            raise Locked(locked_message(app_id, service))
            except BaseException:
                with contextlib.suppress(OSError):  # owed; what went wrong first is told
                    self._release(app_id)
                raise
            self._held.add(app_id)
            self._owed.discard(app_id)

    def adopt(self) -> None:
        """Take over what a run that was killed has left, or remove it where somebody else holds a
        lock of the app by now. For the agent's start, before any lock is taken. Unavailable."""
        with _translated():
            self._link_legacy()
            names = [path.name for path in self._directory.glob("*") if path.name.isdecimal()]
        problems: list[Unavailable] = []
        for app_id in map(int, names):
            try:
                if self._left_over(app_id):
                    self.take(app_id, ())
            except Locked:
                pass
            except Unavailable as problem:  # of one app: the others' locks are seen to all the same
                problems.append(problem)
        if problems:
            raise problems[0]

    def release(self, app_id: int) -> None:
        """Remove every lock of ours in the app, also what an earlier run has left. Unavailable."""
        with self._mutex, _translated():
            self._release(app_id)

    def catch_up(self) -> None:
        """End the releases that have failed half-way, as far as it goes now; for whoever comes by
        now and then. Never fails."""
        with self._mutex:
            for app_id in sorted(self._owed):
                with contextlib.suppress(OSError):
                    self._release(app_id)

    def held(self) -> frozenset[int]:
        """The apps whose locks were taken and not released by this process."""
        with self._mutex:
            return frozenset(self._held)

    def holders(self, app_ids: Iterable[int]) -> tuple[Lock, ...]:
        """Every lock that somebody else holds in these apps. Unavailable."""
        with _translated():
            return tuple(lock for app_id in app_ids for lock in self._foreign(app_id))

    def prepare_directory(self, app_id: int, service: str) -> str:
        """Make a service's directory, which the engine would make unfit for non-root users.

        Returns its host path. Unavailable.
        """
        with _translated(), self._service(app_id, service, make=True):
            return str(self._directory / str(app_id) / service)

    @contextlib.contextmanager
    def directory(self, app_id: int, service: str) -> Iterator[int]:
        """A service's directory, open, for what else is kept in it. Unavailable."""
        with _translated(), self._service(app_id, service, make=False) as here:
            yield here

    # -- directories

    def _link_legacy(self) -> None:
        """Where only the directory's name of old exists, let today's be a link to it: what runs
        already has its locks there (spec 20 §2). One that is not root's is no such directory."""
        today = self._directory.parent
        with contextlib.suppress(FileNotFoundError):
            old = os.lstat(today.with_name(LEGACY))
            roots = stat.S_ISDIR(old.st_mode) and old.st_uid in (0, os.geteuid())
            if roots and not os.path.lexists(today):
                today.symlink_to(f"./{LEGACY}")

    def _services(self, app_id: int) -> tuple[str, ...]:
        """The services that have a directory now: real ones, no links."""
        with self._app(app_id, make=False) as here:
            if here is None:
                return ()
            with os.scandir(here) as entries:
                return tuple(sorted(e.name for e in entries if e.is_dir(follow_symlinks=False)))

    @contextlib.contextmanager
    def _app(self, app_id: int, make: bool) -> Iterator[int | None]:
        """The app's directory, open; None where there is none and none is to be made."""
        top = self._directory.parent
        with contextlib.ExitStack() as stack:
            try:
                here = _open(stack, os.fspath(top.parent), None)
                for part in (_linked(here, top.name), self._directory.name, str(app_id)):
                    if make:
                        _make(here, part)
                    here = _open(stack, part, here)
                    _belongs_to_root(here, part)
            except FileNotFoundError:
                if make:
                    raise
                yield None
                return
            yield here

    @contextlib.contextmanager
    def _service(self, app_id: int, service: str, make: bool) -> Iterator[int]:
        """The service's directory, open. The container may have done with it what it likes."""
        if service in ("", ".", "..") or "/" in service or "\0" in service:
            raise Broken(f"{service!r} is no service name")
        with self._app(app_id, make) as parent, contextlib.ExitStack() as stack:
            if parent is None:
                raise FileNotFoundError(errno.ENOENT, "no such directory", str(app_id))
            if make:
                _make(parent, service)
            here = _open(stack, service, parent)
            if make:
                os.fchmod(here, 0o1777)
            yield here

    # -- locks

    def _release(self, app_id: int) -> None:
        """Once begun the app does not count as ours any more: a user may have what is free again.
        One service that fails keeps no other one's locks. OSError, the first of them."""
        self._held.discard(app_id)
        self._owed.add(app_id)
        problems: list[OSError] = []
        for service in self._services(app_id):
            try:
                self._release_service(app_id, service)
            except OSError as problem:
                problems.append(problem)
        if problems:
            raise problems[0]
        self._owed.discard(app_id)

    def _release_service(self, app_id: int, service: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._service(app_id, service, False) as here:
            for name in FILES:
                if _holder(here, name) == "us":
                    os.unlink(name, dir_fd=here)

    def _left_over(self, app_id: int) -> bool:
        with self._mutex, _translated():
            for service in self._services(app_id):
                with self._service(app_id, service, False) as here:
                    if any(_holder(here, name) == "us" for name in FILES):
                        return True
        return False

    def _foreign(self, app_id: int) -> Iterator[Lock]:
        for service in self._services(app_id):
            path = self._directory / str(app_id) / service
            with contextlib.suppress(FileNotFoundError), self._service(app_id, service, False) as d:
                for name in FILES:
                    if _holder(d, name) == "other":
                        yield Lock(app_id, service, str(path / name))


def locked_message(app_id: int, service: str) -> str:
    """The peer's words, which clients look for."""
    return f"Lockfile exists for {{ appId: {app_id}, service: {service} }}"


def host_update_pending(state: str) -> bool:
    """Whether a host OS update waits for its verdict: no reboot then (spec 20 §20)."""
    return any(os.path.lexists(os.path.join(state, name)) for name in BREADCRUMBS)


def _take_both(here: int, force: bool) -> bool:
    """Make both files ours. False: somebody else's is in the way."""
    for name in os.listdir(here):
        if name.startswith(_TEMPORARY):  # a crash between making and removing it
            remove(here, name)
    for name in FILES:
        holder = _holder(here, name)
        if holder == "other" and force:
            remove(here, name)
            holder = _holder(here, name)
        if holder == "other" or (holder == "nobody" and not _create(here, name)):
            return False
    return True


def _holder(here: int, name: str) -> str:
    """Whose lock it is: `nobody`, `us` or `other`."""
    try:
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    except FileNotFoundError:
        return "nobody"
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != OWNER:
            return "other"
        return "other" if _flocked(handle) else "us"
    finally:
        os.close(handle)


def _flocked(path_handle: int) -> bool:
    """Whether somebody holds a flock on the (regular) file."""
    handle = os.open(f"/proc/self/fd/{path_handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


def _create(here: int, name: str) -> bool:
    """Make a lock file, complete at once. False: somebody was quicker."""
    fresh = _TEMPORARY + secrets.token_hex(6)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(fresh, flags, 0o444, dir_fd=here)
    try:
        os.write(handle, b"0")
        os.fchown(handle, OWNER, -1)
        os.link(fresh, name, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
        return True
    except (FileExistsError, FileNotFoundError):  # the service may even remove our new file
        return False
    finally:
        os.close(handle)
        remove(here, fresh)


def remove(here: int, name: str) -> None:
    """Remove a file, link or empty directory from an open one; what has content stays."""
    with contextlib.suppress(FileNotFoundError):
        try:
            os.unlink(name, dir_fd=here)
        except (IsADirectoryError, PermissionError):
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=here)


def _open(stack: contextlib.ExitStack, part: str, parent: int | None) -> int:
    """A directory, open until the stack ends. The anchor itself may be reached through links."""
    flags = _DIRECTORY if parent is not None else _DIRECTORY & ~os.O_NOFOLLOW
    handle = os.open(part, flags, dir_fd=parent)
    stack.callback(os.close, handle)
    return handle


def _make(parent: int, part: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(part, 0o755, dir_fd=parent)


def _linked(parent: int, part: str) -> str:
    """The legacy name if `part` is root's link to it (see _link_legacy), else `part`."""
    with contextlib.suppress(OSError):
        ours = os.lstat(part, dir_fd=parent).st_uid in (0, os.geteuid())
        if ours and os.path.basename(os.readlink(part, dir_fd=parent)) == LEGACY:
            return LEGACY
    return part


def _belongs_to_root(handle: int, part: str) -> None:
    if os.fstat(handle).st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, "belongs to another user", part)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else "lock directory"
        raise Unavailable(f"update locks: {where}: {error.strerror}") from error
