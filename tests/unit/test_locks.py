"""Update locks on real files; what needs root says so when it is skipped."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from balena_agent.core.errors import Broken, Locked, Unavailable
from balena_agent.core.observed import Lock
from balena_agent.host import locks as module
from balena_agent.host.locks import FILES, OWNER, UpdateLocks, host_update_pending

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="gives files to uid 65534: needs root")
pytestmark = needs_root

HOLDER = module._holder
MESSAGE = r"^Lockfile exists for \{ appId: 7, service: web \}$"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "balena-supervisor" / "services"


@pytest.fixture
def locks(place: Path) -> UpdateLocks:
    return UpdateLocks(str(place))


def service(place: Path, name: str = "web", app_id: int = 7) -> Path:
    path = place / str(app_id) / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def lock_files(place: Path) -> dict[str, int]:
    """Every file below the place with its owner."""
    return {str(p.relative_to(place)): p.lstat().st_uid for p in place.rglob("*") if not p.is_dir()}


def test_both_files_appear_complete_and_owned(locks: UpdateLocks, place: Path) -> None:
    locks.take(7, ("web",))
    assert lock_files(place) == {f"7/web/{name}": OWNER for name in FILES}
    assert (place / "7/web/updates.lock").read_bytes() == b"0"
    assert (place / "7/web/updates.lock").stat().st_mode & 0o7777 == 0o444
    assert (place / "7/web/updates.lock").stat().st_nlink == 1
    assert (place / "7/web").stat().st_mode & 0o7777 == 0o1777
    assert (place / "7").stat().st_mode & 0o7777 == 0o755
    assert locks.held() == {7}
    locks.release(7)
    assert lock_files(place) == {} and locks.held() == frozenset()


def test_taking_and_releasing_twice_is_the_same_as_once(locks: UpdateLocks, place: Path) -> None:
    locks.take(7, ("web",))
    locks.take(7, ("web", "db"))
    assert len(lock_files(place)) == 4
    locks.release(7)
    locks.release(7)
    locks.release(8)
    assert lock_files(place) == {}


def test_what_a_killed_run_has_left_is_adopted(locks: UpdateLocks, place: Path) -> None:
    UpdateLocks(str(place)).take(7, ("web", "db"))
    (place / "7/web/updates.lock").unlink()
    service(place, "quiet", 8)
    UpdateLocks(str(place)).take(9, ("web",))
    (place / "9/web/updates.lock").unlink()
    (place / "9/web/updates.lock").touch()
    locks.adopt()
    assert locks.held() == {7}
    assert lock_files(place) == {"9/web/updates.lock": 0} | {
        f"7/{name}/{file}": OWNER for name in ("web", "db") for file in FILES
    }


def test_an_app_that_cannot_be_looked_at_does_not_keep_others_from_being_adopted(
    locks: UpdateLocks, place: Path
) -> None:
    for app_id in (7, 8, 9):
        UpdateLocks(str(place)).take(app_id, ("web",))
    os.chown(place / "8", 1000, -1)
    with pytest.raises(Unavailable, match="8: belongs to another user"):
        locks.adopt()
    assert locks.held() == {7, 9}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_a_release_that_fails_half_way_is_tried_again(
    locks: UpdateLocks, place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    locks.take(7, ("db", "mid", "web"))
    locks.take(8, ("web",))
    sick = [True]

    def holder(here: int, name: str) -> str:
        if sick and os.path.samestat(os.fstat(here), (place / "7/mid").stat()):
            raise OSError(number, os.strerror(number))
        return HOLDER(here, name)

    monkeypatch.setattr(module, "_holder", holder)
    with pytest.raises(Unavailable):
        locks.release(7)
    left = {f"7/mid/{name}": OWNER for name in FILES}
    others = {f"8/web/{name}": OWNER for name in FILES}
    assert lock_files(place) == left | others
    assert locks.held() == {8}, "a half is no lock"
    locks.catch_up()
    assert lock_files(place) == left | others
    sick.clear()
    locks.catch_up()
    assert lock_files(place) == others and locks.held() == {8}


def test_what_is_taken_anew_is_not_owed(
    locks: UpdateLocks, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks.take(7, ("web",))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_holder", _broken)
        with pytest.raises(Unavailable):
            locks.release(7)
    locks.take(7, ("web",))
    locks.catch_up()
    assert locks.held() == {7} and len(lock_files(place)) == 2


def test_a_lock_that_is_refused_says_so_though_what_was_taken_cannot_be_released(
    locks: UpdateLocks, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (service(place) / "updates.lock").touch()
    taken: list[bool] = []
    take = module._take_both

    def both(here: int, force: bool) -> bool:
        taken.append(take(here, force))
        if not taken[-1]:
            monkeypatch.setattr(module, "_holder", _broken)
        return taken[-1]

    monkeypatch.setattr(module, "_take_both", both)
    with pytest.raises(Locked, match=MESSAGE):
        locks.take(7, ("db", "web"))
    monkeypatch.undo()
    assert len(lock_files(place)) == 3
    locks.catch_up()
    assert lock_files(place) == {"7/web/updates.lock": 0}


def _broken(here: int, name: str) -> str:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_nothing_is_adopted_where_there_is_nothing(locks: UpdateLocks, place: Path) -> None:
    locks.adopt()
    assert locks.held() == frozenset() and not place.exists()


def test_every_directory_of_the_app_is_taken(locks: UpdateLocks, place: Path) -> None:
    service(place, "gone-long-ago")
    service(place, "other", 8)
    (place / "7" / "a-file").touch()
    (place / "7" / "a-link").symlink_to("/etc")
    locks.take(7, ("web",))
    assert set(lock_files(place)) - {"7/a-file", "7/a-link"} == {
        f"7/{name}/{file}" for name in ("web", "gone-long-ago") for file in FILES
    }


def make_file(path: Path) -> None:
    path.touch()


def make_directory(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)
    os.chown(path, OWNER, -1)


FOREIGN = [make_file, make_directory, make_link, make_dangling_link, make_fifo]


@pytest.mark.parametrize("make", FOREIGN)
@pytest.mark.parametrize("name", FILES)
def test_anything_of_that_name_is_a_lock(
    locks: UpdateLocks, place: Path, make: Callable[[Path], None], name: str
) -> None:
    make(service(place) / name)
    service(place, "aaa")
    with pytest.raises(Locked, match=MESSAGE):
        locks.take(7, ("web", "aaa", "zzz"))
    assert locks.held() == frozenset()
    assert os.listdir(place / "7/web") == [name] and os.listdir(place / "7/aaa") == []
    assert locks.holders([7, 8]) == (Lock(7, "web", str(place / "7/web" / name)),)


@pytest.mark.parametrize("make", FOREIGN)
def test_force_takes_it_for_good(
    locks: UpdateLocks, place: Path, make: Callable[[Path], None]
) -> None:
    make(service(place) / FILES[0])
    locks.take(7, ("web",), force=True)
    assert lock_files(place) == {f"7/web/{name}": OWNER for name in FILES}
    assert locks.holders([7]) == ()
    locks.release(7)
    assert os.listdir(place / "7/web") == []
    assert os.path.exists("/etc/passwd")


def test_force_does_not_empty_a_directory(locks: UpdateLocks, place: Path) -> None:
    (service(place) / FILES[0]).mkdir()
    (service(place) / FILES[0] / "precious").touch()
    with pytest.raises(Locked):
        locks.take(7, ("web",), force=True)
    assert (place / "7/web" / FILES[0] / "precious").exists()


def test_leftovers_of_ours_are_adopted(locks: UpdateLocks, place: Path) -> None:
    locks.take(7, ("web",))
    os.unlink(place / "7/web" / FILES[1])
    (place / "7/web/.balena-agent-lock-123").touch()
    again = UpdateLocks(str(place))
    assert again.held() == frozenset() and again.holders([7]) == ()
    again.take(7, ("web",))
    assert lock_files(place) == {f"7/web/{name}": OWNER for name in FILES}
    again.release(7)
    assert lock_files(place) == {}


def test_a_refused_app_gives_up_its_leftovers_too(locks: UpdateLocks, place: Path) -> None:
    locks.take(7, ("db", "web"))
    os.unlink(place / "7/web" / FILES[0])
    (place / "7/web" / FILES[0]).touch()
    with pytest.raises(Locked):
        locks.take(7, ("web",))
    assert list(lock_files(place)) == [f"7/web/{FILES[0]}"] and locks.held() == frozenset()


@pytest.mark.parametrize("owner", [0, OWNER])
def test_a_flock_by_another_process_is_a_lock(locks: UpdateLocks, place: Path, owner: int) -> None:
    path = service(place) / FILES[0]
    path.touch()
    os.chown(path, owner, -1)
    with open(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(Locked):
            locks.take(7, ("web",))
        assert [lock.service for lock in locks.holders([7])] == ["web"]
        assert path.exists()
    if owner == OWNER:
        locks.take(7, ("web",))


def test_a_service_that_is_quicker_wins(
    locks: UpdateLocks, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._holder

    def late(here: int, name: str) -> str:
        found = real(here, name)
        (place / "7/web" / FILES[0]).touch()
        return found

    service(place)
    monkeypatch.setattr(module, "_holder", late)
    with pytest.raises(Locked):
        locks.take(7, ("web",))
    monkeypatch.undo()
    assert os.listdir(place / "7/web") == [FILES[0]]


RACE = """
import sys
from balena_agent.core.errors import Locked
from balena_agent.host import locks
locks.OWNER = int(sys.argv[2])  # each process believes that only its own files are its own
mine = locks.UpdateLocks(sys.argv[1])
for _ in range(300):
    try:
        mine.take(7, ("web",))
    except Locked:
        continue
    open(sys.argv[1] + "/inside", "x").close()
    __import__("os").unlink(sys.argv[1] + "/inside")
    mine.release(7)
"""


def test_two_that_race_are_never_both_inside(place: Path) -> None:
    service(place)
    root = Path(__file__).parents[2]
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(place), str(uid)], cwd=root)
        for uid in (65534, 65533)
    ]
    assert [racer.wait(60) for racer in racers] == [0, 0]
    assert lock_files(place) == {}


def test_a_link_in_the_way_is_not_followed(locks: UpdateLocks, place: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    service(place, "web").rmdir()
    (place / "7" / "web").symlink_to(victim)
    for attempt in (lambda: locks.take(7, ("web",)), lambda: locks.prepare_directory(7, "web")):
        with pytest.raises(Unavailable):
            attempt()
    assert victim.stat().st_mode & 0o7777 == 0o700 and os.listdir(victim) == []


@pytest.mark.parametrize("part", ["balena-supervisor", "balena-supervisor/services"])
def test_a_directory_of_another_user_is_not_used(
    locks: UpdateLocks, tmp_path: Path, part: str
) -> None:
    (tmp_path / part).mkdir(parents=True)
    os.chown(tmp_path / part, 1000, 1000)
    with pytest.raises(Unavailable, match="belongs to another user"):
        locks.take(7, ("web",))


def test_a_foreign_link_in_place_of_the_top_is_not_followed(
    locks: UpdateLocks, tmp_path: Path
) -> None:
    (tmp_path / "resin-supervisor").mkdir()
    (tmp_path / "balena-supervisor").symlink_to("resin-supervisor")
    os.lchown(tmp_path / "balena-supervisor", 1000, 1000)
    with pytest.raises(Unavailable):
        locks.take(7, ("web",))


def test_a_container_may_own_its_own_directory(locks: UpdateLocks, place: Path) -> None:
    os.chown(service(place), 1000, 1000)
    locks.take(7, ("web",))
    assert len(lock_files(place)) == 2


def test_the_legacy_directory_is_linked_and_used(locks: UpdateLocks, tmp_path: Path) -> None:
    locks.adopt()
    assert not os.path.lexists(tmp_path / "balena-supervisor")
    (tmp_path / "resin-supervisor").mkdir()
    locks.adopt()
    locks.adopt()
    assert os.readlink(tmp_path / "balena-supervisor") == "./resin-supervisor"
    locks.take(7, ("web",))
    assert len(lock_files(tmp_path / "resin-supervisor" / "services")) == 2
    locks.release(7)


def test_locks_in_the_legacy_directory_are_adopted_at_once(
    locks: UpdateLocks, tmp_path: Path
) -> None:
    lock = tmp_path / "resin-supervisor" / "services" / "7" / "web" / "updates.lock"
    lock.parent.mkdir(parents=True)
    lock.write_bytes(b"0")
    os.chown(lock, OWNER, -1)
    locks.adopt()
    assert locks.held() == {7}


@pytest.mark.parametrize("kind", ["another user's", "a link", "a file"])
def test_what_only_has_the_legacy_name_is_not_linked(
    locks: UpdateLocks, tmp_path: Path, kind: str
) -> None:
    old = tmp_path / "resin-supervisor"
    match kind:
        case "a link":
            (tmp_path / "elsewhere").mkdir()
            old.symlink_to("elsewhere")
        case "a file":
            old.touch()
        case _:
            old.mkdir()
            os.chown(old, 1000, 1000)
    locks.adopt()
    assert not os.path.lexists(tmp_path / "balena-supervisor")


def test_directories_are_prepared_for_any_user(locks: UpdateLocks, place: Path) -> None:
    path = locks.prepare_directory(7, "web")
    assert path == str(place / "7" / "web") and os.stat(path).st_mode & 0o7777 == 0o1777
    assert locks.prepare_directory(7, "web") == path
    for name in ("", ".", "..", "a/b"):
        with pytest.raises(Broken):
            locks.prepare_directory(7, name)


def test_nothing_there_is_nothing_held(locks: UpdateLocks, place: Path) -> None:
    assert locks.holders([7]) == () and locks.held() == frozenset()
    locks.release(7)
    assert not place.exists()


def test_no_descriptor_leaks(locks: UpdateLocks, place: Path) -> None:
    (service(place) / FILES[0]).touch()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        locks.holders([7])
        with pytest.raises(Locked):
            locks.take(7, ("web",))
        locks.take(7, ("web",), force=True)
        locks.release(7)
        (place / "7/web" / FILES[0]).touch()
    assert len(os.listdir("/proc/self/fd")) == before


def test_breadcrumbs_of_a_host_update(tmp_path: Path) -> None:
    assert not host_update_pending(str(tmp_path))
    for name in module.BREADCRUMBS:
        (tmp_path / name).touch()
        assert host_update_pending(str(tmp_path))
        (tmp_path / name).unlink()
    assert not host_update_pending(str(tmp_path / "none"))
