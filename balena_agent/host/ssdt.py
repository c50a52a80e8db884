"""ACPI tables of up-board: what configfs.json names is given to the kernel at start (spec 30 §4.5).

Theory: the tables are loaded once per process. The agent has no right to load modules, and need not
have: systemd does that for it. A table that cannot be loaded is told, and the others are loaded.

A name becomes a path: only names that the back end's own rule lets through get here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from ..core.boot_devices import SSDT
from ..core.boot_devices import wish_ssdt as checked
from ..core.errors import AgentError
from ..core.logline import TELL

_log = logging.getLogger(__name__)

MODULE = "modprobe@acpi_configfs.service"
_TABLES = "boot/acpi-tables"
_KERNEL = "sys/kernel/config/acpi/table"
_SHOWN = ("oem_id", "oem_table_id", "oem_revision")


def load_tables(text: str, root: str, start: Callable[[str], None]) -> tuple[str, ...]:
    """Load what a configfs.json of this text names; the names that are loaded now. Never raises.

    `start` starts a unit, which may raise an AgentError.
    """
    known = SSDT.parse(text).get("ssdt", ())
    names = [name for name in known if checked({"ssdt": f'"{name}"'}, {}).values]
    if not names:
        return ()
    try:
        start(MODULE)
    except AgentError as error:
        _log.warning("%s: %s", MODULE, error.message)
    return tuple(_loaded(names, Path(root)))


def _loaded(names: Iterable[str], root: Path) -> Iterable[str]:
    for name in names:
        source, table = root / _TABLES / f"{name}.aml", root / _KERNEL / name
        if not source.exists():
            _log.warning("Missing AML for '%s'. Unable to load.", name, extra=TELL)
            continue
        try:
            if not table.exists():
                table.mkdir()
                (table / "aml").write_bytes(source.read_bytes())
            _log.info("Loaded ACPI table '%s'%s", name, _described(table))
            yield name
        except OSError as error:
            _log.warning("ACPI table '%s' cannot be loaded: %s", name, error.strerror)


def _described(table: Path) -> str:
    """What the kernel says about a table."""
    found = []
    for key in _SHOWN:
        try:
            found.append(f"{key} {(table / key).read_text(errors='replace').strip()}")
        except OSError:
            continue
    return " (" + ", ".join(found) + ")" if found else ""
