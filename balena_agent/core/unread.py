"""A container of which the engine tells nothing but its line in the list.

Theory: asked about one container an engine may fail (its layer is lost) or never answer (its lock
is held for ever). That must not blind us for all others. What was seen of it before still holds,
where there is such a thing; otherwise the list tells whose it is, its state, and what it uses, and
the rest stays unknown: `Container.unread` says so, and its service is held as it is until more is
known (services.py), for nobody can say whether it is as wanted. One that has ended, and that the
engine itself fails to find its way about, is of no use any more: it is taken as dead, so that it
is removed and made anew. One that was just created may be in the making still, and is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .body import container_from_inspect
from .jsonread import Json
from .observed import Container, ImageConfig

_ENDED = ("exited", "dead")


def unread_container(
    listed: Mapping[str, Json],
    created_at: str,
    known: Container | None,
    error: str,
    failed: bool,
) -> Container | None:
    """What its entry of `GET /containers/json` and `known`, as it was last seen, tell of it.

    `created_at` is the entry's Created in the form of an inspect answer. `error` is what asking
    about the container led to; `failed`: the engine answered so, and did not just keep silent.
    None as container_from_inspect.
    """
    seen = known if known and not known.unread else _from_list(listed, created_at, error)
    if seen and failed and listed.get("State") in _ENDED:
        return replace(seen, state="dead")
    return seen


def _from_list(listed: Mapping[str, Json], created_at: str, error: str) -> Container | None:
    names = [str(name) for name in listed.get("Names") or ()]
    mounts = [mount for mount in listed.get("Mounts") or () if mount.get("Type") == "volume"]
    as_inspected = {
        "Id": listed.get("Id"),
        # A link to another container, as older engines list them, has a second slash.
        "Name": next((name for name in names if "/" not in name[1:]), ""),
        "Created": created_at,
        "Image": listed.get("ImageID"),
        "Config": {"Labels": listed.get("Labels")},
        "State": {"Status": listed.get("State")},
        "HostConfig": {
            **(listed.get("HostConfig") or {}),
            "Mounts": [
                {"Type": "volume", "Source": mount.get("Name"), "Target": mount.get("Destination")}
                for mount in mounts
            ],
        },
        "NetworkSettings": listed.get("NetworkSettings"),
    }
    found = container_from_inspect(as_inspected, ImageConfig())
    return found and replace(found, unread=error)
