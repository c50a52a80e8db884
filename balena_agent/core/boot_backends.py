"""All back ends of boot configuration, and which of them a board has."""

from __future__ import annotations

from .boot import Backend, Board
from .boot_config_txt import CONFIG_TXT, CONFIG_TXT_FIN
from .boot_devices import ODMDATA, POWER, SPLASH, SSDT
from .boot_jetson import EXTLINUX, EXTRA_UENV

BACKENDS: tuple[Backend, ...] = (
    EXTLINUX,
    EXTRA_UENV,
    CONFIG_TXT,
    CONFIG_TXT_FIN,
    SSDT,
    ODMDATA,
    SPLASH,
    POWER,
)
"""In the order in which they are looked at (spec 30 §4.1)."""


def backends(board: Board) -> tuple[Backend, ...]:
    """The back ends of a board; several may match."""
    return tuple(backend for backend in BACKENDS if backend.matches(board))


def is_boot_variable(name: str) -> bool:
    """Whether any back end, of whatever board, has this plain variable name (spec 30 §3.1)."""
    return any(backend.own({name: ""}) for backend in BACKENDS)
