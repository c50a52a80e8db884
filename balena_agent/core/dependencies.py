"""`depends_on` and what else makes a service wait for another (spec 20 §16).

Theory: a dependency orders starts; with `restart` the dependent is also made anew after what it
depends on was (origins.py). Names that the app does not have are left out:
an optional service may be missing on this device. Sharing a namespace (`service:x`) is a
dependency too. A circle could never start, so it is found here and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from .desired import Dependency
from .fields import Notes, boolean, strings
from .jsonread import Json

_CONDITIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "service_started": "started",
        "service_healthy": "healthy",
        "service_completed_successfully": "completed",
    }
)


_FIELDS: Final = ("condition", "restart", "required")
"""A dependency that the app does not have is left out, `required` or not."""


def dependencies(
    value: Json, shared: Iterable[str], services: frozenset[str], notes: Notes
) -> tuple[Dependency, ...]:
    """The dependencies of one service in declared order; `shared` are owners of namespaces."""
    if isinstance(value, Mapping):
        found = {name: _dependency(name, entry, notes) for name, entry in value.items()}
    else:
        names = strings(value, "depends_on", notes) if value is not None else None
        found = {name: Dependency(name) for name in names or ()}
    for name in shared:
        found.setdefault(name, Dependency(name))
    return tuple(each for name, each in found.items() if name in services)


def _dependency(name: str, entry: Json, notes: Notes) -> Dependency:
    if isinstance(entry, Mapping):
        notes.unknown(f"depends_on.{name}", entry, _FIELDS)
    condition = _condition(name, entry, notes)
    restart = entry.get("restart") if isinstance(entry, Mapping) else None
    flag = boolean(restart, f"depends_on.{name}.restart", notes) if restart is not None else False
    return Dependency(name, condition, bool(flag))


def unheard_health(
    depends_on: Iterable[Dependency], checks: Mapping[str, Mapping[str, Json]]
) -> tuple[str, ...]:
    """A line for each dependency on the health of a service without a check, which counts as
    healthy once it is started. `checks` are the health checks of the services that are known."""
    return tuple(
        f"depends_on.{each.service}: {each.service} has no health check: service_started is used"
        for each in depends_on
        if each.condition == "healthy" and not _is_check(checks.get(each.service))
    )


def _is_check(check: Mapping[str, Json] | None) -> bool:
    """A check that tells something; also one that is not known yet."""
    return check is None or (check.get("Test") or ["NONE"])[0] != "NONE"


def _condition(name: str, entry: Json, notes: Notes) -> str:
    wanted = entry.get("condition") if isinstance(entry, Mapping) else None
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
