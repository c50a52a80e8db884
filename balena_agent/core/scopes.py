"""What an API key may reach, as a value.

Theory: a key names a scope; whoever holds the key acts within it (spec 10 §3.3). There are two
kinds: the global key reaches everything, a service's key reaches its own app. The store knows keys
and scopes, the HTTP face asks; both need the value, so it lives here.
"""

from __future__ import annotations

from dataclasses import dataclass

from .jsonread import Json, whole_number


@dataclass(frozen=True, slots=True)
class Scope:
    """`everything`, or the one app `app_id` (which means nothing when `everything`)."""

    everything: bool = False
    app_id: int = 0

    def in_scope(self, app_id: int) -> bool:
        return self.everything or self.app_id == app_id


EVERYTHING = Scope(everything=True)


def scopes_to_json(scope: Scope) -> list[Json]:
    """The peer's spelling: a list of `{"type": "global"}` or `{"type": "app", "appId": n}`."""
    if scope.everything:
        return [{"type": "global"}]
    return [{"type": "app", "appId": scope.app_id}]


def scope_from_json(raw: Json) -> Scope | None:
    """The scope that a list of the peer's scope objects grants; None when it grants nothing."""
    entries = [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []
    if any(entry.get("type") == "global" for entry in entries):
        return EVERYTHING
    apps = [whole_number(entry.get("appId")) for entry in entries if entry.get("type") == "app"]
    return next((Scope(app_id=app) for app in apps if app is not None), None)
