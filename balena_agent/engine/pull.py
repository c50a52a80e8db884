"""Fetching an image: nothing to do, or a download that can be watched and given up.

Theory: an image that any present one answers to (Image.answers_to) needs no network. Otherwise
it comes as a delta (delta.py) or as a whole, if there is room for it (space.py). The engine pulls;
its stream carries progress and, with HTTP status 200, also its errors. A pull has succeeded only
when the stream ended with its `Status:` line and the image is really there: a stream that just
ends means that the engine died (spec 60 §2). balenaEngine never gives up on a bad network, so a
download that does not move for `STALL` seconds is given up here.

Credentials are passed with each pull, explicitly, also when there are none; no login file of the
machine has a say (spec 20 §18.7). They never stand in an error.

A reference by digest leaves an image without a tag, which a user's `image prune` would delete
before its container exists, and which the peer would not find. So it gets the tag `latest` of its
repository (spec 20 §18.2), right after the pull and only then: nothing else of ours needs the tag,
because images are recognised by digest and containers are created from image ids. What a delta
made gets the name that was wanted, and a note (obtained.py), because nothing else tells what it is.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping

from ..core.errors import Cancelled, DeadlineExceeded, EngineFailed, EngineUnavailable
from ..core.observed import Image, Obtained
from ..core.reference import Reference, parse_reference
from ..core.steps import Fetch
from ..core.ticket import Ticket
from .client import Client, path
from .delta import Deltas
from .observe import Observer
from .progress import Progress
from .registry import TELL_LIMIT, Registry
from .space import Measure, check_space, measured
from .stream import Stream

Credentials = Callable[[str], Mapping[str, str] | None]
"""The engine's auth_config for a registry host, or None for a public one."""

STALL = 540.0
"""Seconds without a move after which a download is given up: less than the step's own limit."""
OPENING = 120.0
"""Seconds until the engine has reached the registry and the stream begins."""
PACE = 0.5
"""Seconds between two reports of progress."""


class Puller:
    """Performs Fetch steps on one engine."""

    def __init__(
        self,
        client: Client,
        observer: Observer,
        credentials: Credentials,
        now: Callable[[], float] = time.monotonic,
        stall: float = STALL,
        deltas: Deltas | None = None,
        measure: Measure = measured,
    ) -> None:
        self._client = client
        self._observer = observer
        self._credentials = credentials
        self._now = now
        self._stall = stall
        self._deltas = deltas or Deltas(client)
        self._measure = measure

    def fetch(self, step: Fetch, ticket: Ticket) -> None:
        """Make the image present. EngineFailed with the engine's words, EngineUnavailable,
        DeadlineExceeded when nothing moves, Cancelled when the ticket is, DiskFull,
        StillProcessing while a delta is being made; InvalidInput for what is no reference."""
        wanted = parse_reference(step.reference)
        images = self._observer.images(self._client)
        if any(image.answers_to(step.reference) for image in images.values()):
            return
        if step.source:
            kind = self._client.engine_kind()
            made = self._deltas.fetch(step, images, kind, ticket, self.pull)
            if made is not None:
                image_id, delta = made
                self._keep(step, wanted, image_id, tagged=False)
                own_name = f"{wanted.name}:{wanted.own_tag}"
                self._deltas.forget_name(image_id, delta, own_name)
                return
        self._fetch_whole(step, wanted, ticket)

    def pull(self, reference: Reference, auth: Mapping[str, str], ticket: Ticket) -> None:
        """Have the engine pull; returns when its stream ended well. Errors as `fetch`."""
        ticket.progress(0)  # what came before is done; a new attempt is watched afresh
        kind = self._client.engine_kind()
        stream = self._stream(reference, auth)
        ticket.on_cancel(stream.close)
        try:
            with stream:
                self._follow(stream, kind, ticket)
        except EngineFailed as error:
            raise EngineFailed(_without_secrets(error.message, auth), error.status) from None
        if ticket.cancelled:
            raise Cancelled(f"the download of {reference} was given up")

    def _fetch_whole(self, step: Fetch, wanted: Reference, ticket: Ticket) -> None:
        client = self._client.bounded(2 * TELL_LIMIT)
        registry = Registry(client, wanted, self._credentials, ticket)
        check_space(client, str(wanted), registry, self._measure)
        self.pull(wanted, self._credentials(wanted.registry) or {}, ticket)
        image = self._present(step.reference)
        if image is None:
            raise EngineFailed(f"the download of {wanted} ended, but the image is not there")
        self._keep(step, wanted, image.id, tagged=bool(image.tags) or not wanted.digest)

    def _keep(self, step: Fetch, wanted: Reference, image_id: str, tagged: bool) -> None:
        """Give the image the tag under which we keep it, and note what it is."""
        if not tagged:
            tag = {"repo": wanted.name, "tag": wanted.own_tag}
            self._client.request("POST", path("images", image_id, "tag"), tag)
        obtained = Obtained(str(wanted), step.app_id, step.service)
        self._observer.records.add(image_id, obtained)

    def _present(self, reference: str) -> Image | None:
        images = self._observer.images(self._client)
        return next((i for i in images.values() if i.answers_to(reference)), None)

    def _stream(self, reference: Reference, auth: Mapping[str, str]) -> Stream:
        return Stream(
            self._client.link,
            "POST",
            "/images/create",
            {"fromImage": reference.name, "tag": reference.version},
            {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()},
            opening=OPENING,
            silence=self._stall,
        )

    def _follow(self, stream: Stream, kind: str, ticket: Ticket) -> None:
        """Read the stream to its end, telling the ticket at a bounded pace."""
        progress = Progress(kind)
        moved = told = self._now()
        for event in stream:
            if said := event.get("error"):
                raise EngineFailed(str(said))
            now = self._now()
            if progress.feed(event):
                moved = now
                if now - told >= PACE:
                    told = now
                    ticket.progress(progress.percent)
            elif now - moved > self._stall:
                raise DeadlineExceeded(f"the download has not moved for {self._stall:.0f} s")
        if not progress.finished and not stream.closed:
            raise EngineUnavailable("it broke off the stream of a download")
        if progress.finished:
            ticket.progress(100)


def _without_secrets(message: str, auth: Mapping[str, str]) -> str:
    """An engine's words, also if it should repeat what it was given."""
    for key in ("password", "registrytoken"):
        if secret := auth.get(key):
            message = message.replace(secret, "(not shown)")
    return message
