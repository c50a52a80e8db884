"""What state each service of a device is in, in the peer's words (spec 20 §23).

Theory: `View` is an index of one snapshot by service, and every status word that a face shows comes
from it. A container speaks for a service of the *target* only if it belongs to the target's
release; a container's word wins over its image's, a step under way wins over both. The words are
the peer's to the letter: the cloud drops words that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from .deltas import DeltaSettings, delta_settings
from .hostconfig import current_variables, known_variables
from .intent import ServiceKey
from .names import normal_image
from .observed import Container
from .snapshot import Snapshot
from .sources import says_local
from .steps import CreateContainer, Fetch, StartContainer, StopContainer
from .target import App, Release, Service
from .variables import as_variables

InScope = Callable[[int], bool]
"""Whether the caller may see an app, by app id; `Scope.in_scope` is one."""

DOWNLOADING = "downloading"
"""The status of a release of which an image is on its way."""

_APPLYING = frozenset({"Installing", "Installed", "Awaiting handover"})
_ENGINE_WORDS = {"created": "Installed", "running": "Running", "dead": "Dead"}


@dataclass(frozen=True, slots=True)
class View:
    """One snapshot by service.

    containers  of each service, newest first
    words       what a running step does to a container (by id): Starting or Stopping
    creating    services whose container is being created
    downloads   percent of each running download, by image in normal form
    present     whether a target service's image is here, as far as the target is compiled
    """

    snapshot: Snapshot
    containers: Mapping[ServiceKey, tuple[Container, ...]]
    words: Mapping[str, str]
    creating: frozenset[ServiceKey]
    downloads: Mapping[str, int]
    present: Mapping[ServiceKey, bool]

    def container_of(self, app: App, release: Release, service: str) -> Container | None:
        """The newest container of a service that belongs to this release."""
        known = self.containers.get((app.uuid, service), ())
        return next((c for c in known if _belongs(c, release)), None)

    def container_status(self, container: Container) -> str:
        word = self.words.get(container.id)
        return word or self._handover(container) or engine_word(container.state)

    def image_status(self, app: App, service: Service) -> tuple[str, int | None]:
        """Downloading with a percentage, or Downloaded."""
        percent = self.downloads.get(normal_image(service.image))
        if percent is not None:
            return "Downloading", percent
        return ("Downloaded", None) if self.has_image(app, service) else ("Downloading", 0)

    def service_status(
        self, app: App, release: Release, service: Service
    ) -> tuple[str, int | None]:
        """Status and download progress of a service of the target release."""
        if container := self.container_of(app, release, service.name):
            return self.container_status(container), None
        if (app.uuid, service.name) in self.creating:
            return "Installing", None
        return self.image_status(app, service)

    def has_image(self, app: App, service: Service) -> bool:
        known = self.present.get((app.uuid, service.name))
        return self.snapshot.observed.image(service.image) is not None if known is None else known

    def _handover(self, container: Container) -> str:
        """Two running containers of different releases, or one that has retired and another: the
        old one hands over to the new one."""
        running = [c for c in self.containers.get(container.key, ()) if c.running]
        running.sort(key=lambda c: c.retired)  # the newest first, but for those
        retired = len(running) > 1 and running[-1].retired
        if not retired and len({_commit(c) for c in running}) < 2:
            return ""
        roles = {running[-1].id: "Handing over", running[0].id: "Awaiting handover"}
        return roles.get(container.id, "")


def view_of(snapshot: Snapshot) -> View:
    running = [entry.step for entry in snapshot.running.values()]
    words = {s.container_id: "Starting" for s in running if isinstance(s, StartContainer)}
    words |= {s.container_id: "Stopping" for s in running if isinstance(s, StopContainer)}
    return View(
        snapshot=snapshot,
        containers=_by_service(snapshot),
        words=words,
        creating=frozenset(s.service.key for s in running if isinstance(s, CreateContainer)),
        downloads={
            normal_image(entry.step.reference): max(0, int(entry.percent))
            for entry in snapshot.running.values()
            if isinstance(entry.step, Fetch)
        },
        present={s.key: s.image_present for app in snapshot.desired.apps for s in app.services},
    )


def engine_word(state: str) -> str:
    """The peer's word for a container state of the engine; most are the engine's own."""
    return _ENGINE_WORDS.get(state, state)


def update_status(services: Iterable[tuple[str, int | None]]) -> str:
    """A release's status, from status and download progress of its services; the first that
    applies (spec 20 §23.3)."""
    told = list(services)
    statuses = {status for status, _ in told}
    if any(percent not in (None, 100) for _, percent in told):
        return DOWNLOADING
    if "Downloaded" in statuses:
        return "downloaded"
    return "applying changes" if statuses & _APPLYING else "done"


def applying(snapshot: Snapshot) -> bool:
    """Whether an update is wanted, under way, or waiting for something (spec 10 §8.20)."""
    return snapshot.update_pending or not snapshot.settled


def local_mode(snapshot: Snapshot) -> bool:
    """Whether targets come from local users: always so on an unmanaged device (spec 10 §10)."""
    return snapshot.settings.local_mode or says_local(snapshot.targets, snapshot.facts)


def cloud_state(snapshot: Snapshot) -> str:
    """unmanaged, provisioning, online, offline (also before the first answer), or refused."""
    if not snapshot.facts.managed:
        return "unmanaged"
    return snapshot.cloud.state or "offline" if snapshot.facts.provisioned else "provisioning"


def lent_to_user(snapshot: Snapshot) -> bool:
    """Whether a device of a cloud is in local mode. What the cloud wanted is wanted again when that
    ends, so nothing of it is tidied away (spec 20 §25)."""
    return snapshot.facts.managed and local_mode(snapshot)


def locks_overridden(snapshot: Snapshot) -> bool:
    """Whether the target says that nobody's update locks count (spec 20 §9.1)."""
    return snapshot.settings.override_lock


def deltas_wanted(snapshot: Snapshot) -> DeltaSettings:
    """What the target says about deltas; they come from the cloud, so none without one."""
    return delta_settings(snapshot.settings) if snapshot.facts.managed else DeltaSettings()


def overall_progress(snapshot: Snapshot, apps: InScope = lambda _: True) -> float | None:
    """The mean of all running downloads in percent; None while there is none."""
    running = [
        max(0.0, entry.percent)
        for entry in snapshot.running.values()
        if isinstance(entry.step, Fetch) and apps(entry.step.app_id)
    ]
    return round(sum(running) / len(running), 1) if running else None


def device_config(snapshot: Snapshot) -> dict[str, str]:
    """All device variables without prefixes, defaults filled in; and those of boot configuration.
    While there is no target, what the host is set to: whoever sends it back changes nothing."""
    if snapshot.target is None:
        return as_variables(snapshot.settings) | current_variables(snapshot.host)
    return known_variables(snapshot.target.config) | as_variables(snapshot.settings)


def target_apps(snapshot: Snapshot) -> tuple[App, ...]:
    """The apps of the target, without services that were left out for their contracts."""
    left_out = {app.uuid: app.left_out for app in snapshot.desired.apps if app.left_out}
    apps = snapshot.target.apps.values() if snapshot.target else ()
    return tuple(_without(app, left_out.get(app.uuid, frozenset())) for app in apps)


def _without(app: App, names: frozenset[str]) -> App:
    if not names or app.release is None:
        return app
    services = {n: service for n, service in app.release.services.items() if n not in names}
    return replace(app, release=replace(app.release, services=services))


def _by_service(snapshot: Snapshot) -> dict[ServiceKey, tuple[Container, ...]]:
    found: dict[ServiceKey, list[Container]] = {}
    newest = sorted(
        snapshot.observed.containers.values(), key=lambda c: (age(c), c.id), reverse=True
    )
    for container in newest:
        found.setdefault(container.key, []).append(container)
    return {key: tuple(containers) for key, containers in found.items()}


def _belongs(container: Container, release: Release) -> bool:
    name = container.name
    if name is None:
        return False
    return name.commit == release.commit if name.commit else name.release_id == release.release_id


def _commit(container: Container) -> str:
    return container.name.commit if container.name else ""


def age(container: Container) -> str:
    """Sorts containers, oldest first: the engine leaves out the trailing zeros of a fraction."""
    return container.created_at.removesuffix("Z")
