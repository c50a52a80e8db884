"""Where a command of balena-agentctl gets its answers from, where it prints to, how it may end."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from .core.errors import Refused

if TYPE_CHECKING:
    from .ctl_client import Client

DONE, FAILED, USAGE, LOCKED, REFUSED, NOT_RUNNING = range(6)

CODES = {
    "io.balena.Agent1.Error.Locked": LOCKED,
    "org.freedesktop.DBus.Error.AccessDenied": REFUSED,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": REFUSED,
    "org.freedesktop.DBus.Error.ServiceUnknown": NOT_RUNNING,
}
_WHO_MAY = "\nAllowed are root, members of the group balena-agent, and who polkit lets in."
_FORCE = "\n--force overrides update locks."
HINTS = {REFUSED: _WHO_MAY, LOCKED: _FORCE}


@dataclass(frozen=True, slots=True)
class Shell:
    """See the module."""

    client: Client
    options: argparse.Namespace
    out: IO[str]

    @property
    def as_json(self) -> bool:
        return bool(self.options.json)

    def line(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def document(self, document: object) -> None:
        self.line(json.dumps(document, indent=2, ensure_ascii=False))

    def text_of(self, name: str) -> str:
        """A file's text; `-` is standard input. Refused: it cannot be read."""
        try:
            if name == "-":
                return sys.stdin.read()
            with open(name, encoding="utf-8") as file:
                return file.read()
        except OSError as error:
            raise Refused(f"cannot read {name}: {error.strerror}") from error
        except UnicodeError as error:
            raise Refused(f"{name} is not a text in UTF-8") from error
