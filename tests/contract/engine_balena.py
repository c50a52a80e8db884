"""A played balenaEngine: as much of one as fetching and removing images needs, on a script.

It knows what is in the registry (`remote`) and what it has (`images`). Pulling a delta makes the
wanted image from its base, by id, with nothing but the delta's own name; as the real engine does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from engine_script import Handler, Script

DELTA_LABEL = "io.resin.delta.base"


@dataclass
class Held:
    """An image of the engine."""

    id: str
    tags: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    size: int = 1000
    labels: dict[str, str] = field(default_factory=dict)


@dataclass
class Remote:
    """What a pull of a reference leads to. `base`: a delta to the image of that id. `errors` come
    first, one per attempt: in the stream, or (a number) as the answer's status."""

    id: str
    base: str = ""
    errors: list[str | int] = field(default_factory=list)
    applied: bool = True


class BalenaEngine:
    def __init__(self, where: Path, kind: str = "balena-engine") -> None:
        self.script = Script(where)
        self.images: dict[str, Held] = {}
        self.remote: dict[str, Remote] = {}
        self.pulls: list[tuple[str, Any]] = []
        self.directory = "/nowhere"
        answers = self.script.answers
        answers["GET /version"] = lambda to: to.say(200, {"Engine": kind, "Os": "l", "Arch": "x"})
        answers["GET /info"] = lambda to: to.say(200, {"DockerRootDir": self.directory})
        answers["GET /images/json"] = self._list
        answers["GET /containers/json"] = lambda to: to.say(200, [])
        answers["GET /networks"] = lambda to: to.say(200, [])
        answers["GET /volumes"] = lambda to: to.say(200, {"Volumes": None})
        answers["POST /images/create"] = self._pull
        self.script.otherwise = self._image

    def hold(self, image_id: str, *names: str, **more: Any) -> Held:
        made = Held(image_id, [n for n in names if "@" not in n], [n for n in names if "@" in n])
        self.images[image_id] = made
        for key, value in more.items():
            setattr(made, key, value)
        return made

    def close(self) -> None:
        self.script.close()

    def _list(self, to: Handler) -> None:
        listed = [
            {"Id": i.id, "RepoTags": i.tags or None, "RepoDigests": i.digests or None}
            for i in self.images.values()
        ]
        to.say(200, listed)

    def _pull(self, to: Handler) -> None:
        asked = dict(parse_qsl(urlsplit(to.path).query))
        joint = "@" if asked["tag"].startswith("sha256:") else ":"
        name = f"{asked['fromImage']}{joint}{asked['tag']}"
        self.pulls.append((name, to.headers["X-Registry-Auth"]))
        remote = self.remote.get(name)
        if remote is None:
            to.say(404, {"message": f"manifest for {name} not found"})
        elif remote.errors and isinstance(remote.errors[0], int):
            to.say(remote.errors.pop(0), {"message": "the network is ill"})
        else:
            self._download(to, name, remote)

    def _download(self, to: Handler, name: str, remote: Remote) -> None:
        to.stream({"id": "Total", "progressDetail": {"current": 1, "total": 2}})
        error = remote.errors.pop(0) if remote.errors else ""
        if remote.base and remote.base not in self.images:
            error = f'loading delta base image "{remote.base}": failed to get digest'
        if error:
            to.stream({"error": error, "errorDetail": {"message": error}})
        else:
            self._store(name, remote)
            to.stream({"status": f"Status: Downloaded newer image for {name}"})
        to.end()

    def _store(self, name: str, remote: Remote) -> None:
        labels = {} if remote.applied else {DELTA_LABEL: remote.base}
        held = self.images.setdefault(remote.id, Held(remote.id, labels=labels))
        (held.digests if "@" in name else held.tags).append(name)
        if "@" not in name:
            held.digests.append(f"{name.rpartition(':')[0]}@sha256:{remote.id[-1] * 64}")

    def _image(self, to: Handler) -> None:
        """Inspect, tag and remove, by name or id."""
        path = unquote(urlsplit(to.path).path).partition("/images/")[2]
        if to.command == "GET" and path.endswith("/json"):
            held = self._found(path.removesuffix("/json"))
            config = {"Labels": held.labels} if held else {}
            said = held and {"Id": held.id, "Size": held.size, "RepoTags": held.tags,
                             "RepoDigests": held.digests, "Config": config}  # fmt: skip
            to.say(200 if held else 404, said or {"message": "no such image"})
        elif to.command == "POST" and path.endswith("/tag"):
            asked = dict(parse_qsl(urlsplit(to.path).query))
            self._tag(path.removesuffix("/tag"), f"{asked['repo']}:{asked['tag']}")
            to.say(201)
        elif to.command == "DELETE" and (held := self._found(path)):
            self._remove(held, path)
            to.say(200, [])
        else:
            to.say(404, {"message": "no such image"})

    def _found(self, name: str) -> Held | None:
        return next((i for i in self.images.values() if name in (i.id, *i.tags, *i.digests)), None)

    def _tag(self, image: str, tag: str) -> None:
        for held in self.images.values():
            held.tags = [known for known in held.tags if known != tag]
        found = self._found(image)
        assert found
        found.tags.append(tag)

    def _remove(self, held: Held, name: str) -> None:
        """A digest of a repository goes with the last tag of it."""
        held.tags = [known for known in held.tags if known != name]
        held.digests = [known for known in held.digests if known != name]
        repository = name.rpartition(":")[0]
        if "@" not in name and not any(t.startswith(f"{repository}:") for t in held.tags):
            held.digests = [d for d in held.digests if not d.startswith(f"{repository}@")]
        if not (held.tags or held.digests):
            del self.images[held.id]
