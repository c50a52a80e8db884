"""Small things that outlive a power cut, each under a name of its own.

Theory: adapters and the cloud's side have to remember a word or two: an ETag, a cursor, the id of
the last boot. They get this narrow door to the store and know nothing else of it. Who uses a key
owns it.
"""

from __future__ import annotations

from typing import Protocol

from .jsonread import Json


class KeyValueStore(Protocol):
    """Any thread may call it. AgentErrors where the store is damaged or does not take a value."""

    def setting(self, key: str) -> Json:
        """A kept value; None when there is none."""

    def set_setting(self, key: str, value: Json) -> None:
        """Durable when it returns; None removes it."""
