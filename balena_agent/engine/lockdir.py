"""The host directory in which a service and the host keep the service's update locks.

Theory (spec 20 §2): the directory is mounted into the container, so it has to be there before, and
users of any id in any container write into it: mode 1777. It lies below /tmp, where anybody may
have put something under our names; so each part is opened without following links, and a part that
belongs to neither root nor us is not used.
"""

from __future__ import annotations

import os

from ..core.desired import DesiredService
from ..core.errors import EngineFailed
from ..core.names import lock_directory

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_lock_directory(service: DesiredService) -> None:
    """Make the directory of names.lock_directory. EngineFailed when that cannot be done."""
    wanted = lock_directory(service.app_id, service.name)
    try:
        make_shared_directory(wanted)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EngineFailed(f"cannot make the lock directory {wanted}: {reason}") from error


def make_shared_directory(wanted: str) -> None:
    """Make a directory with its parents, safely; the last one open to all. Raises OSError."""
    parts = [part for part in wanted.split("/") if part]
    if ".." in parts:
        raise OSError(f"a directory name leaves its place: {wanted}")
    here = os.open("/", _OPEN)
    try:
        for part in parts:
            here = _entered(here, part)
        os.fchmod(here, 0o1777)
    finally:
        os.close(here)


def _entered(parent: int, part: str) -> int:
    """The open directory `part`, made if missing; closes `parent` once it is open."""
    try:
        os.mkdir(part, 0o755, dir_fd=parent)
    except FileExistsError:
        pass
    child = os.open(part, _OPEN, dir_fd=parent)
    if os.fstat(child).st_uid not in (0, os.geteuid()):
        os.close(child)
        raise OSError(f"{part} belongs to another user")
    os.close(parent)
    return child
