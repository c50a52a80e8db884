"""The kernel's messages of this boot, looked through for one pattern (spec 30 §12).

Theory: journald keeps them; the kernel's own buffer forgets, and is closed to the agent. A question
reads what has come since the last one and no more: the cursor is kept, the journal is not held
open. What was found once has happened in this boot, so after it nothing is read any more.

The library is imported with the first question.
"""

from __future__ import annotations

import contextlib
import logging
import re
from typing import Any

_log = logging.getLogger(__name__)

UNDER_VOLTAGE = re.compile(r"under.*voltage", re.IGNORECASE)
TRANSPORT = "kernel"


class KernelLog:
    """Used by one thread at a time. `transport` is how the messages reach journald, for tests."""

    def __init__(
        self,
        boot_id: str,
        pattern: re.Pattern[str] = UNDER_VOLTAGE,
        transport: str = TRANSPORT,
    ) -> None:
        self._matches = (f"_BOOT_ID={boot_id.replace('-', '')}", f"_TRANSPORT={transport}")
        self._pattern = pattern
        self._cursor = ""
        self._found = False

    def found(self) -> bool:
        """Whether a message of this boot matches. False where there is no journal."""
        if not self._found:
            try:
                self._found = self._read()
            except (ImportError, OSError, ValueError) as error:
                _log.debug("The kernel's messages cannot be read: %s", error)
        return self._found

    def _read(self) -> bool:
        from systemd import _reader

        journal: Any = _reader._Reader()
        try:
            for match in self._matches:
                journal.add_match(match)
            return self._search(journal)
        finally:
            journal.close()

    def _search(self, journal: Any) -> bool:
        if self._cursor:
            journal.seek_cursor(self._cursor)
            more = journal._next()
            if more and journal.test_cursor(self._cursor):
                more = journal._next()
        else:
            journal.seek_head()
            more = journal._next()
        while more:
            self._cursor = journal._get_cursor()
            with contextlib.suppress(KeyError):
                if self._pattern.search(journal._get("MESSAGE").decode("utf-8", "replace")):
                    return True
            more = journal._next()
        return False
