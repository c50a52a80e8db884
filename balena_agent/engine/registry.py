"""What a registry tells about an image before it is pulled: its size, its parts, its identity.

Theory: the engine asks the registry for itself; nothing here is needed for a pull. It is asked so
that a pull that cannot succeed is not begun (space.py), and that what came of a delta can be
compared with what was wanted (delta.py). So not to know is no failure: whatever keeps the registry
from telling within the deadline makes the answer None.

The default registry is not asked: it counts such questions as pulls.

Registries on the device itself, and those that the engine holds for insecure, speak plain HTTP.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from ..core.errors import AgentError, Cancelled, Unavailable
from ..core.reference import Reference
from ..core.ticket import Ticket
from .client import Client
from .web import Now, Reply, basic, get

_log = logging.getLogger(__name__)

TELL_LIMIT = 15.0
"""Seconds in which a registry may tell about an image; after that the pull begins without."""

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_CHALLENGE = re.compile(r'([a-z_]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image in a registry: `config` is the digest of its configuration, which is the id that
    the image has in an engine; `sizes` are the bytes of its layers, packed."""

    config: str
    sizes: tuple[int, ...]


Credentials = Callable[[str], Mapping[str, str] | None]
"""The engine's auth_config for a host of the cloud, or None for one that is not."""


class Registry:
    """One registry, asked about one image within one deadline. `token` spares the asking."""

    def __init__(
        self,
        client: Client,
        reference: Reference,
        credentials: Credentials,
        ticket: Ticket | None = None,
        token: str = "",
        seconds: float = TELL_LIMIT,
        now: Now = time.monotonic,
    ) -> None:
        self._client = client
        self._reference = reference
        self._credentials = credentials
        self._ticket = ticket
        self._authorization = f"Bearer {token}" if token else ""
        self._end = now() + seconds
        self._now = now
        self._in_the_open: bool | None = None

    def manifest(self) -> Manifest | None:
        """The image's manifest, for this engine's processor; None when it cannot be known."""
        if not self._reference.registry:
            return None
        try:
            return self._manifest()
        except Cancelled:
            raise
        except (AgentError, KeyError, TypeError, ValueError, AttributeError) as error:
            _log.debug("the registry does not tell about %s: %s", self._reference, error)
            return None

    def layers(self, manifest: Manifest) -> tuple[str, ...]:
        """The digests of the layers unpacked, as the engine lists them; () when not known."""
        try:
            said = self._ask(f"blobs/{manifest.config}", ("*/*",), redirects=3).json()
            return tuple(str(each) for each in said["rootfs"]["diff_ids"])
        except Cancelled:
            raise
        except (AgentError, KeyError, TypeError, ValueError, AttributeError):
            return ()

    def _manifest(self) -> Manifest:
        said = self._ask(f"manifests/{self._reference.version}", (*_MANIFESTS, *_INDEXES)).json()
        if "manifests" in said:
            said = self._ask(f"manifests/{self._ours(said)}", _MANIFESTS).json()
        sizes = tuple(int(layer["size"]) for layer in said["layers"])
        return Manifest(str(said["config"]["digest"]), sizes)

    def _ours(self, index: Mapping[str, Any]) -> str:
        """The digest of the image for the engine's processor, out of several."""
        engine = self._client.get("/version")
        wanted = (engine.get("Os"), engine.get("Arch"))
        for each in index["manifests"]:
            platform = each.get("platform") or {}
            if (platform.get("os"), platform.get("architecture")) == wanted:
                return str(each["digest"])
        raise ValueError("no image for this processor")

    def _ask(self, path: str, accepted: tuple[str, ...], redirects: int = 0) -> Reply:
        url = (
            f"{self._scheme()}://{self._reference.registry}/v2/{self._reference.repository}/{path}"
        )
        headers = {"Accept": ", ".join(accepted)}
        reply = self._get(url, headers, redirects)
        if reply.status == 401 and not self._authorization:
            self._authorization = self._authorized(reply.headers.get("www-authenticate", ""))
            reply = self._get(url, headers, redirects)
        if reply.status != 200:
            raise Unavailable(f"{self._reference.registry} answers with status {reply.status}")
        return reply

    def _get(self, url: str, headers: Mapping[str, str], redirects: int) -> Reply:
        sent = dict(headers)
        if self._authorization:
            sent["Authorization"] = self._authorization
        return get(url, sent, self._end - self._now(), self._ticket, redirects, self._now)

    def _authorized(self, challenge: str) -> str:
        """What the registry asks for: a token of its token service, or the name itself."""
        kind, _, rest = challenge.partition(" ")
        if kind.lower() != "bearer":
            return self._name(self._reference.registry)
        asked = dict(_CHALLENGE.findall(rest))
        query = urlencode({key: asked[key] for key in ("service", "scope") if asked.get(key)})
        realm = asked.get("realm", "")
        safe = realm.startswith("https://") or self._plain()
        name = self._name(urlsplit(realm).netloc) if safe else ""
        headers = {"Authorization": name} if name else {}
        joint = "&" if "?" in realm else "?"
        reply = get(f"{realm}{joint}{query}", headers, self._end - self._now(), self._ticket)
        said = reply.json()
        token = str(said.get("token") or said.get("access_token") or "")
        return f"Bearer {token}" if token else ""

    def _name(self, host: str) -> str:
        """The device's name as an Authorization for a host, "" where it has none."""
        known = self._credentials(host)
        return basic(known["username"], known["password"]) if known else ""

    def _scheme(self) -> str:
        return "http" if self._plain() else "https"

    def _plain(self) -> bool:
        """Whether the engine itself would speak plain HTTP with this registry."""
        if self._in_the_open is None:
            self._in_the_open = self._is_insecure(self._reference.registry)
        return self._in_the_open

    def _is_insecure(self, host: str) -> bool:
        if host.partition(":")[0] == "localhost" or host.startswith("127."):
            return True
        said = (self._client.get("/info").get("RegistryConfig") or {}).get("IndexConfigs") or {}
        return (said.get(host) or {}).get("Secure") is False
