"""org.freedesktop.LogControl1: `systemctl service-log-level balena-agent debug`.

Theory: the level of one logger can be read by anybody and set by root while the agent runs; it is
not kept. The target is always the journal, and asking for anything else is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..core.errors import InvalidInput

_LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO,
    "warning": logging.WARNING,
    "err": logging.ERROR,
    "crit": logging.CRITICAL,
    "alert": logging.CRITICAL,
    "emerg": logging.CRITICAL,
}
_TARGETS = ("journal", "auto")


class LogControl:
    """`logger` is the agent's top logger; `identifier` its name in the journal."""

    def __init__(self, logger: logging.Logger, identifier: str) -> None:
        self._logger = logger
        self._identifier = identifier

    def values(self) -> Mapping[str, Any]:
        level = self._logger.getEffectiveLevel()
        name = next((n for n, number in _LEVELS.items() if number >= level), "emerg")
        return {"LogLevel": name, "LogTarget": "journal", "SyslogIdentifier": self._identifier}

    def set(self, name: str, value: Any) -> None:
        """Set a writable property. InvalidInput for a word that is none of the allowed ones."""
        allowed = tuple(_LEVELS) if name == "LogLevel" else _TARGETS
        if value not in allowed:
            raise InvalidInput(f"{value!r} is none of {', '.join(allowed)}", name)
        if name == "LogLevel":
            self._logger.setLevel(_LEVELS[value])
