"""What the host is set to, read and changed: the adapter behind `HostConfig` and its steps.

Theory: `refresh` looks at all the files, `current` is what the last look has seen, and a step ends
with a look, so the model (hostconfig.after) and the host can be compared. A step reads the file
again, renders the wish into what is there now, writes it whole, and reads it back. What needs a
reboot is noted before the change and not after: the note is harmless without the change.

Callable from any thread; one look or step at a time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

from ..core.boot import Board, BootFault, difference
from ..core.boot_backends import backends
from ..core.boot_devices import SPLASH
from ..core.errors import AgentError, Unavailable
from ..core.hostconfig import (
    BALENA_OS,
    CONFIG_JSON,
    CONFIG_KEYS,
    Attempt,
    BootFile,
    HostConfig,
    attempt,
    config_keys,
    surviving,
)
from ..core.jsonread import Json
from ..core.steps import ChangeConfig, DumpConfig, HostConfigStep, SetBootConfig, SwitchFeature
from .bootfiles import BootStore
from .breadcrumbs import Breadcrumbs
from .configfile import ConfigFile
from .machine import write_durable
from .switchboard import Found


class Switches(Protocol):
    """What variables switch; `Switchboard` is one."""

    def read(self) -> Found: ...

    def perform(self, step: SwitchFeature) -> None: ...


class NoSwitches:
    """A host that has none."""

    def read(self) -> Found:
        return Found()

    def perform(self, step: SwitchFeature) -> None:
        raise Unavailable(f"{step.switch} cannot be switched on this host")


class HostSettings:
    """See the module. `attempts` is what `keep` was last given, in this boot or an earlier one;
    `dump` is the path of the dump of variables, "" for none. `guard` says why boot files may not be
    written now, or ""."""

    def __init__(
        self,
        config: ConfigFile,
        boot: Mapping[str, BootStore],
        breadcrumb: Breadcrumbs,
        *,
        profile: str,
        boot_id: str,
        board: Board,
        dump: str = "",
        attempts: Json = None,
        keep: Callable[[Json], None] = lambda attempts: None,
        guard: Callable[[], str] = str,
        switches: Switches | None = None,
    ) -> None:
        self._switches = switches or NoSwitches()
        self._found = Found()
        self._config = config
        self._boot = boot
        self._breadcrumb = breadcrumb
        self._dump = Path(dump) if dump else None
        self._keep = keep
        self._guard = guard
        self._lock = threading.Lock()
        self._new_reasons: tuple[str, ...] = ()
        """The reasons for a reboot that the step under way has left."""
        known = _attempts_from(attempts)
        first = HostConfig(profile=profile, boot_id=boot_id, board=board, attempts=known)
        first = self._seen(first)
        if late := [name for name, store in boot.items() if store.finished]:
            # The firmware does not know our commits: it has read what was there before.
            with contextlib.suppress(AgentError):
                breadcrumb.add(late)
                first = self._seen(first)
        self.current = replace(first, attempts=surviving(first))
        if self.current.attempts != known:
            with contextlib.suppress(AgentError):  # without that they count for longer
                self._keep_attempts()

    def refresh(self) -> bool:
        """Look at the files; says whether anything is new. `config` has been refreshed before."""
        with self._lock:
            before = self.current
            self.current = self._seen(before)
            return self.current != before

    def perform(self, step: HostConfigStep) -> None:
        """Do one step. Unavailable: it is not done, and everything is as it was."""
        with self._lock:
            self._new_reasons = ()
            try:
                match step:
                    case ChangeConfig():
                        self._change_config(step)
                    case SetBootConfig():
                        self._set_boot(step)
                    case DumpConfig():
                        self._leave_dump(step)
                    case SwitchFeature():
                        self._switches.perform(step)
            except AgentError:
                self._breadcrumb.drop(self._new_reasons)
                raise
            finally:
                self.current = self._seen(self.current)

    def _change_config(self, step: ChangeConfig) -> None:
        self._schedule(step, tuple(step.variables))
        self._config.merge(config_keys(step.variables))
        self._remember(step, CONFIG_JSON)

    def _set_boot(self, step: SetBootConfig) -> None:
        if reason := self._guard():
            raise Unavailable(reason)
        backend = next(b for b in backends(self.current.board) if b.name == step.backend)
        store = self._boot[step.backend]
        try:
            text = store.read()
            if text is None:
                raise Unavailable(f"{step.backend} is not there any more")
            found, _ = difference(backend, text, step.variables)
            if found is None:
                return
            self._schedule(step, found.names)
            store.write(found.text, step.variables)
            again = store.read()
            if again is None or backend.parse(again) != backend.parse(found.text):
                raise Unavailable(f"{step.backend} reads back otherwise than it was written")
        except BootFault as fault:
            raise Unavailable(f"{step.backend}: {fault}") from fault
        self._remember(step, step.backend)

    def _leave_dump(self, step: DumpConfig) -> None:
        if self._dump is None:
            return
        try:
            self._dump.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"{self._dump.parent}: {error.strerror}") from error
        write_durable(self._dump, step.text.encode(), 0o600)

    def _schedule(self, step: ChangeConfig | SetBootConfig, names: tuple[str, ...]) -> None:
        """Before anything is written. Unavailable: notes cannot be kept now, and a reboot that is
        not noted might be asked for in every boot."""
        if step.reboot:
            self._keep_attempts()
            self._new_reasons = self._breadcrumb.add(names)

    def _remember(self, step: ChangeConfig | SetBootConfig, name: str) -> None:
        """What is written is done, whether or not the store takes the note."""
        seen = self._seen(self.current)
        attempts = {**seen.attempts, name: attempt(step, name, seen)}
        self.current = replace(seen, attempts=attempts)
        with contextlib.suppress(AgentError):
            self._keep_attempts()

    def _keep_attempts(self) -> None:
        self._keep({name: asdict(known) for name, known in self.current.attempts.items()})

    def _seen(self, known: HostConfig) -> HostConfig:
        """How things are now. Never raises."""
        state, problems = self._config.state, []
        with contextlib.suppress(AgentError):  # what is not answered is as it was
            self._found = self._switches.read()
        if state.problem:
            problems.append(state.problem)
        elif state.absent and (known.profile == BALENA_OS or state.values):
            held = "; what it said last holds" if state.values else ""
            problems.append(f"no {self._config.path}{held}")
        if reason := self._guard():
            problems.append(reason)
        config = None
        if self._config.writable:
            config = {k: v for k, v in state.values.items() if k in CONFIG_KEYS}
        boot: dict[str, BootFile] = {}
        absent = {"config.json": f"there is no {self._config.path}"} if state.absent else {}
        if not self._boot.keys() - {SPLASH.name}:
            absent["boot configuration"] = f"none for device type {known.board.slug}"
        for name, store in self._boot.items():
            found = None if reason else _read(store)
            if found is None:
                absent[name] = reason or "this device has none"
                continue
            if found.problem:
                problems.append(f"{name} is left alone: {found.problem}")
            boot[name] = found
        return replace(
            known,
            config=config,
            boot=boot,
            reboot=self._breadcrumb.reasons(),
            dump=self._dumped(),
            switches=self._found.settings,
            vpn_connected=self._found.vpn_connected,
            problems=tuple(dict.fromkeys(problems)),
            absent={**absent, **self._found.absent},
        )

    def _dumped(self) -> str | None:
        if self._dump is None:
            return None
        try:
            return self._dump.read_text(errors="replace")
        except OSError:
            return ""


def _read(store: BootStore) -> BootFile | None:
    try:
        text = store.read()
    except (BootFault, AgentError) as error:
        return BootFile(problem=str(error))
    return None if text is None else BootFile(text)


def _attempts_from(raw: Json) -> dict[str, Attempt]:
    """What was kept; whatever is no attempt is left out."""
    found: dict[str, Attempt] = {}
    for name, entry in raw.items() if isinstance(raw, dict) else ():
        with contextlib.suppress(TypeError):
            found[name] = Attempt(**entry)
    return found
