"""The options of POST /v2/journal-logs, and the words that become of them."""

from __future__ import annotations

from typing import Any

import pytest

from balena_agent.core.errors import InvalidInput
from balena_agent.core.journalquery import JournalQuery, arguments, read_query


def words(**body: Any) -> list[str]:
    return list(arguments(read_query(body)))


def test_nothing_asked_for_is_the_whole_journal() -> None:
    assert words() == ["--no-pager", "--output=short"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"all": True}, "--all"),
        ({"all": "on"}, "--all"),
        ({"follow": 1}, "--follow"),
        ({"count": 5}, "--lines=5"),
        ({"count": "5"}, "--lines=5"),
        ({"unit": "docker.service"}, "--unit=docker.service"),
        ({"unit": r"dev-disk-by\x2dlabel.device"}, r"--unit=dev-disk-by\x2dlabel.device"),
        ({"unit": "getty@tty1.service"}, "--unit=getty@tty1.service"),
        ({"containerId": "0123456789ab"}, "--identifier=0123456789ab"),
        ({"containerId": 123456789012}, "--identifier=123456789012"),
        ({"since": "2026-01-02 03:04:05"}, "--since=2026-01-02 03:04:05"),
        ({"since": "-1h"}, "--since=-1h"),
        ({"until": "yesterday"}, "--until=yesterday"),
        ({"until": 1700000000}, "--until=1700000000"),
        ({"format": "short-iso"}, "--output=short-iso"),
    ],
)
def test_an_option_is_one_word(body: dict[str, Any], word: str) -> None:
    assert word in words(**body)
    assert all(each.startswith("--") for each in words(**body))


@pytest.mark.parametrize(
    "body",
    [{"count": 0}, {"count": -3}, {"count": "many"}, {"all": "yes"}, {"follow": None},
     {"unit": ""}, {"unit": None}, {"since": "null"}, {"since": "undefined"}, {"unit": True}],
)  # fmt: skip
def test_what_asks_for_nothing_is_left_out(body: dict[str, Any]) -> None:
    assert words(**body) == words()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "nonsense"),
        ("format", "help"),
        ("unit", "a b"),
        ("unit", "*"),
        ("unit", "a.service\n--vacuum-time=1s"),
        ("unit", "x" * 300),
        ("containerId", "--file=/etc/shadow"),
        ("containerId", "a b"),
        ("since", "$(reboot)"),
        ("since", "now;reboot"),
        ("until", "now\n"),
        ("until", "now\x00"),
        ("count", [1]),
        ("count", {"a": 1}),
        ("all", [True]),
        ("unit", ["docker.service"]),
    ],
)
def test_a_wrong_option_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"^{name}: "):
        read_query({name: value})


def test_containers_count_only_as_their_engine_tells_it() -> None:
    query = JournalQuery(format="json", containers=("a1", "b2"), fields=("MESSAGE", "PRIORITY"))
    assert arguments(query, ["docker.service"])[-4:] == (
        "--output-fields=MESSAGE,PRIORITY",
        "_SYSTEMD_UNIT=docker.service",
        "CONTAINER_ID_FULL=a1",
        "CONTAINER_ID_FULL=b2",
    )
