"""Who may call: polkit's answer for a caller that the bus has identified.

Theory: uid 0 may everything and is never asked, so that a hanging polkit cannot lock root out.
Everybody else is polkit's decision, per action. Without polkit on the bus only uid 0 may.
Any failure to find out is a refusal.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import AccessDenied, AgentError, BusUnavailable
from ..host.bus import Bus
from ..host.wire import DAEMON, DAEMON_PATH, Call, Variant

POLKIT = "org.freedesktop.PolicyKit1"
POLKIT_PATH = "/org/freedesktop/PolicyKit1/Authority"

_ALLOW_INTERACTION = 1
_QUICK, _TYPING_A_PASSWORD = 20.0, 300.0


class InteractionRequired(AccessDenied):
    """The caller may, after a password, but did not allow to ask for one."""

    dbus_name = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"


class Authority:
    """Lives in the bus thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def check(self, call: Call, action: str) -> None:
        """Return if the caller may do `action`. AccessDenied (or InteractionRequired) if not."""
        if await self.uid(call.sender) == 0:
            return
        try:
            allowed, challenge = await self._ask(call, action)
        except BusUnavailable as error:
            raise AccessDenied("only root may do this: there is no polkit to ask") from error
        except AgentError as error:
            raise AccessDenied(f"polkit could not decide about {action}: {error}") from error
        if allowed:
            return
        if challenge and not call.interactive:
            raise InteractionRequired(f"{action} needs a password, and asking was not allowed")
        raise AccessDenied(f"polkit refuses {action} to the caller")

    async def root_only(self, call: Call) -> None:
        """AccessDenied for everybody but uid 0."""
        if await self.uid(call.sender) != 0:
            raise AccessDenied("only root may do this")

    async def uid(self, sender: str) -> int:
        """The caller's user id, as the bus daemon knows it. AccessDenied when it is gone."""
        return await self._credential("GetConnectionUnixUser", sender)

    async def who(self, sender: str) -> str:
        """The caller in words, for the journal."""
        uid = await self.uid(sender)
        pid = await self._credential("GetConnectionUnixProcessID", sender)
        return f"uid {uid}, process {pid}, over D-Bus"

    async def _credential(self, member: str, sender: str) -> int:
        try:
            answer = await self._daemon(member, sender)
        except AgentError as error:
            raise AccessDenied(f"the bus does not tell who {sender} is") from error
        return int(answer[0])

    async def _daemon(self, member: str, sender: str) -> list[Any]:
        return await self._bus.call_async(
            DAEMON, DAEMON_PATH, DAEMON, member, "s", [sender], _QUICK
        )

    async def _ask(self, call: Call, action: str) -> tuple[bool, bool]:
        subject = ("system-bus-name", {"name": Variant("s", call.sender)})
        flags = _ALLOW_INTERACTION if call.interactive else 0
        ((allowed, challenge, _details),) = await self._bus.call_async(
            POLKIT,
            POLKIT_PATH,
            POLKIT + ".Authority",
            "CheckAuthorization",
            "(sa{sv})sa{ss}us",
            (subject, action, {}, flags, ""),
            timeout=_TYPING_A_PASSWORD if call.interactive else _QUICK,
        )
        return bool(allowed), bool(challenge)
