"""The preloaded target: `apps.json` on the data partition, for devices that start without a cloud.

Theory: the file counts only while no target was ever set. It is read once at start and applied as
soon as every image that it names is in the engine (spec 20 §24); until then it is left where it
is, and a later look may find the images. A store that takes nothing just now, for want of room say,
is tried again by and by. After acceptance the file is renamed, so that it can never override what
came after it.

A file with `pinDevice` wants the device pinned to the release that it brings. That is the cloud's
to do, once the device is registered (spec 20 §22); until then the wish is kept as a setting, like
the peer keeps it, and it is there before the target is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from ..core.errors import AgentError, InvalidInput, Unavailable
from ..core.hostconfig import current_variables
from ..core.intent import SetTarget
from ..core.jsonread import Json
from ..core.snapshot import Snapshot
from ..core.sources import PRELOAD
from ..core.target import Target, images_to_run, read_preload
from ..core.variables import plain_names
from .ports import Submit

_log = logging.getLogger(__name__)


def parse(raw: str) -> Target | None:
    """The target in a preload file; None for an empty one. InvalidInput, InvalidTarget."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"apps.json is not JSON: {error}", "$") from error
    if not document:
        return None
    target = read_preload(document)
    return target if target.apps or target.config else None


def overlaid(raw: str, current: Mapping[str, str]) -> str:
    """A preload file with the host's current variables where it says nothing of its own: a first
    target must not undo what the image's builder has set (spec 20 §24)."""
    document = json.loads(raw)
    holder = document[0] if isinstance(document, list) else document
    listed = document if isinstance(document, list) else [document]
    own = [plain_names(part.get("config") or {}) for part in listed]
    holder["config"] = {**current, **{k: v for config in own for k, v in config.items()}}
    return json.dumps(document)


PIN = "pinDevice"
"""The setting that remembers to which release the device is to be pinned: {app, commit}."""


def pin(raw: str, target: Target) -> Json:
    """What a preload file asks the device to be pinned to: the release of its first fleet app
    (spec 20 §24); None for nothing."""
    document = json.loads(raw)
    if not isinstance(document, dict) or document.get("pinDevice") is not True:
        return None
    fleets = (app for app in target.apps.values() if app.app_class == "fleet" and app.release)
    return next(({"app": a.app_id, "commit": a.release.commit} for a in fleets if a.release), None)


class Preload:
    """Waits for the images, then submits. `seen` is a subscriber of Published; `remember` keeps a
    setting durably. Used by several threads."""

    def __init__(
        self,
        path: Path,
        submit: Submit,
        remember: Callable[[str, Json], None],
    ) -> None:
        self._path = path
        self._submit = submit
        self._remember = remember
        self._lock = threading.Lock()
        self._refused: SetTarget | None = None
        """What the store would not take."""
        self._over = False
        """Whether there is a target: this one or another."""
        self._told = ""
        self._raw = ""
        self._target: Target | None = None
        self._missing: frozenset[str] = frozenset()

    def read(self) -> bool:
        """Read the file; says whether there is something to wait for. Problems are told, and the
        file stays."""
        try:
            self._raw = self._path.read_text()
            self._target = parse(self._raw)
        except (FileNotFoundError, IsADirectoryError):
            return False
        except (OSError, UnicodeDecodeError, RecursionError, AgentError) as error:
            _log.error("Preloaded target %s is not used: %s", self._path, error)
        return self._target is not None

    def seen(self, snapshot: Snapshot) -> None:
        """Submit once every image is there, unless another target came first."""
        if snapshot.target is not None:
            self._give_up()
        if self._target is None or not snapshot.looked:
            return
        if snapshot.target is not None:
            self._target = None
            return
        missing = frozenset(
            name for name in images_to_run(self._target) if snapshot.observed.image(name) is None
        )
        if missing:
            self._tell(missing)
            return
        self._target = None
        raw = overlaid(self._raw, current_variables(snapshot.host))
        target = parse(raw)
        assert target is not None
        self._try(SetTarget(PRELOAD, raw, target))

    def catch_up(self) -> None:
        """Try again what could not be stored; for whoever comes by now and then. Never fails."""
        with self._lock:
            command, self._refused = self._refused, None
        if command:
            self._try(command)

    def _give_up(self) -> None:
        """Another target came before this one could be stored: it is of no account any more."""
        with self._lock:
            refused, self._refused, self._over = self._refused, None, True
        if refused:
            with contextlib.suppress(AgentError):
                self._remember(PIN, None)

    def _try(self, command: SetTarget) -> None:
        try:
            if wanted := pin(command.raw, command.target):
                self._remember(PIN, wanted)
        except AgentError as error:
            self._ended(command, error)
            return
        answer = self._submit(command)
        answer.add_done_callback(lambda done: self._ended(command, done.exception()))

    def _ended(self, command: SetTarget, error: BaseException | None) -> None:
        if error is None:
            self._put_away()
            return
        with self._lock:
            if isinstance(error, Unavailable) and not self._over:
                self._refused = command
        if str(error) != self._told:
            self._told = str(error)
            _log.error("Preloaded target %s was refused: %s", self._path, error)

    def _tell(self, missing: frozenset[str]) -> None:
        if missing != self._missing:
            self._missing = missing
            names = ", ".join(sorted(missing))
            _log.warning("Preloaded target %s waits for images: %s", self._path, names)

    def _put_away(self) -> None:
        done = self._path.with_name(self._path.name + ".preloaded")
        try:
            if not done.exists():
                self._path.rename(done)
            self._path.write_text("{}\n")
        except OSError as error:
            _log.warning("Could not put %s away: %s", self._path, error)
