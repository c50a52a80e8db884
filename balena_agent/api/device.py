"""The endpoints about the device as a whole (spec 10 §8.3-§8.5, §8.11-§8.13, §8.21-§8.23, §8.26).

Theory: most of this is a view of the snapshot; what lies outside of it comes through `Around`.
None of these checks an app: any valid key will do (spec 10 §3.3).
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..core.errors import InvalidInput, NotFound, Unavailable
from ..core.jsonread import Json, truth
from ..core.networkconfig import BAD_INPUT
from ..core.report import device_state
from .around import Around
from .checks import engine_needed
from .exchange import (
    TEXT_TYPE,
    Answer,
    Endpoint,
    Request,
    json_answer,
    query_failure,
    server_failure,
    text_answer,
    text_failure,
)
from .pages import Pages

_ADDRESSES_KEPT = 5.0
"""Seconds for which the addresses of the device count as known."""

_BAD_TAGS = "Invalid tags body, must be an object like `{[tagKey: string]: string}`"

_Addresses = tuple[tuple[str, ...], tuple[str, ...]]


class Device:
    def __init__(self, around: Around) -> None:
        self._around = around
        self._pages = Pages()
        self._known: tuple[float, _Addresses] = (0.0, ((), ()))

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("POST", "/v1/blink", self.blink, query_failure),
            Endpoint("POST", "/v1/regenerate-api-key", self.rotate, query_failure),
            Endpoint("POST", "/v1/update", self.update, query_failure),
            Endpoint("GET", "/v1/device", self.show, query_failure),
            Endpoint("GET", "/v1/device/host-config", self.host_config, query_failure),
            Endpoint("PATCH", "/v1/device/host-config", self.set_host_config, text_failure),
            Endpoint("GET", "/v2/device/name", self.name, query_failure),
            Endpoint("GET", "/v2/device/tags", self.tags, server_failure),
            Endpoint("PATCH", "/v2/device/tags", self.set_tags, server_failure),
            Endpoint("GET", "/v2/device/vpn", self.vpn, query_failure),
            Endpoint("GET", "/v2/local/device-info", self.info, query_failure),
        )

    def blink(self, _: Request) -> Answer:
        """Answers at once; the pattern ends by itself."""
        self._around.blink()
        return text_answer("OK", 200, TEXT_TYPE)

    def rotate(self, request: Request) -> Answer:
        """A new key in the place of the caller's own; the old one is worth nothing from now on.

        A caller who was let in without a good key has none to renew: 503 (spec 10 §8.4).
        """
        try:
            fresh = self._around.rotate(request.key or "")
        except NotFound as error:
            raise Unavailable("The request came without a valid API key to replace") from error
        return text_answer(fresh)

    def update(self, request: Request) -> Answer:
        """204 when the target is fetched and applied, in the background; 202 when updates do not
        come at once on this device and nothing happens."""
        force = request.flag("force")
        if not (request.snapshot.settings.instant_updates or force):
            return text_answer("Accepted", 202, TEXT_TYPE)
        self._around.refresh(force, request.flag("cancel"))
        return Answer(204)

    def show(self, request: Request) -> Answer:
        engine_needed(request.snapshot)
        addresses, macs = self._addresses()
        return self._pages.get(
            f"device {addresses} {macs}", request, lambda now, _: device_state(now, addresses, macs)
        )

    def _addresses(self) -> _Addresses:
        """IP and MAC addresses; asking the kernel costs more than the rest of the answer."""
        asked, known = self._known
        now = time.monotonic()
        if not asked or now - asked > _ADDRESSES_KEPT:
            known = self._around.addresses(), self._around.macs()
            self._known = (now, known)
        return known

    def host_config(self, _: Request) -> Answer:
        return json_answer(self._around.host_config.read())

    def set_host_config(self, request: Request) -> Answer:
        """`force` counts at the top and, as documents have it, within `network`."""
        network = request.body.get("network")
        if not isinstance(network, dict):
            raise InvalidInput(f"{BAD_INPUT} network must be an object")
        force = request.flag("force") or truth(network.get("force"))
        self._around.host_config.patch({k: v for k, v in network.items() if k != "force"}, force)
        return text_answer("OK")

    def name(self, request: Request) -> Answer:
        """The last name that a target gave."""
        target = request.snapshot.target
        name = (target and target.name) or request.snapshot.facts.device_name
        return json_answer({"status": "success", "deviceName": name})

    def tags(self, _: Request) -> Answer:
        """What the cloud says now; 500 when it does not."""
        return json_answer({"status": "success", "tags": self._around.tags.get()})

    def set_tags(self, request: Request) -> Answer:
        """202 as soon as they are kept: the cloud gets them in its time."""
        if request.listed:
            raise InvalidInput(_BAD_TAGS)
        self._around.tags.put(_tags(request.body))
        return json_answer({"status": "success"}, 202)

    def vpn(self, _: Request) -> Answer:
        enabled, connected = self._around.vpn()
        shown: dict[str, Json] = {"enabled": enabled, "connected": connected}
        return json_answer({"status": "success", "vpn": shown})

    def info(self, request: Request) -> Answer:
        facts = request.snapshot.facts
        info: dict[str, Json] = {"arch": facts.device_arch, "deviceType": facts.device_type}
        return json_answer({"status": "success", "info": info})


def _tags(body: Mapping[str, Json]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in body.items():
        if not isinstance(value, str):
            raise InvalidInput(_BAD_TAGS)
        if any(character.isspace() for character in key):
            raise InvalidInput("Tag keys cannot contain whitespace")
        found[key] = value
    return found
