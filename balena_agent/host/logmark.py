"""A word about the log upload that outlives the process but not the boot (spec 31 §8.3).

Theory: it is written many times a second while services talk, so it lies in memory (/run), where
nothing wears out. The next process of the same boot reads it; after a boot there is none, and what
the store knows counts.
"""

from __future__ import annotations

from pathlib import Path

from ..core.errors import Unavailable
from .machine import write_durable


class LogMark:
    """One small file, which only root reads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str:
        """What was written last, "" for nothing. Unavailable."""
        try:
            return self._path.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be read: {error.strerror}") from error

    def write(self, text: str) -> None:
        """Replace it; "" takes it away. Unavailable."""
        if text:
            write_durable(self._path, text.encode())
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be removed: {error.strerror}") from error
