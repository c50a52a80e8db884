"""What is: containers, images, networks, volumes and host facts as frozen values.

Theory: adapters ask the engine and translate its answers into these values; nobody else knows the
engine's JSON. An `Observed` is whole and consistent in itself but always a little old: whatever is
decided from it must be right again, or harmless, when the world has moved on. Only objects of ours
(names.is_supervised) are in it, but for images, which carry no mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .jsonread import Json
from .names import ContainerName, normal_image, retired_name
from .spec import ContainerSpec, NetworkSpec, VolumeSpec


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image contributes to a container (spec 21 §4). Unset fields are empty."""

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    healthcheck: Mapping[str, object] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    not_variables: tuple[str, ...] = ()
    """Entries of its environment that are no NAME=VALUE, without what may be their value."""


@dataclass(frozen=True, slots=True, order=True)
class Obtained:
    """The agent fetched an image for exactly this reference (normal form), for this service.

    The engine does not know: what a delta was applied to bears neither the name nor the digest of
    the image that was asked for (spec 20 §18.2, §18.8)."""

    reference: str
    app_id: int = 0
    service: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the engine. `tags` and `digests` are references in normal form; `obtained` is
    what the agent noted when it fetched the image, and no part of what the engine tells."""

    id: str
    tags: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()
    config: ImageConfig = field(default_factory=ImageConfig)
    size: int = 0
    obtained: frozenset[Obtained] = frozenset()

    @property
    def nameless(self) -> bool:
        """No reference leads to it any more, as far as the engine knows."""
        return not (self.tags or self.digests)

    def answers_to(self, reference: str) -> bool:
        """Whether a target's image reference means this image (spec 20 §18.2, the D rule)."""
        wanted = normal_image(reference)
        if "@" in wanted:
            digest = wanted.partition("@")[2]
            known = any(name.endswith("@" + digest) for name in self.digests)
            return known or any(each.reference == wanted for each in self.obtained)
        return wanted in self.tags or reference == self.id


@dataclass(frozen=True, slots=True)
class Container:
    """One container of ours. `state` is the engine's word: created, running, exited, dead, ...

    `name` is None where the engine's name does not parse: then the container is listed, reported
    once and otherwise left alone. `intended` is the spec that we asked for when we made it, if
    the store still knows: it is compared instead of `spec`, so that what the engine
    silently changes or drops can never look like a difference (spec 21 §10.2). `tolerated` are
    the fields that the engine made something else of at once, with what it made of them: they
    have not drifted while they stay so (spec 21 §10.3). `unread` is why the engine tells no more
    of it than its list does (unread.py); "" for all others.
    """

    id: str
    app_uuid: str
    app_id: int
    service: str
    service_id: int
    name: ContainerName | None
    state: str
    spec: ContainerSpec
    created_at: str = ""
    started_at: str = ""
    exit_code: int = 0
    error: str = ""
    health: str = ""
    stop_timeout: int = 10
    raw_name: str = ""
    intended: ContainerSpec | None = None
    tolerated: Mapping[str, Json] = field(default_factory=dict)
    unread: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return (self.app_uuid, self.service)

    @property
    def effective_spec(self) -> ContainerSpec:
        return self.intended or self.spec

    @property
    def running(self) -> bool:
        return self.state in ("running", "restarting", "paused")

    @property
    def leaving(self) -> bool:
        """It is of no use to anybody any more: it can only be removed."""
        return self.state in ("dead", "removing")

    @property
    def retired(self) -> bool:
        """It was renamed to hand over to a new container of its service (spec 20 §15.3)."""
        return self.name is not None and self.raw_name == retired_name(self.name)


@dataclass(frozen=True, slots=True)
class Network:
    """A network of ours; `name` is the target's name of it, `engine_name` the engine's."""

    id: str
    engine_name: str
    app: str
    app_id: int
    name: str
    spec: NetworkSpec


NO_APP = -1
"""`Volume.app_id` of what belongs to no app: the extra firmware, and nameless volumes without a
user. They are seen only so that somebody may ask for their removal."""


@dataclass(frozen=True, slots=True)
class Volume:
    engine_name: str
    app_id: int
    app_uuid: str
    name: str
    spec: VolumeSpec


@dataclass(frozen=True, slots=True)
class Lock:
    """An update lock that a user holds: the file that proves it (spec 20 §17)."""

    app_id: int
    service: str
    path: str


API_TIMEOUT = 900_000
"""Milliseconds for which the peer lets a request of its API wait (spec 10 §1)."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts about the device that rarely change, read once at start and after a host event.

    `api_timeout` (ms) is how long a request of the device's API may wait.
    `supervisor_gateway` is the address of supervisor0.
    `os_id` and `os_version` are ID and VERSION of os-release, the kernel's name and release those
    of `uname`. `compat_version` is the peer's version that we stand for. `provisioning_key` is ""
    once the device is registered; the endpoints are "" where config.json does not name them.
    `engine_lacks` is `Observed.unsupported`, for those who compile a target. `addresses` are
    those of the last look; `connectivity` is NetworkManager's word (none, portal, limited, full),
    `unknown` where it does not check, and "" before anybody has looked. `registered`: the cloud
    has given the device its number (`deviceId` and `registered_at` of config.json).
    """

    device_uuid: str = ""
    device_name: str = "local"
    device_type: str = "unknown"
    device_arch: str = "unknown"
    os_name: str = ""
    os_variant: str = "prod"
    board_rev: str = ""
    hostname: str = ""
    api_port: int = 48484
    api_timeout: int = API_TIMEOUT
    api_endpoint: str = ""
    device_api_key: str = field(default="", repr=False)
    provisioning_key: str = field(default="", repr=False)
    registry_endpoint: str = ""
    delta_endpoint: str = ""
    has_modules: bool = False
    has_firmware: bool = False
    engine_socket: str = "/var/run/balena-engine.sock"
    supervisor_gateway: str = "10.114.104.1"
    os_id: str = ""
    os_version: str = ""
    kernel_name: str = ""
    kernel_release: str = ""
    compat_version: str = "19.0.5"
    engine_lacks: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()
    connectivity: str = ""
    registered: bool = False
    logs_endpoint: str = ""

    @property
    def managed(self) -> bool:
        return bool(self.api_endpoint)

    @property
    def provisioned(self) -> bool:
        """Whether the cloud knows the device, so that there is somebody to ask (spec 31 §2.1)."""
        return self.managed and self.registered and bool(self.device_uuid)


@dataclass(frozen=True, slots=True)
class HostState:
    """What the host says at this moment about its boot and its reboot.

    boot_id          tells one boot from the next; clock steps do not touch it. "" where unknown
    booted_at        UTC in the engine's form, to the second; "" where unknown
    reboot_required  somebody left word that a change waits for the end of this boot
    host_update      an OS update waits for its verdict: no reboot now, unless forced
    firmware_volume  the volume that config.json names for extra firmware, "" for none; None where
                     config.json does not have, or does not let us make, such a section
    """

    boot_id: str = ""
    booted_at: str = ""
    reboot_required: bool = False
    host_update: bool = False
    firmware_volume: str | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at the engine. Keys: containers, networks by engine id; images by id; volumes by
    engine name. `unsupported` are the fields of a container that this engine drops."""

    containers: Mapping[str, Container] = field(default_factory=dict)
    networks: Mapping[str, Network] = field(default_factory=dict)
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    images: Mapping[str, Image] = field(default_factory=dict)
    unsupported: frozenset[str] = frozenset()

    def image(self, reference: str) -> Image | None:
        return next((i for i in self.images.values() if i.answers_to(reference)), None)
