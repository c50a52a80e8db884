"""Databases as the peer leaves them, made by SQL (spec 20 §7.1)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

ENDPOINT = "https://api.example"
UUID = "DEVUUID"

SCHEMA = """
CREATE TABLE knex_migrations (id integer primary key autoincrement, name varchar(255));
CREATE TABLE config (key varchar(255) primary key, value text);
CREATE TABLE deviceConfig (targetValues json);
CREATE TABLE app (
    id integer primary key autoincrement, name varchar(255), releaseId integer,
    [commit] varchar(255), appId integer, services json, networks json, volumes json,
    source varchar(255), uuid varchar(255), class varchar(255) default 'fleet',
    isHost boolean default '0', rejected boolean default '0');
CREATE UNIQUE INDEX app_uuid_unique ON app (uuid);
CREATE TABLE image (
    id integer primary key autoincrement, name varchar(255), appId integer, serviceId integer,
    serviceName varchar(255), imageId integer, releaseId integer, dockerImageId varchar(255),
    appUuid varchar(255), [commit] varchar(255));
CREATE TABLE apiSecret (
    id integer primary key autoincrement, appId integer, serviceName varchar(255),
    key varchar(255), scopes json);
CREATE UNIQUE INDEX apisecret_unique ON apiSecret (appId, serviceName);
CREATE TABLE currentCommit (
    id integer primary key autoincrement, appId integer not null, [commit] varchar(255) not null);
CREATE UNIQUE INDEX currentcommit_appid_unique ON currentCommit (appId);
CREATE TABLE engineSnapshot (snapshot json, timestamp varchar(255));
CREATE TABLE logsChannelSecret (backend varchar(255), secret varchar(255));
"""

Rows = Mapping[str, Iterable[Mapping[str, Any]]]


def service(**more: Any) -> dict[str, Any]:
    """One element of `app.services`."""
    return {
        "appId": 7, "appUuid": "abcd", "releaseId": 5, "commit": "c0ffee", "imageId": 4,
        "serviceId": 3, "serviceName": "main", "image": "img:1", "running": True,
        "environment": {}, "labels": {}, "composition": {}, **more,
    }  # fmt: skip


def app(*services: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A row of `app`: app 7 (`abcd`), release 5 (`c0ffee`)."""
    return {
        "appId": 7, "uuid": "abcd", "name": "app", "releaseId": 5, "commit": "c0ffee",
        "services": json.dumps(services or [service()]), "networks": json.dumps({}),
        "volumes": json.dumps({}), "source": ENDPOINT, "class": "fleet", "isHost": 0,
        "rejected": 0, **more,
    }  # fmt: skip


def key(app_id: int, name: str | None, text: str, scopes: Any = None) -> dict[str, Any]:
    granted = scopes or [{"type": "app", "appId": app_id}]
    return {"appId": app_id, "serviceName": name, "key": text, "scopes": json.dumps(granted)}


def usual() -> dict[str, list[dict[str, Any]]]:
    """The rows of a managed device with one app."""
    return {
        "config": [
            {"key": "name", "value": "kitchen"},
            {"key": "localMode", "value": "false"},
            {"key": "targetStateSet", "value": "true"},
            {"key": "targetTags", "value": '{"room":"3"}'},
        ],
        "deviceConfig": [{"targetValues": '{"SUPERVISOR_DELTA":"1"}'}],
        "app": [app()],
        "image": [
            {
                "name": "img:1",
                "appId": 7,
                "appUuid": "abcd",
                "serviceName": "main",
                "dockerImageId": "sha256:1111",
            }
        ],
        "apiSecret": [key(0, None, "GLOBALKEY", [{"type": "global"}]), key(7, "main", "APIKEY")],
        "currentCommit": [{"appId": 7, "commit": "c0ffee"}],
    }


def build(path: Path, rows: Rows, schema: str = SCHEMA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(schema)
        for table, entries in rows.items():
            for entry in entries:
                insert(db, table, entry)
        db.commit()
    return path


def insert(db: sqlite3.Connection, table: str, entry: Mapping[str, Any]) -> None:
    names = ", ".join(f"[{name}]" for name in entry)
    marks = ", ".join("?" * len(entry))
    db.execute(f"INSERT INTO [{table}] ({names}) VALUES ({marks})", tuple(entry.values()))
