"""Avahi: the agent's own announcement by mDNS, and addresses of `.local` names (spec 30 §14).

Theory: what is announced belongs to groups that Avahi drops together with our connection, with
itself, and with a change of the host's name. So nothing is remembered but the wish: whenever Avahi
says that it runs, they are made anew. An Avahi that is not there, or masked because the device
shall not be found, is no error: it is told once, and its next start is heard.

The name that is announced is the host's own, as Avahi has it: where another machine has the same,
Avahi takes an alternative one and says that it runs again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import AgentError, Unavailable
from ..core.hostconfig import BALENA_OS
from .bus import Bus
from .wire import BusRefusal, Match, Signal

SERVICE = "org.freedesktop.Avahi"
SERVER = SERVICE + ".Server"
GROUP = SERVICE + ".EntryGroup"
RUNNING = 2
SSH_PORT = 22222
SCANNED = "_resin-device._sub._ssh._tcp"
ANY = -1
"""Every interface, every protocol."""

_LIMIT = 5.0
_RESOLVE_SECONDS = 10.0
_LINK_LOCAL = ("fe8", "fe9", "fea", "feb")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Announced:
    """One service: `kind` like `_ssh._tcp`; `subtype` like `_x._sub._ssh._tcp`, or "". `text` are
    `key=value` words."""

    kind: str
    port: int
    text: tuple[str, ...] = ()
    subtype: str = ""


def announced(port: int, version: str, profile: str) -> tuple[Announced, ...]:
    """What a device has to say: where its API is; and what the CLI's `scan` looks for, unless the
    OS announces that itself."""
    agent = Announced("_balena-agent._tcp", port, (f"version={version}",))
    ssh = Announced("_ssh._tcp", SSH_PORT, subtype=SCANNED)
    return (agent,) if profile == BALENA_OS else (agent, ssh)


class Announcement:
    """It ends with our connection to the bus."""

    def __init__(self, bus: Bus, services: Sequence[Announced]) -> None:
        self._bus = bus
        self._services = tuple(services)
        self._groups: list[str] = []
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._problem = ""

    def start(self) -> None:
        """Announce now if Avahi runs, and whenever it says so. Does not wait."""
        self._bus.post(self._do, self._begin)

    def _do(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """In the bus thread, whose loop keeps only a weak reference."""
        task = self._bus.loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(self) -> None:
        match = Match(sender=SERVICE, path="/", interface=SERVER, member="StateChanged")
        try:
            await self._bus.subscribe_async(match, self._told)
        except AgentError as error:
            self._tell(error.message)
        await self._publish()

    def _told(self, signal: Signal) -> None:
        if signal.body[0] == RUNNING:
            self._do(self._publish)

    async def _publish(self) -> None:
        async with self._turn:
            problem = ""
            try:
                await self._free()
                if await self._server("GetState") == RUNNING:
                    problem = await self._announce(await self._server("GetHostName"))
            except AgentError as error:
                problem = error.message
            self._tell(problem)

    async def _announce(self, name: str) -> str:
        """What could not be announced, and why: somebody else on this host may do so already."""
        problems = []
        for each in self._services:
            try:
                await self._announce_one(name, each)
            except AgentError as error:
                problems.append(f"{each.kind}: {error.message}")
        return "; ".join(problems)

    async def _announce_one(self, name: str, each: Announced) -> None:
        group = await self._server("EntryGroupNew")
        self._groups.append(group)
        text = [word.encode() for word in each.text]
        entry = (ANY, ANY, 0, name, each.kind, "", "", each.port, text)
        await self._call(group, "AddService", "iiussssqaay", entry)
        if each.subtype:
            subtype = (ANY, ANY, 0, name, each.kind, "", each.subtype)
            await self._call(group, "AddServiceSubtype", "iiussss", subtype)
        await self._call(group, "Commit")

    async def _free(self) -> None:
        """The former groups may have gone with the Avahi that had them."""
        while self._groups:
            with contextlib.suppress(AgentError):
                await self._call(self._groups.pop(), "Free")

    async def _server(self, member: str) -> Any:
        (found,) = await self._bus.call_async(SERVICE, "/", SERVER, member, timeout=_LIMIT)
        return found

    async def _call(
        self, group: str, member: str, signature: str = "", body: Sequence[object] = ()
    ) -> None:
        await self._bus.call_async(SERVICE, group, GROUP, member, signature, body, _LIMIT)

    def _tell(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.info("Not announced by mDNS: %s", problem)
        self._problem = problem


def resolve(bus: Bus, name: str) -> str:
    """The address of a `.local` name, an IPv6 one of a link with its interface (`fe80::1%2`).

    Unavailable: nobody answers to that name. BusUnavailable: no Avahi. Takes 10 s at most.
    """
    body = (ANY, ANY, name, ANY, 0)
    try:
        found = bus.call(SERVICE, "/", SERVER, "ResolveHostName", "iisiu", body, _RESOLVE_SECONDS)
    except BusRefusal as refusal:
        raise Unavailable(f"nobody answers to the name {name}: {refusal}") from refusal
    interface, address = found[0], str(found[4])
    return f"{address}%{interface}" if address.lower().startswith(_LINK_LOCAL) else address
