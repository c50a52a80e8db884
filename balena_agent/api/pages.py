"""Rendered answers, kept as long as the snapshot that they were rendered from is current.

Theory: most requests are reads, and between two changes they all get the same bytes. A page is
rendered once per snapshot version, endpoint and scope. Only the newest version is kept, so the
cache is as large as the answers that were asked for since the last change.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.jsonread import Json
from ..core.scopes import Scope
from ..core.snapshot import Snapshot
from .exchange import JSON_TYPE, Answer, Request, compact

Render = Callable[[Snapshot, Scope], Json]


class Pages:
    """Threads may render a page twice at the same moment, which costs time and nothing else."""

    def __init__(self) -> None:
        self._shelf: tuple[int, dict[tuple[str, Scope], Answer]] = (-1, {})

    def get(self, name: str, request: Request, render: Render) -> Answer:
        """The page `name` for this request's snapshot and scope."""
        pages = self._pages(request.snapshot.version)
        found = pages.get((name, request.scope))
        if found is None:
            found = Answer(200, compact(render(request.snapshot, request.scope)), JSON_TYPE)
            pages[(name, request.scope)] = found
        return found

    def _pages(self, wanted: int) -> dict[tuple[str, Scope], Answer]:
        """The pages of one version: a new shelf for a newer one, nothing kept for an older one."""
        version, pages = self._shelf
        if wanted == version:
            return pages
        fresh: dict[tuple[str, Scope], Answer] = {}
        if wanted > version:
            self._shelf = (wanted, fresh)
        return fresh
