"""The host's proxy: two files, and the units that live by them.

Theory: the files are the truth and the units follow. They are changed together or not at all: the
new text is checked by redsocks itself where it is there, both files are replaced, the units are
restarted one after the other, and then they are looked at: redsocks runs, and its port listens. If
they are not as they should be, the former files come back to the byte and the units are restarted
once more (spec 30 §6.4, §6.5). A host without redsocks cannot have a proxy, and hears that before
anything is changed.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..core import redsocks
from ..core.errors import AgentError, InvalidInput, RefusedByHost, Unavailable
from ..core.proxytrial import Files
from ..core.redsocks import Proxy
from .durable import DurableFile
from .network import listening
from .systemd import Systemd, UnitState

UNIT = "redsocks.service"
CONFIG_UNITS = ("balena-proxy-config.service", "resin-proxy-config.service")
CONF_TARGET = "redsocks-conf.target"
"""What units are part of that the OS restarts by itself when the file changes."""

STEADY_SECONDS = 2.0
"""How long redsocks has to run before it counts as running."""

_CHECK_SECONDS = 10.0
_JOB_SECONDS = 45.0
"""For one unit. A change of proxy and name may wait for a revert, restart two units, put them back,
and all that again when the name is refused: eight jobs, which fit into the limit of the step."""

_UNKNOWN_SECTION = "unknown section"

_log = logging.getLogger(__name__)


class HostProxy:
    """`directory` is `<boot>/system-proxy`. `guard` says why nothing may be written there now, or
    "". `listens` says whether a TCP port has a listener. `unsettled` is told when the units may not
    be as the files say, and when they are again. `steady` is for tests."""

    def __init__(
        self,
        systemd: Systemd,
        directory: str,
        steady: float = STEADY_SECONDS,
        guard: Callable[[], str] = str,
        listens: Callable[[int], bool] = listening,
        unsettled: Callable[[bool], None] = lambda now: None,
    ) -> None:
        self._systemd = systemd
        self._directory = Path(directory)
        self._conf = Path(directory) / "redsocks.conf"
        self._conf_file = DurableFile(str(self._conf))
        self._no_proxy_file = DurableFile(str(self._directory / "no_proxy"))
        self._steady = steady
        self._guard = guard
        self._listens = listens
        self._unsettled = unsettled

    def read(self) -> tuple[Proxy | None, tuple[str, ...]]:
        """The proxy, None without redsocks.conf, and what does not go through it."""
        files = self.files()
        listed = (line.strip() for line in (files.no_proxy or "").splitlines())
        proxy = None if files.conf is None else redsocks.parse(files.conf)
        return proxy, tuple(line for line in listed if line)

    def set(self, proxy: Proxy | None, no_proxy: Sequence[str]) -> None:
        """Make it so. InvalidInput: redsocks refuses the text. RefusedByHost, Unavailable: the
        former files are back."""
        before, after = self.files(), Files.of(proxy, no_proxy)
        unit = self._systemd.unit(UNIT)
        if after == before and unit.running == (proxy is not None) and not self._stale(unit):
            return
        if proxy and not unit.exists:
            raise RefusedByHost(f"this host cannot use a proxy: {UNIT} is {unit.load}")
        if after.conf is not None:
            _checked(after.conf)
        try:
            self.put(after)
        except AgentError as error:
            _log.error("The proxy is put back as it was: %s", error)
            with contextlib.suppress(AgentError):
                self.put(before)
            raise

    def put(self, files: Files) -> None:
        """Write these files, whatever they say, and restart what lives by them. RefusedByHost,
        Unavailable: they are written, but the units are not as they should be."""
        if reason := self._guard():
            raise Unavailable(f"the proxy is not changed: {reason}")
        self._note(True)
        self._write(files)
        self._restart(None if files.conf is None else redsocks.local_port(files.conf))
        self._note(False)

    def _note(self, unsettled: bool) -> None:
        with contextlib.suppress(AgentError):  # a full disk forbids nobody to change the proxy
            self._unsettled(unsettled)

    def _stale(self, unit: UnitState) -> bool:
        """Whether redsocks runs on a file that was written after its start: a change that was
        interrupted by a power cut or by the death of the agent."""
        if not unit.running or not self._conf.exists():
            return False
        entered = self._systemd.unit_property(unit.path, "ActiveEnterTimestamp") / 1e6
        return self._conf.stat().st_mtime > float(entered)

    def files(self) -> Files:
        """As they are now. Unavailable."""
        return Files(_text(self._conf_file), _text(self._no_proxy_file))

    def _write(self, files: Files) -> None:
        try:
            self._directory.mkdir(0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"{self._directory}: {error.strerror}") from error
        # The OS may act as soon as redsocks.conf changes, and reads both then.
        wanted = ((self._no_proxy_file, files.no_proxy), (self._conf_file, files.conf))
        for file, content in wanted:
            if content == _text(file):
                continue
            if content is None:
                file.remove()
            else:
                file.write(content.encode("utf-8", "surrogateescape"))

    def _restart(self, port: int | None) -> None:
        """The unit that reads the files first, then redsocks, which shall listen on this port, or
        not run. One that is part of the OS's own target is restarted by the OS."""
        known = self._systemd.units((*CONFIG_UNITS, UNIT))
        for name in CONFIG_UNITS:
            if known[name].exists and not self._follows_files(known[name].path):
                self._systemd.restart(name, _JOB_SECONDS)
                break
        if not known[UNIT].exists:
            return
        if not self._follows_files(known[UNIT].path):
            act = self._systemd.stop if port is None else self._systemd.restart
            act(UNIT, _JOB_SECONDS)
        self._verify(port)

    def _follows_files(self, path: str) -> bool:
        return CONF_TARGET in self._systemd.unit_property(path, "PartOf")

    def _verify(self, port: int | None) -> None:
        """Running and steady, with its port open; or not running without a port. What the OS
        restarts by itself may take a while."""
        deadline = time.monotonic() + _CHECK_SECONDS
        since = 0.0
        while True:
            now, unit = time.monotonic(), self._systemd.unit(UNIT)
            runs = (unit.active, unit.sub) == ("active", "running")
            deaf = port is not None and runs and not self._listens(port)
            right = not unit.running if port is None else runs and not deaf
            since = (since or now) if right else 0.0
            if right and (port is None or now - since >= self._steady):
                return
            if now > deadline or unit.active == "failed":
                silent = f", but nobody listens on port {port}" if deaf else ""
                state = f"{UNIT} is {unit.active} ({unit.sub}){silent}"
                raise RefusedByHost(state + self._result(unit.path))
            time.sleep(0.1)

    def _result(self, path: str) -> str:
        with contextlib.suppress(AgentError):
            return f", result {self._systemd.service_property(path, 'Result')}"
        return ""


def _text(file: DurableFile) -> str | None:
    """Every byte of it, so that it can be put back."""
    raw = file.read()
    return None if raw is None else raw.decode("utf-8", "surrogateescape")


def _checked(conf: str) -> None:
    """Let redsocks read the text before the host does. InvalidInput with its words."""
    binary = shutil.which("redsocks", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if binary is None:
        return
    with tempfile.NamedTemporaryFile(prefix="redsocks-", suffix=".conf") as file:
        file.write(conf.encode("utf-8", "surrogateescape"))
        file.flush()
        try:
            done = subprocess.run(
                [binary, "-t", "-c", file.name],
                capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.warning("redsocks cannot check its configuration: %s", error)
            return
    if done.returncode == 0:
        return
    if _UNKNOWN_SECTION in done.stderr and "dnsu2t" in conf:
        raise InvalidInput("dns is not supported by this host's redsocks", "$.network.proxy.dns")
    said = done.stderr.strip().splitlines()
    raise InvalidInput(f"redsocks refuses this: {said[-1] if said else 'without a word'}")
