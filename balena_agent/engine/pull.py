"""Fetching an image: nothing to do, or a download that can be watched and given up.

Theory: an image that any present one answers to (Image.answers_to) needs no network. Otherwise
the engine pulls; its stream carries progress and, with HTTP status 200, also its errors. A pull
has succeeded only when the stream ended with its `Status:` line and the image is really there: a
stream that just ends means that the engine died (spec 60 §2). balenaEngine never gives up on a bad
network, so a download that does not move for `STALL` seconds is given up here.

Credentials are passed with each pull, explicitly, also when there are none; no login file of the
machine has a say (spec 20 §18.7).

A reference by digest leaves an image without a tag, which a user's `image prune` would delete
before its container exists, and which the peer would not find. So it gets the tag `latest` of its
repository (spec 20 §18.2), right after the pull and only then: nothing else of ours needs the tag,
because images are recognised by digest and containers are created from image ids.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping

from ..core.errors import Cancelled, DeadlineExceeded, EngineFailed, EngineUnavailable
from ..core.names import image_registry, normal_image
from ..core.observed import Image
from ..core.steps import Fetch, Ticket
from .client import Client, path
from .observe import Observer
from .progress import Progress
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
    ) -> None:
        self._client = client
        self._observer = observer
        self._credentials = credentials
        self._now = now
        self._stall = stall

    def fetch(self, step: Fetch, ticket: Ticket) -> None:
        """Make the image present. EngineFailed with the engine's words, EngineUnavailable,
        DeadlineExceeded when nothing moves, Cancelled when the ticket is."""
        if self._present(step.reference):
            return
        kind = self._client.engine_kind()
        stream = self._stream(step.reference)
        ticket.on_cancel(stream.close)
        with stream:
            self._follow(stream, kind, ticket)
        if ticket.cancelled:
            raise Cancelled(f"the download of {step.reference} was given up")
        self._confirm(step.reference)

    def _present(self, reference: str) -> Image | None:
        images = self._observer.images(self._client)
        return next((i for i in images.values() if i.answers_to(reference)), None)

    def _stream(self, reference: str) -> Stream:
        repository, tag = split_reference(reference)
        auth = self._credentials(image_registry(reference)) or {}
        return Stream(
            self._client.link,
            "POST",
            "/images/create",
            {"fromImage": repository, "tag": tag},
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
            raise EngineUnavailable("the download broke off: the engine ended the stream")
        if progress.finished:
            ticket.progress(100)

    def _confirm(self, reference: str) -> None:
        """The image must be there now; give one without any tag its repository's `latest`."""
        image = self._present(reference)
        if image is None:
            raise EngineFailed(f"the download of {reference} ended, but the image is not there")
        repository = normal_image(reference).partition("@")[0]
        if "@" in reference and not image.tags:
            target = path("images", image.id, "tag")
            self._client.request("POST", target, {"repo": repository, "tag": "latest"})


def split_reference(reference: str) -> tuple[str, str]:
    """(repository, tag or digest) as the engine's pull wants them."""
    name = normal_image(reference)
    if "@" in name:
        repository, _, digest = name.partition("@")
        return repository, digest
    repository, _, tag = name.rpartition(":")
    return repository, tag
