"""The canonical form of containers, networks and volumes: one form for "wanted" and for "is".

Theory: the composition of a target (compose.py) and the engine's inspect answer (body.py) are both
brought into this form by the same normalising functions. Then equality is plain equality, and the
difference of two specs is a list of named fields: the cause that every replace step carries. A
field that the engine stores in another spelling than it was asked for is normalised here, once,
for both sides; that is what rules out the endless replace loops of spec 21 §10.4.

Values are JSON-like and must never be changed after construction.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from .jsonread import Json, shown

_MAY_BE_SECRET = re.compile(r"(?:Env|Cmd|Entrypoint|Healthcheck|driver_opts)\b")


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which a live object is not what the target asks for."""

    field: str
    old: Json
    new: Json

    def __str__(self) -> str:
        """Without values where secrets use to stand: in variables, command lines, and options of
        volumes, which hold the passwords of network shares."""
        if _MAY_BE_SECRET.match(self.field) or "key" in self.field.lower():
            return f"{self.field} changed"
        return f"{self.field}: {shown(self.old)} -> {shown(self.new)}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Membership of a container in one network (`network` is the engine's name of it)."""

    network: str
    aliases: tuple[str, ...] = ()
    ipv4: str = ""
    ipv6: str = ""
    link_local: tuple[str, ...] = ()
    driver_opts: Mapping[str, str] = field(default_factory=dict)


def shared_service(mode: str) -> str:
    """The service whose namespace a mode of ours names: x for `service:x`, else ""."""
    kind, colon, name = mode.partition(":")
    return name if colon and kind == "service" else ""


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """Everything that the engine is asked for when it creates a container, but for its name.

    `image` is the engine's image id, or the reference while the image is absent. `fields` maps the
    engine's own field names, flat (`Cmd`, `Env`, `HostConfig.Memory`, ...), to canonical values
    with every default filled in. `endpoints` starts with the main network; it is empty for host,
    none and service network modes. `at_create` holds fields that are sent but never compared.
    """

    image: str
    fields: Mapping[str, Json] = field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()
    at_create: Mapping[str, Json] = field(default_factory=dict)
    networks: tuple[str, ...] = field(init=False, compare=False, repr=False)
    """Engine names of all networks that the container joins."""
    volumes: frozenset[str] = field(init=False, compare=False, repr=False)
    """Engine names of the named volumes that the container mounts."""

    def __post_init__(self) -> None:
        # Asked for again and again by every plan, and read off the rest once.
        object.__setattr__(self, "networks", tuple(end.network for end in self.endpoints))
        object.__setattr__(self, "volumes", self._volumes())

    def _volumes(self) -> frozenset[str]:
        binds = self.fields.get("HostConfig.Binds") or ()
        mounts = self.fields.get("HostConfig.Mounts") or ()
        names = [str(bind).split(":", 1)[0] for bind in binds]
        names += [mount.get("Source") or "" for mount in mounts if mount.get("Type") == "volume"]
        return frozenset(name for name in names if name and not name.startswith("/"))

    @property
    def parent(self) -> str:
        """For network_mode `service:x`: x; for a live `container:<id>`: that id; else ""."""
        mode = str(self.fields.get("HostConfig.NetworkMode") or "")
        kind, colon, name = mode.partition(":")
        return name if colon and kind in ("service", "container") else ""

    def to_json(self) -> str:
        given = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        given["endpoints"] = [asdict(end) for end in self.endpoints]
        return json.dumps(given, sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """Identity of what is compared: sha256 in hex."""
        return hashlib.sha256(replace(self, at_create={}).to_json().encode()).hexdigest()


def spec_from_json(text: str) -> ContainerSpec:
    """The inverse of `ContainerSpec.to_json`. Raises ValueError, KeyError or TypeError."""
    raw = json.loads(text)
    endpoints = tuple(
        Endpoint(
            **{**end, "aliases": tuple(end["aliases"]), "link_local": tuple(end["link_local"])}
        )
        for end in raw["endpoints"]
    )
    return ContainerSpec(raw["image"], raw["fields"], endpoints, raw["at_create"])


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network as the target wants it and as inspect shows it. `labels` without our own marks."""

    driver: str = "bridge"
    driver_opts: Mapping[str, str] = field(default_factory=dict)
    ipam_driver: str = "default"
    ipam_options: Mapping[str, str] = field(default_factory=dict)
    ipam_config: tuple[Mapping[str, Json], ...] = ()
    enable_ipv6: bool = False
    internal: bool = False
    config_only: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """A named volume as the target wants it and as inspect shows it, without our own marks."""

    driver: str = "local"
    driver_opts: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
