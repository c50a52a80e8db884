"""What must survive a power cut: targets, standing intent, keys and notes about containers.

Theory: what can be asked from the engine again is never kept here, so an empty store is harmless:
it costs a look at the cloud, not a container. Targets, intent, settings and keys are promises,
everything about containers and images is a note (see database.py). After each accepted target the
whole database is copied, and the targets alone go to `last-good-target.json`: from there they come
back when neither database nor copy is left.

Invariant: a key of a service never changes but by rotation, because it stands in the environment
of its container: another key means another container (spec 10 §3.4, spec 20 §7).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .core.errors import Broken, NotFound
from .core.heritage import SOURCE, Heritage
from .core.images import FetchFailure
from .core.intent import ServiceKey
from .core.jsonread import Json
from .core.observed import Obtained
from .core.origins import Origin
from .core.scopes import EVERYTHING, Scope, scope_from_json, scopes_to_json
from .core.spec import ContainerSpec, spec_from_json
from .database import Database, Statement, StoreUnavailable, write_private
from .schema import MIGRATIONS

__all__ = ["Store", "StoreUnavailable"]

FILE = "agent.sqlite"
LAST_GOOD = "last-good-target.json"

_PUT_TARGET = "INSERT OR REPLACE INTO target_doc (source, raw, received_at) VALUES (?, ?, ?)"
_PUT_STOP = (
    "INSERT INTO user_stop VALUES (?, ?, ?, ?) ON CONFLICT (app_uuid, service_name)"
    " DO UPDATE SET commit_ = excluded.commit_"
)
_DROP_STOP = "DELETE FROM user_stop WHERE app_uuid = ? AND service_name = ?"
_PUT_SPEC = (
    "INSERT OR REPLACE INTO container_intent (container_id, digest, intent, created_at)"
    " VALUES (?, ?, ?, ?)"
)
_PUT_TOLERATED = "UPDATE container_intent SET tolerated = ? WHERE container_id = ?"
_PUT_ORIGIN = "INSERT OR REPLACE INTO container_origin VALUES (?, ?, ?)"
_PUT_KEY = "INSERT OR IGNORE INTO api_key (app_id, service_name, key, scopes) VALUES (?, ?, ?, ?)"
_PUT_IMAGE = "INSERT OR IGNORE INTO own_image VALUES (?)"
_PUT_OBTAINED = "INSERT OR IGNORE INTO obtained_image VALUES (?, ?, ?, ?)"
_DROP_OBTAINED = (
    "DELETE FROM obtained_image"
    " WHERE image_id = ? AND reference = ? AND app_id = ? AND service_name = ?"
)
_FROM_PEER = "imported_from_peer"


class Store:
    """The agent's durable state; callable from any thread.

    `problems` tells what opening found and repaired. Writing promises raises StoreUnavailable when
    they cannot be kept; any call raises Broken when the file is found damaged while in use, which
    `damaged` is told too: only the next opening repairs that.
    """

    def __init__(
        self,
        directory: str | Path,
        now: Callable[[], float] = time.time,
        damaged: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._last_good = Path(directory) / LAST_GOOD
        self._now = now
        self._db = Database(Path(directory) / FILE, MIGRATIONS, now, damaged)
        self.problems = self._db.problems + self._restore_targets()

    @property
    def trouble(self) -> str:
        """Why something could not be written lately; empty while all is well."""
        return self._db.trouble

    def catch_up(self) -> None:
        """Write the notes that a full disk has kept waiting, if it takes them now; for whoever
        comes by now and then. Never fails."""
        self._db.catch_up()

    def close(self) -> None:
        """Write the notes that wait, then close. Nothing may be called afterwards."""
        self._db.close()

    # -- target, intent, settings: promises

    def save_target(self, source: str, raw: str) -> None:
        """Keep an accepted target as it came, then make a copy of the whole store.

        Durable when it returns. StoreUnavailable when it cannot be kept.
        """
        self._db.promise((_PUT_TARGET, (source, raw, self._now())))
        self._db.copy()
        self._write_last_good()

    def forget_target(self, source: str) -> None:
        """Drop what one source asked for."""
        self._db.promise(("DELETE FROM target_doc WHERE source = ?", (source,)))
        self._write_last_good()

    def targets(self) -> Mapping[str, str]:
        """Every kept target document by its source, as it came."""
        return dict(self._db.rows("SELECT source, raw FROM target_doc"))

    def save_stopped(self, stopped: Mapping[ServiceKey, str]) -> None:
        """Make `stopped` the whole set of services that users stopped, with their commits."""
        gone: list[Statement] = [(_DROP_STOP, key) for key in self.stopped() if key not in stopped]
        now = self._now()
        self._db.promise(
            *gone, *((_PUT_STOP, (*key, commit, now)) for key, commit in stopped.items())
        )

    def stopped(self) -> Mapping[ServiceKey, str]:
        """The services that users stopped, with the commits wanted then."""
        rows = self._db.rows("SELECT app_uuid, service_name, commit_ FROM user_stop")
        return {(app, service): commit for app, service, commit in rows}

    def save_commit(self, app_uuid: str, app_id: int, commit: str) -> None:
        """Remember the release that an app settled on."""
        sql = "INSERT OR REPLACE INTO current_commit VALUES (?, ?, ?)"
        self._db.promise((sql, (app_uuid, app_id, commit)))

    def commits(self) -> Mapping[str, str]:
        """The last settled commit of each app, by app uuid."""
        return dict(self._db.rows("SELECT app_uuid, commit_ FROM current_commit"))

    def setting(self, key: str) -> Json:
        """A kept setting; None when there is none."""
        rows = self._db.rows("SELECT v FROM setting WHERE k = ?", (key,))
        return _json(rows[0][0]) if rows else None

    def set_setting(self, key: str, value: Json) -> None:
        """Keep a setting; None removes it."""
        if value is None:
            self._db.promise(("DELETE FROM setting WHERE k = ?", (key,)))
        else:
            sql = "INSERT OR REPLACE INTO setting VALUES (?, ?)"
            self._db.promise((sql, (key, json.dumps(value))))

    # -- what the peer left: a promise, once

    def imported_peer(self) -> bool:
        """Whether a heritage was taken on already."""
        return bool(self._db.rows("SELECT v FROM meta WHERE k = ?", (_FROM_PEER,)))

    def import_peer(self, left: Heritage) -> None:
        """Take on what the peer left, all of it or nothing, and only once. What this store has
        already stays as it is: it is younger. StoreUnavailable: nothing has changed."""
        with self._db.lock:
            if self.imported_peer():
                return
            now = self._now()
            target = left.target if not self.targets() else ""
            found = [(_PUT_TARGET, (SOURCE, target, now))] if target else []
            mark: Statement = ("INSERT INTO meta VALUES (?, ?)", (_FROM_PEER, str(now)))
            self._db.promise(*found, *_statements(left), mark)
        self._db.copy()
        self._write_last_good()

    # -- API keys: promises, but rather in memory than refused

    def global_key(self) -> str:
        """The key that reaches everything; made at first use."""
        return self._key(0, "", EVERYTHING, secrets.token_hex(16))

    def service_key(self, app_id: int, service: str) -> str:
        """The key of one service, for its own app.

        It is derived from a seed that every copy of the store holds, so keys made since the last
        copy come out the same after a repair.
        """
        said = f"{app_id}/{service}".encode()
        made = hmac.new(self._seed().encode(), said, hashlib.sha256).hexdigest()[:32]
        return self._key(app_id, service, Scope(app_id=app_id), made)

    def recover_key(self, app_id: int, service: str, key: str) -> None:
        """Take on the key that stands in the environment of a service's container, unless the
        service has a key already: after the loss of this store it stays valid."""
        values = (app_id, service, key, json.dumps(scopes_to_json(Scope(app_id=app_id))))
        self._keep(_PUT_KEY, values)

    def rotate_key(self, key: str) -> str:
        """Put a new key in the place of `key`, with the same scope. NotFound: no such key."""
        with self._db.lock:
            if self.scopes_of(key) is None:
                raise NotFound("no such API key")
            fresh = secrets.token_hex(16)
            self._db.promise(("UPDATE api_key SET key = ? WHERE key = ?", (fresh, key)))
            return fresh

    def scopes_of(self, key: str) -> Scope | None:
        """What a key may reach; None for a key that is not ours.

        All keys are compared to their ends, so the time tells nobody how close a guess was: an
        index would stop at the first character that differs.
        """
        asked, found = key.encode("utf-8", "replace"), None
        for known, scopes in self._db.rows("SELECT key, scopes FROM api_key"):
            if hmac.compare_digest(str(known).encode(), asked):
                found = scope_from_json(_json(scopes))
        return found

    def _seed(self) -> str:
        with self._db.lock:
            rows = self._db.rows("SELECT v FROM meta WHERE k = 'key_seed'")
            if rows:
                return str(rows[0][0])
            seed = os.urandom(32).hex()
            self._keep("INSERT OR IGNORE INTO meta VALUES ('key_seed', ?)", (seed,))
            return seed

    def _key(self, app_id: int, service: str, scope: Scope, made: str) -> str:
        sql = "SELECT key FROM api_key WHERE app_id = ? AND service_name = ?"
        with self._db.lock:
            rows = self._db.rows(sql, (app_id, service))
            if rows:
                return str(rows[0][0])
            self._keep(_PUT_KEY, (app_id, service, made, json.dumps(scopes_to_json(scope))))
            return made

    def _keep(self, sql: str, values: tuple[object, ...]) -> None:
        """Without its key a service cannot even be created: a full disk must not forbid that."""
        try:
            self._db.promise((sql, values))
        except StoreUnavailable:
            self._db.note((sql, values))

    # -- containers and images: notes

    def save_specs(self, specs: Mapping[str, ContainerSpec]) -> None:
        """Note what containers (ids) were asked to be. Never fails for a full disk."""
        now = self._now()
        self._note((_PUT_SPEC, (i, s.digest(), s.to_json(), now)) for i, s in specs.items())

    def specs(self) -> Mapping[str, ContainerSpec]:
        """What containers were asked to be, by id; what does not parse any more is left out."""
        found: dict[str, ContainerSpec] = {}
        rows = self._db.rows("SELECT container_id, intent FROM container_intent")
        for container_id, text in rows:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                found[container_id] = spec_from_json(text)
        return found

    def save_origins(self, origins: Mapping[str, Origin]) -> None:
        """Note where containers (ids) came from. Never fails for a full disk."""
        self._note(
            (_PUT_ORIGIN, (i, o.boot, json.dumps(dict(o.parents)))) for i, o in origins.items()
        )

    def origins(self) -> Mapping[str, Origin]:
        """Where containers came from, by id; what does not parse any more is left out."""
        rows = self._db.rows("SELECT container_id, boot, parents FROM container_origin")
        read = ((container_id, boot, _json(parents)) for container_id, boot, parents in rows)
        return {i: Origin(boot, parents) for i, boot, parents in read if isinstance(parents, dict)}

    def save_tolerated(self, container_id: str, fields: Mapping[str, Json]) -> None:
        """Note where the engine made something else of a container whose spec is noted, and what:
        fields with their live values."""
        self._note([(_PUT_TOLERATED, (json.dumps(dict(fields)), container_id))])

    def tolerated(self) -> Mapping[str, Mapping[str, Json]]:
        """What `save_tolerated` noted, by container id; without those that have nothing."""
        sql = "SELECT container_id, tolerated FROM container_intent WHERE tolerated != '{}'"
        found = {container_id: _json(text) for container_id, text in self._db.rows(sql)}
        return {i: fields for i, fields in found.items() if isinstance(fields, dict)}

    def forget_containers(self, ids: frozenset[str]) -> None:
        """Drop every note about containers that are gone."""
        for table in ("container_intent", "stopped_by_agent", "container_origin"):
            self._note((f"DELETE FROM {table} WHERE container_id = ?", (i,)) for i in ids)

    def save_stopped_by_agent(self, stopped: Mapping[str, str]) -> None:
        """Make `stopped` all the containers (ids) that the agent itself stopped, with the start
        that it put an end to, in the engine's form or "".

        Synced to disk if it can be: without this note a power cut leaves them stopped for ever.
        """
        add = "INSERT INTO stopped_by_agent (container_id, started_at) VALUES (?, ?)"
        everything: Statement = ("DELETE FROM stopped_by_agent", ())
        self._db.note(everything, *((add, each) for each in stopped.items()), full=True)

    def stopped_by_agent(self) -> Mapping[str, str]:
        """What `save_stopped_by_agent` noted: the agent may have to start them again."""
        return dict(self._db.rows("SELECT container_id, started_at FROM stopped_by_agent"))

    def own_images(self, references: frozenset[str]) -> None:
        """Add references that a target of ours named: the only ones we may ever remove."""
        self._note((_PUT_IMAGE, (r,)) for r in references)

    def disown_image(self, reference: str) -> None:
        """The reference is not ours to remove any more."""
        self._note([("DELETE FROM own_image WHERE reference = ?", (reference,))])

    def owned_images(self) -> frozenset[str]:
        """Every reference that targets of ours named."""
        return frozenset(r for (r,) in self._db.rows("SELECT reference FROM own_image"))

    def save_fetch_failures(self, failures: Mapping[str, FetchFailure]) -> None:
        """Note how often fetches (references) have failed since they last succeeded."""
        sql = "INSERT OR REPLACE INTO fetch_fail VALUES (?, ?, ?, ?)"
        self._note((sql, (name, f.count, f.at, f.error)) for name, f in failures.items())

    def forget_fetch_failures(self, references: frozenset[str]) -> None:
        """These fetches have succeeded, or nobody wants them any more."""
        sql = "DELETE FROM fetch_fail WHERE name = ?"
        self._note((sql, (reference,)) for reference in references)

    def fetch_failures(self) -> Mapping[str, FetchFailure]:
        """The fetches (references) that have failed."""
        rows = self._db.rows("SELECT name, n, at_wall, error FROM fetch_fail")
        return {name: FetchFailure(n, at, error) for name, n, at, error in rows}

    def save_obtained(self, image_id: str, obtained: Obtained) -> None:
        """Note which image was fetched for a reference. Never fails."""
        self._quietly((_PUT_OBTAINED, _obtained_row(image_id, obtained)))

    def forget_obtained(self, image_id: str, obtained: Obtained) -> None:
        """The image is gone, or not kept under this reference any more. Never fails."""
        self._quietly((_DROP_OBTAINED, _obtained_row(image_id, obtained)))

    def obtained_images(self) -> Mapping[str, frozenset[Obtained]]:
        """What images (ids) were fetched for."""
        found: dict[str, frozenset[Obtained]] = {}
        sql = "SELECT image_id, reference, app_id, service_name FROM obtained_image"
        for image_id, *rest in self._db.rows(sql):
            found[image_id] = found.get(image_id, frozenset()) | {Obtained(*rest)}
        return found

    def _quietly(self, statement: Statement) -> None:
        with contextlib.suppress(StoreUnavailable, Broken):
            self._db.note(statement)

    def _note(self, statements: Iterator[Statement] | list[Statement]) -> None:
        known = list(statements)
        if known:
            self._db.note(*known)

    # -- the last resort

    def _write_last_good(self) -> None:
        rows = self._db.rows("SELECT source, raw, received_at FROM target_doc")
        known = {source: {"raw": raw, "received_at": at} for source, raw, at in rows}
        with contextlib.suppress(OSError):  # the database holds the target already
            write_private(self._last_good, json.dumps(known).encode())

    def _restore_targets(self) -> tuple[str, ...]:
        """Take targets from the last resort if the database has none; says what it took."""
        found = () if self.targets() else self._read_last_good()
        with contextlib.suppress(StoreUnavailable):
            for source, raw, received in found:
                self._db.promise((_PUT_TARGET, (source, raw, received)))
        return tuple(f"target of {source} restored from {LAST_GOOD}" for source, _, _ in found)

    def _read_last_good(self) -> tuple[tuple[str, str, float], ...]:
        try:
            known = json.loads(self._last_good.read_bytes())
            return tuple(
                (str(source), str(doc["raw"]), float(doc["received_at"]))
                for source, doc in known.items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return ()


def _statements(left: Heritage) -> Iterator[Statement]:
    """A heritage but for its target; nothing in it takes the place of what is there."""
    for known in left.keys:
        scopes = json.dumps(scopes_to_json(known.scope))
        yield _PUT_KEY, (known.app_id, known.service, known.key, scopes)
    for each in left.commits:
        values = (each.app_uuid, each.app_id, each.commit)
        yield "INSERT OR IGNORE INTO current_commit VALUES (?, ?, ?)", values
    for key, value in left.settings.items():
        yield "INSERT OR IGNORE INTO setting VALUES (?, ?)", (key, json.dumps(value))
    for reference in left.images:
        yield _PUT_IMAGE, (reference,)
    for image_id, obtained in left.obtained:
        yield _PUT_OBTAINED, _obtained_row(image_id, obtained)


def _obtained_row(image_id: str, obtained: Obtained) -> tuple[object, ...]:
    return (image_id, obtained.reference, obtained.app_id, obtained.service)


def _json(text: str) -> Json:
    """What a text of ours means; None if it was damaged."""
    try:
        return json.loads(text)
    except ValueError:
        return None
