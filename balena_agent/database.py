"""One SQLite file that survives power cuts, damage and full disks; it knows no table by name.

Theory: there are two kinds of writing.

    promises  on disk (synchronous=FULL) when the call returns, or StoreUnavailable and no change
    notes     written if possible; they must not stop the agent. When the disk refuses one, the
              database moves into memory: reads go on, notes are remembered, promises are refused.
              Every later write first tries to go back to the file, taking the notes along

At opening the file is checked. A damaged one, or one that a newer agent wrote, is moved aside
and the newest sound copy takes its place; two copies are kept.

Invariants: `-wal` and `-shm` files never stay behind when their database is moved; every database
file has mode 0600; schema versions only grow, each step in one transaction (spec 20 §7).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .core.errors import Broken, Unavailable

log = logging.getLogger(__name__)

ASIDE_KEPT = 6
NOTES_KEPT = 10_000

_WORLD = ("unable to open", "locked", "I/O error", "full", "readonly", "out of memory")
"""What SQLite says when the file itself may be sound."""

Statement = tuple[str, Sequence[Any]]


class StoreUnavailable(Unavailable):
    """The state directory cannot be read or written now: full, read-only, in use."""


class Database:
    """One file in `directory`, of the schema that `migrations` make; callable from any thread.

    Script n of `migrations` brings version n to n + 1. `problems` tells what opening found;
    `damaged` is told what shows in use.
    """

    def __init__(
        self,
        path: Path,
        migrations: tuple[str, ...],
        now: Callable[[], float],
        damaged: Callable[[str], None],
    ) -> None:
        self._path = path
        self._directory = path.parent
        self._migrations = migrations
        self._now = now
        self.lock = threading.RLock()
        self._waiting: list[Statement] = []
        self._away = False
        self._refused = False
        """Whether the last promise could not be kept."""
        self.trouble = ""
        self._damaged = damaged
        self.problems: tuple[str, ...] = ()
        with _translated("opened"):
            self._db = self._open()

    def close(self) -> None:
        """Write the notes that wait, if possible, then close."""
        with self.lock:
            if self._away:
                self._come_back()
            self._db.close()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query. StoreUnavailable; Broken when the file is damaged."""
        with self.lock, self._in_use("read"):
            return self._db.execute(sql, values).fetchall()

    def promise(self, *statements: Statement) -> None:
        """One transaction, durable when this returns. StoreUnavailable: nothing has changed."""
        with self.lock:
            if self._away and not self._come_back():
                raise StoreUnavailable(f"the state cannot be kept: {self.trouble}")
            with self._in_use("kept"):
                self._keep(statements)

    def note(self, *statements: Statement, full: bool = False) -> None:
        """One transaction, on disk if possible (`full`: at once), else remembered. Broken."""
        with self.lock, self._in_use("kept"):
            if self._away:
                self._come_back()
            if not self._away:
                try:
                    _write(self._db, statements, full)
                    return
                except sqlite3.OperationalError as error:
                    self._go_away(str(error))
            _write(self._db, statements, full=False)
            self._waiting = [*self._waiting, *statements][-NOTES_KEPT:]

    def catch_up(self) -> None:
        """Write the notes that wait, if there are any and the disk takes them by now; and find out
        whether it would take a promise that it refused."""
        with self.lock, contextlib.suppress(StoreUnavailable, Broken):
            if self._away:
                self._come_back()
            elif self._refused:
                self.promise((f"PRAGMA user_version = {_version(self._db)}", ()))

    def copy(self) -> None:
        """A copy of the whole database becomes copy 1, the former copy 1 becomes copy 2.

        A copy that cannot be made is no reason to fail: it is logged and told by `trouble`.
        """
        with self.lock:
            try:
                self._copy()
                if not (self._away or self._refused):
                    self.trouble = ""
            except (OSError, sqlite3.Error) as error:
                self._troubled(f"no copy of the state could be made: {error}")

    def _keep(self, statements: Sequence[Statement]) -> None:
        try:
            _write(self._db, statements, full=True)
        except sqlite3.OperationalError as error:
            self._refused = True
            self._troubled(f"the state cannot be kept: {error}")
            raise
        if self._refused:
            self._refused, self.trouble = False, ""

    @contextlib.contextmanager
    def _in_use(self, verb: str) -> Iterator[None]:
        try:
            with _translated(verb):
                yield
        except Broken as error:
            if type(error.__cause__) is sqlite3.DatabaseError:  # its kinds are defects of ours
                self._damaged(error.message)
            raise

    # -- between file and memory

    def _go_away(self, reason: str) -> None:
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._db.backup(memory)
        self._db.close()
        self._db, self._away = memory, True
        self._troubled(f"{self._path} cannot be written: {reason}; notes wait in memory")

    def _come_back(self) -> bool:
        """Try to open the file again and write what waits. True when that is done."""
        try:
            db = self._open_file()
        except (OSError, sqlite3.Error) as error:
            self._troubled(f"{self._path} cannot be used: {error}")
            return False
        try:
            _write(db, self._waiting, full=True)
        except sqlite3.Error as error:
            db.close()
            self._troubled(f"{self._path} cannot be written: {error}")
            return False
        self._db.close()
        self._db, self._away, self._waiting, self.trouble = db, False, [], ""
        self._refused = False
        log.info("The state in %s can be written again", self._directory)
        return True

    def _troubled(self, what: str) -> None:
        if what != self.trouble:
            log.warning("State: %s", what)
        self.trouble = what

    # -- opening, damage and repair

    def _open(self) -> sqlite3.Connection:
        try:
            return self._open_file()
        except (OSError, sqlite3.Error) as error:
            self._away = True
            self.trouble = f"{self._path} cannot be used: {error}; nothing can be kept"
            self.problems += (self.trouble,)
            return self._open_in_memory()

    def _open_file(self) -> sqlite3.Connection:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fault = self._fault(self._path) if _has_content(self._path) else ""
        if fault or not _has_content(self._path):
            self._repair(fault)
        return self._connect(self._path)

    def _repair(self, fault: str) -> None:
        """Move a faulty database aside (or what a crash left of one); put a copy in its place."""
        aside = self._set_aside()
        if fault:
            self.problems += (f"{self._path}: {fault}; moved to {aside}",)
        for copy in self._copies():
            if _has_content(copy) and not self._fault(copy):
                _publish(_duplicate(copy, self._directory / ".restoring"), self._path)
                self.problems += (f"{self._path} restored from {copy.name}",)
                return

    def _set_aside(self) -> str:
        """Move the database with its companions; only the newest few of them are kept."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._now()))
        name = f"{self._path.name}.aside-{stamp}"
        while (self._directory / name).exists():
            name += "x"
        for tail in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self._path}{tail}", self._directory / (name + tail))
        _sync_directory(self._directory)
        for old in sorted(self._directory.glob(f"{self._path.name}.aside-*"))[:-ASIDE_KEPT]:
            old.unlink(missing_ok=True)
        return name

    def _fault(self, path: Path) -> str:
        """What makes a file unfit for use, or "". OperationalError: it cannot be read at all."""
        with open(path, "rb") as file:
            header = file.read(20)
        if header[18:20] not in (b"\x01\x01", b"\x02\x02"):
            return "damaged: not a database of a known format"
        db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        db.text_factory = bytes.decode  # text that is none is damage
        try:
            verdict = str(db.execute("PRAGMA integrity_check(1)").fetchone()[0])
            return f"damaged: {verdict}" if verdict != "ok" else self._content_fault(db)
        except (sqlite3.DatabaseError, ValueError) as error:
            if any(word in str(error) for word in _WORLD):
                raise
            return f"damaged: {error}"
        finally:
            db.close()

    def _content_fault(self, db: sqlite3.Connection) -> str:
        version, known = _version(db), len(self._migrations)
        if version > known:
            return f"written by a newer agent (schema {version}, known up to {known})"
        with contextlib.closing(sqlite3.connect(":memory:")) as model:
            for script in self._migrations[:version]:
                model.executescript(script)
            wrong = sorted(_tables(model) ^ _tables(db))
        if wrong:
            return f"damaged: table {', '.join(wrong)} is missing or unknown"
        for table in sorted(_tables(db)):
            db.execute(f'SELECT * FROM "{table}"').fetchall()
        return ""

    def _open_in_memory(self) -> sqlite3.Connection:
        """What can still be read, in a database that lives as long as the process."""
        for path in (self._path, *self._copies()):
            for mode in ("mode=ro", "immutable=1"):
                with contextlib.suppress(OSError, sqlite3.Error):
                    if _has_content(path):
                        return self._loaded(path, mode)
        return self._connect(":memory:")

    def _loaded(self, path: Path, mode: str) -> sqlite3.Connection:
        """A copy in memory. `immutable` leaves out the `-wal` file, but needs no new file."""
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        with contextlib.closing(sqlite3.connect(f"file:{path}?{mode}", uri=True)) as db:
            verdict = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if verdict != "ok" or self._content_fault(db):
                raise sqlite3.DatabaseError(f"{path} is of no use")
            db.backup(memory)
        self._migrate(memory)
        return memory

    def _connect(self, path: Path | str) -> sqlite3.Connection:
        """An open database of the newest schema. OSError, or what SQLite raises."""
        if isinstance(path, Path):
            _create(path)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        db.text_factory = lambda raw: raw.decode(errors="replace")
        try:
            for pragma in ("journal_mode = WAL", "foreign_keys = ON", "cache_size = -512",
                           "journal_size_limit = 1048576", "wal_autocheckpoint = 256"):  # fmt: skip
                db.execute(f"PRAGMA {pragma}")
            self._migrate(db)
        except BaseException:
            db.close()
            raise
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        for number in range(_version(db), len(self._migrations)):
            script, version = self._migrations[number], number + 1
            try:
                db.executescript(
                    f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {version}; COMMIT"
                )
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    # -- copies

    def _copies(self) -> tuple[Path, Path]:
        """Where the copies are, newest first."""
        name = self._path.name
        return self._directory / f"{name}.copy-1", self._directory / f"{name}.copy-2"

    def _copy(self) -> None:
        fresh = self._directory / ".copying"
        fresh.unlink(missing_ok=True)
        _create(fresh)
        with contextlib.closing(sqlite3.connect(fresh)) as copy:
            self._db.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        first, second = self._copies()
        if first.exists():
            os.replace(first, second)
        _publish(fresh, first)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file of mode 0600, so that a power cut leaves the old or the new one. OSError."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    _create(fresh)
    fresh.write_bytes(content)
    _publish(fresh, path)


def _write(db: sqlite3.Connection, statements: Sequence[Statement], full: bool) -> None:
    """One transaction, all or nothing."""
    db.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
    db.execute("BEGIN IMMEDIATE")
    try:
        for sql, values in statements:
            db.execute(sql, values)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _translated(verb: str) -> Iterator[None]:
    """SQLite's errors in our words: the world's trouble, or a defect."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreUnavailable(f"the state cannot be {verb}: {error}") from error
    except sqlite3.Error as error:
        raise Broken(
            f"the state could not be {verb}: {error} (damage is repaired at the next start)"
        ) from error


def _version(db: sqlite3.Connection) -> int:
    """The schema's version; 0 for a number that can only come from damage."""
    return max(int(db.execute("PRAGMA user_version").fetchone()[0]), 0)


def _tables(db: sqlite3.Connection) -> frozenset[str]:
    rows = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return frozenset(name for (name,) in rows if not name.startswith("sqlite_"))


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _create(path: Path) -> None:
    """An empty file of mode 0600; SQLite gives its companions the same mode."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _duplicate(source: Path, target: Path) -> Path:
    target.unlink(missing_ok=True)
    _create(target)
    target.write_bytes(source.read_bytes())
    return target


def _publish(fresh: Path, final: Path) -> None:
    """Give a finished file its name, so that a power cut leaves the old or the new one."""
    with open(fresh, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(fresh, final)
    _sync_directory(final.parent)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
