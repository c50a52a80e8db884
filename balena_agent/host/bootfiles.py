"""Where the back ends of boot configuration keep what they hold: one small class for each kind.

Theory: core/boot*.py decide on texts; these bring a text from the device and back, in full or not
at all. `read` gives None where this host has no such thing, which is no error. A BootFault says why
what is there cannot be used.

Source: spec 30 §4.2 to §4.8.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..core.boot import Board, BootFault
from ..core.boot_backends import backends
from ..core.boot_devices import ODMDATA_OFFSETS, POWER_KEYS, image_name, splash_image
from ..core.configjson import ConfigJson
from ..core.errors import AgentError, Unavailable
from ..core.jsonread import Json
from ..core.keyvalue import KeyValueStore
from .configfile import ConfigFile
from .durable import DurableFile, Files

ODMDATA_DEVICE = "dev/mmcblk0boot0"
ODMDATA_GUARD = "sys/block/mmcblk0boot0/force_ro"


_ODMDATA_WRITE = "odmdata_write"
"""The setting in which a write of ODMDATA stands from its begin to its end, as (old, new)."""


class BootStore(Protocol):
    @property
    def finished(self) -> bool:
        """Whether reading has brought a write to its end that this boot has come too early for."""

    def read(self) -> str | None:
        """What is held, as the back end's text; None: this host has no such thing. BootFault."""

    def write(self, text: str, variables: Mapping[str, str]) -> None:
        """Hold this; durable when it returns. Unavailable."""


def stores(
    board: Board, boot: str, root: str, config: ConfigFile, memory: KeyValueStore
) -> Mapping[str, BootStore]:
    """The store of each back end that the board has, by the back end's name."""
    made: Mapping[str, BootStore] = {
        "config.txt": TextStore(f"{boot}/config.txt", absent=""),
        "extlinux.conf": TextStore(
            f"{boot}/extlinux/extlinux.conf",
            fault="Could not find extlinux file. Device is possibly bricked",
        ),
        "extra_uEnv.txt": TextStore(f"{boot}/extra_uEnv.txt"),
        "configfs.json": TextStore(f"{boot}/configfs.json", absent=""),
        "ODMDATA": OdmdataStore(root, memory),
        "splash image": SplashStore(f"{boot}/splash"),
        "power and fan": PowerStore(config),
    }
    return {backend.name: made[backend.name] for backend in backends(board)}


class TextStore:
    """A text file. `absent` is its text where there is none (None: then there is no back end);
    with a `fault` it must be there. Bytes that are no UTF-8 come through unharmed."""

    def __init__(
        self, path: str, absent: str | None = None, fault: str = "", files: Files | None = None
    ) -> None:
        self._file = DurableFile(path, files)
        self._absent = absent
        self._fault = fault

    @property
    def finished(self) -> bool:
        return self._file.finished

    def read(self) -> str | None:
        raw = self._file.read()
        if raw is not None:
            return raw.decode("utf-8", "surrogateescape")
        if self._fault:
            raise BootFault(self._fault)
        return self._absent

    def write(self, text: str, variables: Mapping[str, str]) -> None:
        self._file.write(text.encode("utf-8", "surrogateescape"))


class OdmdataStore:
    """Three bytes in the boot block of the eMMC, which is read-only but for the moment.

    They lie in three sectors far apart, among boot code that is better not written again: so no
    single write can hold them all. What is to be written is noted first. A write that was cut off
    between its bytes is taken back when they are read next; whoever wanted it will want it again,
    with the reboot that it needs. A mix that is not ours is left alone.
    """

    finished = False

    def __init__(self, root: str, memory: KeyValueStore) -> None:
        self._device = os.path.join(root, ODMDATA_DEVICE)
        self._guard = Path(root, ODMDATA_GUARD)
        self._memory = memory
        self._begun = _begun(memory.setting(_ODMDATA_WRITE))

    def read(self) -> str | None:
        try:
            found = self._bytes()
            if self._begun and found not in self._begun:
                self._take_back(found)
                found = self._bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BootFault(f"{self._device} cannot be read: {error.strerror}") from error
        if self._begun:
            self._ended()
        return found.hex()

    def write(self, text: str, variables: Mapping[str, str]) -> None:
        try:
            wanted, now = bytes.fromhex(text), self._bytes()
            self._memory.set_setting(_ODMDATA_WRITE, [now.hex(), text])
            self._begun = (now, wanted)
            self._put(wanted)
        except OSError as error:
            raise Unavailable(f"{self._device} cannot be written: {error.strerror}") from error
        self._ended()

    def _bytes(self) -> bytes:
        with open(self._device, "rb") as device:
            return b"".join(os.pread(device.fileno(), 1, n) for n in ODMDATA_OFFSETS)

    def _put(self, wanted: bytes) -> None:
        self._guard.write_text("0")
        try:
            with open(self._device, "r+b", buffering=0) as device:
                for offset, byte in zip(ODMDATA_OFFSETS, wanted, strict=True):
                    os.pwrite(device.fileno(), bytes([byte]), offset)
                os.fsync(device.fileno())
        finally:
            self._guard.write_text("1")

    def _take_back(self, found: bytes) -> None:
        """Write the old bytes, where every byte is the old or the new one. BootFault."""
        old, new = self._begun or (b"", b"")
        if len(found) == len(old) and all(
            byte in pair for byte, pair in zip(found, zip(old, new, strict=True), strict=True)
        ):
            try:
                self._put(old)
            except OSError as error:
                told = f"a write of ODMDATA was cut off, and cannot be undone: {error.strerror}"
                raise BootFault(told) from error

    def _ended(self) -> None:
        """No write is under way. A note that stays is met again, and found to be done."""
        self._begun = None
        with contextlib.suppress(AgentError):
            self._memory.set_setting(_ODMDATA_WRITE, None)


def _begun(note: Json) -> tuple[bytes, bytes] | None:
    """The old and the new bytes of a write that was begun."""
    match note:
        case [str(old), str(new)]:
            with contextlib.suppress(ValueError):
                begun = (bytes.fromhex(old), bytes.fromhex(new))
                return begun if all(len(each) == len(ODMDATA_OFFSETS) for each in begun) else None
    return None


class SplashStore:
    """The image shown at boot, and beside it the OS's own, copied before the first change; an empty
    copy says that there was none."""

    finished = False

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._pristine = DurableFile(str(self._directory / "balena-logo-default.png"))

    def read(self) -> str | None:
        if not self._directory.is_dir():
            return None
        now, pristine = self._image().read(), self._pristine.read()
        if now is None or pristine is None or now == pristine:
            return ""
        return image_name(now)

    def write(self, text: str, variables: Mapping[str, str]) -> None:
        image = self._image()
        now = image.read()
        if self._pristine.read() is None:
            self._pristine.write(now or b"")
        wanted = splash_image(variables) if text else self._pristine.read()
        if wanted:
            image.write(wanted)
        else:
            image.remove()

    def _image(self) -> DurableFile:
        for name in ("balena-logo.png", "resin-logo.png"):
            if (self._directory / name).exists():
                return DurableFile(str(self._directory / name))
        return DurableFile(str(self._directory / "balena-logo.png"))


class PowerStore:
    """Two values in config.json."""

    finished = False

    def __init__(self, config: ConfigFile) -> None:
        self._config = config

    def read(self) -> str | None:
        state = self._config.state
        if state.absent:
            return None
        if state.problem:
            raise BootFault(state.problem)
        config = ConfigJson(state.values)
        found = {name: config.at(path) for name, path in POWER_KEYS.items()}
        return json.dumps({k: v for k, v in found.items() if v is not None}, sort_keys=True)

    def write(self, text: str, variables: Mapping[str, str]) -> None:
        wanted = json.loads(text)
        self._config.merge({path: wanted.get(name) for name, path in POWER_KEYS.items()})
