"""The rules for images: which go, which are kept as the base of a delta, how many come at a time.

Theory (spec 20 §13.1, §18.4-18.6): an image is kept while a target names it, a container uses it,
or it is the base from which a wanted one can be made. Three kinds may go, and only where images
are not kept:

    leftovers  a reference that a target of ours once named, and nobody needs
    strays     what was fetched for us and no reference leads to any more
    the peer's supervisor, and only if the administrator said so: without it there is no way back

Tidying never keeps an update from its end: what cannot be removed because somebody uses it, and a
stray that cannot be removed at all, is left in peace for an hour without a word in the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .desired import Desired, DesiredApp, DesiredService
from .errors import AgentError, EngineFailed
from .names import image_registry, normal_image
from .observed import Image, Observed
from .services import DELETE_FIRST
from .situation import Draft, Situation
from .steps import CreateContainer, Fetch, RemoveImage, Step, identity, subject

MUTED_SECONDS = 3600.0
PARALLEL_DELTAS = 3
"""Deltas are worked on by the cloud and by the device's processor: more at a time gain nothing."""

_IN_USE = 409
_PEER = re.compile(r"(?:balena|resin)/[a-z0-9-]+-supervisor[:@]")


@dataclass(frozen=True, slots=True)
class FetchFailure:
    """How often in a row a reference could not be fetched, and when the last time (wall time)."""

    count: int
    at: float
    error: str


# ---- what goes -----------------------------------------------------------------------------------


def leftovers(desired: Desired, observed: Observed, situation: Situation) -> tuple[str, ...]:
    """References that we own and nobody needs: neither a target, nor a container, nor a creation
    under way, nor a delta. An app that is left as it is keeps all it has."""
    if _all_stay(desired, situation):
        return ()
    wanted = {normal_image(s.image) for app in desired.apps for s in app.services}
    needed = _needed(desired, observed, situation)
    known = {name: observed.image(name) for name in sorted(situation.owned_images - wanted)}
    return tuple(name for name, image in known.items() if image and image.id not in needed)


def waited_for(found: Sequence[str], situation: Situation) -> tuple[str, ...]:
    """Those leftovers whose removal is worth waiting for: not the ones that others hold."""
    return tuple(name for name in found if not _muted(RemoveImage(name), situation))


def tidy(draft: Draft, found: Sequence[str], desired: Desired, observed: Observed) -> None:
    """Plan the removal of leftovers, strays and, if told so, of the peer's supervisor."""
    situation = draft.situation
    for reference in found:
        draft.emit(RemoveImage(reference, "no service uses it"))
    if _all_stay(desired, situation) or _downloading(situation):
        return
    needed = _needed(desired, observed, situation)
    for image in observed.images.values():
        if image.id not in needed and image.nameless and image.obtained:
            draft.emit(RemoveImage(image.id, "no name leads to it any more"))
    if situation.remove_peer:
        for reference in _peer_supervisors(observed, needed):
            draft.emit(RemoveImage(reference, "an image of the peer's supervisor"))


def mute(step: Step, error: AgentError) -> bool:
    """Whether a failure is of the kind that is left in peace (see the module)."""
    if not isinstance(step, RemoveImage):
        return False
    held = isinstance(error, EngineFailed) and error.status == _IN_USE
    return held or step.reference.startswith("sha256:")


def _all_stay(desired: Desired, situation: Situation) -> bool:
    return situation.keep_images or any(app.problem for app in desired.apps)


def _downloading(situation: Situation) -> bool:
    return any(isinstance(step, Fetch) for step in situation.running.values())


def _muted(step: RemoveImage, situation: Situation) -> bool:
    pause = situation.backoff.get(identity(step))
    return bool(pause and pause.muted)


def _needed(desired: Desired, observed: Observed, situation: Situation) -> set[str]:
    """Ids of images that a container, a target or a delta needs."""
    needed = {c.spec.image for c in observed.containers.values()}
    for step in situation.running.values():
        if isinstance(step, CreateContainer):
            needed.add(step.service.spec.image)
    for app in desired.apps:
        for service in app.services:
            image = observed.image(service.image)
            base = _base(service, observed) if image is None and situation.deltas else None
            needed |= {found.id for found in (image, base and base[0]) if found}
    return needed


def _peer_supervisors(observed: Observed, needed: set[str]) -> Iterator[str]:
    for image in observed.images.values():
        names = sorted(image.tags) or sorted(image.digests)
        if image.id not in needed:
            yield from (name for name in names if _PEER.match(name))


# ---- deltas --------------------------------------------------------------------------------------


def delta_source(service: DesiredService, observed: Observed) -> str:
    """The reference of an image from which the service's image can be made, "" without one: an
    older image of the same service from the same registry, by preference the one that runs. A
    service whose old image goes first has none (spec 20 §18.4)."""
    found = _base(service, observed)
    return found[1] if found else ""


def _base(service: DesiredService, observed: Observed) -> tuple[Image, str] | None:
    registry = image_registry(service.image)
    if not registry or service.strategy == DELETE_FIRST:
        return None
    about = (service.app_id, service.name)
    used = {c.spec.image for c in observed.containers.values() if (c.app_id, c.service) == about}
    for image in sorted(observed.images.values(), key=lambda i: (i.id not in used, i.id)):
        names = sorted(o.reference for o in image.obtained if (o.app_id, o.service) == about)
        if image.id in used:
            names += [*sorted(image.digests), *sorted(image.tags)]
        for name in names:
            if image_registry(name) == registry and name != normal_image(service.image):
                return image, name
    return None


def with_sources(draft: Draft, app: DesiredApp, observed: Observed) -> None:
    """Name the delta source in every fetch of an app, where deltas are on and there is one."""
    if not draft.situation.deltas:
        return
    services = {service.name: service for service in app.services}
    for number, step in enumerate(draft.steps):
        if isinstance(step, Fetch) and step.service in services:
            source = delta_source(services[step.service], observed)
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
