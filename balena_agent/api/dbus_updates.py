"""The Manager's methods about all apps at once: update, set a local target; and the API key.

Theory: the job of an update ends as the update does: done when nothing is left to do or to wait
for, failed with the first step that fails, a held update lock included. What was asked for stands
even then, and the agent goes on trying. The snapshots tell: with the one that accepts a target all
older failures are forgiven, so whatever has failed in it or later belongs to this update.

Everything here lives in the bus thread.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from ..core.describe import status_line
from ..core.errors import (
    AgentError,
    EngineUnavailable,
    InvalidTarget,
    Locked,
    NotInLocalMode,
    Unavailable,
)
from ..core.intent import ServiceKey, SetTarget
from ..core.jsonread import Json, parse_object
from ..core.snapshot import NOT_ASKED, Failure, Snapshot
from ..core.sources import LOCAL
from ..core.status import applying, local_mode
from ..core.target import read_local
from ..core.traits import subject, verb
from ..host.wire import Call
from ..runtime.ports import Submit
from .dbus_host import Body, Implementation, Machine
from .dbus_interface import MANAGER
from .dbus_objects import Objects

DEVICE: ServiceKey = ("", "")
"""What the job of an update is about."""


class Updates:
    """The ends of updates under way."""

    def __init__(self, current: Callable[[], Snapshot], post: Callable[..., None]) -> None:
        self._current = current
        self._post = post
        self._waiting: list[Future[str]] = []

    def follow(self, accepted: Future[str]) -> Future[str]:
        """Ends with the update that begins when `accepted` does, or with its error."""
        end: Future[str] = Future()
        accepted.add_done_callback(lambda done: self._post(self._begun, done, end))
        return end

    def seen(self, snapshot: Snapshot) -> None:
        if not self._waiting:
            return
        try:
            text = ended(snapshot)
        except AgentError as error:
            for end in self._taken():
                end.set_exception(error)
            return
        for end in self._taken() if text else ():
            end.set_result(text)

    def _begun(self, accepted: Future[str], end: Future[str]) -> None:
        if accepted.cancelled():
            end.cancel()
        elif error := accepted.exception():
            end.set_exception(error)
        else:
            self._waiting.append(end)
            self.seen(self._current())

    def _taken(self) -> list[Future[str]]:
        taken, self._waiting = self._waiting, []
        return taken


def local_document(text: str) -> dict[str, Json]:
    """The document of a local target. The HTTP API takes one without `local` for an empty target,
    as the peer does; here it is refused, because it would remove every app."""
    document = parse_object(text, "target")
    if "local" not in document:
        raise InvalidTarget(("Expecting object at $.local but instead got: nothing",))
    return document


def ended(snapshot: Snapshot) -> str:
    """How an update has ended: a sentence, "" while it goes on, or the error that ended it."""
    if snapshot.engine_error and snapshot.engine_error != NOT_ASKED:
        raise EngineUnavailable(snapshot.engine_error)
    for failure in snapshot.failures.values():
        if failure.count and not failure.muted:
            raise _error_of(failure)
    if applying(snapshot):
        return ""
    rejected = [app for app in snapshot.desired.apps if app.problem]
    if rejected:
        told = (f"app {app.name or app.uuid} is rejected: {app.problem}" for app in rejected)
        raise InvalidTarget(tuple(told))
    return status_line(snapshot)


def _error_of(failure: Failure) -> AgentError:
    kind = Locked if failure.locked else Unavailable
    step = f"{verb(failure.step)} {subject(failure.step)}"
    return kind(f"{step}: {failure.error}. It is tried again.")


class UpdateMethods:
    """`objects` knows the jobs and sees the snapshots."""

    def __init__(
        self, submit: Submit, machine: Machine, objects: Objects, post: Callable[..., None]
    ):
        self._submit = submit
        self._machine = machine
        self._objects = objects
        self._updates = Updates(lambda: objects.snapshot, post)
        objects.watch(self._updates.seen)

    def table(self) -> Mapping[tuple[str, str], Implementation]:
        return {
            (MANAGER.name, "Update"): self._update,
            (MANAGER.name, "SetTargetState"): self._set_target_state,
            (MANAGER.name, "RegenerateApiKey"): self._regenerate_key,
        }

    async def _update(self, call: Call, force: bool, cancel: bool) -> Body:
        return self._job("update", self._machine.refresh(force, cancel))

    async def _set_target_state(self, call: Call, target: str, force: bool) -> Body:
        snapshot = self._objects.snapshot
        if not local_mode(snapshot):
            raise NotInLocalMode(
                "this device is not in local mode (device variable SUPERVISOR_LOCAL_MODE): its"
                f" targets come from {snapshot.facts.api_endpoint}"
            )
        document = local_document(target)
        wanted = read_local(document)
        raw = json.dumps(document, separators=(",", ":"))
        return self._job("set-target", self._submit(SetTarget(LOCAL, raw, wanted, force)))

    async def _regenerate_key(self, call: Call) -> Body:
        return [await asyncio.to_thread(self._machine.regenerate_key)]

    def _job(self, kind: str, accepted: Future[str]) -> Body:
        job = self._objects.jobs.follow(kind, DEVICE, self._updates.follow(accepted))
        self._objects.soon()
        return [job.path]
