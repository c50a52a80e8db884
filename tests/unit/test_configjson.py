"""config.json as text: a change touches its own keys and nothing else (spec 30 §2)."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from balena_agent.core.configjson import (
    Changes,
    ConfigFault,
    ConfigJson,
    changed_keys,
    first_identity,
    merged,
    parse,
)


def test_a_change_keeps_the_form_of_the_text() -> None:
    compact = b'{"uuid":"a","custom":{"x":1},"applicationId":"77"}'
    assert merged(compact, {("hostname",): "k"}) == (
        b'{"uuid":"a","custom":{"x":1},"applicationId":"77","hostname":"k"}'
    )
    pretty = json.dumps({"uuid": "a", "z": [1]}, indent=2).encode() + b"\n"
    wanted = json.dumps({"uuid": "b", "z": [1]}, indent=2).encode() + b"\n"
    assert merged(pretty, {("uuid",): "b"}) == wanted


def test_what_is_said_already_changes_not_one_byte() -> None:
    odd = b'{ "uuid" : "a",\n\n "n": 1.0}'
    assert merged(odd, {("uuid",): "a", ("gone",): None, ("os", "fan", "profile"): None}) is odd


def test_keys_below_keys() -> None:
    raw = b'{"os":{"power":{"mode":"x","more":1},"sshKeys":["k"]}}'
    after = parse(merged(raw, {("os", "power", "mode"): None, ("os", "fan", "profile"): "cool"}))
    assert after == {"os": {"power": {"more": 1}, "sshKeys": ["k"], "fan": {"profile": "cool"}}}
    back = parse(merged(json.dumps(after).encode(), {("os", "fan", "profile"): None}))
    assert back == {"os": {"power": {"more": 1}, "sshKeys": ["k"]}}
    assert parse(merged(b'{"os":5}', {("os", "fan", "profile"): "c"})) == {
        "os": {"fan": {"profile": "c"}}
    }


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{broken", "is not valid JSON (line 1)"),
        (b'{\n"a": 1,\n"b": x}', "is not valid JSON (line 3)"),
        (b"[1]", "must hold a JSON object"),
        (b"\xff\xfe{}", "is not valid JSON (line 1)"),
        (b"[" * 100_000, "is not valid JSON (line 1)"),
    ],
)
def test_a_text_that_is_no_configuration(raw: bytes, said: str) -> None:
    with pytest.raises(ConfigFault) as fault:
        merged(raw, {("uuid",): "x"})
    assert str(fault.value) == said


def test_half_a_character_stays_an_escape() -> None:
    """Other programs read the file as UTF-8."""
    raw = b'{"name":"\\ud83d","city":"K\xc3\xb6ln"}'
    after = merged(raw, {("uuid",): "x"})
    assert json.loads(after.decode()) == {"name": "\ud83d", "city": "K\u00f6ln", "uuid": "x"}


def test_random_changes_to_random_configurations() -> None:
    """Every key that is not named survives, and a second merge changes nothing."""
    for seed in range(500):
        rng = random.Random(seed)
        before = _document(rng, 2)
        indent = rng.choice((None, 2, 4))
        raw = json.dumps(before, indent=indent).encode() + rng.choice((b"", b"\n"))
        changes: Changes = {_path(rng): rng.choice((1, "t", None)) for _ in range(rng.randrange(4))}
        named = {path[0] for path in changes}
        after = merged(raw, changes)
        left = parse(after)
        assert {k: v for k, v in left.items() if k not in named} == {
            k: v for k, v in before.items() if k not in named
        }
        config = ConfigJson(left)
        for path, value in changes.items():
            overtaken = any(path != other and path[0] == other[0] for other in changes)
            assert overtaken or config.at(path) == value, seed
        assert merged(after, changes) == after or len(named) < len(changes), seed


def _path(rng: random.Random) -> tuple[str, ...]:
    return (rng.choice("abcde"), *(("x",) if rng.random() < 0.3 else ()))


def _document(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        key: _document(rng, depth - 1) if depth and rng.random() < 0.3 else rng.choice((1, "é", []))
        for key in rng.sample("abcdexyz", rng.randrange(6))
    }


@pytest.mark.parametrize("text", ["9" * 19, "9" * 5000, "-" + "1" * 5000, "\u0661"])
def test_a_number_that_nobody_can_mean_is_none(text: str) -> None:
    """Python itself refuses to read the longest, and the agent has to start all the same."""
    config = ConfigJson({"listenPort": text})
    assert config.number("listenPort", 48484) == 48484 and len(config.problems) == 1


def test_the_identity_is_made_once() -> None:
    assert first_identity({}, "u", "k") == {("uuid",): "u"}
    managed = {"apiEndpoint": "https://x"}
    assert first_identity(managed, "u", "k") == {("uuid",): "u", ("deviceApiKey",): "k"}
    assert first_identity(managed | {"uuid": "mine", "deviceApiKey": "own"}, "u", "k") == {}


def test_secrets_are_not_told() -> None:
    config = ConfigJson({"deviceApiKey": ["s3cret"], "apiEndpoint": 5})
    assert (config.text("deviceApiKey"), config.text("apiEndpoint")) == ("", "")
    assert config.problems == [
        "config.json: deviceApiKey must be text but is (not shown); ignored",
        "config.json: apiEndpoint must be text but is 5; ignored",
    ]


def test_changed_keys() -> None:
    assert changed_keys({"a": 1, "b": 2, "c": {}}, {"a": 1, "b": 3, "d": None}) == {"b", "c"}
