"""`depends_on` and what else makes a service wait for another (spec 20 §16).

Theory: a dependency orders starts, nothing else. Names that the app does not have are left out:
an optional service may be missing on this device. Sharing a namespace (`service:x`) is a
dependency too. A circle could never start, so it is found here and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from .desired import Dependency
from .fields import Notes, strings
from .jsonread import Json

_CONDITIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "service_started": "started",
        "service_healthy": "healthy",
        "service_completed_successfully": "completed",
    }
)


def dependencies(
    value: Json, shared: Iterable[str], services: frozenset[str], notes: Notes
) -> tuple[Dependency, ...]:
    """The dependencies of one service in declared order; `shared` are owners of namespaces."""
    if isinstance(value, Mapping):
        found = {name: _condition(name, entry, notes) for name, entry in value.items()}
    else:
        names = strings(value, "depends_on", notes) if value is not None else None
        found = dict.fromkeys(names or (), "started")
    for name in shared:
        found.setdefault(name, "started")
    return tuple(Dependency(name, how) for name, how in found.items() if name in services)


def _condition(name: str, entry: Json, notes: Notes) -> str:
    wanted = entry.get("condition") if isinstance(entry, Mapping) else None
    if isinstance(entry, Mapping) and entry.get("restart"):
        notes.say(f"depends_on.{name}.restart is ignored: dependents are not recreated")
    if wanted is None:
        return "started"
    if not isinstance(wanted, str) or wanted not in _CONDITIONS:
        notes.ignored(f"depends_on.{name}.condition", wanted, "service_started is used")
        return "started"
    return _CONDITIONS[wanted]


def cycle(graph: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """The services of one circle, first one repeated at the end; () if there is none."""
    done: set[str] = set()
    for start in graph:
        path = [start]
        branches = [iter(graph[start])]
        while branches:
            following = next(branches[-1], None)
            if following is None:
                branches.pop()
                done.add(path.pop())
            elif following in path:
                return (*path[path.index(following) :], following)
            elif following in graph and following not in done:
                path.append(following)
                branches.append(iter(graph[following]))
    return ()
