"""What the peer (balenaSupervisor) leaves on a device that we take over, as values.

Theory: nothing may be made anew only because the agent is another one. So the keys that stand in
the environment of containers come along, and the target that the peer had in force goes on being
in force, under a source of its own, until the cloud or a user says otherwise (spec 20 §7.2).

The peer keeps one row per app. Which rows are in force is its rule: those of one source, the cloud
or, in local mode, the local user, and besides every app that is no fleet. Here the rows become one
document of the cloud's form, v3.

Invariant: a target comes along as a whole or not at all. An app that were left out would be taken
for one that has to go; without a target everything stays as it is. For the same reason there is
none if the source has no row, or if the peer had rejected an app: that one must not be touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .errors import AgentError, InvalidInput
from .jsonread import Json, parse_object, truth, whole_number
from .names import normal_image
from .observed import Obtained
from .scopes import Scope, scope_from_json
from .target import Target, read_v3

SOURCE = "peer"
"""The name under which a target of the peer is stored."""

DEFAULT_NAME = "local"
LOCAL_SOURCE = "local"

Row = Mapping[str, Json]
"""One row of a table of the peer's, by column."""

_TEXTS = ("name",)
_FLAGS = ("localMode",)
_JSONS = ("pinDevice", "targetTags")
_OF_THE_ROW = frozenset({"appId", "appUuid", "releaseId", "commit"})


@dataclass(frozen=True, slots=True)
class PeerKey:
    """An API key; `service` is "" for the global one."""

    app_id: int
    service: str
    key: str = field(repr=False)
    scope: Scope = field(default_factory=Scope)


@dataclass(frozen=True, slots=True)
class PeerCommit:
    """The release that an app had settled on."""

    app_uuid: str
    app_id: int
    commit: str


@dataclass(frozen=True, slots=True)
class Heritage:
    """`target` is "" where there is none to go on with; `problems` says why, and what else is
    left out. `images` are references in normal form, the ones that the peer had fetched;
    `obtained` says which images (engine ids) it got for them, and for which services."""

    keys: tuple[PeerKey, ...] = ()
    commits: tuple[PeerCommit, ...] = ()
    settings: Mapping[str, Json] = field(default_factory=dict)
    images: frozenset[str] = frozenset()
    obtained: tuple[tuple[str, Obtained], ...] = ()
    target: str = field(default="", repr=False)
    problems: tuple[str, ...] = ()


def heritage(
    tables: Mapping[str, Iterable[Row]],
    device_uuid: str,
    api_endpoint: str,
    problems: Iterable[str] = (),
) -> Heritage:
    """All that comes along from the peer's tables. Never raises for what is in them."""
    known = {name: list(rows) for name, rows in tables.items()}
    settings = _settings(known.get("config", ()))
    images, apps = known.get("image", ()), known.get("app", ())
    source = "" if settings.get("localMode") else api_endpoint
    chosen: list[Row] = []
    target, told = "", list(problems)
    try:
        chosen = _in_force(apps, source or LOCAL_SOURCE)
        config = _config(known.get("deviceConfig", ()))
        target = _document(chosen, device_uuid, str(settings.get("name") or DEFAULT_NAME), config)
        read(target)
    except AgentError as error:
        target = ""
        told.append(f"nothing is changed until a new target comes: {error.message}")
    return Heritage(
        keys=_keys(known.get("apiSecret", ())),
        commits=_commits(known.get("currentCommit", ()), [*images, *apps, *chosen]),
        settings=settings,
        images=frozenset(normal_image(str(row["name"])) for row in images if row["name"]),
        obtained=tuple(_obtained(images)),
        target=target,
        problems=tuple(told),
    )


def read(raw: str) -> Target:
    """The target of a stored document. InvalidInput, InvalidTarget."""
    document = parse_object(raw, "the peer's target")
    return read_v3(document, next(iter(document), ""))


def _in_force(apps: Iterable[Row], source: str) -> list[Row]:
    """The rows of the target in force (spec 20 §7.1, §25). InvalidInput: there is none."""
    wanted = source.rstrip("/")
    ours = [row for row in apps if str(row["source"] or "").rstrip("/") == wanted]
    if not ours:
        raise InvalidInput(f"the peer has no app of {source}")
    others = [row for row in apps if row not in ours and (row["class"] or "fleet") != "fleet"]
    rejected = [str(row["name"]) for row in (*ours, *others) if row["rejected"]]
    if rejected:
        raise InvalidInput(f"the peer had rejected the release of {', '.join(rejected)}")
    return [*ours, *others]


def _document(apps: Iterable[Row], device_uuid: str, name: str, config: Mapping[str, Json]) -> str:
    found = {str(row["uuid"] or ""): _app(row) for row in apps}
    return json.dumps({device_uuid: {"name": name, "config": config, "apps": found}})


def _app(row: Row) -> dict[str, Json]:
    """One app in v3 form."""
    releases = {}
    if row["commit"]:
        releases[str(row["commit"])] = {
            "id": row["releaseId"],
            "services": _services(row),
            "networks": _json(row, "networks"),
            "volumes": _json(row, "volumes"),
        }
    return {
        "id": row["appId"],
        "name": row["name"],
        "class": row["class"] or "fleet",
        "is_host": bool(row["isHost"]),
        "releases": releases,
    }


def _services(row: Row) -> dict[str, Json]:
    """The peer keeps a list; each element repeats what belongs to the app."""
    listed = _json(row, "services")
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise InvalidInput(f"the services of app {row['name']} are not a list of objects")
    found: dict[str, Json] = {}
    for each in listed:
        kept = {key: value for key, value in each.items() if key not in _OF_THE_ROW}
        name = str(kept.pop("serviceName", ""))
        ids = {"id": kept.pop("serviceId", None), "image_id": kept.pop("imageId", None)}
        found[name] = {"environment": {}, "labels": {}, **kept, **ids}
    return found


def _json(row: Row, column: str) -> Json:
    try:
        return json.loads(row[column] or "null")
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(f"{column} of app {row['name']} cannot be read: {error}") from error


def _config(rows: Iterable[Row]) -> dict[str, Json]:
    """The device variables of the target."""
    for row in rows:
        return parse_object(str(row["targetValues"] or "{}"), "the peer's device configuration")
    return {}


def _settings(rows: Iterable[Row]) -> dict[str, Json]:
    """What the peer keeps about the device and no target says."""
    given = {row["key"]: row["value"] for row in rows if row["value"] is not None}
    found: dict[str, Json] = {key: str(given[key]) for key in _TEXTS if key in given}
    found |= {key: truth(given[key]) for key in _FLAGS if key in given}
    for key in _JSONS:
        try:
            found[key] = json.loads(given.get(key, "null"))
        except (ValueError, TypeError, RecursionError):
            continue
    return {key: value for key, value in found.items() if value is not None}


def _keys(rows: Iterable[Row]) -> tuple[PeerKey, ...]:
    """The first key of each service, as the peer itself takes it, with what it may reach."""
    found: dict[tuple[int, str], PeerKey] = {}
    for row in rows:
        app_id, service = whole_number(row["appId"]), str(row["serviceName"] or "")
        if app_id is None or not row["key"]:
            continue
        scope = _scope(row["scopes"]) or (Scope(app_id=app_id) if service else None)
        if scope:
            known = PeerKey(app_id, service, str(row["key"]), scope)
            found.setdefault((app_id, service), known)
    return tuple(found.values())


def _scope(text: Json) -> Scope | None:
    try:
        return scope_from_json(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None


def _obtained(rows: Iterable[Row]) -> Iterator[tuple[str, Obtained]]:
    """Without this an image that the peer had got as a delta would have to be fetched anew."""
    for row in rows:
        name, image_id = row["name"], row.get("dockerImageId")
        if name and image_id:
            app_id, service = whole_number(row["appId"]) or 0, str(row.get("serviceName") or "")
            yield str(image_id), Obtained(normal_image(str(name)), app_id, service)


def _commits(rows: Iterable[Row], owners: Iterable[Row]) -> tuple[PeerCommit, ...]:
    """The peer knows commits by app id, we by uuid; the last of `owners` tells which is which."""
    uuids = {row["appId"]: row.get("uuid") or row.get("appUuid") for row in owners}
    return tuple(
        PeerCommit(str(uuid), int(row["appId"]), str(row["commit"]))
        for row in rows
        if row["commit"] and (uuid := uuids.get(row["appId"])) and whole_number(row["appId"])
    )
