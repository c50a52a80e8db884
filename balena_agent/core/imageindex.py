"""Images by whatever leads to them: tag, digest, id, or a note that they were obtained for it.

Theory: `Image.answers_to` is the rule; asked image by image it costs as many comparisons as there
are images, for every service. The index gives the same answers at the cost of one look-up.
"""

from __future__ import annotations

from collections.abc import Mapping

from .names import normal_image
from .observed import Image


class ImageIndex:
    """Made from the images of one look; never changed."""

    def __init__(self, images: Mapping[str, Image]) -> None:
        self._known: dict[str, Image] = {}
        for image in images.values():
            self._known |= dict.fromkeys((image.id, *image.tags), image)
            self._known |= {_digest(name): image for name in image.digests}
        for image in images.values():  # what the engine says goes first
            for note in image.obtained:
                if "@" in note.reference:
                    self._known.setdefault(note.reference, image)

    def get(self, reference: str) -> Image | None:
        """The image that a reference means."""
        name = normal_image(reference)
        if "@" in name:
            return self._known.get(_digest(name)) or self._known.get(name)
        return self._known.get(name) or self._known.get(reference)


def _digest(name: str) -> str:
    """The key of a digest, whatever its repository: with its sign, for ids look the same."""
    return "@" + name.partition("@")[2]
