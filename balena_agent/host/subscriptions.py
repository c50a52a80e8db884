"""Who on our side hears which signal of the system bus.

Theory: the bus sends us what matches a rule of ours, and one connection carries the signals of all
subscribers. So every signal is compared again with what each of them asked for. A name may change
hands; that of a service which somebody subscribed to is followed from then on.

Invariants: used in the bus thread alone. A signal reaches a subscriber only if its sender owns the
name that was subscribed to: the bus lets anybody send a forged signal straight to us.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..core.errors import BusUnavailable
from .wire import DAEMON, DAEMON_PATH, Match, Signal

SignalCallback = Callable[[Signal], None]
Ask = Callable[..., Awaitable[list[Any]]]
"""Calls a method of the bus daemon: member, signature, body."""

_log = logging.getLogger(__name__)


class Subscriptions:
    """See the module."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._known: tuple[tuple[Match, SignalCallback], ...] = ()
        self._owners: dict[str, str] = {}

    async def add(self, match: Match, callback: SignalCallback) -> None:
        """Have `callback` called for every signal that matches. Errors as for calls."""
        sender = match.sender
        if sender and sender != DAEMON and not sender.startswith(":"):
            await self._follow_owner(sender)
        await self._ask("AddMatch", "s", match.rule())
        self._known = (*self._known, (match, callback))

    def deliver(self, signal: Signal) -> None:
        """Hand a signal to everybody who asked for it. A subscriber that fails keeps it from nobody
        else."""
        if signal.sender == DAEMON and signal.member == "NameOwnerChanged":
            name, _, owner = signal.body
            if name in self._owners:
                self._owners[name] = owner
        for match, callback in self._known:
            if match.accepts(signal) and self._sent_by(match.sender, signal.sender):
                try:
                    callback(signal)
                except Exception:
                    _log.exception("a subscriber of %s failed", match.rule())

    async def _follow_owner(self, name: str) -> None:
        if name in self._owners:
            return
        self._owners[name] = ""
        await self._ask("AddMatch", "s", _owner_changes(name).rule())
        with contextlib.suppress(BusUnavailable):  # not running yet: its start will be announced
            (self._owners[name],) = await self._ask("GetNameOwner", "s", name)

    def _sent_by(self, wanted: str, sender: str) -> bool:
        return wanted in ("", sender) or self._owners.get(wanted) == sender


def _owner_changes(name: str) -> Match:
    return Match(
        sender=DAEMON, path=DAEMON_PATH, interface=DAEMON, member="NameOwnerChanged", arg0=name
    )
