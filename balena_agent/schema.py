"""The tables of the store, and how those of an older agent become ours.

Theory: a database carries the number of its schema. An older one is brought up script by script,
each in one transaction (database.py); a newer one is moved aside, so going back to an older agent
costs no more than an empty store does.

Invariant: a script that has been released never changes; whatever comes later is one more.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (k TEXT PRIMARY KEY, v TEXT NOT NULL);
    CREATE TABLE setting (k TEXT PRIMARY KEY, v TEXT NOT NULL);
    CREATE TABLE target_doc (
        source TEXT PRIMARY KEY, raw TEXT NOT NULL, received_at REAL NOT NULL,
        status TEXT NOT NULL DEFAULT 'accepted', problem TEXT NOT NULL DEFAULT '');
    CREATE TABLE current_commit (
        app_uuid TEXT PRIMARY KEY, app_id INTEGER NOT NULL, commit_ TEXT NOT NULL);
    CREATE TABLE api_key (
        id INTEGER PRIMARY KEY, app_id INTEGER NOT NULL, service_name TEXT NOT NULL,
        key TEXT NOT NULL UNIQUE, scopes TEXT NOT NULL, UNIQUE (app_id, service_name));
    CREATE TABLE container_intent (
        container_id TEXT PRIMARY KEY, digest TEXT NOT NULL, intent TEXT NOT NULL,
        created_at REAL NOT NULL);
    CREATE TABLE user_stop (
        app_uuid TEXT NOT NULL, service_name TEXT NOT NULL, commit_ TEXT NOT NULL,
        at REAL NOT NULL, PRIMARY KEY (app_uuid, service_name));
    CREATE TABLE stopped_by_agent (container_id TEXT PRIMARY KEY);
    CREATE TABLE own_image (reference TEXT PRIMARY KEY);
    """,
    """
    CREATE TABLE container_origin (
        container_id TEXT PRIMARY KEY, boot TEXT NOT NULL, parents TEXT NOT NULL);
    """,
    # What the engine made of a container's fields where it did not do as asked (spec 21 §10.3).
    "ALTER TABLE container_intent ADD COLUMN tolerated TEXT NOT NULL DEFAULT '{}';",
    """
    CREATE TABLE fetch_fail (
        name TEXT PRIMARY KEY, n INTEGER NOT NULL, at_wall REAL NOT NULL, error TEXT NOT NULL);
    CREATE TABLE obtained_image (
        image_id TEXT NOT NULL, reference TEXT NOT NULL, app_id INTEGER NOT NULL,
        service_name TEXT NOT NULL,
        PRIMARY KEY (image_id, reference, app_id, service_name));
    """,
    # The start that the agent put an end to: a mark says nothing of a later run.
    "ALTER TABLE stopped_by_agent ADD COLUMN started_at TEXT NOT NULL DEFAULT '';",
)
"""Script n brings a database of version n to n + 1. Never edit one that has been released."""
