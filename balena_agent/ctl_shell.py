"""Where a command of balena-agentctl gets its answers from, and where it prints to."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from .core.errors import Refused

if TYPE_CHECKING:
    from .ctl_client import Client


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
