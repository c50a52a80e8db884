"""The LED's patterns on plain files."""

from __future__ import annotations

import time
from pathlib import Path

from waiting import until

from balena_agent.host.led import Led


def led(directory: Path, trigger: str = "", seconds: float = 0.5) -> tuple[Led, Path]:
    file = directory / "brightness"
    file.write_text("0")
    if trigger:
        (directory / "trigger").write_text(trigger)
        (directory / "max_brightness").write_text("255\n")
    return Led(str(file), seconds), file


def end(blinker: Led) -> None:
    """Asked again, the while begins anew: now it is over."""
    blinker._seconds = 0.0
    blinker.identify()


def test_identify_blinks_and_ends_dark(tmp_path: Path) -> None:
    blinker, file = led(tmp_path, seconds=60.0)
    blinker.identify()
    until(lambda: file.read_text() == "1", "lit")
    until(lambda: file.read_text() == "0", "dark")
    until(lambda: file.read_text() == "1", "lit again")
    end(blinker)
    until(lambda: blinker._thread is None, "ended")
    assert file.read_text() == "0"


def test_the_trigger_is_given_back(tmp_path: Path) -> None:
    blinker, file = led(tmp_path, "none [mmc0] timer", seconds=60.0)
    blinker.identify()
    until(lambda: file.read_text() == "255", "as bright as can be")
    assert (tmp_path / "trigger").read_text() == "none"
    end(blinker)
    until(lambda: blinker._thread is None, "ended")
    assert (tmp_path / "trigger").read_text() == "mmc0"


def test_a_warning_goes_on_after_identifying_and_ends_when_told(tmp_path: Path) -> None:
    blinker, file = led(tmp_path, seconds=0.3)
    blinker.warn(True)
    blinker.identify()
    time_up = time.monotonic() + 0.4
    until(lambda: time.monotonic() > time_up and file.read_text() == "1", "warns again")
    blinker.warn(False)
    until(lambda: blinker._thread is None, "ended")
    assert file.read_text() == "0"


def test_without_an_led_nothing_happens(tmp_path: Path) -> None:
    blinker = Led(str(tmp_path / "none" / "brightness"))
    blinker.identify()
    blinker.warn(True)
    assert blinker._thread is None
    blinker.close()


def test_closing_gives_the_led_back(tmp_path: Path) -> None:
    blinker, file = led(tmp_path, seconds=60)
    blinker.identify()
    until(lambda: file.read_text() == "1", "lit")
    blinker.close()
    assert (blinker._thread, file.read_text()) == (None, "0")
    blinker.identify()
    assert blinker._thread is None
