"""Deltas of version 3: only the difference to an image that is here goes over the line.

Theory (spec 20 §18.8, spec 60 §3): the cloud's delta server names an image that holds nothing but
the difference between two others; balenaEngine, pulling it, patches the older one and registers
the result as the image that was wanted, under that image's own id. The agent asks for the name,
has it pulled, makes sure of what came of it, and gives it the name that was wanted.

A delta is a favour. Whatever stands in its way for good - another engine, no source, a server that
does not do it - is told once per download, and the whole image is downloaded instead. What passes
by itself - no network, a token that ran out, a server that is still computing - is an error, and
the delta is tried again later.

Invariants: the device's name goes to the API's token service alone, tokens to the delta server and
to the registry; a result is kept only if the engine really applied the delta and, where the
registry tells, only if it is the wanted image to the last byte of its configuration.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

from ..core.access import CloudAccess
from ..core.deltas import DeltaSettings
from ..core.errors import AgentError, EngineFailed, InvalidInput, StillProcessing, Unavailable
from ..core.names import normal_image
from ..core.observed import Image
from ..core.reference import Reference, parse_reference
from ..core.steps import Fetch
from ..core.ticket import Ticket
from .actions import delete
from .client import Client, path
from .registry import Registry
from .web import Now, Reply, Unreachable, basic, get

_log = logging.getLogger(__name__)

ATTEMPTS = 3
TOKEN_SECONDS = 600.0
TOKEN_LIMIT = 30.0
AVOIDED_SECONDS = 3600.0
"""How long a delta server that cannot be reached is not asked again."""
EMPTY_IMAGE = 40
"""Bytes; what a delta of version 2 made is smaller, and no base for one of version 3."""
STILL_PROCESSING = "Delta still processing remotely. Will retry..."
_BASE_LABEL = "io.resin.delta.base"

Pull = Callable[[Reference, Mapping[str, str], Ticket], None]
"""Have the engine pull a reference with an auth_config; Puller.pull."""


class _Whole(Exception):
    """Why the whole image is to be downloaded."""


class Deltas:
    """Asks for deltas; used by all pullers at once. `access` and `settings` are read each time."""

    def __init__(
        self,
        client: Client,
        access: Callable[[], CloudAccess] = CloudAccess,
        settings: Callable[[], DeltaSettings] = DeltaSettings,
        now: Now = time.monotonic,
    ) -> None:
        self._client = client
        self._access = access
        self._settings = settings
        self._now = now
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[str, float]] = {}
        self._avoided_until = 0.0

    def fetch(
        self, step: Fetch, images: Mapping[str, Image], kind: str, ticket: Ticket, pull: Pull
    ) -> tuple[str, Reference] | None:
        """The id of the wanted image, made from a delta, and the delta's own reference, which
        leads to it too; None when the whole image is to be downloaded. StillProcessing,
        Unavailable, EngineFailed, Cancelled: try the delta again later."""
        wanted = parse_reference(step.reference)
        try:
            self._check(step.source, wanted, images, kind)
            return self._fetch(normal_image(step.source), wanted, ticket, pull)
        except _Whole as why:
            _log.info("No delta for image '%s': %s; it is downloaded as a whole", wanted, why)
            return None

    def forget_name(self, image_id: str, delta: Reference, kept: str) -> None:
        """Take the delta's own names off an image that has its right name now. They would keep
        the image for ever."""
        with contextlib.suppress(AgentError):
            image = self._client.find(path("images", image_id, "json")) or {}
            names = [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]
            known = [name for name in names if normal_image(name) != kept]
            for name in known if len(known) < len(names) else ():
                if _repository(name) == delta.name:
                    delete(self._client, "images", name)

    def _check(
        self, source: str, wanted: Reference, images: Mapping[str, Image], kind: str
    ) -> None:
        if kind != "balena":
            raise _Whole("the engine cannot apply one")
        if not self._settings().on:
            raise _Whole("deltas are switched off")
        if not self._access().covers(wanted.registry):
            raise _Whole(f"{wanted.registry or 'the default registry'} is not the cloud's")
        name = normal_image(source)
        base = next((i for i in images.values() if _stands_for(i, name)), None)
        if base is None:
            raise _Whole(f"{source} is not here any more")
        if base.size < EMPTY_IMAGE:
            raise _Whole(f"{source} was made from a delta of version 2")
        if self._now() < self._avoided_until:
            raise _Whole("the delta server could not be reached lately")

    def _fetch(
        self, source: str, wanted: Reference, ticket: Ticket, pull: Pull
    ) -> tuple[str, Reference]:
        token = self._token(parse_reference(source), wanted, ticket)
        delta = self._name(source, wanted, token, ticket)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                pull(delta, {"registrytoken": token}, ticket)
                return self._applied(delta, wanted, token, ticket), delta
            except EngineFailed as error:
                if error.status:
                    raise
                _log.info("Delta for image '%s', attempt %d: %s", wanted, attempt, error)
                problem = error.message
        raise _Whole(f"it could not be applied: {problem}")

    # ---- what the cloud is asked -----------------------------------------------------------------

    def _token(self, source: Reference, wanted: Reference, ticket: Ticket) -> str:
        """A token for both repositories; each is asked for once in ten minutes."""
        access = self._access()
        scopes = [("scope", f"repository:{r.repository}:pull") for r in (wanted, source)]
        query = urlencode([("service", wanted.registry), *dict.fromkeys(scopes)])
        url = f"{access.api}/auth/v1/token?{query}"
        with self._lock:
            token, until = self._tokens.get(url, ("", 0.0))
        if token and self._now() < until:
            return token
        headers = {"Authorization": basic(access.username, access.password)}
        reply = get(url, headers, TOKEN_LIMIT, ticket)
        token = str(reply.json().get("token") or "")
        if reply.status != 200 or not token:
            raise Unavailable(f"no token for the delta of {wanted}: status {reply.status}")
        with self._lock:
            now = self._now()
            self._tokens = {u: known for u, known in self._tokens.items() if known[1] > now}
            self._tokens[url] = (token, now + TOKEN_SECONDS)
        return token

    def _name(self, source: str, wanted: Reference, token: str, ticket: Ticket) -> Reference:
        """What the delta is called. _Whole, StillProcessing, Unavailable."""
        query = urlencode({"src": source, "dest": str(wanted)})
        url = f"{self._access().deltas}/api/v3/delta?{query}"
        headers = {"Authorization": f"Bearer {token}"}
        try:
            reply = get(url, headers, self._settings().request_timeout, ticket)
        except Unreachable as error:
            self._avoided_until = self._now() + AVOIDED_SECONDS
            raise _Whole(error.message) from error
        if reply.status != 200:
            self._refused(reply, wanted)
        try:
            return parse_reference(str(reply.json().get("name") or ""))
        except InvalidInput as error:
            raise Unavailable(f"the delta server's answer for {wanted}: {error}") from error

    def _refused(self, reply: Reply, wanted: Reference) -> None:
        if reply.status in (502, 504):
            raise StillProcessing(STILL_PROCESSING, self._settings().retry_interval)
        if reply.status == 401:
            with self._lock:
                self._tokens.clear()
        elif 400 <= reply.status < 500:
            raise _Whole(f"the delta server answers with status {reply.status}")
        raise Unavailable(f"no delta for {wanted}: the server answers with status {reply.status}")

    # ---- what came of it -------------------------------------------------------------------------

    def _applied(self, delta: Reference, wanted: Reference, token: str, ticket: Ticket) -> str:
        """The id of the image that the delta made; _Whole when it is not the wanted one."""
        image = self._client.find(path("images", str(delta), "json"))
        if image is None:
            raise EngineFailed(f"the download of {delta} ended, but the image is not there")
        if _BASE_LABEL in ((image.get("Config") or {}).get("Labels") or {}):
            self._discard(delta)
            raise _Whole("the engine has stored it without applying it")
        manifest = Registry(self._client, wanted, _nameless, ticket, token).manifest()
        if manifest and manifest.config != image["Id"]:
            self._discard(delta)
            raise _Whole(f"it made {image['Id']} instead of {manifest.config}")
        return str(image["Id"])

    def _discard(self, delta: Reference) -> None:
        with contextlib.suppress(AgentError):
            delete(self._client, "images", str(delta))


def _nameless(host: str) -> None:
    """The token is all that the registry gets to see."""


def _stands_for(image: Image, name: str) -> bool:
    return image.answers_to(name) or any(note.reference == name for note in image.obtained)


def _repository(name: str) -> str:
    """Registry and repository of a reference in normal form."""
    before = normal_image(name).partition("@")[0]
    return before if "@" in name else before.rpartition(":")[0]
