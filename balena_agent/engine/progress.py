"""How far a download is, from the engine's stream of events: 0 to 100, never going back.

Theory (spec 20 §18.3, spec 60 §2.3): dockerd reports each layer twice, while it is downloaded and
while it is extracted; the figure is the mean of the two shares, each the mean over the layers that
are big enough to matter. balenaEngine does both in one pass and sums up under the id `Total`; its
layers are ignored. Either kind ends with a `Status:` line: 100.

`feed` also tells whether something really moved, because a download of a big layer over a thin
line works for many minutes without reaching the next percent. A retry is not a move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMALL_DOWNLOAD = 100 * 1024
SMALL_EXTRACTION = 1024 * 1024

_ROUNDING = 1e-9
"""29 of 100 are 29 percent, not 28.999."""
_DOWNLOADED = frozenset({"Verifying Checksum", "Download complete"})
_DONE = frozenset({"Pull complete", "Already exists"})
_KNOWN = frozenset({"Pulling fs layer", "Waiting", "Downloading", "Extracting"})


class _Shares:
    """One phase of all layers: the share done of each, without those known to be small."""

    def __init__(self, small: int) -> None:
        self._small = small
        self._done: dict[str, float] = {}
        self._skipped: set[str] = set()

    def note(self, layer: str, share: float, size: int = 0) -> None:
        if 0 < size < self._small:
            self._skipped.add(layer)
        self._done[layer] = max(share, self._done.get(layer, 0.0))

    def mean(self) -> float:
        counted = [share for layer, share in self._done.items() if layer not in self._skipped]
        return sum(counted) / len(counted) if counted else 0.0


class Progress:
    """The progress of one download; feed it every event of the stream."""

    def __init__(self, kind: str) -> None:
        self._balena = kind == "balena"
        self._download = _Shares(SMALL_DOWNLOAD)
        self._extraction = _Shares(SMALL_EXTRACTION)
        self._last: dict[str, tuple[str, int]] = {}
        self.percent = 0
        self.finished = ""

    def feed(self, event: Mapping[str, Any]) -> bool:
        """Take one event in; true when the download moved. `finished` is its last line, or ""."""
        layer, status = str(event.get("id") or ""), str(event.get("status") or "")
        if status.startswith("Status: "):
            self.finished = status
            self.percent = 100
            return True
        current, total = _amounts(event)
        if self._balena:
            share = _share(current, total) if layer == "Total" else 0.0
        else:
            share = self._layers(layer, status, current, total)
        self.percent = max(self.percent, min(100, int(100 * share + _ROUNDING)))
        return self._moved(layer, status, current)

    def _layers(self, layer: str, status: str, current: int, total: int) -> float:
        if status in _DONE:
            self._download.note(layer, 1.0)
            self._extraction.note(layer, 1.0)
        elif status in _DOWNLOADED or status == "Extracting":
            self._download.note(layer, 1.0)
            self._extraction.note(layer, _share(current, total), total)
        elif status in _KNOWN:
            self._download.note(layer, _share(current, total), total)
            self._extraction.note(layer, 0.0)
        return (self._download.mean() + self._extraction.mean()) / 2

    def _moved(self, layer: str, status: str, current: int) -> bool:
        if not layer or status.startswith("Retrying"):
            return False
        before = self._last.get(layer)
        self._last[layer] = (status, current)
        return before != (status, current)


def _amounts(event: Mapping[str, Any]) -> tuple[int, int]:
    """(current, total) of an event; 0 where it says nothing."""
    detail = event.get("progressDetail")
    detail = detail if isinstance(detail, Mapping) else {}
    return _whole(detail.get("current")), _whole(detail.get("total"))


def _share(current: int, total: int) -> float:
    """The part done; the end is out of reach while the total is unknown."""
    return min(1.0, current / (total or current + 1))


def _whole(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and value > 0 else 0
