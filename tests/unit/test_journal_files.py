"""The files that journald writes to: rotated, deleted, moved; and what is known to be lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from balena_agent.host.journal_files import MOVED, ORPHANED, SAME, LiveFiles


class Places:
    """Two directories for journals, a clock, and the files as they are followed."""

    def __init__(self, top: Path) -> None:
        self.run, self.var = top / "run" / "machine", top / "var" / "machine"
        self.now = 0.0
        self.files = LiveFiles((str(top / "run"), str(top / "var")), lambda: self.now)

    def write(self, directory: Path, size: int = 8) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "system.journal"
        path.write_bytes(b"x" * size)
        return path


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def test_what_grows_and_what_appears_is_the_same(places: Places) -> None:
    places.files.take()
    assert places.files.look() == SAME, "no journal at all"
    path = places.write(places.var)
    assert places.files.look() == SAME
    with path.open("ab") as file:
        file.write(b"more")
    assert places.files.look() == SAME and not places.files.deleted()
    places.files.close()


def test_a_rotation_moves_and_loses_nothing(places: Places) -> None:
    path = places.write(places.var)
    places.files.take()
    archived = path.rename(places.var / "system@1.journal")
    assert places.files.look() == ORPHANED
    with archived.open("ab") as file:
        file.write(b"the end of it")
    places.write(places.var)
    assert places.files.look(dropped=True) == MOVED
    assert not places.files.deleted() and not places.files.lost()
    places.files.take()
    assert places.files.look() == SAME
    places.files.close()


@pytest.mark.parametrize("grown", [False, True])
def test_a_deleted_file_counts_until_it_has_a_successor(places: Places, grown: bool) -> None:
    """The library reads it to its end unless it has grown meanwhile."""
    path = places.write(places.var)
    places.files.take()
    with path.open("ab") as journald:
        path.unlink()
        for _ in range(3):
            places.now += 60.0
            assert places.files.look() == ORPHANED
        journald.write(b"more" if grown else b"")
    places.write(places.var)
    assert places.files.look() == MOVED and places.files.deleted()
    assert places.files.lost() is grown
    places.files.take()
    assert (places.files.look(), places.files.deleted(), places.files.lost()) == (
        SAME,
        False,
        False,
    )
    places.files.close()


def test_what_the_library_has_dropped_at_once_is_lost(places: Places) -> None:
    path = places.write(places.var)
    places.files.take()
    path.unlink()
    assert places.files.look(dropped=True) == ORPHANED
    places.write(places.run)
    assert places.files.look() == MOVED and places.files.lost()
    places.files.close()


def test_a_journal_that_moves_to_a_file_that_was_there(places: Places) -> None:
    """As when the volatile journal is flushed: both are there for a moment."""
    places.write(places.run)
    places.files.take()
    places.write(places.var)
    assert places.files.look() == SAME
    (places.run / "system.journal").unlink()
    assert places.files.look() == ORPHANED
    places.now += 30.0
    assert places.files.look() == MOVED and not places.files.lost()
    places.files.take()
    assert places.files.look() == SAME
    places.files.close()


def test_nothing_stays_open(places: Places) -> None:
    held = len(list(Path("/proc/self/fd").iterdir()))
    path = places.write(places.var)
    for _ in range(5):
        places.files.take()
        path.rename(places.var / "system@1.journal")
        path = places.write(places.var)
        assert places.files.look() == MOVED
    places.files.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == held
