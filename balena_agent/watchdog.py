"""A watchdog that proves work, not time.

Theory: every worker has a `Pulse` and beats it when it *completes* something. The main thread
sends WATCHDOG=1 only while no pulse is overdue; otherwise it names the stuck worker in STATUS= and
in the journal and stays silent, and systemd ends the process with SIGABRT (faulthandler then
prints every thread's stack) and starts it again. A sick world (no network, no engine) never makes
a pulse overdue: the attempt that ended, whatever its result, is the proof of work.

Invariants: beats come from any thread; a pulse that is `rest`ing is not judged.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

Notify = Callable[[str], None]


class Pulse:
    """One worker's proof of work: due again `budget` seconds after each beat."""

    def __init__(self, name: str, budget: float, now: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.budget = budget
        self._now = now
        self._due: float | None = now() + budget
        self.note = "starting"

    def beat(self, note: str = "") -> None:
        self.within(self.budget, note)

    def within(self, seconds: float, note: str) -> None:
        """The next beat may take `seconds`: for a call with a known limit."""
        self._due, self.note = self._now() + seconds, note

    def rest(self, note: str = "idle") -> None:
        """Nothing to prove until the next beat: the worker has no work."""
        self._due, self.note = None, note

    def overdue(self) -> float:
        """Seconds past the due time; 0 or less while all is well."""
        due = self._due
        return 0.0 if due is None else self._now() - due


class Watchdog:
    """All pulses of the process, and the wire to systemd (`notify` sends one sd_notify string)."""

    def __init__(self, notify: Notify, now: Callable[[], float] = time.monotonic) -> None:
        self._notify = notify
        self._now = now
        self._pulses: dict[str, Pulse] = {}
        self._lock = threading.Lock()
        self._status = ""

    def pulse(self, name: str, budget: float) -> Pulse:
        pulse = Pulse(name, budget, self._now)
        with self._lock:
            self._pulses[name] = pulse
        return pulse

    def forget(self, pulse: Pulse) -> None:
        with self._lock:
            if self._pulses.get(pulse.name) is pulse:
                del self._pulses[pulse.name]

    def stuck(self) -> list[Pulse]:
        with self._lock:
            return [pulse for pulse in self._pulses.values() if pulse.overdue() > 0]

    def status(self, text: str) -> None:
        """What the agent does or waits for, shown by `systemctl status`. Sent when it changes, as
        one line: the engine's own words are in it, and a second line would be a second message."""
        text = " ".join(text.split())
        if text != self._status:
            self._status = text
            self._notify(f"STATUS={text}")

    def ready(self) -> None:
        self._notify("READY=1")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def pet(self) -> list[Pulse]:
        """One turn of the main thread: feed systemd's watchdog, or say who is stuck."""
        stuck = self.stuck()
        if stuck:
            self.status("stuck: " + ", ".join(f"{p.name} ({p.note})" for p in stuck))
        else:
            self._notify("WATCHDOG=1")
        return stuck


def systemd_notifier() -> Notify:
    """The sd_notify wire; says nothing when the process was not started by systemd."""
    import sdnotify  # a few kB, but only of use under systemd

    notify = sdnotify.SystemdNotifier().notify

    def send(message: str) -> None:
        # The library sends Latin-1, or silently nothing; systemd takes nothing but UTF-8.
        notify(message.encode("utf-8", "replace").decode("latin-1"))

    return send


def watchdog_interval(default: float = 60.0) -> float:
    """Seconds between beats that systemd expects (WatchdogSec=), or `default` without systemd."""
    raw = os.environ.get("WATCHDOG_USEC", "")
    return int(raw) / 1e6 if raw.isdigit() and int(raw) > 0 else default
