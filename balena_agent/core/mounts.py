"""Volumes, tmpfs and devices of a service (spec 21 §9).

Theory: a service gets named volumes of its own app, anonymous volumes and tmpfs; paths of the host
only through feature labels. Whatever else a composition asks for is ignored with a line that says
what to use instead. Two different things on one path are refused here, since the engine would
refuse the container for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .features import label_for_path
from .fields import Notes, boolean, memory, pick, plain, strings
from .jsonread import Json, shown
from .names import lock_directory, volume_name
from .process import clean_path

_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_MODES = ({"ro", "rw"}, {"z", "Z"}, {"nocopy"}, {"consistent", "cached", "delegated"})
"""The engine takes one word of each kind."""
_PERMISSIONS = re.compile(r"[rwm]{1,3}\Z")
_LONG_FIELDS = ("type", "source", "target", "read_only", "bind", "volume", "tmpfs")
_OPTIONS = {"volume": ("nocopy",), "tmpfs": ("size", "mode")}
_DEVICE_FIELDS = ("source", "target", "permissions")
_RESERVED = ("/tmp/resin", "/tmp/balena")


@dataclass(slots=True)
class ServiceVolumes:
    """What the `volumes` of a service mean; `names` are the app's volumes that it refers to."""

    binds: list[str] = field(default_factory=list)
    mounts: list[dict[str, Json]] = field(default_factory=list)
    anonymous: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def service_volumes(value: Json, app_id: int, notes: Notes) -> ServiceVolumes:
    found = ServiceVolumes()
    if value is None:
        return found
    if not isinstance(value, list):
        notes.ignored("volumes", value, "expecting a list")
        return found
    for at, entry in enumerate(value):
        if isinstance(entry, str):
            _short(entry, app_id, found, notes)
        elif isinstance(entry, Mapping):
            _long(entry, f"volumes[{at}]", app_id, found, notes)
        else:
            notes.say(f"Ignoring invalid compose volume definition {shown(entry)}")
    return found


def lock_binds(app_id: int, service: str) -> tuple[str, str]:
    """The update-lock directory, under its new and old path in every container."""
    directory = lock_directory(app_id, service)
    return (f"{directory}:/tmp/resin", f"{directory}:/tmp/balena")


def _short(entry: str, app_id: int, found: ServiceVolumes, notes: Notes) -> None:
    source, *rest = (part.strip() for part in entry.split(":"))
    if not rest:
        if _usable_target(source, entry, notes):
            found.anonymous.append(source)
        return
    if source.startswith(("/", ".", "~")):
        _refuse_host_path(source, entry, notes)
        return
    bad_mode = len(rest) == 2 and not _is_mode(rest[1])
    if len(rest) > 2 or bad_mode or not _VOLUME.match(source):
        notes.say(f"Ignoring invalid compose volume definition {shown(entry)}")
    elif _usable_target(rest[0], entry, notes):
        found.binds.append(":".join((volume_name(app_id, source), *rest)))
        found.names.append(source)


def _is_mode(text: str) -> bool:
    words = text.split(",")
    return sum(len(kind.intersection(words)) == 1 for kind in _MODES) == len(words)


def _refuse_host_path(source: str, entry: Json, notes: Notes) -> None:
    label = label_for_path(source)
    advice = f"; use label {label}" if label else ""
    notes.say(f"Ignoring invalid bind mount {shown(entry)}{advice}")


def _usable_target(target: str, entry: Json, notes: Notes) -> bool:
    if not target.startswith("/") or clean_path(target) == "/":
        notes.ignored("volumes", entry, "the path in the container must be absolute and not /")
        return False
    if clean_path(target) in _RESERVED:
        notes.ignored("volumes", entry, f"{target} is where the update locks are")
        return False
    return True


def _long(
    entry: Mapping[str, Json], where: str, app_id: int, found: ServiceVolumes, notes: Notes
) -> None:
    kind, source, target = entry.get("type"), entry.get("source"), entry.get("target")
    if kind == "bind":
        _refuse_host_path(str(source), entry, notes)
        return
    named = isinstance(source, str) and _VOLUME.match(source.strip())
    fits = kind == "tmpfs" or (kind == "volume" and (source is None or named))
    if not fits or not isinstance(target, str):
        notes.say(f"Ignoring invalid compose volume definition {shown(entry)}")
        return
    if not _usable_target(target.strip(), entry, notes):
        return
    _note_unread(entry, str(kind), where, notes)
    mount: dict[str, Json] = {"Type": kind, "Target": target.strip()}
    if kind == "volume" and isinstance(source, str):
        mount["Source"] = volume_name(app_id, source.strip())
        found.names.append(source.strip())
    found.mounts.append(mount | _mount_options(entry, mount, notes))


def _note_unread(entry: Mapping[str, Json], kind: str, where: str, notes: Notes) -> None:
    """What a long entry says to nobody. Options of another type of mount have a line of their
    own."""
    notes.unknown(where, entry, _LONG_FIELDS)
    notes.unknown(f"{where}.{kind}", _part(entry, kind), _OPTIONS[kind])


def _mount_options(
    entry: Mapping[str, Json], mount: Mapping[str, Json], notes: Notes
) -> dict[str, Json]:
    """The options of a long entry. Only what is set is sent, and of that only what the engine
    takes for a mount of this kind."""
    options: dict[str, Json] = {}
    kind = mount["Type"]
    for other in ("bind", "volume", "tmpfs"):
        if other != kind and _part(entry, other):
            notes.ignored(f"volumes.{other}", entry[other], f"the type of the mount is {kind}")
    read_only = pick(entry, "read_only")
    if read_only is not None and boolean(read_only, "volumes.read_only", notes):
        if kind == "volume" and "Source" not in mount:
            notes.ignored("volumes.read_only", read_only, "a volume without a name is writable")
        else:
            options["ReadOnly"] = True
    nocopy = _part(entry, "volume").get("nocopy") if kind == "volume" else None
    if nocopy is not None and boolean(nocopy, "volumes.volume.nocopy", notes):
        options["VolumeOptions"] = {"NoCopy": True}
    tmpfs = _tmpfs_options(_part(entry, "tmpfs"), notes) if kind == "tmpfs" else None
    if tmpfs:
        options["TmpfsOptions"] = tmpfs
    return options


def _tmpfs_options(raw: Mapping[str, Json], notes: Notes) -> dict[str, Json]:
    size, mode = raw.get("size"), raw.get("mode")
    found: dict[str, Json] = {}
    if size is not None:
        found["SizeBytes"] = memory(size, "volumes.tmpfs.size", notes)
    if mode is not None:
        found["Mode"] = _file_mode(mode, notes)
    return {key: value for key, value in found.items() if value}


def _file_mode(value: Json, notes: Notes) -> int | None:
    """A number as it is (YAML has already read `0700` as octal), a text as octal digits."""
    if isinstance(value, str) and re.fullmatch(r"(0o?)?[0-7]{1,4}", value):
        return int(value.replace("o", ""), 8)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o7777:
        return value
    notes.ignored("volumes.tmpfs.mode", value, "expecting a file mode")
    return None


def _part(entry: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    part = entry.get(name)
    return part if isinstance(part, Mapping) else {}


def tmpfs(value: Json, name: str, notes: Notes) -> dict[str, str] | None:
    """The engine's Tmpfs map: path -> mount options (D10)."""
    entries = strings(value, name, notes)
    if entries is None:
        return None
    found: dict[str, str] = {}
    for entry in entries:
        path, _, options = entry.strip().partition(":")
        if not path.startswith("/") or clean_path(path) == "/":
            notes.ignored(name, entry, "the path must be absolute and not /")
        elif clean_path(path) in _RESERVED:
            notes.ignored(name, entry, f"{path} is where the update locks are")
        elif found.setdefault(path, options) != options:
            raise notes.refusal(name, entry, f"{path} is mounted twice")
    return found


def distinct_binds(binds: Iterable[str]) -> list[str]:
    """Equal entries collapse (spec 21 §9)."""
    return list(dict.fromkeys(binds))


def distinct_mounts(mounts: Iterable[dict[str, Json]]) -> list[dict[str, Json]]:
    found: list[dict[str, Json]] = []
    for mount in mounts:
        if mount not in found:
            found.append(mount)
    return found


def check_targets(
    binds: Iterable[str],
    mounts: Iterable[Mapping[str, Json]],
    tmpfs_paths: Iterable[str],
    notes: Notes,
) -> None:
    """Refuse two different mounts on one path. The engine compares cleaned paths; it lets a tmpfs
    lie below a long-form mount, but not below a bind."""
    taken: set[str] = set()
    bind_paths = [clean_path(bind.split(":")[1]) for bind in binds]
    for path in (*bind_paths, *(clean_path(str(mount["Target"])) for mount in mounts)):
        if path in taken:
            raise notes.refusal("volumes", path, "two entries are mounted on this path")
        taken.add(path)
    for path in tmpfs_paths:
        if clean_path(path) in bind_paths:
            raise notes.refusal("tmpfs", path, "a volume is mounted on this path as well")


def devices(value: Json, name: str, notes: Notes) -> list[dict[str, str]] | None:
    """Devices in the engine's form, from `host[:container[:permissions]]` or an object."""
    if not isinstance(value, list):
        notes.ignored(name, value, "expecting a list")
        return None
    found = []
    for at, entry in enumerate(value):
        if isinstance(entry, Mapping):
            notes.unknown(f"{name}[{at}]", entry, _DEVICE_FIELDS)
        host, inside, permissions = _device_parts(entry)
        inside, permissions = inside or host, permissions or "rwm"
        if not host.startswith("/") or not inside.startswith("/"):
            notes.ignored(name, entry, "expecting host[:container[:permissions]]")
        elif not _PERMISSIONS.match(permissions):
            notes.ignored(name, entry, "permissions are made of r, w and m")
        else:
            found.append(
                {
                    "PathOnHost": host,
                    "PathInContainer": inside,
                    "CgroupPermissions": permissions,
                }
            )
    return found


def _device_parts(entry: Json) -> tuple[str, str, str]:
    if isinstance(entry, Mapping):
        parts = [plain(entry.get(key)) or "" for key in ("source", "target", "permissions")]
    else:
        parts = [part.strip() for part in entry.split(":")] if isinstance(entry, str) else []
    if not 1 <= len(parts) <= 3:
        return ("", "", "")
    padded = [*parts, "", ""]
    return (padded[0], padded[1], padded[2])
