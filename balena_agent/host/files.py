"""The host's files as a whole: config.json, boot files, and the facts that are read off them.

Theory: everything here is found out again at every `refresh`, and what is the same changes nothing.
What a configuration lacks at the agent's first start is made here, once: the device's uuid, and on
a managed device its API key, in one write (spec 30 §2.2). A file that is missing is never created:
mostly it means that the boot partition is not there yet.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..core.boot_devices import SSDT
from ..core.configjson import ConfigJson, first_identity
from ..core.errors import AgentError
from ..core.hostconfig import BALENA_OS
from ..core.jsonread import Json
from ..core.keyvalue import KeyValueStore
from ..core.observed import HostFacts
from .bootfiles import stores
from .breadcrumbs import Breadcrumbs
from .configfile import ConfigFile, mounted
from .machine import Files, board, boot_id, facts, profile
from .settings import HostSettings, Switches

_UUID, _LAST_GOOD, _ATTEMPTS = "device_uuid", "config_json", "boot_attempts"
DUMP = "target-state-config"


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are. `files` are the ones that facts are read from; `shared` is the directory
    in /tmp that other programs know. `wanted_profile` is auto, balenaos or generic."""

    files: Files
    root: str
    boot: str
    run: str
    shared: str
    wanted_profile: str = "auto"
    api_port: int = 48484
    engine_socket: str = ""
    compat_version: str = ""


class HostFiles:
    """See the module. `refresh` is for one thread; the others may read at any time."""

    def __init__(
        self,
        places: Places,
        memory: KeyValueStore,
        is_mounted: Callable[[str], bool] = mounted,
        switches: Switches | None = None,
    ) -> None:
        self._switches = switches
        self._places = places
        self._memory = memory
        self._is_mounted = is_mounted
        self._own_uuid = self._stored_uuid()
        self.profile = profile(places.wanted_profile, places.files.os_release)
        self.config = ConfigFile(
            places.files.config_json,
            last_good=_text(memory.setting(_LAST_GOOD)),
            keep=lambda text: memory.set_setting(_LAST_GOOD, text),
            guard=self.guard,
        )
        self.problems: tuple[str, ...] = ()
        """What could not be read or made, for people."""
        self.config.refresh()
        self._complete()
        self.facts = self._facts()
        self._board = board(places.files, self.facts.device_type)
        self.breadcrumbs = Breadcrumbs(places.run, f"{places.shared}/services")
        self.settings = self._settings()

    @property
    def directories(self) -> tuple[str, ...]:
        """Where a change of any of the files shows."""
        boot = self._places.boot
        beside = os.path.dirname(self._places.files.config_json)
        return tuple(dict.fromkeys((beside, boot, f"{boot}/extlinux", f"{boot}/splash")))

    @property
    def acpi_tables(self) -> str:
        """The text of configfs.json on a board that has one."""
        known = self.settings.current.boot.get(SSDT.name)
        return known.text if known else ""

    def refresh(self) -> bool:
        """Look at everything again; says whether anything is new. Never raises."""
        before = (self.facts, self.problems)
        self.config.refresh()
        self._complete()
        self.facts = self._facts()
        return self.settings.refresh() or (self.facts, self.problems) != before

    def remember_hostname(self, name: str) -> Callable[[], object]:
        """The OS makes the name from config.json at every boot: balenaOS from nothing else, so
        there it has to be possible. Gives what restores the key as it was. Unavailable."""
        if not (self.config.writable or self.profile == BALENA_OS):
            return lambda: None
        self.config.refresh()
        former = self.config.state.values.get("hostname")  # None: no such key
        self.config.merge({("hostname",): name})
        return lambda: self.config.merge({("hostname",): former})

    def guard(self) -> str:
        """Why nothing may be written to the boot partition now, or "". On balenaOS it is a mount;
        writing beside it would be lost, or fail."""
        boot = self._places.boot
        if self.profile == BALENA_OS and not self._is_mounted(boot):
            return f"{boot} is not mounted"
        return ""

    def _complete(self) -> None:
        """Make what the configuration lacks of the device's identity."""
        self.problems = ()
        if not self.config.writable:
            return
        lacking = first_identity(self.config.state.values, self._own_uuid, secrets.token_hex(16))
        try:
            if lacking:
                self.config.merge(lacking)
        except AgentError as error:
            self.problems = (error.message,)

    def _facts(self) -> HostFacts:
        places = self._places
        config = ConfigJson(self.config.state.values)
        found, problems = facts(
            places.files,
            api_port=places.api_port,
            engine_socket=places.engine_socket,
            stored_uuid=self._own_uuid,
            root=places.root,
            config=config,
        )
        self.problems += problems
        return replace(found, compat_version=places.compat_version or found.compat_version)

    def _settings(self) -> HostSettings:
        places, running = self._places, boot_id()
        return HostSettings(
            self.config,
            stores(self._board, places.boot, places.root, self.config, self._memory),
            self.breadcrumbs,
            profile=self.profile,
            boot_id=running,
            board=self._board,
            dump=f"{places.shared}/{DUMP}",
            attempts=self._memory.setting(_ATTEMPTS),
            keep=lambda attempts: self._memory.set_setting(_ATTEMPTS, attempts),
            guard=self.guard,
            switches=self._switches,
        )

    def _stored_uuid(self) -> str:
        """The uuid of a device whose config.json has none, or which has no config.json."""
        known = _text(self._memory.setting(_UUID))
        if known:
            return known
        made = secrets.token_hex(16)
        with contextlib.suppress(AgentError):  # the store tells its own trouble
            self._memory.set_setting(_UUID, made)
        return made


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""
