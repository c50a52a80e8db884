"""The agent's small notes to itself: kept in memory, and in the store for after a power cut.

Theory: a note makes work cheaper or gentler (what a container was asked to be, whom we stopped,
which images are ours, which downloads fail, which release is in place, where a container came
from); every one of them can be lost without harm. So a note that cannot be written, on a full disk
say, is a problem to tell but never stops the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from ..core.errors import Broken, Unavailable
from ..core.images import FetchFailure
from ..core.jsonread import Json
from ..core.names import normal_image
from ..core.observed import Observed
from ..core.origins import Origin
from ..core.snapshot import Failure
from ..core.spec import ContainerSpec
from ..core.steps import Fetch, Step, StopContainer
from .ports import Store


class Notes:
    """Used by one thread. `tell` is called with a sentence when a note could not be written."""

    def __init__(
        self,
        store: Store,
        tell: Callable[[str], None],
        stopped_by_agent: Mapping[str, str],
        owned_images: frozenset[str],
        commits: Mapping[str, str],
        origins: Mapping[str, Origin],
        fetch_failures: Mapping[str, FetchFailure] = MappingProxyType({}),
    ) -> None:
        self._store = store
        self._tell = tell
        self.stopped_by_agent = stopped_by_agent
        """Containers (ids) with the start that the agent put an end to."""
        self.owned_images = owned_images
        self.commits = commits
        self.origins = origins
        self.joined: Mapping[str, tuple[str, str]] = {}
        """Of containers (ids) that share another's network: when the agent's last start of them
        was, and that of the other. In memory alone: the next run starts them once more at most."""
        self._fetch_failures = dict(fetch_failures)

    def asked(self, container_id: str, spec: ContainerSpec, tolerated: Mapping[str, Json]) -> None:
        """A container was created to be like `spec`; `tolerated` is where the engine made something
        else of it."""
        self._write(lambda: self._store.save_specs({container_id: spec}))
        if tolerated:
            self._write(lambda: self._store.save_tolerated(container_id, tolerated))

    def recover_key(self, app_id: int, service: str, key: str) -> None:
        """An API key was found in the environment of a service's container."""
        self._write(lambda: self._store.recover_key(app_id, service, key))

    def stop(self, container_id: str, observed: Observed) -> None:
        """The agent stops a container, for whatever reason; written before it does, and again
        afterwards where it was not the run that was seen last."""
        known = observed.containers.get(container_id)
        began = known.started_at if known else ""
        if self.stopped_by_agent.get(container_id) != began:
            self._save_stopped({**self.stopped_by_agent, container_id: began})

    def start(self, container_id: str) -> None:
        """It is not stopped by the agent: it was started, or could not be stopped."""
        if container_id in self.stopped_by_agent:
            known = self.stopped_by_agent.items()
            self._save_stopped({i: began for i, began in known if i != container_id})

    def started(self, container_id: str, observed: Observed) -> None:
        """The agent has started a container."""
        self.start(container_id)
        known = observed.containers.get(container_id)
        owner = observed.containers.get(known.spec.parent) if known else None
        if known and owner:
            self.joined = {**self.joined, known.id: (known.started_at, owner.started_at)}

    def refused(self, step: Step, observed: Observed) -> None:
        """The engine has refused a step. If it was a stop, and the container should end later, then
        it ends by itself."""
        if not isinstance(step, StopContainer):
            return
        known = observed.containers.get(step.container_id)
        if known and known.running:
            self.start(known.id)

    def came_from(self, origins: Mapping[str, Origin]) -> None:
        """Where containers came from."""
        news = {key: origin for key, origin in origins.items() if self.origins.get(key) != origin}
        if news:
            self.origins = {**self.origins, **news}
            self._write(lambda: self._store.save_origins(news))

    def made_in(self, container_id: str, boot: str) -> None:
        """A container that waits for a reboot was made in this boot."""
        known = self.origins.get(container_id, Origin())
        self.came_from({container_id: replace(known, boot=boot)})

    def forget(self, container_ids: frozenset[str]) -> None:
        stopped = self.stopped_by_agent.items()
        self.stopped_by_agent = {i: began for i, began in stopped if i not in container_ids}
        self.origins = {k: o for k, o in self.origins.items() if k not in container_ids}
        self.joined = {k: runs for k, runs in self.joined.items() if k not in container_ids}
        self._write(lambda: self._store.forget_containers(container_ids))

    def own(self, references: frozenset[str]) -> None:
        """These image references are named by a target of ours."""
        new = frozenset(normal_image(name) for name in references) - self.owned_images
        if new:
            self._write(lambda: self._store.own_images(new))
            self.owned_images |= new

    def disown_absent(self, wanted: frozenset[str], observed: Observed) -> None:
        """Forget references that nobody wants and that the engine does not have any more."""
        known = observed.images.values()
        for reference in self.owned_images - wanted:
            if not any(image.answers_to(reference) for image in known):
                self._disown(reference)

    def fetches_failed(self, failures: Iterable[Failure], now: float) -> None:
        """These are all the failures there are: those of downloads outlive the agent."""
        known = {
            f.step.reference: FetchFailure(f.count, now, f.error)
            for f in failures
            if isinstance(f.step, Fetch) and f.count
        }
        new = {name: f for name, f in known.items() if f.count != self._failed_before(name)}
        gone = frozenset(self._fetch_failures.keys() - known.keys())
        if new:
            self._write(lambda: self._store.save_fetch_failures(new))
        if gone:
            self._write(lambda: self._store.forget_fetch_failures(gone))
        kept = {name: f for name, f in self._fetch_failures.items() if name in known}
        self._fetch_failures = {**kept, **new}

    def _failed_before(self, reference: str) -> int:
        known = self._fetch_failures.get(reference)
        return known.count if known else 0

    def commit(self, app_uuid: str, app_id: int, commit: str) -> bool:
        """A release is wholly applied; says whether that is news."""
        if self.commits.get(app_uuid) == commit:
            return False
        self._write(lambda: self._store.save_commit(app_uuid, app_id, commit))
        self.commits = {**self.commits, app_uuid: commit}
        return True

    def notices(self) -> tuple[str, ...]:
        """That the store cannot be written, for people."""
        return (self._store.trouble,) if self._store.trouble else ()

    def _disown(self, reference: str) -> None:
        self._write(lambda: self._store.disown_image(reference))
        self.owned_images -= {reference}

    def _save_stopped(self, stopped: Mapping[str, str]) -> None:
        self.stopped_by_agent = stopped
        self._write(lambda: self._store.save_stopped_by_agent(stopped))

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (Unavailable, Broken) as error:
            self._tell(f"Could not write to the store: {error.message}")
