"""Where the upload of log lines goes on after a restart of the agent (spec 31 §8.3).

Theory: two places, because they are worn out differently. What the cloud certainly has is kept in
the store, but only once a minute: it counts after a boot. How far the lines have come is left in
memory that outlives the process (`Mark`), as often as it changes: it counts after a kill. Either is
a cursor of the journal, for one device and one cloud. Before there is any, the store has the time
at which all began: else a device whose cloud is away at first would forget that with every start.

Invariants: for one thread; a cursor of another device or cloud is never given out.
"""

from __future__ import annotations

import json
import logging
from typing import Protocol

from ..core.errors import AgentError
from ..core.jsonread import Json
from ..core.keyvalue import KeyValueStore
from ..core.logupload import Delivery

_log = logging.getLogger(__name__)

CURSOR = "log_cursor"
KEEP_SECONDS = 60.0


class Mark(Protocol):
    """A text that outlives the process, but not the boot. Unavailable."""

    def read(self) -> str: ...
    def write(self, text: str) -> None: ...


class Bookmark:
    """For the cloud's address and the device's uuid of the last `recall`."""

    def __init__(self, memory: KeyValueStore, mark: Mark) -> None:
        self._memory = memory
        self._mark = mark
        self._whose = ("", "")
        self._left = self._kept = ""
        self._began = 0.0
        self._kept_at = float("-inf")
        self.closed = False
        """The store must not be used any more."""

    def recall(self, whose: tuple[str, str]) -> str:
        """The cursor that was kept for it, "" for none; the younger word comes first."""
        self._whose, self._began = whose, 0.0
        for place in (self._read_mark, self._read_kept):
            try:
                noted = place()
            except AgentError as error:
                _log.warning("Cannot read how far log lines were sent: %s", error.message)
                continue
            if isinstance(noted, dict) and (noted.get("endpoint"), noted.get("uuid")) == whose:
                self._left = self._kept = str(noted.get("cursor") or "")
                self._began = _number(noted.get("since"))
                return self._left
        return ""

    def begin(self, since: float) -> float:
        """Where nothing was sent yet: since when (wall time, s) lines are sent, as was said at
        first."""
        if self._began:
            return min(self._began, since)
        self._began = since
        self._set({**self._about(""), "since": since})
        return since

    def note(self, delivery: Delivery, now: float, ended: bool = False) -> None:
        """Leave word of how far the lines have come. `ended`: it may be the last word."""
        if delivery.arrived != self._left:
            self._leave(delivery.arrived)
        due = ended or now - self._kept_at >= KEEP_SECONDS
        if due and delivery.certain != self._kept:
            self._keep(delivery.certain)
            self._kept_at = now

    def forget(self) -> None:
        """Nothing that was written so far shall ever be sent."""
        self._leave("")
        self._keep("")

    def _leave(self, cursor: str) -> None:
        self._left = cursor
        try:
            self._mark.write(json.dumps(self._about(cursor)) if cursor else "")
        except AgentError as error:
            _log.warning("Cannot leave word of how far log lines were sent: %s", error.message)

    def _keep(self, cursor: str) -> None:
        self._kept = cursor
        self._set(self._about(cursor) if cursor else None)

    def _set(self, noted: Json) -> None:
        if self.closed:
            return
        try:
            if noted or self._memory.setting(CURSOR) is not None:
                self._memory.set_setting(CURSOR, noted)
        except AgentError as error:
            _log.warning("Cannot remember how far log lines were sent: %s", error.message)

    def _read_mark(self) -> Json:
        return _document(self._mark.read())

    def _read_kept(self) -> Json:
        return self._memory.setting(CURSOR)

    def _about(self, cursor: str) -> dict[str, Json]:
        endpoint, uuid = self._whose
        return {"endpoint": endpoint, "uuid": uuid, "cursor": cursor}


def _number(value: Json) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _document(text: str) -> Json:
    try:
        found: Json = json.loads(text) if text else None
    except ValueError:
        return None
    return found
