"""Power cuts at every system call of a write (H05, H06): the old or the new content, never a mix.

The disk here is as unkind as FAT may be. Until it is synced, a file's content may be there, be cut
short, be garbage or be empty, and a name may be there or not. A rename that is not synced may have
lost both names, or left the target with any content that the source had not synced. Every choice is
tried at every call, and again at every call of the recovery.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from balena_agent.core.errors import Unavailable
from balena_agent.host.bootfiles import TextStore
from balena_agent.host.configfile import ConfigFile
from balena_agent.host.durable import DurableFile, RealFiles

PATH = "/boot/config.json"
OLD, NEW = b'{"uuid":"old"}', b'{"uuid":"new","more":[1,2,3]}'


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it, as nothing runs after a power cut."""


@dataclass
class Entry:
    """`synced` is None until the content was synced; then it is what the disk surely holds."""

    content: bytes
    synced: bytes | None = None


@dataclass
class Disk:
    """`files` is what programs see; `names` what the directory surely has since its last sync.
    Dies at call number `cut`, before or after its effect."""

    files: dict[str, Entry] = field(default_factory=dict)
    names: dict[str, Entry] = field(default_factory=dict)
    cut: int = -1
    done: bool = False
    calls: int = 0
    mounted: bool = False
    """The file is a mount point, which no other file can take the place of."""

    def _step(self) -> bool:
        """Counts a call; True: do it, then the power is cut. After that nothing works."""
        self.calls += 1
        if 0 <= self.cut < self.calls - 1:
            raise PowerCut
        if self.calls - 1 == self.cut:
            if not self.done:
                raise PowerCut
            return True
        return False

    def names_in(self) -> list[str]:
        return [os.path.basename(path) for path in self.files]

    # Files

    def read(self, path: str) -> bytes:
        return self._entry(path).content

    def mode(self, path: str) -> int:
        self._entry(path)
        return 0o640

    def create(self, path: str, content: bytes, mode: int) -> None:
        last = self._step()
        assert path not in self.files
        self.files[path] = Entry(content)
        self._end(last)

    def sync(self, path: str) -> None:
        last = self._step()
        if path == os.path.dirname(PATH):
            self.names = dict(self.files)
        else:
            entry = self._entry(path)
            entry.synced = entry.content
        self._end(last)

    def rename(self, source: str, target: str) -> None:
        if self.mounted:
            raise OSError(errno.EBUSY, "Device or resource busy")
        last = self._step()
        self.files[target] = self.files.pop(source)
        self._end(last)

    def overwrite(self, path: str, content: bytes) -> None:
        last = self._step()
        entry = self._entry(path)
        entry.content, entry.synced = content, None
        self._end(last)

    def remove(self, path: str) -> None:
        last = self._step()
        self._entry(path)
        del self.files[path]
        self._end(last)

    def _end(self, last: bool) -> None:
        if last:
            raise PowerCut

    def _entry(self, path: str) -> Entry:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return self.files[path]

    # After the cut

    def remains(self) -> Iterator[Disk]:
        """Every disk that may be found afterwards."""
        paths = sorted({*self.files, *self.names})
        choices = [list(self._fates(path)) for path in paths]
        for chosen in itertools.product(*choices):
            left = {
                path: Entry(content, content)
                for path, content in zip(paths, chosen, strict=True)
                if content is not None
            }
            yield Disk(dict(left), dict(left), mounted=self.mounted)

    def _fates(self, path: str) -> Iterator[bytes | None]:
        """What a name may lead to: what was surely there, what was on its way, or nothing."""
        sure, now = self.names.get(path), self.files.get(path)
        seen: set[bytes | None] = set()
        if sure is not now or sure is None:
            seen.add(None)  # a name that was in motion may be lost
        for entry in {id(e): e for e in (sure, now) if e}.values():
            if entry.synced == entry.content:
                seen.add(entry.content)
            else:
                seen |= {entry.content, b"", entry.content[:5], b"\0" * len(entry.content)}
        yield from seen


class Port:
    """`Files` on a Disk; `names` is both a field of the disk and a call."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.read, self.mode, self.create = disk.read, disk.mode, disk.create
        self.sync, self.rename, self.remove = disk.sync, disk.rename, disk.remove
        self.overwrite = disk.overwrite

    def names(self, directory: str) -> list[str]:
        return self._disk.names_in()

    def own(self, path: str, like: str) -> None: ...


def disk(old: bytes | None = OLD) -> Disk:
    known = {} if old is None else {PATH: Entry(old, old)}
    return Disk(dict(known), dict(known))


def on(found: Disk) -> DurableFile:
    return DurableFile(PATH, Port(found))


def config_json(found: Disk) -> None:
    """A change of config.json that makes OLD into NEW."""
    ConfigFile(PATH, files=Port(found)).merge({("uuid",): "new", ("more",): [1, 2, 3]})


def boot_file(found: Disk) -> None:
    """The same for a boot file, as its back end writes it."""
    store = TextStore(PATH, absent="", files=Port(found))
    if store.read() != NEW.decode():
        store.write(NEW.decode(), {})


ACTS: dict[str, Callable[[Disk], object]] = {
    "write": lambda found: on(found).write(NEW),
    "read": lambda found: on(found).read(),
    "config.json": config_json,
    "boot file": boot_file,
}


def cuts(before: Disk, act: str) -> Iterator[tuple[str, Disk]]:
    """Every disk that a power cut at any call may leave."""
    for cut, done in itertools.product(range(100), (False, True)):
        fresh = Disk(dict(before.files), dict(before.names), cut, done, mounted=before.mounted)
        if before.mounted:  # its one entry is written into
            fresh.files[PATH] = fresh.names[PATH] = Entry(before.files[PATH].content, b"")
            fresh.files[PATH].synced = before.files[PATH].content
        try:
            ACTS[act](fresh)
        except PowerCut:
            for found in fresh.remains():
                yield f"call {cut}, {'after' if done else 'before'}", found
        else:
            assert fresh.calls <= cut
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("act", "old"), [("write", OLD), ("write", None), ("config.json", OLD), ("boot file", OLD)]
)
def test_a_power_cut_at_every_call_of_a_write(act: str, old: bytes | None) -> None:
    seen: set[bytes | None] = set()
    for moment, found in cuts(disk(old), act):
        content = on(found).read()
        assert content in (old, NEW), moment
        seen.add(content)
        assert on(found).read() == content, moment  # and it stays so
        assert list(found.files) == ([PATH] if content is not None else []), moment
    assert seen == {old, NEW}


def test_a_power_cut_at_every_call_of_a_write_into_a_mounted_file() -> None:
    before = disk()
    before.mounted = True
    seen: set[bytes | None] = set()
    for moment, found in cuts(before, "write"):
        if PATH not in found.files:
            continue  # what is mounted does not lose its name
        content = on(found).read()
        assert content in (OLD, NEW), moment
        seen.add(content)
        assert found.files[PATH].content == content and list(found.files) == [PATH], moment
    assert seen == {OLD, NEW}


def test_a_power_cut_at_every_call_of_the_recovery_too() -> None:
    tried = 0
    for moment, found in cuts(disk(), "write"):
        first = on(Disk(dict(found.files), dict(found.names))).read()
        for again, left in cuts(found, "read"):
            tried += 1
            assert on(left).read() == first, (moment, again)
    assert tried > 100


def test_a_finished_write_is_durable_and_leaves_nothing_else() -> None:
    found = disk()
    on(found).write(NEW)
    assert [left.files[PATH].content for left in found.remains()] == [NEW]
    assert list(found.files) == [PATH]
    for _, left in cuts(disk(), "write"):
        on(left).write(OLD)
        assert list(left.files) == [PATH] and left.files[PATH].content == OLD


def pending(directory: Path, content: bytes, digest: str = "") -> Path:
    digest = digest or hashlib.md5(content).hexdigest()
    path = directory / f".config.json.AAAAAAAA.{digest}.md5sum"
    path.write_bytes(content)
    return path


def test_H05_an_interrupted_write_is_finished(tmp_path: Path) -> None:
    commit = pending(tmp_path, NEW)
    (tmp_path / "config.json").write_bytes(OLD[:4])
    assert DurableFile(str(tmp_path / "config.json")).read() == NEW
    assert (tmp_path / "config.json").read_bytes() == NEW and not commit.exists()


def test_H06_what_only_looks_like_one_is_removed(tmp_path: Path) -> None:
    commit = pending(tmp_path, NEW, "0" * 32)
    (tmp_path / "config.json").write_bytes(OLD)
    assert DurableFile(str(tmp_path / "config.json")).read() == OLD
    assert not commit.exists()


def test_on_a_real_directory(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    file = DurableFile(str(path))
    assert file.read() is None
    file.write(NEW)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (NEW, 0o600)
    path.chmod(0o644)
    (tmp_path / ".config.json.12345678.tmp").touch()
    file.write(OLD)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (OLD, 0o644)
    assert os.listdir(tmp_path) == ["config.json"]
    file.remove()
    file.remove()
    assert file.read() is None


class Failing(RealFiles):
    """One call fails, always or from the n-th time on."""

    def __init__(self, call: str, number: int, first: int = 1) -> None:
        self._call, self._number, self._left = call, number, first

    def __getattribute__(self, name: str) -> object:
        if name.startswith("_") or name != self._call:
            return super().__getattribute__(name)
        self._left -= 1
        if self._left > 0:
            return super().__getattribute__(name)

        def fail(*_: object) -> None:
            raise OSError(self._number, os.strerror(self._number))

        return fail


@pytest.mark.parametrize(
    ("call", "first"), [("create", 1), ("create", 2), ("sync", 2), ("sync", 3), ("rename", 1)]
)
def test_a_write_that_fails_before_its_end_has_not_been(
    tmp_path: Path, call: str, first: int
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(OLD)
    file = DurableFile(str(path), Failing(call, errno.ENOSPC, first))
    with pytest.raises(Unavailable, match="No space left"):
        file.write(NEW)
    assert os.listdir(tmp_path) == ["config.json"] and file.read() == OLD


@pytest.mark.parametrize("call", ["create", "rename"])
def test_a_recovery_that_fails_leaves_nothing_more_each_time(tmp_path: Path, call: str) -> None:
    commit = pending(tmp_path, NEW)
    (tmp_path / "config.json").write_bytes(OLD)
    file = DurableFile(str(tmp_path / "config.json"), Failing(call, errno.ENOSPC))
    assert [file.read() for _ in range(3)] == [NEW] * 3
    assert sorted(os.listdir(tmp_path)) == [commit.name, "config.json"]
    assert DurableFile(str(tmp_path / "config.json")).read() == NEW
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_link_stays_and_what_it_leads_to_changes(tmp_path: Path) -> None:
    real = tmp_path / "real" / "the.json"
    real.parent.mkdir()
    real.write_bytes(OLD)
    real.chmod(0o640)
    link = tmp_path / "config.json"
    link.symlink_to("real/the.json")
    DurableFile(str(link)).write(NEW)
    assert link.is_symlink() and real.read_bytes() == NEW
    assert (real.stat().st_mode & 0o777, os.listdir(real.parent)) == (0o640, ["the.json"])
    DurableFile(str(link)).remove()
    assert not os.path.lexists(link) and real.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_owner_stays(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(OLD)
    os.chown(path, 1234, 4321)
    DurableFile(str(path)).write(NEW)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_a_mount_point_is_written_into(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(OLD)
    number = path.stat().st_ino
    file = DurableFile(str(path), Failing("rename", errno.EBUSY))
    file.write(NEW)
    file.write(OLD[:3])
    assert (path.read_bytes(), path.stat().st_ino) == (OLD[:3], number)
    assert os.listdir(tmp_path) == ["config.json"]
    pending(tmp_path, NEW)
    assert file.read() == NEW and path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["config.json"]


def test_errors_are_told_in_words(tmp_path: Path) -> None:
    class Full(RealFiles):
        def sync(self, path: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "config.json"
    path.write_bytes(OLD)
    with pytest.raises(Unavailable, match="cannot be written: No space left"):
        DurableFile(str(path), Full()).write(NEW)
    assert os.listdir(tmp_path) == ["config.json"] and path.read_bytes() == OLD
    assert DurableFile(str(tmp_path / "none" / "config.json")).read() is None
    (tmp_path / "dir").mkdir()
    with pytest.raises(Unavailable, match="cannot be read"):
        DurableFile(str(tmp_path / "dir")).read()
