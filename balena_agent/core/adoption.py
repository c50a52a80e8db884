"""Containers that nobody noted: made by the peer, or before the store was lost (spec 21 §10.2).

Theory: a container without a note of what it was asked to be is compared field by field with its
target. If it is equal it is adopted: from then on it counts as made for that target, and what
somebody changes in it later is drift. The API key in its environment is adopted even before that,
because another key would make it another container.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .body import differences, parents, resolved
from .desired import Desired, DesiredService
from .jsonread import truth
from .names import SUPERVISOR_API
from .observed import Container, Observed
from .spec import ContainerSpec

KEY_VARIABLE = "BALENA_SUPERVISOR_API_KEY"
_LONGEST_KEY = 256


def adopted(desired: Desired, observed: Observed) -> dict[str, ContainerSpec]:
    """What containers (ids) without a note are to be noted as: those that are as wanted."""
    unknown = [c for c in observed.containers.values() if _is_unknown(c)]
    if not unknown:
        return {}
    wanted = {s.key: s for app in desired.apps if not app.problem for s in app.services}
    found: dict[str, ContainerSpec] = {}
    for container in unknown:
        service = wanted.get(container.key)
        if service and service.image_present:
            ids = _parent_ids(service, observed)
            owner = ids.get(service.spec.parent)
            known = (service.spec, container.spec, owner, ids, observed.unsupported)
            if not differences(*known):
                found[container.id] = resolved(service.spec, ids)
    return found


def _is_unknown(container: Container) -> bool:
    known = container.name is not None and not container.unread
    return container.intended is None and known and not container.leaving


def _parent_ids(service: DesiredService, observed: Observed) -> dict[str, str]:
    names = parents(service.spec)
    if not names:
        return {}
    known = observed.containers.values()
    return {c.service: c.id for c in known if c.app_uuid == service.app_uuid and c.service in names}


def keys_of(containers: Iterable[Container]) -> Mapping[tuple[int, str], str]:
    """(app id, service) -> the API key that its container has been given. Only where the label
    asks for a key: the same variable of any other container is the user's own."""
    found: dict[tuple[int, str], str] = {}
    for container in containers:
        fields = container.spec.fields
        key = (fields.get("Env") or {}).get(KEY_VARIABLE, "")
        if truth((fields.get("Labels") or {}).get(SUPERVISOR_API)) and len(key) <= _LONGEST_KEY:
            found |= {(container.app_id, container.service): key} if key else {}
    return found
