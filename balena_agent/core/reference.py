"""Image references by the grammar `[registry/]repository[:tag][@digest]` (spec 20 §18.1).

Theory: two functions read references. `names.normal_image` never fails and serves comparison: of
what a target says with what the engine lists. `parse_reference` here is strict and serves action:
what is to be fetched must be a reference that an engine and a registry accept, or the reason is
told before anybody is asked. Both agree on the normal form of every reference that parses.

The first component is a registry if it is `localhost` or has a dot or a colon in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import InvalidInput
from .jsonread import shown
from .names import image_registry, normal_image

LATEST = "latest"
NAME_LIMIT = 255

_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"(?::[0-9]{1,5})?\Z|\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?\Z"
)
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(
    r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}\Z"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference. `repository` is without the registry; `tag` and `digest` are "" where
    they are not given."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and repository, as the engine wants them."""
        return f"{self.registry}/{self.repository}" if self.registry else self.repository

    @property
    def version(self) -> str:
        """What is asked for of the repository: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or LATEST

    @property
    def own_tag(self) -> str:
        """The tag under which we keep the image: `latest` for one by digest (spec 20 §18.2)."""
        return LATEST if self.digest else self.tag or LATEST

    def __str__(self) -> str:
        """The normal form: a tag beside a digest is left out."""
        return f"{self.name}{'@' if self.digest else ':'}{self.version}"


def parse_reference(text: str) -> Reference:
    """The parts of a reference. InvalidInput names the part that breaks its rule."""
    name, at, digest = text.partition("@")
    if at and not _DIGEST.match(digest):
        raise _bad(text, f"{shown(digest)} is no digest (algorithm:hex, at least 32 digits)")
    name = _without_hub(name)
    registry = image_registry(name)
    rest = name[len(registry) + 1 :] if registry else name
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    repository = head + slash + last
    if registry and not _HOST.match(registry):
        raise _bad(text, f"{shown(registry)} is no registry host")
    if not all(_PATH.match(part) for part in repository.split("/")):
        raise _bad(text, f"{shown(repository)} is no repository (lower-case letters, digits and"
                   " single separators, parts divided by '/')")  # fmt: skip
    if len(name) - len(colon + tag) > NAME_LIMIT:
        raise _bad(text, f"the repository is longer than {NAME_LIMIT} characters")
    if colon and not _TAG.match(tag):
        raise _bad(text, f"{shown(tag)} is no tag (letters, digits, '_', '.' and '-')")
    return Reference(registry, repository, "" if digest else tag, digest)


def _without_hub(name: str) -> str:
    """Without the default registry, as the engine lists images; the tag stays as it is."""
    head, slash, last = name.rpartition("/")
    repository = head + slash + last.partition(":")[0]
    tail = name[len(repository) :]
    return normal_image(f"{repository}:x").removesuffix(":x") + tail


def _bad(text: str, why: str) -> InvalidInput:
    return InvalidInput(f"image reference {shown(text)}: {why}")
