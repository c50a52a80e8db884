"""What an error of the engine's libraries means to us: the only place that knows those errors.

Theory: a call to the engine fails in one of three ways, and callers must not care in which library
it showed.

    no engine      EngineUnavailable   nobody listens, or the connection broke: the bare reason
    no answer      DeadlineExceeded    someone listens, but not in time
    an answer      EngineFailed        the engine said no: its own words and its HTTP status

A connection broken by a time limit counts as "no answer", however deep the library wrapped it.
What is none of these is a defect of ours and passes unchanged. The cause is always chained.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

from ..core.errors import AgentError, DeadlineExceeded, EngineFailed, EngineUnavailable

_DEPTH = 8
"""How many wrapped errors are unpacked in search of a time limit."""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Library errors inside the block leave it as ours; `doing` tells what was tried."""
    try:
        yield
    except AgentError:
        raise
    except Exception as error:
        meant = meaning(error, doing)
        if meant is None:
            raise
        raise meant from error


def meaning(error: BaseException, doing: str) -> AgentError | None:
    """The error of ours that `error` stands for, or None when it is no error of the engine."""
    from docker.errors import APIError, DockerException  # on the way of failure only
    from urllib3.exceptions import HTTPError

    if any(_is_timeout(part) for part in _unpacked(error)):
        return DeadlineExceeded(f"no answer from the engine in time: {doing}")
    if isinstance(error, APIError):
        return EngineFailed(str(error.explanation or error), error.status_code or 0)
    if isinstance(error, json.JSONDecodeError):
        return EngineFailed(f"the engine's answer cannot be read: {doing}")
    if isinstance(error, (OSError, HTTPError, DockerException, http.client.HTTPException)):
        return EngineUnavailable(_short(error))
    return None


def refused(status: int, body: bytes) -> EngineFailed:
    """The engine's answer with an HTTP status of 400 and more, as an error in its own words."""
    text = body.decode(errors="replace").strip()
    try:
        said: Any = json.loads(text)
    except ValueError:
        said = None
    message = said.get("message") if isinstance(said, dict) else None
    return EngineFailed(str(message or text or f"status {status}").strip(), status)


def is_missing(error: EngineFailed) -> bool:
    """Whether the engine said that there is no such object."""
    return error.status == 404


def _is_timeout(error: BaseException) -> bool:
    from requests.exceptions import Timeout
    from urllib3.exceptions import TimeoutError as PoolTimeout

    return isinstance(error, (TimeoutError, Timeout, PoolTimeout))


def _unpacked(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: libraries put the true reason into args or the chain."""
    waiting: list[BaseException] = [error]
    for _ in range(_DEPTH):
        if not waiting:
            return
        part = waiting.pop(0)
        yield part
        inner = (*part.args, getattr(part, "reason", None), part.__cause__, part.__context__)
        waiting += [each for each in inner if _is_foreign(each)]


def _is_foreign(part: object) -> TypeGuard[BaseException]:
    """An error that came with this one; one of ours in the chain is an earlier story."""
    return isinstance(part, BaseException) and not isinstance(part, AgentError)


def _short(error: BaseException) -> str:
    """The innermost reason in a few words: `No such file or directory`."""
    *_, last = _unpacked(error)
    if isinstance(last, OSError) and last.strerror:
        return last.strerror
    return str(last) or type(last).__name__
