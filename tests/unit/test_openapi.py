"""The description of the API and the API: every route is in it, and nothing else."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import device_states
import pytest

from balena_agent.api.auth import Auth
from balena_agent.api.http import build
from balena_agent.api.logs import LogStreams
from balena_agent.api.streams import Streams
from balena_agent.runtime.state import Published

DOCUMENT: dict[str, Any] = json.loads((files("balena_agent.api") / "openapi.json").read_text())


class NoKeys:
    def global_key(self) -> str:
        return ""

    def service_key(self, app_id: int, service: str) -> str:
        return ""

    def scopes_of(self, key: str) -> None:
        return None


def _never(*_: Any) -> Any:
    raise AssertionError("no request is made here")


def routes() -> set[tuple[str, str]]:
    published = Published(device_states.m1())
    logs = LogStreams(Streams(), _never, _never, lambda: published.current)
    app = build(published, _never, Auth(NoKeys()), more=logs.endpoints())
    return {(r.method, re.sub(r"<.*?>", "{}", r.rule).lower()) for r in app.bottle.routes}


def described() -> set[tuple[str, str]]:
    return {
        (method.upper(), re.sub(r"{.*?}", "{}", path).lower())
        for path, operations in DOCUMENT["paths"].items()
        for method in operations
    }


def test_every_route_is_described() -> None:
    assert routes() - described() == set()


def test_everything_described_is_served() -> None:
    assert described() - routes() == set()


def operations() -> list[Any]:
    return [
        pytest.param(operation, id=operation["operationId"])
        for path in DOCUMENT["paths"].values()
        for operation in path.values()
    ]


def test_operations_have_ids_of_their_own() -> None:
    ids = [parameter.id for parameter in operations()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("operation", operations())
def test_answers_are_described(operation: dict[str, Any]) -> None:
    closed = operation.get("security") != []
    assert ("401" in operation["responses"]) == closed
    for answer in operation["responses"].values():
        assert "$ref" in answer or answer["description"]


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        found = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return found + [each for inner in value.values() for each in references(inner)]
    return (
        [each for inner in value for each in references(inner)] if isinstance(value, list) else []
    )


def test_references_lead_somewhere() -> None:
    for reference in references(DOCUMENT):
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found
