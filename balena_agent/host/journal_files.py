"""The files that journald writes to, and what happens when one is taken away.

Theory: journald goes on writing into a deleted file for some seconds, until it notices and opens
another one. The library reads such a file to its end, as long as it is not asked to look at the
directory: then it drops the file. So while the file that is written to has no name and no successor
is there (`ORPHANED`), the directory is not looked at; once there is one (`MOVED`), nobody writes
into the old file any more, and what is left in it is read first. Rotation looks the same from here.
The successor may be a file that was there before, when the journal moves to the other directory:
that is taken for granted after a while.

What cannot be read like that is known: the library drops a deleted file also when that has grown
beyond what was mapped of it. journald makes its files grow in large steps, so it is rare; `lost`
tells. For that every such file is kept open here (spec 30 §15.2).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

DIRECTORIES = ("/run/log/journal", "/var/log/journal")

SAME, ORPHANED, MOVED = "same", "orphaned", "moved"

_WRITTEN = "system.journal"
_NOTICED_SECONDS = 10.0
"""Twice the time after which journald notices that its file has gone."""

Identity = tuple[int, int]
"""Device and inode."""


class LiveFiles:
    """Used by one thread."""

    def __init__(
        self,
        directories: tuple[str, ...] = DIRECTORIES,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directories = directories
        self._now = now
        self._gone_at = 0.0
        self._sizes: dict[Identity, int] = {}
        self._handles: dict[Identity, int] = {}
        self._dropped = False
        self.state = SAME

    def take(self) -> None:
        """Those that are there now are the ones that count."""
        self._follow(self._found())
        self._dropped, self.state = False, SAME

    def look(self, dropped: bool = False) -> str:
        """How it stands with them: SAME, ORPHANED or MOVED. `dropped`: what is gone by now may not
        have been read to its end."""
        found, known = self._found(), self._sizes.keys()
        if known <= found.keys():
            self._follow(found)
            self.state = SAME
            return SAME
        if self.state == SAME:
            self._gone_at = self._now()
        self._dropped = self._dropped or dropped
        settled = known & found.keys() and self._now() - self._gone_at >= _NOTICED_SECONDS
        self.state = MOVED if found.keys() - known or settled else ORPHANED
        return self.state

    def deleted(self) -> bool:
        """Whether one of those that counted is no more."""
        return any(self._links_and_size(each)[0] == 0 for each in self._sizes)

    def lost(self) -> bool:
        """Whether one is no more, and there may be something in it that nobody has read."""
        return any(
            links == 0 and (self._dropped or size > self._sizes[each])
            for each in self._sizes
            for links, size in (self._links_and_size(each),)
        )

    def close(self) -> None:
        self._follow({})

    def _found(self) -> dict[Identity, tuple[str, int]]:
        """What journald writes to by now, with path and size."""
        found: dict[Identity, tuple[str, int]] = {}
        for top in self._directories:
            with contextlib.suppress(OSError):  # not there, or going away just now
                for each in os.scandir(top):
                    with contextlib.suppress(OSError):
                        path = os.path.join(each.path, _WRITTEN)
                        seen = os.stat(path)
                        found[seen.st_dev, seen.st_ino] = (path, seen.st_size)
        return found

    def _follow(self, found: dict[Identity, tuple[str, int]]) -> None:
        for each in self._handles.keys() - found.keys():
            os.close(self._handles.pop(each))
        for each in found.keys() - self._handles.keys():
            with contextlib.suppress(OSError):
                self._handles[each] = os.open(found[each][0], os.O_RDONLY | os.O_CLOEXEC)
        self._sizes = {each: size for each, (_, size) in found.items()}

    def _links_and_size(self, file: Identity) -> tuple[int, int]:
        if file not in self._handles:
            return 1, 0
        seen = os.fstat(self._handles[file])
        return seen.st_nlink, seen.st_size
