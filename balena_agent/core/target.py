"""The target state: what the cloud, a local user or a preload file asks for, as frozen values.

Theory: there are three input forms (cloud v3, local v2, apps.json; spec 20 §3 and §24) and one
internal form. Reading checks the whole document, collects every problem with its JSON path, and
either returns a complete `Target` or raises `InvalidTarget`: there is no half-read target.
Compositions are carried along unread; compose.py judges them per service (spec 20 §5.4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from .errors import InvalidTarget
from .jsonread import Json, Node, Problems, whole_number
from .names import current_labels, normal_image

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_CONFIG_VAR = re.compile(r"[a-zA-Z_][a-zA-Z0-9_:]*\Z")
_ENV_VAR = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")
_LABEL = re.compile(r"[!#-&(-_a-~]+\Z")
_DEVICE_NAME = re.compile(r"[^\n]*\Z")
_ANY = re.compile(r"(?s:.*)\Z")
_IMAGE = re.compile(r"(?s:.+)\Z")  # what is none is an error of that image alone (reference.py)

_NAME_RULE = "name of letters, digits, '_', '.' and '-' that starts with a letter or digit"
_CONFIG_RULE = "variable name of letters, digits, '_' and ':' that does not start with a digit"
_ENV_RULE = "variable name of letters, digits and '_' that does not start with a digit"
_LABEL_RULE = "label name of printable characters without blanks, quotes or backticks"
_IMAGE_RULE = "image reference (repository[:tag] or repository@digest)"

APP_CLASSES = ("fleet", "app", "block")

SUPERVISOR_APPS: Final = frozenset(
    {
        "52e35121417640b1b28a680504e4039b",
        "900de4f3cbac4b9bbd232885a35e407b",
        "2e66a95795c149959c69472a8c2f92b8",
        "531b357e155c480cbec0fdd33041a1f5",
        "6822565f766e413e96d9bebe2227cdcc",
    }
)
"""Apps that deliver the peer itself: never run here (spec 20 §8)."""

_V1_FEATURES = ("kernel-modules", "firmware", "dbus", "supervisor-api", "resin-api")
_V1_STRATEGY = (
    ("RESIN_SUPERVISOR_UPDATE_STRATEGY", "io.resin.update.strategy"),
    ("RESIN_SUPERVISOR_HANDOVER_TIMEOUT", "io.resin.update.handover-timeout"),
)

_NOT_COMPOSITION = frozenset(
    {
        "imageId",
        "serviceName",
        "image",
        "environment",
        "labels",
        "running",
        "serviceId",
        "contract",
        "composition",
    }
)


@dataclass(frozen=True, slots=True)
class Service:
    """A service as asked for. `composition` is the compose service in its raw form."""

    name: str
    service_id: int
    image_id: int
    image: str
    running: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    composition: Mapping[str, Json] = field(default_factory=dict)
    contract: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """One release: services, and the raw definitions of its networks and volumes by name."""

    commit: str
    release_id: int
    services: Mapping[str, Service] = field(default_factory=dict)
    networks: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    volumes: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class App:
    """An app; without a release nothing of it runs, but its volumes stay."""

    uuid: str
    app_id: int
    name: str
    app_class: str = "fleet"
    is_host: bool = False
    release: Release | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """`name` is None where the document leaves the device's name as it is. `apps` by uuid."""

    name: str | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    apps: Mapping[str, App] = field(default_factory=dict)


def read_v3(document: Mapping[str, Json], device_uuid: str) -> Target:
    """The cloud's form (spec 20 §3.1). Raises InvalidTarget with every problem of the document."""
    problems = Problems()
    root = Node(dict(document), "$", problems)
    if not root.has(device_uuid):
        raise InvalidTarget((f"Expected target state for local device with uuid '{device_uuid}'.",))
    device = root.child(device_uuid)
    name = device.child("name").matching(_DEVICE_NAME, "device name without line breaks")
    return _finish(name, device, problems, device.child("apps").items(required=True))


def read_local(document: Mapping[str, Json]) -> Target:
    """The local form, v2 (spec 20 §3.2): the app's uuid is its id. Raises InvalidTarget."""
    problems = Problems()
    local = Node(dict(document), "$", problems).child("local")
    local.mapping()
    name = None
    if local.has("name"):
        name = local.child("name").matching(_DEVICE_NAME, "device name without line breaks")
    apps = {
        str(app_id): _app_v2(node, app_id)
        for key, node in local.child("apps").items()
        if (app_id := _app_key(key, node)) is not None
    }
    config = _strings(local.child("config"), _CONFIG_VAR, _CONFIG_RULE)
    return _checked(Target(name, config, apps), problems)


def read_preload(document: Json, app_uuids: Mapping[int, str] | None = None) -> Target:
    """`apps.json` in any of its forms (spec 20 §24). Raises InvalidTarget.

    v1 is a list, v2 has numeric app keys, v3 the app uuids. A v2 file does not know the uuids: they
    are looked up in `app_uuids`, else the id's text serves, as it does in local mode.
    """
    problems = Problems()
    if isinstance(document, list):
        return _checked(_preload_v1(Node(document, "$", problems)), problems)
    root = Node(document, "$", problems)
    apps_node = root.child("apps") if root.mapping(required=True) else root
    keys = list(apps_node.mapping())
    if keys and all(whole_number(key) is not None and len(key) < 16 for key in keys):
        uuids = app_uuids or {}
        read = [
            _app_v2(node, app_id)
            for key, node in apps_node.items()
            if (app_id := _app_key(key, node)) is not None
        ]
        apps = {a.uuid: a for a in (_with_uuid(app, uuids) for app in read)}
    else:
        apps = {key: _app_v3(node, key) for key, node in apps_node.items()}
    for uuid, app in apps.items():
        if app.release is None:
            apps_node.child(uuid).bad("app with a release")
    config = _strings(root.child("config"), _CONFIG_VAR, _CONFIG_RULE)
    return _checked(Target(None, config, apps), problems)


def images_of(target: Target) -> frozenset[str]:
    """Every image reference that the target names, in normal form."""
    return frozenset(
        normal_image(service.image)
        for app in target.apps.values()
        if app.release
        for service in app.release.services.values()
    )


def images_to_run(target: Target) -> frozenset[str]:
    """The references of those images of which containers are made here, in normal form. The others
    are the OS and the peer: not ours to wait for, and never ours to remove."""
    return frozenset(
        normal_image(service.image)
        for app in target.apps.values()
        if app.release and app.uuid not in SUPERVISOR_APPS
        for service in app.release.services.values()
        if is_container(app, service)
    )


def is_container(app: App, service: Service) -> bool:
    """Services of the host app are mostly parts of the OS, not containers (spec 20 §8)."""
    if not app.is_host:
        return True
    known = current_labels(service.labels)
    image_class = known.get("io.balena.image.class", "service")
    return image_class == "service" and known.get("io.balena.image.store", "data") == "data"


def _checked(target: Target, problems: Problems) -> Target:
    if problems:
        raise InvalidTarget(tuple(problems.lines))
    return target


def _finish(
    name: str | None, device: Node, problems: Problems, apps: Iterable[tuple[str, Node]]
) -> Target:
    config = _strings(device.child("config"), _CONFIG_VAR, _CONFIG_RULE, required=True)
    found = {key: _app_v3(node, key) for key, node in apps}
    return _checked(Target(name, config, found), problems)


def _app_key(key: str, node: Node) -> int | None:
    number = whole_number(key)
    if number is None or number < 0:
        node.problems.add(node.path, key, "app id (a whole number) as key")
        return None
    return number


def _with_uuid(app: App, uuids: Mapping[int, str]) -> App:
    return replace(app, uuid=uuids.get(app.app_id, app.uuid))


def _app_v3(node: Node, uuid: str) -> App:
    node.mapping(required=True)
    if not 0 < len(uuid) <= 255:
        node.problems.add(node.path, uuid, "app uuid of 1 to 255 characters as key")
    releases = [_release_v3(child, commit) for commit, child in node.child("releases").items()]
    return App(
        uuid=uuid,
        app_id=node.child("id").number(),
        name=node.child("name").matching(_ANY, "app name of up to 255 characters"),
        app_class=node.child("class").one_of(APP_CLASSES, "fleet"),
        is_host=node.child("is_host").boolean(False),
        release=releases[0] if releases else None,
    )


def _release_v3(node: Node, commit: str) -> Release:
    node.mapping(required=True)
    if not 0 < len(commit) <= 255:
        node.problems.add(node.path, commit, "commit of 1 to 255 characters as key")
    services = {name: _service_v3(child, name) for name, child in node.child("services").items()}
    return Release(
        commit=commit,
        release_id=node.child("id").number(),
        services=services,
        networks=_definitions(node.child("networks")),
        volumes=_definitions(node.child("volumes")),
    )


def _service_v3(node: Node, name: str) -> Service:
    node.mapping(required=True)
    if not _NAME.match(name) or len(name) > 255:
        node.problems.add(node.path, name, f"service {_NAME_RULE}")
    contract = node.child("contract")
    return Service(
        name=name,
        service_id=node.child("id").number(),
        image_id=node.child("image_id").number(),
        image=node.child("image").matching(_IMAGE, _IMAGE_RULE),
        running=node.child("running").boolean(True),
        environment=_strings(node.child("environment"), _ENV_VAR, _ENV_RULE, required=True),
        labels=_strings(node.child("labels"), _LABEL, _LABEL_RULE, required=True),
        composition=node.child("composition").mapping(),
        contract=contract.mapping() if node.has("contract") else None,
    )


def _app_v2(node: Node, app_id: int) -> App:
    node.mapping(required=True)
    commit = node.child("commit").text("commit of 1 to 255 characters", default="")
    services = [_service_v2(child, key) for key, child in node.child("services").items()]
    release = Release(
        commit=commit,
        release_id=node.child("releaseId").number() if commit else 0,
        services={service.name: service for service in services},
        networks=_definitions(node.child("networks")),
        volumes=_definitions(node.child("volumes")),
    )
    _no_twins(node.child("services"), services)
    return App(
        uuid=str(app_id),
        app_id=app_id,
        name=node.child("name").matching(_ANY, "app name of up to 255 characters"),
        release=release if commit else None,
    )


def _no_twins(node: Node, services: list[Service]) -> None:
    names = [service.name for service in services if service.name]
    for twin in sorted({name for name in names if names.count(name) > 1}):
        node.problems.add(node.path, twin, "each serviceName only once")


def _service_v2(node: Node, key: str) -> Service:
    value = node.mapping(required=True)
    service_id = whole_number(key)
    if service_id is None or service_id < 0:
        node.problems.add(node.path, key, "service id (a whole number of at least 0) as key")
    nested = node.child("composition").mapping()
    flat = {k: v for k, v in value.items() if k not in _NOT_COMPOSITION}
    contract = node.child("contract")
    return Service(
        name=node.child("serviceName").matching(_NAME, f"service {_NAME_RULE}"),
        service_id=service_id or 0,
        image_id=node.child("imageId").number(),
        image=node.child("image").matching(_IMAGE, _IMAGE_RULE),
        running=node.child("running").boolean(True),
        environment=_strings(node.child("environment"), _ENV_VAR, _ENV_RULE, required=True),
        labels=_strings(node.child("labels"), _LABEL, _LABEL_RULE, required=True),
        composition={**nested, **flat},
        contract=contract.mapping() if node.has("contract") else None,
    )


def _strings(
    node: Node, pattern: re.Pattern[str], rule: str, required: bool = False
) -> dict[str, str]:
    """An object of strings whose names follow a rule."""
    found: dict[str, str] = {}
    for name, child in node.items(required):
        if len(name) > 255 or not pattern.match(name):
            node.problems.add(child.path, name, rule)
        elif not isinstance(child.value, str):
            child.bad("string")
        else:
            found[name] = child.value
    return found


def _definitions(node: Node) -> dict[str, Mapping[str, Json]]:
    """Networks or volumes by name; null means "with every default" (spec 20 §4, D)."""
    found: dict[str, Mapping[str, Json]] = {}
    for name, child in node.items():
        if not _NAME.match(name) or len(name) > 255:
            node.problems.add(child.path, name, _NAME_RULE)
        found[name] = child.mapping()
    return found


def _preload_v1(root: Node) -> Target:
    """The oldest preload form: a list of single-container apps (spec 20 §24)."""
    apps: dict[str, App] = {}
    config: dict[str, str] = {}
    for index, value in enumerate(root.value):
        node = Node(value, f"$[{index}]", root.problems)
        node.mapping(required=True)
        settings = _strings(node.child("config"), _CONFIG_VAR, _CONFIG_RULE)
        config.update(settings)
        app = _app_v1(node, settings)
        apps[app.uuid] = app
    return Target(None, config, apps)


def _app_v1(node: Node, settings: Mapping[str, str]) -> App:
    app_id = node.child("appId").number()
    environment = _strings(node.child("env"), _ENV_VAR, _ENV_RULE)
    labels = {f"io.resin.features.{name}": "1" for name in _V1_FEATURES}
    for variable, label in _V1_STRATEGY:
        if variable in settings:
            labels[label] = settings[variable]
    service = Service(
        name="main",
        service_id=1,
        image_id=1,
        image=node.child("imageId").matching(_IMAGE, _IMAGE_RULE),
        environment={k: v for k, v in environment.items() if not k.startswith("RESIN_")},
        labels={**labels, "io.resin.legacy-container": "1"},
        composition={
            "privileged": True,
            "network_mode": "host",
            "restart": settings.get("RESIN_APP_RESTART_POLICY", "always"),
            "volumes": ["resin-data:/data"],
        },
    )
    commit = node.child("commit").text("commit of 1 to 255 characters")
    release = Release(commit, 1, {"main": service}, {}, {"resin-data": {}})
    name = node.child("name").text("app name of up to 255 characters", default="main")
    # The id keeps several such apps apart; the peer knows only one and calls it `user-app`.
    return App(str(app_id), app_id, name, release=release)
