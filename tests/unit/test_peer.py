"""A device changes over from the peer, and neither a container nor the way back is lost."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import peer_database as peer
import pytest
from agent import Rig, rig
from golden_bodies import CASES, DEVIATIONS, FACTS, expected_body, golden_image, inspected
from peer_database import ENDPOINT, UUID, build, usual

from balena_agent.core import heritage
from balena_agent.core.body import container_from_inspect
from balena_agent.core.errors import AgentError, InvalidTarget, Unavailable
from balena_agent.core.heritage import Heritage
from balena_agent.core.networks import (
    SUPERVISOR_SPEC,
    network_from_inspect,
    volume_from_inspect,
)
from balena_agent.core.observed import Image, ImageConfig, Network, Observed, Obtained
from balena_agent.core.scopes import EVERYTHING, Scope
from balena_agent.core.steps import RenameContainer
from balena_agent.core.target import Target
from balena_agent.peer import read_peer
from balena_agent.runtime.policy import Memory
from balena_agent.startup import take_over
from balena_agent.store import Store

Rows = dict[str, list[dict[str, Any]]]
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "database.sqlite"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "state")
    yield opened
    opened.close()


def left(path: Path, rows: Rows | None = None, endpoint: str = ENDPOINT) -> Heritage:
    if rows is not None:
        build(path, rows)
    return read_peer(path, UUID, endpoint)


def with_rows(**tables: Any) -> Rows:
    return {**usual(), **tables}


def with_setting(key: str, value: str) -> list[dict[str, Any]]:
    return [entry for entry in usual()["config"] if entry["key"] != key] + [
        {"key": key, "value": value}
    ]


def target_of(found: Heritage) -> Target:
    return heritage.read(found.target)


# -- what is read


def test_what_the_peer_left_is_read(path: Path) -> None:
    found = left(path, usual())
    assert found.problems == ()
    assert [(k.app_id, k.service, k.key, k.scope) for k in found.keys] == [
        (0, "", "GLOBALKEY", EVERYTHING),
        (7, "main", "APIKEY", Scope(app_id=7)),
    ]
    assert [(c.app_uuid, c.app_id, c.commit) for c in found.commits] == [("abcd", 7, "c0ffee")]
    assert found.settings == {"name": "kitchen", "localMode": False, "targetTags": {"room": "3"}}
    assert found.images == {"img:1"}
    assert "APIKEY" not in repr(found)


def test_app_rows_become_the_target_that_the_cloud_had_sent(path: Path) -> None:
    contract = {"type": "sw.container", "slug": "main"}
    main = peer.service(
        running=False, environment={"A": "1"}, labels={"l": "2"}, contract=contract,
        composition={"command": ["sh"], "volumes": ["data:/data"]},
    )  # fmt: skip
    volumes, networks = json.dumps({"data": {}}), json.dumps({"n": None})
    row = peer.app(main, volumes=volumes, networks=networks, **{"class": "block"})
    target = target_of(left(path, with_rows(app=[row])))
    assert (target.name, target.config) == ("kitchen", {"SUPERVISOR_DELTA": "1"})
    app = target.apps["abcd"]
    assert (app.app_id, app.name, app.app_class, app.is_host) == (7, "app", "block", False)
    assert app.release is not None
    assert (app.release.commit, app.release.release_id) == ("c0ffee", 5)
    assert (app.release.volumes, app.release.networks) == ({"data": {}}, {"n": {}})
    found = app.release.services["main"]
    assert (found.service_id, found.image_id, found.image) == (3, 4, "img:1")
    assert (found.running, found.environment, found.labels) == (False, {"A": "1"}, {"l": "2"})
    assert found.composition == {"command": ["sh"], "volumes": ["data:/data"]}
    assert found.contract == contract


def test_an_app_without_a_release_stays_without(path: Path) -> None:
    row = peer.app(releaseId=None, commit=None, services="[]")
    assert target_of(left(path, with_rows(app=[row]))).apps["abcd"].release is None


def test_the_rows_of_the_source_in_force_count_and_all_that_are_no_fleet(path: Path) -> None:
    host = peer.app(appId=8, uuid="b0b0", source="https://other", isHost=1, **{"class": "app"})
    other = peer.app(appId=9, uuid="0ddd", source="https://other")
    local = peer.app(peer.service(appUuid="7"), uuid="7", source="local")
    rows = with_rows(app=[peer.app(), host, other, local])
    assert set(target_of(left(path, rows)).apps) == {"abcd", "b0b0"}
    assert target_of(left(path)).apps["b0b0"].is_host
    assert set(target_of(left(path, endpoint=ENDPOINT + "/")).apps) == {"abcd", "b0b0"}
    assert set(target_of(left(path, endpoint="")).apps) == {"7", "b0b0"}, "unmanaged"


def test_in_local_mode_the_local_target_is_in_force(path: Path) -> None:
    local = peer.app(peer.service(appUuid="7"), uuid="7", source="local", commit="localrelease")
    rows = with_rows(app=[peer.app(), local], config=with_setting("localMode", "1"))
    rows["currentCommit"] = [{"appId": 7, "commit": "localrelease"}]
    found = left(path, rows)
    assert set(target_of(found).apps) == {"7"}
    assert found.settings["localMode"] is True
    assert [(c.app_uuid, c.commit) for c in found.commits] == [("7", "localrelease")]


@pytest.mark.parametrize(
    ("apps", "why"),
    [
        ([], "no app of https://api.example"),
        ([peer.app(source="https://other")], "no app of https://api.example"),
        ([peer.app(rejected=1)], "rejected the release of app"),
        ([peer.app(services="[{")], "services of app app cannot be read"),
        ([peer.app(services="{}")], "not a list of objects"),
        ([peer.app(networks=b"\xff")], "networks of app app cannot be read"),
        ([peer.app(uuid=None)], "app uuid"),
        ([peer.app(releaseId="x")], "whole number"),
        ([peer.app(peer.service(image=None))], "image reference"),
        ([peer.app(), peer.app(uuid="b", services="nonsense")], "cannot be read"),
    ],
)
def test_a_target_that_is_not_whole_is_none(
    path: Path, apps: list[dict[str, Any]], why: str
) -> None:
    found = left(path, with_rows(app=apps))
    assert found.target == ""
    assert len(found.problems) == 1 and why in found.problems[0]
    assert len(found.keys) == 2, "the keys come along all the same"


def test_odd_rows_do_no_harm(path: Path) -> None:
    rows = with_rows(
        apiSecret=[
            peer.key(0, None, "FIRST", [{"type": "global"}]),
            peer.key(0, None, "SECOND", [{"type": "global"}]),
            {"appId": 7, "serviceName": "main", "key": "APIKEY", "scopes": "[{"},
            {"appId": None, "serviceName": "x", "key": "K", "scopes": "[]"},
            {"appId": 0, "serviceName": None, "key": "NOSCOPE", "scopes": None},
            {"appId": 7, "serviceName": "db", "key": None, "scopes": "[]"},
        ],
        currentCommit=[{"appId": 99, "commit": "x"}, {"appId": 7, "commit": "c0ffee"}],
        config=[{"key": "targetTags", "value": "{"}, {"key": "name", "value": None}],
        deviceConfig=[],
        image=[{"name": None, "appId": 7}, {"name": "docker.io/library/busybox", "appId": 7}],
    )
    found = left(path, rows)
    assert [(k.service, k.key, k.scope) for k in found.keys] == [
        ("", "FIRST", EVERYTHING),
        ("main", "APIKEY", Scope(app_id=7)),
    ]
    assert [c.app_id for c in found.commits] == [7]
    assert found.settings == {}
    assert found.images == {"busybox:latest"}
    assert target_of(found).name == "local"


def test_no_content_of_any_row_makes_reading_fail() -> None:
    odd = (None, 0, -1, 1.5, float("inf"), "", "x", "[]", "{}", "[[]]", '{"a":', "null", "7",
           '[{"serviceName": [], "image": {}}]', '{"a": []}', "[" * 5000, 2**62)  # fmt: skip
    whole = heritage.heritage(usual(), UUID, ENDPOINT)
    for table, rows in usual().items():
        for column in rows[0]:
            for value in odd:
                changed = [{**row, column: value} for row in rows]
                found = heritage.heritage({**usual(), table: changed}, UUID, ENDPOINT)
                assert found.target or found.problems
                assert found.keys == whole.keys or table == "apiSecret"


def test_a_stored_target_that_is_none_is_refused() -> None:
    for raw in ("", "[]", "{}", '{"u": 1}'):
        with pytest.raises(AgentError):
            heritage.read(raw)
    with pytest.raises(InvalidTarget):
        heritage.read("{}")


# -- older and damaged databases


def test_tables_of_an_older_release_count_as_absent(path: Path) -> None:
    older = peer.SCHEMA.replace("rejected boolean default '0'", "type varchar(1)")
    rows = usual()
    del rows["app"]
    build(path, rows, older)
    found = left(path)
    assert found.target == ""
    assert found.problems[0] == "table app is of an older release, without rejected; left out"
    assert len(found.keys) == 2


def test_keys_that_are_not_yet_by_service_name_are_left_out(path: Path) -> None:
    rows = usual()
    del rows["apiSecret"]
    before, after = peer.SCHEMA.split("CREATE TABLE apiSecret")
    build(path, rows, f"{before}CREATE TABLE apiSecret{after.replace('serviceName', 'serviceId')}")
    found = left(path)
    assert found.keys == ()
    assert found.target
    assert "table apiSecret is of an older release" in found.problems[0]


def test_an_empty_database_leaves_nothing(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    found = left(path)
    assert found == Heritage(problems=found.problems)
    assert len(found.problems) == 7


@pytest.mark.parametrize("damage", ["nonsense", "header", "page", "cut", "text"])
def test_a_damaged_database_counts_as_absent(path: Path, damage: str) -> None:
    rows = with_rows(config=with_setting("filler", "x" * 100_000))
    build(path, rows)
    if damage == "text":
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE config SET value = CAST(X'ff' AS TEXT) WHERE key = 'name'")
            db.commit()
    content = bytearray(path.read_bytes())
    if damage == "nonsense":
        content = bytearray(b"this is no database" * 1000)
    elif damage == "header":
        content[:16] = b"\0" * 16
    elif damage == "page":
        content[4096 : 4096 * 8] = b"\x5a" * (4096 * 7)
    elif damage == "cut":
        del content[len(content) // 2 :]
    path.write_bytes(content)
    with pytest.raises(Unavailable, match=str(path)):
        left(path)
    assert path.read_bytes() == content


def test_a_missing_or_unreadable_database_is_told(path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        left(path)
    path.mkdir(parents=True)
    with pytest.raises(Unavailable, match="Is a directory"):
        left(path)


# -- never written


def contents(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Everything that could have changed: content, mode, time of the last change."""
    return {
        found.name: (found.read_bytes(), found.stat().st_mode, found.stat().st_mtime_ns)
        for found in directory.iterdir()
    }


def test_nothing_is_changed_and_nothing_stays_behind(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(path, usual())
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    before = contents(path.parent)
    assert left(path).target
    assert contents(path.parent) == before
    assert list(private.iterdir()) == []


def test_the_copy_is_private(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(path, usual())
    path.chmod(0o644)
    modes: list[int] = []
    connect = sqlite3.connect

    def watched(copy: Path) -> sqlite3.Connection:
        modes.append(stat.S_IMODE(os.stat(copy.parent).st_mode))
        return connect(copy)

    monkeypatch.setattr("balena_agent.peer.sqlite3.connect", watched)
    assert left(path).target
    assert modes == [0o700]


def begin_to_rename(db: sqlite3.Connection) -> None:
    """A change of the device's name that is on disk in part, and not committed."""
    db.execute("PRAGMA cache_size = 1")
    db.execute("BEGIN")
    db.execute("UPDATE config SET value = ? WHERE key = 'name'", ("never" * 20_000,))


@pytest.mark.parametrize("read_only", [False, True])
def test_a_database_in_wal_mode_is_read_as_it_was_last_committed(
    path: Path, read_only: bool
) -> None:
    build(path, usual())
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("UPDATE config SET value = 'committed' WHERE key = 'name'")
        begin_to_rename(db)
        before = contents(path.parent)
        assert {"database.sqlite-wal", "database.sqlite-shm"} <= before.keys()
        assert b"never" in before["database.sqlite-wal"][0]
        assert b"committed" in before["database.sqlite-wal"][0]
        path.parent.chmod(0o555 if read_only else 0o755)
        try:
            assert left(path).settings["name"] == "committed"
            assert contents(path.parent) == before
        finally:
            path.parent.chmod(0o755)
        db.execute("ROLLBACK")


def test_a_transaction_that_a_power_cut_ended_is_taken_back_in_the_copy_only(
    path: Path, tmp_path: Path
) -> None:
    build(path, usual())
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        begin_to_rename(db)
        cut = tmp_path / "cut"
        cut.mkdir()
        for found in path.parent.iterdir():
            (cut / found.name).write_bytes(found.read_bytes())
        db.execute("ROLLBACK")
    before = contents(cut)
    assert before["database.sqlite-journal"][0]
    assert b"never" in before["database.sqlite"][0]
    assert left(cut / path.name).settings["name"] == "kitchen"
    assert contents(cut) == before


def test_a_database_that_is_being_written_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(path, usual())
    copy = shutil.copyfile

    def slowly(source: str | Path, target: str | Path) -> object:
        done = copy(source, target)
        os.utime(path, ns=(1, 1))
        return done

    monkeypatch.setattr("balena_agent.peer.shutil.copyfile", slowly)
    with pytest.raises(Unavailable, match="being written"):
        left(path)


# -- into the store


def test_the_store_takes_on_all_of_it_once(path: Path, store: Store, tmp_path: Path) -> None:
    store.import_peer(left(path, usual()))
    assert store.imported_peer()
    assert store.global_key() == "GLOBALKEY"
    assert store.service_key(7, "main") == "APIKEY"
    assert store.scopes_of("APIKEY") == Scope(app_id=7)
    assert store.commits() == {"abcd": "c0ffee"}
    assert store.owned_images() == {"img:1"}
    assert store.obtained_images() == {"sha256:1111": {Obtained("img:1", 7, "main")}}
    assert (store.setting("name"), store.setting("localMode")) == ("kitchen", False)
    before = store.targets()
    assert set(before) == {heritage.SOURCE}
    path.unlink()
    store.import_peer(left(path, with_rows(config=with_setting("name", "other"))))
    assert (store.setting("name"), store.targets()) == ("kitchen", before)


def test_keys_of_services_that_the_peer_did_not_know_are_made_as_ever(
    path: Path, store: Store
) -> None:
    store.import_peer(left(path, usual()))
    made = store.service_key(7, "new")
    assert made not in ("APIKEY", "GLOBALKEY")
    assert store.service_key(7, "new") == made


def test_what_the_store_has_already_is_younger(path: Path, store: Store) -> None:
    key, global_key = store.service_key(7, "main"), store.global_key()
    store.save_target("local", '{"local": {}}')
    store.save_commit("abcd", 7, "newer")
    store.set_setting("name", "mine")
    store.import_peer(left(path, usual()))
    assert (store.service_key(7, "main"), store.global_key()) == (key, global_key)
    assert store.scopes_of("APIKEY") is None
    assert store.targets() == {"local": '{"local": {}}'}
    assert (store.commits(), store.setting("name")) == ({"abcd": "newer"}, "mine")
    assert store.imported_peer()


def test_what_was_taken_on_survives_the_loss_of_the_database(
    path: Path, store: Store, tmp_path: Path
) -> None:
    store.import_peer(left(path, usual()))
    store.close()
    (tmp_path / "state" / "agent.sqlite").write_bytes(b"nonsense" * 1000)
    with closing(Store(tmp_path / "state")) as again:
        assert again.imported_peer()
        assert again.service_key(7, "main") == "APIKEY"
        assert set(again.targets()) == {heritage.SOURCE}


def test_a_heritage_is_taken_on_as_a_whole_or_not_at_all(path: Path, store: Store) -> None:
    found = left(path, usual())
    broken = replace(found, settings={"name": "x", "bad": object()})
    with pytest.raises(TypeError):
        store.import_peer(broken)
    assert not store.imported_peer()
    assert (store.targets(), store.commits(), store.setting("name")) == ({}, {}, None)
    assert store.scopes_of("APIKEY") is None


# -- at the start of the agent


def test_without_a_database_nothing_is_taken_over(path: Path, store: Store) -> None:
    take_over(store, path, FACTS)
    assert not store.imported_peer()


def test_a_start_takes_over_and_later_ones_do_not_look_again(path: Path, store: Store) -> None:
    build(path, usual())
    take_over(store, path, FACTS)
    assert store.service_key(7, "main") == "APIKEY"
    path.write_bytes(b"nonsense" * 1000)
    take_over(store, path, FACTS)


def test_what_cannot_be_taken_over_is_told_and_tried_again(
    path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"nonsense" * 1000)
    take_over(store, path, FACTS)
    assert "Nothing is taken over from the peer" in caplog.text
    assert not store.imported_peer()
    path.unlink()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        build(path, with_rows(app=[peer.app(rejected=1)]))
        take_over(store, path, FACTS)
    assert "2 API keys, no target" in caplog.text
    assert "rejected" in caplog.text
    assert "APIKEY" not in caplog.text
    assert store.imported_peer()


# -- containers, networks and volumes of the peer


def alone(name: str) -> bool:
    """Whether the peer's container of a case needs no other service, and may run."""
    case = CASES[name]
    text = json.dumps([case["composition"], case.get("changed", {})])
    others = "service:" in text or "container:" in text or "depends_on" in text
    return name not in DEVIATIONS and not others and case.get("running", True)


def config_of(name: str) -> ImageConfig:
    image = golden_image(CASES[name])
    return image.config if image else ImageConfig()


def live_network(name: str, config_only: bool) -> Network:
    found = network_from_inspect(
        {
            "Id": f"net-{name}", "Name": f"abcd_{name}", "Options": {}, "Internal": False,
            "Driver": "null" if config_only else "bridge", "ConfigOnly": config_only,
            "IPAM": {"Driver": "default", "Options": {}, "Config": [{"Subnet": "172.18.0.0/16"}]},
            "Labels": {"io.balena.supervised": "true", "io.balena.app-id": "7"},
        }
    )  # fmt: skip
    assert found is not None
    return found


def world(name: str, change: Change | None = None, volume_labels: bool = True) -> Observed:
    """What the peer has made of one golden case, as the engine shows it to us."""
    case, config = CASES[name], config_of(name)
    body = expected_body(case.get("changed", {}))
    body["Image"] = "sha256:1111"
    joined = {
        network: {"Aliases": list(end.get("aliases", ()))}
        for network, end in case.get("join_after_create", {}).items()
    }
    made = container_from_inspect(inspected(body, config, joined, change), config)
    assert made is not None
    in_host_mode = body["HostConfig"]["NetworkMode"] == "host"
    networks = [live_network("default", in_host_mode), *(live_network(n, False) for n in "ab")]
    networks.append(Network("net-api", "supervisor0", "", 0, "supervisor0", SUPERVISOR_SPEC))
    labels = {"io.balena.supervised": "true", "io.balena.app-uuid": "abcd"}
    kind = {"Driver": "local", "Options": None, "Labels": labels if volume_labels else None}
    known = frozenset({7})
    volumes = [volume_from_inspect({"Name": v, **kind}, known) for v in made.spec.volumes]
    return Observed(
        containers={made.id: made},
        networks={network.id: network for network in networks},
        volumes={volume.engine_name: volume for volume in volumes if volume},
        images={"sha256:1111": Image("sha256:1111", frozenset({"img:1"}), config=config)},
    )


def rows_of(name: str) -> Rows:
    """What the peer's database holds while that container runs."""
    case = CASES[name]
    main = peer.service(
        composition=case["composition"],
        environment=case.get("environment", {}),
        labels=case.get("labels", {}),
    )
    return with_rows(app=[peer.app(main, networks='{"a": {}, "b": {}}')])


def memory_of(store: Store) -> Memory:
    raw = store.targets().get(heritage.SOURCE, "")
    target = heritage.read(raw) if raw else None
    return Memory(target, heritage.SOURCE, raw, owned_images=store.owned_images(),
                  commits=store.commits())  # fmt: skip


@contextmanager
def taken_over(
    rows: Mapping[str, Any], observed: Observed, path: Path, store: Store
) -> Iterator[Rig]:
    """The agent on a device of the peer's, settled."""
    build(path, rows)
    take_over(store, path, FACTS)
    with rig(observed, memory_of(store), facts=FACTS, keys=store.service_key) as agent:
        agent.settled()
        yield agent


@pytest.mark.parametrize("name", [name for name in CASES if alone(name)])
def test_S40_what_the_peer_made_stays(name: str, path: Path, store: Store) -> None:
    before = world(name)
    with taken_over(rows_of(name), before, path, store) as agent:
        assert agent.engine.performed == []
        assert agent.engine.observed == before
        assert agent.published.current.commits == {"abcd": "c0ffee"}


def test_S41_a_container_of_the_resin_era_is_renamed_only(path: Path, store: Store) -> None:
    def resin(inspect: dict[str, Any]) -> None:
        labels = inspect["Config"]["Labels"]
        inspect["Config"]["Labels"] = {
            key.replace("balena", "resin"): value for key, value in labels.items()
        }
        inspect["Name"] = "/main_4_5"

    name = "features false"
    before = world(name, resin)
    with taken_over(rows_of(name), before, path, store) as agent:
        assert [type(step) for step in agent.engine.performed] == [RenameContainer]
        (after,) = agent.engine.observed.containers.values()
        assert (after.id, after.raw_name) == (next(iter(before.containers)), "main_4_5_c0ffee")
        assert after.running


@pytest.mark.parametrize("name", ["supapi bridge net", "single"])
def test_S42_the_key_in_a_containers_environment_stays_good(
    name: str, path: Path, store: Store
) -> None:
    with taken_over(rows_of(name), world(name), path, store) as agent:
        assert agent.engine.performed == []
        (app,) = agent.published.current.desired.apps
        wanted = app.services[0].spec.fields["Env"]
        assert wanted["BALENA_SUPERVISOR_API_KEY"] == "APIKEY"
        assert store.scopes_of("APIKEY") == Scope(app_id=7)


def test_S42_without_its_key_the_service_would_be_made_anew(path: Path, store: Store) -> None:
    name = "supapi bridge net"
    rows = rows_of(name) | {"apiSecret": []}
    before = world(name)
    with taken_over(rows, before, path, store) as agent:
        assert not agent.engine.observed.containers.keys() & before.containers.keys()


def test_S43_a_volume_without_labels_is_accepted(path: Path, store: Store) -> None:
    before = world("single", volume_labels=False)
    assert list(before.volumes) == ["7_resin-data"]
    with taken_over(rows_of("single"), before, path, store) as agent:
        assert agent.engine.performed == []
        assert agent.engine.observed == before


@pytest.mark.parametrize(
    "apps", [[], [peer.app(rejected=1)], [peer.app(services="[{")]], ids=["no", "rejected", "bad"]
)
def test_without_a_usable_target_everything_stays_as_it_is(
    apps: list[dict[str, Any]], path: Path, store: Store
) -> None:
    before = world("empty")
    with taken_over(with_rows(app=apps), before, path, store) as agent:
        assert agent.engine.performed == []
        assert agent.engine.observed == before
