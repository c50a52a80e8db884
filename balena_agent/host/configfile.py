"""config.json on the disk: read whole, changed by merging, kept through every mishap.

Theory: others write this file too, at any time. So it is read again before every change, and only
what is changed is changed. A text that cannot be read as a configuration is never written over: the
last good one, which the store keeps, stands in until the file is mended (spec 30 §2.2, §2.3).

So it is with a file that is gone: mostly the boot partition is not mounted, or a program replaces
the file in two steps. A device that would take that for "no cloud any more" would drop its identity
and its target over a cable. Who leaves a cloud takes the keys out of the file and keeps the file;
then, and only then, are they gone (spec 30 §2.4: the values of keys are compared, not files).

Invariant: `state` is replaced as a whole; readers in any thread see one or the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core.configjson import Changes, ConfigFault, KeyPath, changed_keys, merged, parse
from ..core.errors import AgentError, Unavailable
from ..core.jsonread import Json
from .durable import DurableFile, Files

MOUNTS = "/proc/self/mountinfo"
FIRMWARE_VOLUME: KeyPath = ("os", "kernel", "extraFirmwareVol")
"""The volume of extra firmware, for the kernel's next boot (spec 30 §17)."""


@dataclass(frozen=True, slots=True)
class ConfigState:
    """`values` are the file's, or the last good ones. `problem` says why the file itself is of no
    use now; `absent` that there is none."""

    values: Mapping[str, Json] = field(default_factory=dict, repr=False)
    problem: str = ""
    absent: bool = False


class ConfigFile:
    """See the module. `last_good` is what the store kept, `keep` keeps another one. `guard` says
    why nothing may be written now, or ""."""

    def __init__(
        self,
        path: str,
        *,
        last_good: str = "",
        keep: Callable[[str], None] = lambda text: None,
        guard: Callable[[], str] = str,
        files: Files | None = None,
    ) -> None:
        self.path = path
        self._file = DurableFile(path, files)
        self._kept = last_good
        self._keep = keep
        self._guard = guard
        self._lock = threading.Lock()
        self.state = ConfigState(absent=True)
        self.refresh()

    @property
    def writable(self) -> bool:
        """Whether a change could be made now, as far as can be told without trying."""
        return not (self.state.absent or self.state.problem or self._guard())

    def refresh(self) -> frozenset[str]:
        """Read again; the keys whose values have changed. Never raises."""
        with self._lock:
            before = self.state.values
            self._read()
            return changed_keys(before, self.state.values)

    def merge(self, changes: Changes) -> bool:
        """Bring these changes into the file; False where it says all of it already. Unavailable:
        it cannot be written now, and is as it was."""
        with self._lock:
            raw = self._read()
            reason = self._guard() or self.state.problem
            if raw is None or reason:
                raise Unavailable(f"{self.path} is not changed: {reason or 'there is none'}")
            fresh = merged(raw, changes)
            if fresh == raw:
                return False
            self._file.write(fresh)
            self._read()
            return True

    def text(self, path: KeyPath) -> str | None:
        """A text deep in the file, "" where it is not set; None where it can be neither told nor
        set: no such file, not JSON, or something else in the place of an object."""
        if self.state.absent or self.state.problem:
            return None
        found: Json = self.state.values
        for key in path:
            if not isinstance(found, Mapping):
                return None
            found = found.get(key, "" if key == path[-1] else {})
        return found if isinstance(found, str) else None

    def set(self, path: KeyPath, value: str) -> None:
        """Set one text deep in the file. Unavailable; also where something else is in its place."""
        if self.text(path) is None:
            raise Unavailable(f"{self.path}: {'.'.join(path)} cannot be set in it")
        self.merge({path: value})

    def _read(self) -> bytes | None:
        """Take in what is there; None where that is of no use."""
        try:
            raw = self._file.read()
            if raw is None:
                self.state = ConfigState(self._last_good(), absent=True)
                return None
            values = parse(raw)
        except (ConfigFault, Unavailable) as error:
            reason = f"{self.path} {error}" if isinstance(error, ConfigFault) else error.message
            self.state = ConfigState(self._last_good(), problem=reason)
            return None
        self.state = ConfigState(values)
        self._remember(raw.decode("utf-8", "replace"))
        return raw

    def _last_good(self) -> Mapping[str, Json]:
        try:
            return parse(self._kept) if self._kept else {}
        except ConfigFault:
            return {}

    def _remember(self, text: str) -> None:
        if text == self._kept:
            return
        self._kept = text
        try:
            self._keep(text)
        except AgentError:
            return  # the store tells its own trouble; this copy is for a rainy day only


def mounted(directory: str, mounts: str = MOUNTS) -> bool:
    """Whether a directory is a mount point; bind mounts are, which os.path does not see."""
    try:
        lines = Path(mounts).read_text(errors="replace").splitlines()
    except OSError:
        return False
    wanted = directory.rstrip("/") or "/"
    return any(line.split(" ")[4].replace("\\040", " ") == wanted for line in lines if line)
