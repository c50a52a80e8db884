"""The identification LED: two layers of patterns on one file.

Theory: what people see is the highest pattern that is wanted. "Identify" blinks evenly for a
while and lies over the pattern that says "no network", which goes on when it ends (spec 30 §9). A
thread drives the LED while any pattern is wanted, and ends with it; then the LED is given back as
it was found, trigger and brightness. A machine without the LED has nothing to blink: no error.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)

IDENTIFY_SECONDS = 15.0

Pattern = tuple[tuple[bool, float], ...]
"""What is shown, and for how many seconds; repeated."""

EVEN: Pattern = ((True, 0.2), (False, 0.2))
NO_NETWORK: Pattern = (*EVEN * 4, (False, 1.0))

_CHOSEN = re.compile(r"\[([\w-]+)\]")


class Led:
    """`path` is the LED's brightness file. Calls from any thread, none of them waits."""

    def __init__(self, path: str, identify_seconds: float = IDENTIFY_SECONDS) -> None:
        self._file = Path(path)
        self._seconds = identify_seconds
        self._news = threading.Condition()
        self._identify_until = 0.0
        self._warning = False
        self._thread: threading.Thread | None = None
        self._closed = False

    def identify(self) -> None:
        """Blink for a while; asked again, the while begins anew."""
        with self._news:
            self._identify_until = time.monotonic() + self._seconds
            self._change()

    def warn(self, wanted: bool) -> None:
        """Show, or no longer show, that there is no network."""
        with self._news:
            if wanted != self._warning:
                self._warning = wanted
                self._change()

    def close(self) -> None:
        """Give the LED back; returns when it is."""
        with self._news:
            self._closed = True
            self._news.notify_all()
            thread = self._thread
        if thread:
            thread.join(2.0)

    def _change(self) -> None:
        if self._thread is None and not self._closed and self._pattern() and self._file.exists():
            self._thread = threading.Thread(target=self._drive, name="led", daemon=True)
            self._thread.start()
        self._news.notify_all()

    def _pattern(self) -> Pattern:
        """The one to be shown now, none if empty. Called with the lock held."""
        if self._closed:
            return ()
        if time.monotonic() < self._identify_until:
            return EVEN
        return NO_NETWORK if self._warning else ()

    def _drive(self) -> None:
        give_back = self._take()
        bright = self._brightest()
        shown: Pattern = ()
        place = 0
        while True:
            with self._news:
                wanted = self._pattern()
                if not wanted:
                    give_back()  # before another thread can take it
                    self._thread = None
                    return
                place = place if wanted is shown else 0
                shown = wanted
                lit, seconds = shown[place % len(shown)]
                place += 1
                self._write(self._file, bright if lit else "0")
                self._news.wait(self._within(seconds))

    def _within(self, seconds: float) -> float:
        """So long, but not beyond the end of identifying."""
        left = self._identify_until - time.monotonic()
        return min(seconds, left) if left > 0 else seconds

    def _take(self) -> Callable[[], None]:
        """Take the LED from the kernel's own trigger; what gives it back to it."""
        trigger = self._file.with_name("trigger")
        brightness = _read(self._file)
        chosen = _CHOSEN.search(_read(trigger))
        if chosen and chosen[1] != "none":
            self._write(trigger, "none")
            return lambda: self._write(trigger, chosen[1])
        return lambda: self._write(self._file, brightness if chosen and brightness else "0")

    def _brightest(self) -> str:
        found = _read(self._file.with_name("max_brightness"))
        return found if found.isdigit() and int(found) else "1"

    def _write(self, path: Path, text: str) -> None:
        try:
            path.write_text(text)
        except OSError as error:
            _log.debug("%s: %s", path, error.strerror)


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""
