"""The methods of the Manager that are about the machine: power, blink, name, proxy.

Theory: each is a few lines: the values that came over the bus are judged by the same rules as those
of the HTTP API, become a command, and the caller hears when it is done or why it is not. Reading
the host's configuration asks other services on this very bus, so it is done off the bus thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..core.errors import Cancelled, DeadlineExceeded, InvalidInput
from ..core.intent import ConfigureNetwork, Power
from ..core.networkconfig import NetworkChange, NetworkConfig, read_change, read_hostname, shown
from ..core.redsocks import OURS
from ..host.wire import Call, Variant, plain
from ..runtime.ports import Submit
from .dbus_interface import MANAGER
from .dbus_polkit import Authority

Body = Sequence[Any]
Implementation = Callable[..., Awaitable[Body]]

_POWER_PATIENCE = 60.0
_CONFIG_PATIENCE = 510.0
_PROXY_KEYS = frozenset((*OURS, "dns", "noProxy"))
_SIGNATURES = {"port": "q", "noProxy": "as"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What is done and asked without the reconciler. `read` and `regenerate_key` (the new key of
    the device) may block for seconds and raise AgentErrors; so may `obstacles` (what the host is
    not able to do, for people), which never raises. `blink` and `refresh` (force, cancel) return at
    once. The future of `refresh` ends when the target has been fetched and accepted."""

    read: Callable[[], NetworkConfig] = NetworkConfig
    blink: Callable[[], None] = lambda: None
    refresh: Callable[[bool, bool], Future[str]] = lambda force, cancel: Future()
    regenerate_key: Callable[[], str] = str
    obstacles: Callable[[], Sequence[str]] = tuple


class HostMethods:
    """Lives in the bus thread."""

    def __init__(self, submit: Submit, authority: Authority, machine: Machine) -> None:
        self._submit = submit
        self._authority = authority
        self._machine = machine

    def table(self) -> Mapping[tuple[str, str], Implementation]:
        return {
            (MANAGER.name, "Reboot"): self._reboot,
            (MANAGER.name, "PowerOff"): self._power_off,
            (MANAGER.name, "Blink"): self._blink,
            (MANAGER.name, "GetHostConfig"): self._get_host_config,
            (MANAGER.name, "SetHostname"): self._set_hostname,
            (MANAGER.name, "SetProxy"): self._set_proxy,
        }

    async def _reboot(self, call: Call, force: bool) -> Body:
        return await self._power(call, off=False, force=force)

    async def _power_off(self, call: Call, force: bool) -> Body:
        return await self._power(call, off=True, force=force)

    async def _power(self, call: Call, off: bool, force: bool) -> Body:
        who = await self._authority.who(call.sender)
        await done(self._submit(Power(off=off, force=force, who=who)), _POWER_PATIENCE)
        return ()

    async def _blink(self, call: Call) -> Body:
        self._machine.blink()
        return ()

    async def _get_host_config(self, call: Call) -> Body:
        config = await asyncio.to_thread(self._machine.read)
        network = shown(config)
        found = {"hostname": Variant("s", network["hostname"])}
        if "proxy" in network:
            settings = {k: Variant(_SIGNATURES.get(k, "s"), v) for k, v in network["proxy"].items()}
            found["proxy"] = Variant("a{sv}", settings)
        return [found]

    async def _set_hostname(self, call: Call, hostname: str, force: bool) -> Body:
        return await self._configure(NetworkChange(read_hostname(hostname)), force)

    async def _set_proxy(self, call: Call, proxy: Mapping[str, Any], force: bool) -> Body:
        """Replaces what there is: no key means no proxy."""
        given = {key: plain(value) for key, value in proxy.items()}
        if unknown := sorted(given.keys() - _PROXY_KEYS):
            raise InvalidInput(f"unknown key {unknown[0]!r}", "proxy")
        cleared = dict.fromkeys(_PROXY_KEYS) if given else {}
        return await self._configure(read_change({"proxy": {**cleared, **given}}), force)

    async def _configure(self, change: NetworkChange, force: bool) -> Body:
        await done(self._submit(ConfigureNetwork(change, force)), _CONFIG_PATIENCE)
        return ()


async def done(answer: Future[str], patience: float) -> str:
    """Wait until a command is met, or raise why it is not; what is asked for stays asked for when
    the patience ends."""
    waiting = asyncio.wrap_future(answer)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait({waiting}, timeout=patience)  # a timeout does not cancel it
    if not waiting.done():
        raise DeadlineExceeded("asked for, but not done yet: see Waiting")
    if waiting.cancelled():
        raise Cancelled("given up")
    return waiting.result()
