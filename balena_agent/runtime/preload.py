"""The preloaded target: `apps.json` on the data partition, for devices that start without a cloud.

Theory: the file counts only while no target was ever set. It is read once at start and applied as
soon as every image that it names is in the engine (spec 20 §24); until then it is left where it
is, and a later look may find the images. After acceptance it is renamed, so that it can never
override what came after it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

from ..core.errors import AgentError, InvalidInput
from ..core.hostconfig import current_variables
from ..core.intent import SetTarget
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


class Preload:
    """Waits for the images, then submits. `seen` is a subscriber of Published."""

    def __init__(self, path: Path, submit: Submit) -> None:
        self._path = path
        self._submit = submit
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
        answer = self._submit(SetTarget(PRELOAD, raw, target))
        answer.add_done_callback(self._accepted)

    def _tell(self, missing: frozenset[str]) -> None:
        if missing != self._missing:
            self._missing = missing
            names = ", ".join(sorted(missing))
            _log.warning("Preloaded target %s waits for images: %s", self._path, names)

    def _accepted(self, answer: Future[str]) -> None:
        if answer.exception() is not None:
            _log.error("Preloaded target %s was refused: %s", self._path, answer.exception())
            return
        done = self._path.with_name(self._path.name + ".preloaded")
        try:
            if not done.exists():
                self._path.rename(done)
            self._path.write_text("{}\n")
        except OSError as error:
            _log.warning("Could not put %s away: %s", self._path, error)
