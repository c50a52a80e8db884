"""Which image the agent obtained for which reference and service: what the engine cannot tell.

Theory: an image that came as a delta bears neither the name nor the digest that was asked for, and
one whose tag has moved on bears no name at all (spec 20 §18.2). So each fetch leaves a note of
reference, image and service. Image ids are made from contents: a note never becomes wrong, it only
becomes useless when the image is gone, and is then dropped.

The notes live in the store; losing one costs a download, nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from ..core.observed import Image, Obtained


class Keeper(Protocol):
    """Where notes survive a restart; neither call ever fails."""

    def save_obtained(self, image_id: str, obtained: Obtained) -> None: ...

    def forget_obtained(self, image_id: str, obtained: Obtained) -> None: ...


class Nowhere:
    """A keeper that keeps nothing."""

    def save_obtained(self, image_id: str, obtained: Obtained) -> None:
        """Nothing."""

    def forget_obtained(self, image_id: str, obtained: Obtained) -> None:
        """Nothing."""


class Records:
    """All notes, for any thread."""

    def __init__(
        self,
        known: Mapping[str, frozenset[Obtained]],
        keeper: Keeper,
    ) -> None:
        self._known = dict(known)
        self._keeper = keeper
        self._lock = threading.Lock()

    def of(self, image_id: str) -> frozenset[Obtained]:
        with self._lock:
            return self._known.get(image_id, frozenset())

    def ids(self) -> frozenset[str]:
        """The images about which there is a note."""
        with self._lock:
            return frozenset(self._known)

    def image_of(self, reference: str) -> str:
        """The image that was obtained for a reference in normal form; "" where none was."""
        with self._lock:
            for image_id, notes in self._known.items():
                if any(note.reference == reference for note in notes):
                    return image_id
        return ""

    def add(self, image_id: str, obtained: Obtained) -> None:
        with self._lock:
            notes = self._known.get(image_id, frozenset())
            if obtained in notes:
                return
            self._known[image_id] = notes | {obtained}
        self._keeper.save_obtained(image_id, obtained)

    def drop(self, rule: Callable[[str, Obtained], bool]) -> None:
        """Forget the notes (image, what for) of which the rule is true."""
        with self._lock:
            gone = [
                (i, note) for i, notes in self._known.items() for note in notes if rule(i, note)
            ]
            for image_id, note in gone:
                left = self._known[image_id] - {note}
                if left:
                    self._known[image_id] = left
                else:
                    del self._known[image_id]
        for image_id, note in gone:
            self._keeper.forget_obtained(image_id, note)

    def keep_only(self, present: Mapping[str, Image], known_before: frozenset[str]) -> None:
        """A full look found these images: notes about others that were known when it began are of
        no use any more."""
        self.drop(lambda image_id, _: image_id in known_before and image_id not in present)
