"""The environment and the labels of a container, from all their sources (spec 21 §7, §8).

Theory: environment, highest first: feature variables, the user's (service over composition), what
we inject, the image's. Labels: ours, service, composition, image; then `io.resin.` keys are
renamed, because every container that we make carries today's names only.
"""

from __future__ import annotations

from collections.abc import Mapping

from .canonical import without_device_name
from .fields import Notes, text_map
from .jsonread import Json
from .names import APP_ID, APP_UUID, SERVICE_ID, SERVICE_NAME, SUPERVISED, current_labels
from .observed import HostFacts
from .target import App, Service

LOCK_PATH = "/tmp/balena/updates.lock"
HANDOVER_PATH = "/tmp/balena/handover-complete"


def app_environment(app: App, facts: HostFacts) -> dict[str, str]:
    """What is injected into every service of an app, but for the service's name."""
    known = {
        "APP_ID": str(app.app_id),
        "APP_UUID": app.uuid,
        "APP_NAME": app.name,
        "APP_LOCK_PATH": LOCK_PATH,
        "DEVICE_TYPE": facts.device_type,
        "DEVICE_ARCH": facts.device_arch,
    }
    if facts.device_uuid:
        known["DEVICE_UUID"] = facts.device_uuid
    if facts.os_name:
        known["HOST_OS_VERSION"] = facts.os_name
    return both_prefixes(known) | {
        "BALENA": "1",
        "RESIN": "1",
        "BALENA_SERVICE_HANDOVER_COMPLETE_PATH": HANDOVER_PATH,
        "RESIN_SERVICE_KILL_ME_PATH": HANDOVER_PATH,
        "USER": "root",
    }


def both_prefixes(variables: Mapping[str, str]) -> dict[str, str]:
    """Each variable under its old and its new name."""
    return {
        f"{prefix}_{name}": value
        for prefix in ("BALENA", "RESIN")
        for name, value in variables.items()
    }


def environment(
    service: Service,
    composed: Json,
    below: Mapping[str, str],
    features: Mapping[str, str],
    notes: Notes,
) -> dict[str, str]:
    """The variables of one service; `composed` is the composition's `environment` and `below` what
    image and injection bring. DOCKER_HOST is the one feature variable that a user or an
    image may have set before; features.py leaves that choice to us by listing it like any other."""
    user = _composition_environment(composed, notes)
    before = {
        **below,
        "BALENA_SERVICE_NAME": service.name,
        "RESIN_SERVICE_NAME": service.name,
        **user,
        **service.environment,
    }
    kept = {"DOCKER_HOST": before["DOCKER_HOST"]} if before.get("DOCKER_HOST") else {}
    found = without_device_name({**before, **features, **kept})
    for name in [name for name, value in found.items() if "\0" in value]:
        notes.say(f"environment.{name} is ignored: its value has a null character")
        del found[name]
    return found


def _composition_environment(value: Json, notes: Notes) -> dict[str, str]:
    """Composition variables; the target's reader did not see their names, so they are judged here:
    one that the engine refuses would keep the container from being made."""
    if value is None:
        return {}
    found = text_map(value, "environment", notes)
    bad = [name for name in found if not name or "=" in name or "\0" in name]
    for name in bad:
        notes.ignored("environment", name, "not a name of a variable")
        del found[name]
    return found


def labels(
    service: Service, app: App, composed: Json, image: Mapping[str, str], notes: Notes
) -> dict[str, str]:
    """All labels of a container; `composed` is the composition's `labels`. Nobody can override
    ours: they say whose container it is."""
    user = text_map(composed, "labels", notes, null="")
    return current_labels({**image, **user, **service.labels}) | {
        SUPERVISED: "true",
        APP_ID: str(app.app_id),
        SERVICE_ID: str(service.service_id),
        SERVICE_NAME: service.name,
        APP_UUID: app.uuid,
    }
