"""The store keeps its promises: over power cuts, damage, full disks and other versions."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from balena_agent import database
from balena_agent.core.errors import Broken, NotFound
from balena_agent.core.origins import Origin
from balena_agent.core.scopes import EVERYTHING, Scope, scope_from_json, scopes_to_json
from balena_agent.core.spec import ContainerSpec, Endpoint
from balena_agent.schema import MIGRATIONS
from balena_agent.store import FILE, LAST_GOOD, Store, StoreUnavailable

SPEC = ContainerSpec(
    "sha256:1", {"Cmd": ["sh"], "Env": ["A=1"]}, (Endpoint("1_default", ("web",)),), {"Tty": True}
)


def clock() -> float:
    return 1_700_000_000.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "state"


def opened(home: Path) -> Store:
    return Store(home, clock)


def filled(home: Path) -> Store:
    store = opened(home)
    store.global_key()
    store.save_target("cloud", '{"v": 1}')
    store.save_target("cloud", '{"v": 2}')
    store.save_stopped({("u1", "web"): "c1", ("u1", "db"): "c1"})
    store.save_commit("u1", 1, "c1")
    store.save_specs({"id1": SPEC})
    store.save_origins({"id1": Origin("boot", {"db": "id2"}), "id2": Origin()})
    store.save_stopped_by_agent({"id1": "2026-01-01T00:00:00Z"})
    store.own_images(frozenset({"a:1", "b:1"}))
    store.set_setting("localMode", True)
    return store


def everything(store: Store) -> tuple[object, ...]:
    return (
        store.targets(), store.stopped(), store.commits(), store.specs(), store.origins(),
        store.stopped_by_agent(), store.owned_images(), store.setting("localMode"),
        store.global_key(), store.service_key(1, "web"),
    )  # fmt: skip


# -- everyday use


def test_what_was_saved_is_there_after_reopening(home: Path) -> None:
    store = filled(home)
    before = everything(store)
    assert before[0] == {"cloud": '{"v": 2}'}
    assert before[3] == {"id1": SPEC}
    assert before[7] is True
    store.close()
    again = opened(home)
    assert everything(again) == before
    assert again.problems == () and again.trouble == ""


def test_sets_are_replaced_as_a_whole(home: Path) -> None:
    store = filled(home)
    store.save_stopped({("u1", "db"): "c2"})
    store.save_stopped_by_agent({"id2": ""})
    assert store.stopped() == {("u1", "db"): "c2"}
    assert store.stopped_by_agent() == {"id2": ""}
    store.save_stopped({})
    assert store.stopped() == {}


def test_images_are_added_and_disowned_one_by_one(home: Path) -> None:
    store = filled(home)
    store.own_images(frozenset({"b:1", "c:1"}))
    store.disown_image("a:1")
    assert store.owned_images() == {"b:1", "c:1"}


def test_a_forgotten_container_leaves_no_note(home: Path) -> None:
    store = filled(home)
    store.forget_containers(frozenset({"id1", "never-known"}))
    assert store.specs() == {} and store.stopped_by_agent() == {}


_INTENT = (
    "INSERT INTO container_intent (container_id, digest, intent, created_at) VALUES (?, '', ?, 0)"
)


def test_what_the_engine_made_of_a_container_is_noted_with_its_spec(home: Path) -> None:
    store = filled(home)
    assert store.tolerated() == {}
    store.save_tolerated("id1", {"HostConfig.Memory": 0})
    store.save_tolerated("unknown", {"HostConfig.Memory": 0})
    store.close()
    again = opened(home)
    assert again.tolerated() == {"id1": {"HostConfig.Memory": 0}}
    again.forget_containers(frozenset({"id1"}))
    assert again.tolerated() == {}


def test_M93_a_recovered_key_counts_unless_the_service_has_one(home: Path) -> None:
    store = opened(home)
    store.recover_key(7, "web", "from-a-container")
    assert store.service_key(7, "web") == "from-a-container"
    made = store.service_key(7, "db")
    store.recover_key(7, "db", "another")
    assert store.service_key(7, "db") == made
    scope = store.scopes_of("from-a-container")
    assert scope and scope.in_scope(7) and not scope.in_scope(8)


def test_a_spec_that_does_not_parse_is_left_out(home: Path) -> None:
    store = filled(home)
    store.close()
    with sqlite3.connect(home / FILE) as db:
        for number, text in enumerate(("{", "[]", "{}", '{"image": 1, "endpoints": [3]}', "null")):
            db.execute(_INTENT, (f"bad{number}", text))
    assert opened(home).specs() == {"id1": SPEC}


def test_settings_are_json_and_none_removes(home: Path) -> None:
    store = opened(home)
    assert store.setting("pinDevice") is None
    store.set_setting("pinDevice", {"app": 1, "commit": "ä"})
    assert store.setting("pinDevice") == {"app": 1, "commit": "ä"}
    store.set_setting("pinDevice", None)
    assert store.setting("pinDevice") is None


def test_a_forgotten_target_does_not_come_back(home: Path) -> None:
    store = filled(home)
    store.forget_target("cloud")
    store.close()
    assert opened(home).targets() == {}


def test_files_are_private(home: Path) -> None:
    store = filled(home)
    assert home.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o600}
    assert {FILE, FILE + "-wal", FILE + ".copy-1", FILE + ".copy-2", LAST_GOOD} <= {
        path.name for path in home.iterdir()
    }
    store.close()


def test_origins_are_noted_anew_forgotten_and_read_with_care(home: Path) -> None:
    store = filled(home)
    store.save_origins({"id2": Origin("later")})
    store.forget_containers(frozenset({"id1"}))
    assert store.origins() == {"id2": Origin("later")}
    store.close()
    with sqlite3.connect(home / FILE) as db:
        db.execute("INSERT INTO container_origin VALUES ('odd', 'boot', '[')")
        db.execute("INSERT INTO container_origin VALUES ('list', 'boot', '[]')")
    assert opened(home).origins() == {"id2": Origin("later")}


# -- keys


def test_keys_are_32_hex_stable_and_scoped(home: Path) -> None:
    store = opened(home)
    key, web = store.global_key(), store.service_key(7, "web")
    assert len({key, web, store.service_key(7, "db"), store.service_key(8, "web")}) == 4
    assert all(len(k) == 32 and int(k, 16) >= 0 for k in (key, web))
    assert (store.global_key(), store.service_key(7, "web")) == (key, web)
    assert store.scopes_of(key) == EVERYTHING
    assert store.scopes_of(web) == Scope(app_id=7)
    assert store.scopes_of("") is None and store.scopes_of(web.upper()) is None


def test_rotation_replaces_one_key_at_once(home: Path) -> None:
    store = opened(home)
    web, other = store.service_key(7, "web"), store.service_key(7, "db")
    fresh = store.rotate_key(web)
    assert store.scopes_of(web) is None and store.scopes_of(fresh) == Scope(app_id=7)
    assert store.service_key(7, "web") == fresh and store.service_key(7, "db") == other
    with pytest.raises(NotFound):
        store.rotate_key(web)


def test_service_keys_survive_the_loss_of_everything_after_the_last_copy(home: Path) -> None:
    store = opened(home)
    store.service_key(1, "first")
    store.save_target("cloud", "{}")
    late = store.service_key(1, "made-after-the-copy")
    store.close()
    (home / FILE).write_bytes(b"x" * 9000)
    assert opened(home).service_key(1, "made-after-the-copy") == late


def test_scope_values() -> None:
    assert EVERYTHING.in_scope(5) and Scope(app_id=5).in_scope(5) and not Scope().in_scope(5)
    for scope in (EVERYTHING, Scope(app_id=5)):
        assert scope_from_json(scopes_to_json(scope)) == scope
    for nothing in (None, [], [{"type": "x"}], [{"type": "app"}], "global", [5]):
        assert scope_from_json(nothing) is None


def test_threads_share_one_store(home: Path) -> None:
    store, keys, errors = opened(home), set[str](), list[BaseException]()

    def work(number: int) -> None:
        try:
            for turn in range(20):
                keys.add(store.service_key(turn, "web"))
                store.save_specs({f"{number}-{turn}": SPEC})
                assert store.scopes_of(store.global_key()) == EVERYTHING
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(keys) == 20 and len(store.specs()) == 160


# -- damage


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def overwritten_page(path: Path) -> None:
    with open(path, "r+b") as handle:
        handle.seek(4096)
        handle.write(b"\xff" * 8192)


def lost_table(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE api_key")


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")


def row_unlike_its_index(path: Path) -> None:
    """Each is well-formed. Who uses both finds damage, every time anew."""
    content = path.read_bytes()
    place = content.index(b"a:1")
    path.write_bytes(content[:place] + b"a:9" + content[place + 3 :])
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)


DAMAGE = [garbage, truncated, overwritten_page, lost_table, newer, row_unlike_its_index]


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_database_is_set_aside_and_the_newest_copy_restored(
    home: Path, harm: Callable[[Path], None]
) -> None:
    store = filled(home)
    key = store.global_key()
    store.close()
    harm(home / FILE)
    again = opened(home)
    assert again.targets() == {"cloud": '{"v": 2}'} and again.global_key() == key
    said = " ".join(again.problems)
    assert "20231114T221320Z" in said and "restored from agent.sqlite.copy-1" in said
    assert ("newer agent" in said) == (harm is newer)
    assert len(list(home.glob(FILE + ".aside-20231114T221320Z"))) == 1
    again.save_target("cloud", "3")
    again.close()
    assert opened(home).problems == ()


@pytest.mark.parametrize("harm", [garbage, truncated, newer])
def test_a_damaged_copy_is_passed_over(home: Path, harm: Callable[[Path], None]) -> None:
    filled(home).close()
    harm(home / FILE)
    harm(home / (FILE + ".copy-1"))
    again = opened(home)
    assert again.targets() == {"cloud": '{"v": 1}'}
    assert "restored from agent.sqlite.copy-2" in again.problems[1]


def test_without_any_copy_the_last_good_target_is_taken(home: Path) -> None:
    filled(home).close()
    for path in home.glob(FILE + "*"):
        garbage(path)
    again = opened(home)
    assert again.targets() == {"cloud": '{"v": 2}'}
    assert again.problems[-1] == "target of cloud restored from last-good-target.json"


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"cloud": 1}', b'{"cloud": {"raw": "x"}}'])
def test_with_nothing_left_the_store_is_empty_and_works(home: Path, text: bytes) -> None:
    filled(home).close()
    for path in home.glob(FILE + "*"):
        garbage(path)
    (home / LAST_GOOD).write_bytes(text)
    again = opened(home)
    assert again.targets() == {} and again.stopped() == {}
    again.save_target("local", "1")
    assert again.targets() == {"local": "1"}


@pytest.mark.parametrize("harm", [Path.unlink, emptied])
def test_a_crash_in_the_middle_of_a_repair_is_repaired(
    home: Path, harm: Callable[[Path], None]
) -> None:
    """The database was moved aside, its -wal file was not, and then the power went."""
    filled(home).close()
    harm(home / FILE)
    (home / (FILE + "-wal")).write_bytes(b"stale" * 1000)
    again = opened(home)
    assert again.targets() == {"cloud": '{"v": 2}'}
    assert "restored" in again.problems[0]


def test_only_a_few_damaged_files_are_kept(home: Path) -> None:
    for _ in range(10):
        filled(home).close()
        garbage(home / FILE)
    opened(home)
    assert len(list(home.glob("*.aside-*"))) <= database.ASIDE_KEPT


def test_an_older_schema_is_brought_up_to_date_and_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home).close()
    more = (*MIGRATIONS, "CREATE TABLE later (x); ALTER TABLE own_image ADD COLUMN y")
    monkeypatch.setattr("balena_agent.store.MIGRATIONS", more)
    again = opened(home)
    assert again.problems == () and again.targets() == {"cloud": '{"v": 2}'}
    again.close()
    with sqlite3.connect(home / FILE) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(more),)


def test_a_migration_that_fails_changes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home).close()
    bad = (*MIGRATIONS, "CREATE TABLE later (x); CREATE TABLE later (x)")
    monkeypatch.setattr("balena_agent.store.MIGRATIONS", bad)
    with pytest.raises(StoreUnavailable, match="already exists"):
        opened(home)
    monkeypatch.undo()
    again = opened(home)
    assert again.targets() == {"cloud": '{"v": 2}'} and again.problems == ()


# -- crashes


def crash(home: Path, code: str) -> None:
    """Run code in a process that kills itself in the middle of its work."""
    source = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", source, str(home)], cwd=Path(__file__).parents[2], timeout=60
    )
    assert done.returncode == -signal.SIGKILL


OPEN = """
import os, signal, sys
from balena_agent import database
from balena_agent.store import Store
store = Store(sys.argv[1])
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_between_write_and_commit_leaves_the_old_target(home: Path) -> None:
    filled(home).close()
    crash(home, OPEN + "db = store._db._db; db.execute('BEGIN IMMEDIATE');"
          "db.execute('DELETE FROM target_doc'); die()")  # fmt: skip
    again = opened(home)
    assert again.targets() == {"cloud": '{"v": 2}'} and again.problems == ()


def test_killed_after_a_promise_keeps_it(home: Path) -> None:
    filled(home).close()
    crash(home, OPEN + "store.save_commit('u1', 1, 'c2'); store.save_target('cloud', '3'); die()")
    assert opened(home).targets() == {"cloud": "3"}
    assert opened(home).commits() == {"u1": "c2"}


@pytest.mark.parametrize("point", ["os.replace", "os.fsync", "database._create"])
def test_killed_while_copying_keeps_target_and_a_copy(home: Path, point: str) -> None:
    filled(home).close()
    crash(home, OPEN + f"{point} = die; store.save_target('cloud', '3')")
    garbage(home / FILE)
    again = opened(home)
    assert again.targets()["cloud"] in ('{"v": 1}', '{"v": 2}', "3")
    assert "restored from agent.sqlite.copy" in " ".join(again.problems)


# -- full and read-only disks


def fill_up(store: Store) -> None:
    """No page may be added any more: SQLite answers as it does on a full disk."""
    db = store._db._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_refuses_promises_and_remembers_notes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(home)
    fill_up(store)
    big = "x" * 100_000
    with pytest.raises(StoreUnavailable, match="full"):
        store.save_target("cloud", big)
    assert store.targets() == {"cloud": '{"v": 2}'}
    monkeypatch.setattr(database.Database, "_open_file", disk_full)
    store.save_specs({"id2": ContainerSpec(big)})
    assert "notes wait in memory" in store.trouble
    assert set(store.specs()) == {"id1", "id2"}
    with pytest.raises(StoreUnavailable, match="cannot be kept"):
        store.save_stopped({})
    late = store.service_key(9, "late")
    monkeypatch.undo()
    store.save_commit("u1", 1, "c3")
    assert store.trouble == ""
    store.close()
    again = opened(home)
    assert set(again.specs()) == {"id1", "id2"} and again.commits() == {"u1": "c3"}
    assert again.scopes_of(late) == Scope(app_id=9)
    assert again.stopped() != {}


def disk_full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_notes_that_wait_are_written_as_soon_as_there_is_room(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(home)
    fill_up(store)
    monkeypatch.setattr(database.Database, "_open_file", disk_full)
    store.save_specs({"id2": ContainerSpec("x" * 100_000)})
    store.catch_up()
    assert "cannot be used" in store.trouble
    monkeypatch.undo()
    store.catch_up()
    assert store.trouble == ""
    with sqlite3.connect(home / FILE) as db:
        assert db.execute("SELECT count(*) FROM container_intent").fetchone() == (2,)


def test_a_promise_that_was_refused_is_told_until_there_is_room(home: Path) -> None:
    store = filled(home)
    fill_up(store)
    with pytest.raises(StoreUnavailable):
        store.save_target("cloud", "x" * 100_000)
    assert "cannot be kept" in store.trouble
    store._db._db.execute("PRAGMA query_only = on")
    store.catch_up()
    assert "cannot be kept" in store.trouble
    store._db._db.execute("PRAGMA query_only = off")
    store.catch_up()
    assert store.trouble == ""
    store.close()
    assert opened(home).targets() == {"cloud": '{"v": 2}'}


def test_damage_that_shows_in_use_is_told_and_repaired_at_the_next_opening(home: Path) -> None:
    filled(home).close()
    told: list[str] = []
    store = Store(home, damaged=told.append)
    store._db._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._db._db.execute("PRAGMA cache_size = 0")
    with open(home / FILE, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (os.path.getsize(home / FILE) - 4096))
    with pytest.raises(Broken):
        for _ in range(9):
            store.specs(), store.targets(), store.commits(), store.global_key()
            store.save_commit("u9", 9, "c")
    assert "damage" in told[0]
    again = opened(home)
    assert again.targets() == {"cloud": '{"v": 2}'}


def test_a_copy_that_succeeds_ends_the_trouble_with_the_one_before(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(home)
    monkeypatch.setattr(database, "_publish", disk_full)
    store.save_target("cloud", "3")
    assert "no copy" in store.trouble
    monkeypatch.undo()
    store.save_target("cloud", "4")
    assert store.trouble == ""


def test_notes_that_wait_are_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(home)
    monkeypatch.setattr(database, "NOTES_KEPT", 50)
    fill_up(store)
    monkeypatch.setattr(database.Database, "_open_file", disk_full)
    store.save_specs({f"c{number}": ContainerSpec("x" * 1000) for number in range(200)})
    assert len(store._db._waiting) == 50 and len(store.specs()) == 201


def test_a_copy_that_does_not_fit_is_no_failure(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(home)
    monkeypatch.setattr(database, "_publish", disk_full)
    store.save_target("cloud", "3")
    assert store.targets() == {"cloud": "3"}
    assert "no copy of the state could be made" in store.trouble


def test_a_directory_that_cannot_be_made_means_memory_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = opened(tmp_path / "file" / "state")
    assert "nothing can be kept" in store.problems[0]
    assert len(store.global_key()) == 32 and store.scopes_of(store.global_key()) == EVERYTHING
    store.save_specs({"id1": SPEC})
    assert store.specs() == {"id1": SPEC}
    with pytest.raises(StoreUnavailable):
        store.save_target("cloud", "1")
    (tmp_path / "file").unlink()
    store.save_target("cloud", "1")
    assert (tmp_path / "file" / "state" / FILE).exists()
    store.close()
    assert opened(tmp_path / "file" / "state").specs() == {"id1": SPEC}


def test_a_read_only_directory_is_read_but_not_written() -> None:
    """Real permissions, so in a child process without root's rights."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / "state"
        filled(home).close()
        for path in home.iterdir():
            path.chmod(0o444)
        home.chmod(0o555)
        os.chmod(place, 0o755)
        said = in_child_without_rights(lambda: use_read_only(home))
    assert said == "as it should be"


def use_read_only(home: Path) -> str:
    store = opened(home)
    assert store.targets() == {"cloud": '{"v": 2}'}, store.targets()
    assert "nothing can be kept" in store.problems[0], store.problems
    store.own_images(frozenset({"late:1"}))
    assert "late:1" in store.owned_images()
    with pytest.raises(StoreUnavailable, match="cannot be kept"):
        store.save_target("cloud", "4")
    return "as it should be"


def in_child_without_rights(work: Callable[[], str]) -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(write, work().encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


FILE_SIZE = """
import resource, signal, sys
from balena_agent.core.spec import ContainerSpec
from balena_agent.store import Store, StoreUnavailable
store = Store(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for number in range(40):
    store.save_specs({f"c{number}": ContainerSpec("x" * 20_000)})
try:
    store.save_target("cloud", "x" * 400_000)
except StoreUnavailable as error:
    print("refused", error)
print(len(store.specs()), bool(store.trouble))
"""


def test_a_write_that_really_fails_does_not_stop_the_notes(home: Path) -> None:
    filled(home).close()
    said = subprocess.run(
        [sys.executable, "-c", FILE_SIZE, str(home)], cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "refused" in said.stdout and said.stdout.endswith("41 True\n")
    again = opened(home)
    assert again.targets() == {"cloud": '{"v": 2}'} and again.problems == ()


@pytest.mark.parametrize("seed", range(60))
def test_no_damage_whatever_keeps_the_agent_from_starting(home: Path, seed: int) -> None:
    """Bytes turned, ends cut off, foreign -wal files: the store opens and takes a target."""
    filled(home).close()
    dice = random.Random(seed)
    content = bytearray((home / FILE).read_bytes())
    for _ in range(dice.choice((1, 5, 50))):
        content[dice.randrange(dice.choice((100, len(content))))] = dice.randrange(256)
    (home / FILE).write_bytes(content[: dice.choice((None, dice.randrange(len(content))))])
    if dice.random() < 0.3:
        (home / (FILE + "-wal")).write_bytes(dice.randbytes(5000))
    store = opened(home)
    everything(store)
    store.save_target("cloud", '{"v": 3}')
    assert store.targets()["cloud"] == '{"v": 3}'


def test_a_mark_of_a_stop_from_before_it_knew_of_starts_still_counts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balena_agent.store.MIGRATIONS", MIGRATIONS[:4])
    opened(home).close()
    monkeypatch.undo()
    with sqlite3.connect(home / FILE) as db:
        db.execute("INSERT INTO stopped_by_agent VALUES ('id1')")
    store = opened(home)
    assert store.stopped_by_agent() == {"id1": ""}
    store.save_stopped_by_agent({"id1": "2026"})
    assert store.stopped_by_agent() == {"id1": "2026"}
