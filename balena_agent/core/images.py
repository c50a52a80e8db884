"""The rules for images: which go, which are kept as the base of a delta, how many come at a time.

Theory (spec 20 §13.1, §18.4-18.6): an image is kept while a target names it, a container uses it,
or it is the base from which a wanted one can be made. Four kinds may go, and only where images
are not kept:

    leftovers  a reference that a target of ours once named, and nobody needs
    strays     what was fetched for us and no reference leads to any more
    the peer's supervisor, and only if the administrator said so: without it there is no way back
    what came with local mode (borrowed.py), name by name: no mark tells whose an image is

Tidying never keeps an update from its end: what cannot be removed because somebody uses it, and a
stray that cannot be removed at all, is left in peace for an hour without a word in the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from .desired import Desired, DesiredApp, DesiredService
from .errors import AgentError, EngineFailed
from .imageindex import ImageIndex
from .names import image_registry, normal_image
from .observed import Image, Observed
from .services import DELETE_FIRST
from .situation import Draft, Situation
from .steps import CreateContainer, Fetch, RemoveImage, Step
from .traits import subject

MUTED_SECONDS = 3600.0
PARALLEL_DELTAS = 3
"""Deltas are worked on by the cloud and by the device's processor: more at a time gain nothing."""

_About = tuple[int, str]
"""App id and service."""

_PEER = re.compile(r"(?:balena|resin)/[a-z0-9-]+-supervisor[:@]")


@dataclass(frozen=True, slots=True)
class FetchFailure:
    """How often in a row a reference could not be fetched, and when the last time (wall time)."""

    count: int
    at: float
    error: str


@dataclass(frozen=True, slots=True)
class Unneeded:
    """What may go: references that we own, ids without a name, references of the peer's, one name
    or else the id of each image that came with local mode. `awaited` are those leftovers whose
    removal is worth waiting for: not the ones that others hold."""

    leftovers: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    awaited: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()


class Bases:
    """From which image the image of each service could be made with a delta."""

    def __init__(self, observed: Observed) -> None:
        self._known: dict[_About, list[tuple[bool, str, str]]] = {}
        used: dict[str, set[_About]] = {}
        for container in observed.containers.values():
            about = (container.app_id, container.service)
            used.setdefault(container.spec.image, set()).add(about)
        for image in observed.images.values():
            users = used.get(image.id, set())
            for note in image.obtained:
                about = (note.app_id, note.service)
                self._add(about, about not in users, image, note.reference)
            for about in users:
                for name in (*image.digests, *image.tags):
                    self._add(about, False, image, name)

    def _add(self, about: _About, old: bool, image: Image, name: str) -> None:
        if image_registry(name):
            self._known.setdefault(about, []).append((old, image.id, name))

    def of(self, service: DesiredService) -> tuple[str, str]:
        """(image id, reference) of an older image of the same service from the same registry, by
        preference the one that runs; ("", "") without one. A service whose old image goes first
        has none (spec 20 §18.4)."""
        registry = image_registry(service.image)
        wanted = normal_image(service.image)
        if not registry or service.strategy == DELETE_FIRST:
            return "", ""
        known = self._known.get((service.app_id, service.name), ())
        fit = [e for e in known if image_registry(e[2]) == registry and e[2] != wanted]
        _, image_id, name = min(fit, key=_preference, default=(False, "", ""))
        return image_id, name


def _preference(candidate: tuple[bool, str, str]) -> tuple[bool, str, bool, str]:
    """What runs, then any; of its names a digest first: a tag may mean another image by now."""
    old, image_id, name = candidate
    return old, image_id, "@" not in name, name


# ---- what goes -----------------------------------------------------------------------------------


def unneeded(
    desired: Desired, observed: Observed, situation: Situation, bases: Bases | None
) -> Unneeded:
    """What nobody needs: neither a target, nor a container, nor a creation under way, nor a
    delta. An app that is left as it is keeps all it has."""
    if situation.keep_images:
        return Unneeded()
    index = ImageIndex(observed.images)
    needed = _needed(desired, observed, situation, index, bases)
    theirs = [i for key, i in observed.images.items() if key in situation.intent.images - needed]
    if any(app.problem for app in desired.apps):
        return Unneeded(borrowed=tuple(names_of(image)[0] for image in theirs))
    wanted = {normal_image(s.image) for app in desired.apps for s in app.services}
    known = {name: index.get(name) for name in sorted(situation.owned_images - wanted)}
    left = tuple(name for name, image in known.items() if image and image.id not in needed)
    awaited = tuple(name for name in left if not _muted(RemoveImage(name), situation))
    # One name of an image at a time: the engine is confused by more (spec 60 §2.5).
    going = {image.id for name in left if (image := known[name])}
    borrowed = tuple(names_of(image)[0] for image in theirs if image.id not in going)
    if any(isinstance(step, Fetch) for step in situation.running.values()):
        # What comes just now may have no name yet.
        return Unneeded(left, awaited=awaited, borrowed=borrowed)
    free = [image for image in observed.images.values() if image.id not in needed]
    strays = tuple(image.id for image in free if image.nameless and image.obtained)
    peers = tuple(_peer_supervisors(free)) if situation.remove_peer else ()
    return Unneeded(left, strays, peers, awaited, borrowed)


def tidy(draft: Draft, found: Unneeded) -> None:
    """Plan the removal of what is not needed."""
    for reference in found.leftovers:
        draft.emit(RemoveImage(reference, "no service uses it"))
    for image_id in found.strays:
        draft.emit(RemoveImage(image_id, "no name leads to it any more"))
    for reference in found.peers:
        draft.emit(RemoveImage(reference, "an image of the peer's supervisor"))
    for reference in found.borrowed:
        draft.emit(RemoveImage(reference, "it came with local mode, which has ended"))


def mute(step: Step, error: AgentError) -> bool:
    """Whether a failure is of the kind that is left in peace (see the module)."""
    if not isinstance(step, RemoveImage):
        return False
    held = isinstance(error, EngineFailed) and error.in_use
    return held or step.reference.startswith("sha256:")


def _muted(step: RemoveImage, situation: Situation) -> bool:
    pause = situation.pause(step)
    return bool(pause and pause.muted)


def _needed(
    desired: Desired,
    observed: Observed,
    situation: Situation,
    index: ImageIndex,
    bases: Bases | None,
) -> set[str]:
    """Ids of images that a container, a target or a delta needs."""
    needed = {c.spec.image for c in observed.containers.values()}
    for step in situation.running.values():
        if isinstance(step, CreateContainer):
            needed.add(step.service.spec.image)
    for service in (service for app in desired.apps for service in app.services):
        here = index.get(service.image)
        needed.add(here.id if here else bases.of(service)[0] if bases else "")
    return needed


def names_of(image: Image) -> list[str]:
    """By what an image can be removed, one after the other: tags, else digests, else its id."""
    return sorted(image.tags) or sorted(image.digests) or [image.id]


def meant(references: Iterable[str], observed: Observed) -> dict[str, str]:
    """Ids of the images that references mean; "" for none."""
    index = ImageIndex(observed.images)
    found = {reference: index.get(reference) for reference in references}
    return {reference: image.id if image else "" for reference, image in found.items()}


def of_peer(image: Image) -> bool:
    """Whether it is the peer's supervisor."""
    return any(_PEER.match(name) for name in names_of(image))


def _peer_supervisors(images: Iterable[Image]) -> Iterator[str]:
    for image in images:
        yield from (name for name in names_of(image) if _PEER.match(name))


# ---- deltas --------------------------------------------------------------------------------------


def with_sources(draft: Draft, app: DesiredApp, bases: Bases | None) -> None:
    """Name the delta source in every fetch of an app, where there is one."""
    services = {service.name: service for service in app.services} if bases else {}
    for number, step in enumerate(draft.steps):
        if bases and isinstance(step, Fetch) and step.service in services:
            _, source = bases.of(services[step.service])
            draft.steps[number] = replace(step, source=source)


def limit_downloads(drafts: Sequence[Draft], observed: Observed, situation: Situation) -> None:
    """Where deltas are on, only so many downloads at a time; but an app that has nothing on the
    device yet is never held up (spec 20 §13.1.5)."""
    if not situation.deltas:
        return
    running = sum(isinstance(step, Fetch) for step in situation.running.values())
    fetches = [(d, s) for d in drafts for s in d.steps if isinstance(s, Fetch)]
    surplus = running + len(fetches) - PARALLEL_DELTAS
    established = _established(observed)
    for draft, step in reversed(fetches):
        if surplus <= 0:
            return
        if step.app_id in established:
            surplus -= 1
            draft.steps.remove(step)
            draft.wait(
                subject(step), f"waits: {PARALLEL_DELTAS} images at most are fetched at once"
            )


def _established(observed: Observed) -> set[int]:
    """Apps (ids) that have an image on the device."""
    known = {c.app_id for c in observed.containers.values()}
    return known | {o.app_id for image in observed.images.values() for o in image.obtained}
