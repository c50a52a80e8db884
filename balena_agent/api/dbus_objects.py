"""What is on the bus right now, and the announcements that follow from changes.

Theory: reads always answer from the newest snapshot. Announcements (objects that come and go,
properties that changed) are the difference between what was announced last and what is, at most
four times a second. Signals about events are sent at once, each of them. Lives in the bus thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ..core.describe import status_line
from ..core.snapshot import Snapshot
from ..core.status import overall_progress
from ..host.bus import Bus
from ..host.wire import Variant
from ..runtime.state import Published
from .dbus_events import events
from .dbus_interface import JOB, LOG_CONTROL, LOG_PATH, MANAGER, OBJECT_MANAGER, PROPERTIES, ROOT
from .dbus_jobs import Job, Jobs
from .dbus_tree import (
    IDLE,
    Difference,
    Facts,
    Place,
    Tree,
    Values,
    difference,
    manager,
    objects,
    percent,
    places,
    signature_of,
)

_PAUSE = 0.25
"""Seconds between two rounds of announcements."""
_REFRESH = 30.0
"""Seconds after which facts outside the snapshot are looked at again."""

_BELOW_ROOT = ROOT + "/"


class Objects:
    """`log` gives the properties of LogControl1."""

    def __init__(
        self, bus: Bus, published: Published, facts: Facts, log: Callable[[], Values]
    ) -> None:
        self._bus = bus
        self._published = published
        self._facts = facts
        self._log = log
        self._indexed: tuple[Snapshot, tuple[Place, ...], Tree] | None = None
        self._seen = published.current
        self._announced: Tree = {}
        self._last = -_PAUSE
        self._due: asyncio.TimerHandle | None = None
        self._closed = False
        self._watchers: tuple[Callable[[Snapshot], None], ...] = ()
        self.jobs = Jobs(self._job_ended, bus.loop.call_later, bus.post)

    def open(self) -> None:
        """Take the present state as announced, and follow it from here on."""
        self._seen = self._published.current
        self._announced = self.tree()
        self._published.subscribe(lambda snapshot: self._bus.post(self._saw, snapshot))
        self._keep_fresh()

    def close(self) -> None:
        self.jobs.cancel_all("the agent is stopping")
        self._closed = True

    def watch(self, watcher: Callable[[Snapshot], None]) -> None:
        """Have every snapshot from now on shown to somebody else in the bus thread, in order."""
        self._watchers = (*self._watchers, watcher)

    @property
    def snapshot(self) -> Snapshot:
        return self._published.current

    def places(self) -> tuple[Place, ...]:
        return self._index()[1]

    def tree(self) -> Tree:
        """Every exported object as it is now."""
        snapshot, known, below = self._index()
        progress = {place.key: percent(place.row) for place in known}
        whole = overall_progress(snapshot)
        progress["", ""] = IDLE if whole is None else float(whole)
        return {
            ROOT: {MANAGER.name: manager(snapshot, self._facts), OBJECT_MANAGER.name: {}},
            LOG_PATH: {LOG_CONTROL.name: self._log()},
            **below,
            **self.jobs.objects(progress, status_line(snapshot)),
        }

    def managed(self) -> Mapping[str, Any]:
        """The answer of GetManagedObjects: everything below the root object."""
        tree = self.tree()
        return {path: variants(tree[path]) for path in tree if path.startswith(_BELOW_ROOT)}

    def soon(self) -> None:
        """Announce what has changed, now or when the pause since the last time is over."""
        if self._due is None and not self._closed:
            loop = self._bus.loop
            self._due = loop.call_at(max(loop.time(), self._last + _PAUSE), self._announce)

    def _index(self) -> tuple[Snapshot, tuple[Place, ...], Tree]:
        """The parts of the tree that depend on the snapshot only, made once for each."""
        snapshot = self._published.current
        if self._indexed is None or self._indexed[0] is not snapshot:
            known = places(snapshot)
            self._indexed = (snapshot, known, objects(snapshot, known))
        return self._indexed

    def _saw(self, snapshot: Snapshot) -> None:
        if self._closed:
            return
        for name, arguments in events(self._seen, snapshot):
            self._bus.emit(ROOT, MANAGER.name, name, MANAGER.signal(name).signature, arguments)
        self._seen = snapshot
        for watcher in self._watchers:
            watcher(snapshot)
        self.soon()

    def _keep_fresh(self) -> None:
        if not self._closed:
            self.soon()
            self._bus.loop.call_later(_REFRESH, self._keep_fresh)

    def _job_ended(self, job: Job) -> None:
        signal = JOB.signal("Finished")
        self._bus.emit(job.path, JOB.name, signal.name, signal.signature, (job.state, job.message))
        self.soon()

    def _announce(self) -> None:
        self._due, self._last = None, self._bus.loop.time()
        tree = self.tree()
        news = difference(self._announced, tree)
        self._announced = tree
        self._send(news)

    def _send(self, news: Difference) -> None:
        for path, faces in news.removed.items():
            self._managed("InterfacesRemoved", (path, faces))
        for path, values in news.added.items():
            self._managed("InterfacesAdded", (path, variants(values)))
        changed = PROPERTIES.signal("PropertiesChanged")
        for path, name, properties in news.changed:
            body = (name, typed(name, properties), ())
            self._bus.emit(path, PROPERTIES.name, changed.name, changed.signature, body)

    def _managed(self, name: str, body: tuple[Any, ...]) -> None:
        form = OBJECT_MANAGER.signal(name)
        self._bus.emit(ROOT, OBJECT_MANAGER.name, name, form.signature, body)


def typed(interface: str, values: Values) -> dict[str, Any]:
    """Properties with their types, as they go over the bus."""
    return {
        name: Variant(signature_of(interface, name), _lists(value))
        for name, value in values.items()
    }


def variants(faces: Mapping[str, Values]) -> dict[str, dict[str, Any]]:
    return {name: typed(name, values) for name, values in faces.items()}


def _lists(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
