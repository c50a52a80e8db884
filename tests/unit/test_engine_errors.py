"""engine/failures.py and what else of engine/ is pure: errors, references, paths, events."""

from __future__ import annotations

import http.client
from typing import Any

import pytest
import requests.exceptions as requests_errors
from docker.errors import APIError, DockerException
from urllib3.exceptions import MaxRetryError, ProtocolError, ReadTimeoutError

from balena_agent.core.errors import (
    AgentError,
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    EngineUnavailable,
)
from balena_agent.core.looks import Touch
from balena_agent.core.reference import parse_reference
from balena_agent.engine.client import Deadline, path
from balena_agent.engine.events import EVERYTHING, touch_of
from balena_agent.engine.failures import is_missing, meaning, refused, translated

POOL: Any = None


def wrapped(error: BaseException) -> requests_errors.ConnectionError:
    """The way in which the library passes on what urllib3 says."""
    return requests_errors.ConnectionError(MaxRetryError(POOL, "/x", error))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory"),
        ConnectionRefusedError(111, "Connection refused"),
        wrapped(ProtocolError("Connection aborted.", FileNotFoundError(2, "No such file"))),
        requests_errors.ChunkedEncodingError("Connection broken"),
        ProtocolError("Connection broken"),
        http.client.RemoteDisconnected("Remote end closed connection"),
        DockerException("something about the daemon"),
    ],
)
def test_a_missing_engine_is_unavailable(error: Exception) -> None:
    assert isinstance(meaning(error, "GET /x"), EngineUnavailable)


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("timed out"),
        requests_errors.ReadTimeout("Read timed out."),
        requests_errors.ConnectTimeout("timed out"),
        ReadTimeoutError(POOL, "/x", "Read timed out."),
        requests_errors.ConnectionError(ReadTimeoutError(POOL, "/x", "Read timed out.")),
        wrapped(TimeoutError("timed out")),
    ],
)
def test_a_time_limit_is_a_deadline_however_it_is_wrapped(error: Exception) -> None:
    found = meaning(error, "GET /x")
    assert isinstance(found, DeadlineExceeded)
    assert "GET /x" in str(found)


def test_the_reason_is_told_in_a_few_words() -> None:
    error = wrapped(ProtocolError("aborted", FileNotFoundError(2, "No such file or directory")))
    found = meaning(error, "GET /x")
    assert isinstance(found, EngineUnavailable)
    assert found.reason == "No such file or directory"


def test_the_engine_speaks_in_its_own_words() -> None:
    assert str(refused(409, b'{"message":"volume is in use"}\n')) == "volume is in use"
    assert str(refused(404, b"404 page not found\n")) == "404 page not found"
    assert str(refused(500, b"")) == "status 500"
    assert str(refused(500, b'["odd"]')) == '["odd"]'
    assert refused(409, b"{}").status == 409
    assert is_missing(refused(404, b"")) and not is_missing(refused(409, b""))


def test_an_error_of_the_library_keeps_words_and_status() -> None:
    response = requests_errors.HTTPError().response
    found = meaning(APIError("500 Server Error", response, "no space left on device"), "x")
    assert isinstance(found, EngineFailed)
    assert str(found) == "no space left on device"


def test_an_earlier_error_of_ours_is_no_reason_of_a_new_one() -> None:
    """While a stop that overran is followed by a kill, the kill's errors are its own."""
    try:
        try:
            raise DeadlineExceeded("stop") from TimeoutError()
        except DeadlineExceeded:
            raise ConnectionRefusedError(111, "Connection refused") from None
    except ConnectionRefusedError as error:
        error.__suppress_context__ = False
        assert isinstance(meaning(error, "POST /kill"), EngineUnavailable)


def test_the_cause_is_chained_and_ours_pass() -> None:
    cause = ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(EngineUnavailable) as caught, translated("x"):
        raise cause
    assert caught.value.__cause__ is cause
    ours = Cancelled("x")
    with pytest.raises(AgentError) as same, translated("x"):
        raise ours
    assert same.value is ours


def test_a_defect_is_no_error_of_the_engine() -> None:
    with pytest.raises(KeyError), translated("x"):
        raise KeyError("Id")


def test_a_deadline_bounds_a_chain_of_calls() -> None:
    now = [100.0]
    deadline = Deadline(10, lambda: now[0])
    assert deadline.left(60) == 10
    assert deadline.left(3) == 3
    now[0] = 108
    assert deadline.left(60) == 2
    now[0] = 110
    with pytest.raises(DeadlineExceeded):
        deadline.left(60)


def test_paths_keep_the_slashes_of_images_only() -> None:
    assert path("images", "host:5000/a/b@sha256:1", "json") == "/images/host:5000/a/b@sha256:1/json"
    assert path("networks", "a b?c#d", "connect") == "/networks/a%20b%3Fc%23d/connect"


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("web", ("web", "latest")),
        ("host:5000/web", ("host:5000/web", "latest")),
        ("host:5000/web:2", ("host:5000/web", "2")),
        ("localhost/web@sha256:" + "ab" * 32, ("localhost/web", "sha256:" + "ab" * 32)),
        ("a.b/web:2@sha256:" + "ab" * 32, ("a.b/web", "sha256:" + "ab" * 32)),
    ],
)
def test_a_reference_is_split_as_the_engine_wants_it(
    reference: str, parts: tuple[str, str]
) -> None:
    parsed = parse_reference(reference)
    assert (parsed.name, parsed.version) == parts


OURS = {"io.balena.supervised": "true"}


def event(kind: str, action: str, about: str, **attributes: str) -> dict[str, Any]:
    return {"Type": kind, "Action": action, "Actor": {"ID": about, "Attributes": attributes}}


@pytest.mark.parametrize(
    ("told", "touch"),
    [
        (event("container", "die", "c1", **OURS), Touch(containers=frozenset({"c1"}))),
        (
            event("container", "health_status: healthy", "c1", **{"io.resin.supervised": "1"}),
            Touch(containers=frozenset({"c1"})),
        ),
        (event("container", "die", "c1"), Touch()),
        (event("container", "exec_start: sh", "c1", **OURS), Touch()),
        (event("container", "top", "c1", **OURS), Touch()),
        (event("network", "create", "n1", name="x"), Touch(networks=frozenset({"n1"}))),
        (event("network", "connect", "n1", container="c1"), Touch(containers=frozenset({"c1"}))),
        (event("volume", "destroy", "1_data"), Touch(volumes=frozenset({"1_data"}))),
        (event("volume", "mount", "1_data"), Touch()),
        (event("image", "untag", "sha256:1"), Touch(images=frozenset({"sha256:1"}))),
        (event("network", "connect", "n1"), EVERYTHING),
        (event("daemon", "reload", "x"), EVERYTHING),
        ({"Type": "container", "Action": "die"}, EVERYTHING),
        ({"Type": "container", "Action": 7, "Actor": {"ID": "c1"}}, EVERYTHING),
        ({"Type": "container", "Action": "die", "Actor": {"ID": None}}, EVERYTHING),
        ({}, EVERYTHING),
    ],
)
def test_an_event_is_a_reason_to_look(told: dict[str, Any], touch: Touch) -> None:
    assert touch_of(told) == touch
