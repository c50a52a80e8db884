"""The host's proxy, with changes on trial: a change that cuts the device off is taken back.

Theory: core/proxytrial.py decides. The trial is noted before the files are changed and the note is
taken away afterwards, so a restart of the agent or a power cut at any moment leaves either no
change or a change on trial. A thread exists only during a trial: it asks for the cloud now and
then, until an answer confirms the change or the time is over.

Invariants: one change at a time, that of the trial's end included; the thread outlives every error,
for nobody else would rescue a device that is cut off.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from ..core.errors import AgentError
from ..core.keyvalue import KeyValueStore
from ..core.proxytrial import Files, Trial, Verdict, begun, from_json, judged, resumed, to_json
from ..core.redsocks import Proxy

_log = logging.getLogger(__name__)

KEY = "proxy_trial"
UNSETTLED = "proxy_unsettled"
"""Kept while the units may not be as the files say."""

LONGEST_PAUSE = 15.0
_PROBES = 5
"""How often the cloud is asked at least before a change is taken back."""


class Host(Protocol):
    """host.proxy.HostProxy."""

    def read(self) -> tuple[Proxy | None, tuple[str, ...]]: ...
    def files(self) -> Files: ...
    def set(self, proxy: Proxy | None, no_proxy: Sequence[str]) -> None: ...
    def put(self, files: Files) -> None: ...


class ProxyTrial:
    """`reached` says whether the cloud answers now, or None where changes are not tried. `seconds`:
    how long it may be silent after a change."""

    def __init__(
        self,
        proxy: Host,
        reached: Callable[[], bool | None],
        memory: KeyValueStore,
        boot_id: str,
        seconds: float,
    ) -> None:
        self._proxy = proxy
        self._reached = reached
        self._memory = memory
        self._boot_id = boot_id
        self._seconds = seconds
        self._pause = min(LONGEST_PAUSE, seconds / _PROBES)
        self._trial = from_json(memory.setting(KEY))
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """Go on with what an earlier run has begun. Does not wait."""
        with self._lock:
            if self._trial or self._memory.setting(UNSETTLED):
                self._begin(self._resume)

    def close(self) -> None:
        """Judge no more; the next run goes on."""
        self._closed.set()

    def read(self) -> tuple[Proxy | None, tuple[str, ...]]:
        """As HostProxy."""
        return self._proxy.read()

    def set(self, proxy: Proxy | None, no_proxy: Sequence[str]) -> None:
        """As HostProxy; what is new is on trial when it returns."""
        with self._lock:
            before, after, known = self._proxy.files(), Files.of(proxy, no_proxy), self._trial
            if after != before:
                reached = self._reached() if known is None else None
                now = time.monotonic()
                self._note(begun(known, before, after, reached, self._boot_id, now))
            try:
                self._proxy.set(proxy, no_proxy)
            except Exception:
                with contextlib.suppress(AgentError):
                    self._note(known)
                raise
            self._watch()

    def _note(self, trial: Trial | None) -> None:
        if trial != self._trial:
            self._memory.set_setting(KEY, to_json(trial))
            self._trial = trial

    def _watch(self) -> None:
        if self._trial and self._thread is None:
            self._begin(self._run)

    def _begin(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="proxy", daemon=True)
        self._thread.start()

    def _resume(self) -> None:
        with self._lock:
            try:
                if self._trial:
                    self._note(resumed(self._trial, self._boot_id, time.monotonic()))
                # What was written may not have been taken up before that run's end.
                if self._memory.setting(UNSETTLED):
                    self._proxy.put(self._proxy.files())
                else:
                    self._proxy.set(*self._proxy.read())
            except Exception as error:
                _log.warning(
                    "A change of the proxy was cut off: %s", error, exc_info=_unforeseen(error)
                )
            if self._trial is None:
                self._thread = None
                return
        self._run()

    def _run(self) -> None:
        while not self._closed.wait(self._pause):
            trial = self._trial
            reached = self._answered()
            with self._lock:
                # What was asked before another change says nothing about that one.
                if trial is self._trial and trial and not self._closed.is_set():
                    self._judge(trial, reached)
                if self._trial is None:
                    self._thread = None
                    return

    def _answered(self) -> bool | None:
        try:
            return self._reached()
        except Exception:
            _log.exception("Whether the cloud answers is not known")
            return False

    def _judge(self, trial: Trial, reached: bool | None) -> None:
        try:
            current = self._proxy.files()
            match judged(trial, current, reached, time.monotonic(), self._seconds):
                case Verdict.CONFIRM:
                    self._note(None)
                case Verdict.REVERT:
                    self._revert(trial)
        except Exception as error:
            _log.error(
                "The former proxy cannot be put back yet: %s", error, exc_info=_unforeseen(error)
            )
            self._trial = replace(trial, since=time.monotonic())

    def _revert(self, trial: Trial) -> None:
        self._proxy.put(trial.before)
        _log.warning(
            "Proxy change reverted: the cloud could not be reached for %g s after it",
            self._seconds,
        )
        self._note(None)


def _unforeseen(error: Exception) -> bool:
    return not isinstance(error, AgentError)
