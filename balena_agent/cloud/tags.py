"""The device's tags in the cloud: asked for when a client asks, sent when a client has set some.

Theory: what a client sets is kept first and sent later, so it survives a restart and a night
without a network (spec 31 §7). What has been sent is remembered as sent, not what is wanted by
then: a tag that is set again during its transport goes out again. A thread exists only while there
is something to send.

Invariants: two transports are at least `PAUSE` apart; what the cloud of one address has seen says
nothing about the next one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote

from ..core.errors import AgentError, Unavailable
from ..core.jsonread import Json
from ..core.keyvalue import KeyValueStore
from ..core.observed import HostFacts
from . import client

_log = logging.getLogger(__name__)

PAUSE = 10.0
FIRST_RETRY, LONGEST_RETRY = 15.0, 900.0
GET_LIMIT = 15.0
WANTED, REPORTED = "tags_wanted", "tags_reported"


Ask = Callable[..., Json]
"""`client.request`."""


class CloudTags:
    """`api.around.Tags` of a device with a cloud. Any thread may call it."""

    def __init__(
        self, facts: Callable[[], HostFacts], settings: KeyValueStore, ask: Ask = client.request
    ) -> None:
        self._facts = facts
        self._settings = settings
        self._ask = ask
        self._lock = threading.Lock()
        self._sender: threading.Thread | None = None
        self._stopped = threading.Event()
        self._not_before = 0.0

    def get(self) -> list[Json]:
        """The tags as the cloud has them. Unavailable, also without a cloud."""
        facts = self._managed()
        device = quote(f"device/any(d:d/uuid eq '{facts.device_uuid}')", safe="")
        path = f"/v7/device_tag?$select=id,tag_key,value&$filter={device}"
        answer = self._ask(facts.api_endpoint, facts.device_api_key, "GET", path, None, GET_LIMIT)
        entries = answer.get("d") if isinstance(answer, dict) else None
        if not isinstance(entries, list):
            raise Unavailable("The cloud's answer has no tags")
        return [
            {"id": entry.get("id"), "name": entry.get("tag_key"), "value": entry.get("value")}
            for entry in entries
            if isinstance(entry, dict)
        ]

    def put(self, tags: Mapping[str, str]) -> None:
        """Keep them, durably; they are sent in the background if there is a cloud."""
        with self._lock:
            known = self._wanted()
            if any(known.get(key) != value for key, value in tags.items()):
                self._settings.set_setting(WANTED, {**known, **tags})
        self.start()

    def start(self) -> None:
        """Send what has not been sent yet, if there is such and nobody does so already."""
        with self._lock:
            if self._stopped.is_set() or self._sender or not self._facts().managed:
                return
            if not self._unsent():
                return
            self._sender = threading.Thread(target=self._send_all, name="tags", daemon=True)
            self._sender.start()

    def stop(self) -> None:
        self._stopped.set()

    def _managed(self) -> HostFacts:
        facts = self._facts()
        if not facts.managed:
            raise Unavailable("This device is not connected to a cloud")
        return facts

    def _wanted(self) -> dict[str, Json]:
        found = self._settings.setting(WANTED)
        return dict(found) if isinstance(found, dict) else {}

    def _reported(self) -> dict[str, Json]:
        """What the cloud at the present address was told."""
        found = self._settings.setting(REPORTED)
        if not isinstance(found, dict) or found.get("endpoint") != self._facts().api_endpoint:
            return {}
        tags = found.get("tags")
        return dict(tags) if isinstance(tags, dict) else {}

    def _unsent(self) -> dict[str, Json]:
        reported = self._reported()
        return {k: v for k, v in self._wanted().items() if reported.get(k) != v}

    def _send_all(self) -> None:
        retry = FIRST_RETRY
        while not self._stopped.wait(max(0.0, self._not_before - time.monotonic())):
            with self._lock:
                unsent = self._unsent()
                if not unsent:
                    self._sender = None
                    return
            try:
                self._send(unsent)
                self._not_before = time.monotonic() + PAUSE
                retry = FIRST_RETRY
            except AgentError as error:
                _log.warning("Cannot report tags, trying again in %d s: %s", retry, error.message)
                self._not_before = time.monotonic() + retry
                retry = min(2 * retry, LONGEST_RETRY)

    def _send(self, tags: dict[str, Json]) -> None:
        facts = self._managed()
        body: Json = {facts.device_uuid: tags}
        self._ask(facts.api_endpoint, facts.device_api_key, "PATCH", "/device/v3/tags", body)
        with self._lock:
            told: Json = {"endpoint": facts.api_endpoint, "tags": {**self._reported(), **tags}}
            self._settings.set_setting(REPORTED, told)
        _log.info("Reported %d tags", len(tags))
