"""The database that the peer (balenaSupervisor) has left on the device, read and never written.

Theory: a device must be able to go back to the peer, so not one byte in the peer's directory may
change. SQLite cannot promise that: it puts files beside a database that it only reads, and
refuses one whose last transaction was cut off by a power failure unless it may roll it back. So
the database is copied, with the files beside it, to a private place, and the copy is opened.

A file that is damaged or cannot be read counts as none; so does each table of an older release of
the peer (spec 20 §26). What the rows mean is decided in core/heritage.py.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from .core.errors import Unavailable
from .core.heritage import Heritage, Row, heritage
from .core.jsonread import Json

FILE = "resin-data/balena-supervisor/database.sqlite"
"""Where the peer keeps its database, from the data partition's root."""

_TABLES = MappingProxyType(
    {
        "apiSecret": ("appId", "serviceName", "key", "scopes"),
        "app": ("appId", "uuid", "name", "source", "class", "isHost", "rejected", "releaseId",
                "commit", "services", "networks", "volumes"),
        "config": ("key", "value"),
        "currentCommit": ("appId", "commit"),
        "deviceConfig": ("targetValues",),
        "image": ("name", "appId", "appUuid", "serviceName", "dockerImageId"),
    }
)  # fmt: skip
"""What we read of the newest schema (spec 20 §7.1)."""

_COMPANIONS = ("-wal", "-journal")


def read_peer(path: str | Path, device_uuid: str, api_endpoint: str) -> Heritage:
    """What the peer has left. Unavailable: there is nothing that can be used, and why."""
    try:
        with _copied(Path(path)) as copy, contextlib.closing(sqlite3.connect(copy)) as db:
            verdict = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
            if verdict != "ok":
                raise Unavailable(f"{path} is damaged: {verdict}")
            problems: list[str] = []
            tables = {name: _rows(db, name, problems) for name in _TABLES}
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(f"{path} cannot be used: {error}") from error
    return heritage(tables, device_uuid, api_endpoint, problems)


def _rows(db: sqlite3.Connection, table: str, problems: list[str]) -> list[Row]:
    """All rows of a table, oldest first; none if it is not what today's peer has."""
    columns = _TABLES[table]
    known = {str(row[1]) for row in db.execute(f"PRAGMA table_info([{table}])")}
    missing = [column for column in columns if column not in known]
    if missing:
        lacking = ", ".join(missing)
        problems.append(f"table {table} is of an older release, without {lacking}; left out")
        return []
    listed = ", ".join(f"[{column}]" for column in columns)
    found = db.execute(f"SELECT {listed} FROM [{table}] ORDER BY rowid")
    return [dict(zip(columns, map(_plain, row), strict=True)) for row in found]


def _plain(value: Json) -> Json:
    """SQLite has one type that JSON does not have."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


@contextlib.contextmanager
def _copied(path: Path) -> Iterator[Path]:
    """A copy that only we can read: there are keys in it."""
    with tempfile.TemporaryDirectory(prefix="balena-agent-") as directory:
        copy, before = Path(directory) / "peer.sqlite", _stamps(path)
        shutil.copyfile(path, copy)
        for tail in _COMPANIONS:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{tail}", f"{copy}{tail}")
        if _stamps(path) != before:
            raise Unavailable(f"{path} is being written: does the peer still run?")
        yield copy


def _stamps(path: Path) -> list[tuple[int, int] | None]:
    """What shows that somebody writes to the database."""
    found: list[tuple[int, int] | None] = []
    for tail in ("", *_COMPANIONS):
        try:
            known = Path(f"{path}{tail}").stat()
            found.append((known.st_mtime_ns, known.st_size))
        except FileNotFoundError:
            found.append(None)
    return found
