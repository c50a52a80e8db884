"""Jobs: commands under way, as objects that a caller can watch.

Theory: a method that starts something long returns at once with a job, and the job follows the
command's future. Jobs are counted, never reused, and stay for a minute after their end so that a
caller who looks late still learns how it went. Lives in the bus thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..core.errors import AgentError, Broken, NotFound
from ..core.intent import ServiceKey
from .dbus_interface import JOB, ROOT
from .dbus_tree import IDLE

KEPT_SECONDS = 60.0
_WHOLE = 100.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    path: str
    kind: str
    key: ServiceKey
    state: str = "running"
    message: str = ""
    error: str = ""

    @property
    def subject(self) -> str:
        return "/".join(filter(None, self.key))

    def values(self, progress: float, status: str) -> Mapping[str, Any]:
        """`status` is what the agent is at: that is how far a job about all apps has come."""
        under_way = status if self.state == "running" and not self.subject else self.message
        return {
            "Kind": self.kind,
            "Subject": self.subject,
            "State": self.state,
            "Progress": _WHOLE if self.state == "done" else progress,
            "Message": under_way,
            "Error": self.error,
        }


class Jobs:
    """`on_end` is told of each job that has ended; `later(seconds, action)` is the loop's timer;
    `post(action, ...)` brings an action into the bus thread."""

    def __init__(
        self,
        on_end: Callable[[Job], None],
        later: Callable[[float, Callable[[], None]], object],
        post: Callable[..., None],
    ) -> None:
        self._on_end = on_end
        self._later = later
        self._post = post
        self._jobs: dict[str, Job] = {}
        self._count = 0

    def follow(self, kind: str, key: ServiceKey, future: Future[str]) -> Job:
        """A new job for a command that was accepted."""
        self._count += 1
        job = Job(f"{ROOT}/job/{self._count}", kind, key)
        self._jobs[job.path] = job
        future.add_done_callback(lambda done: self._post(self._ended, job, done))
        return job

    def cancel(self, path: str) -> None:
        """Follow a job no longer; the command itself stands. NotFound for none."""
        job = self._jobs.get(path)
        if job is None:
            raise NotFound(f"no job at {path}")
        self._end(job, "cancelled", "no longer followed; what was asked for stands")

    def cancel_all(self, reason: str) -> None:
        for job in list(self._jobs.values()):
            self._end(job, "cancelled", reason)

    def objects(
        self, progress: Mapping[ServiceKey, float], status: str
    ) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """All jobs as bus objects; `progress` of the downloads by service, and of all of them under
        an empty name."""
        return {
            path: {JOB.name: job.values(progress.get(job.key, IDLE), status)}
            for path, job in self._jobs.items()
        }

    def _ended(self, job: Job, future: Future[str]) -> None:
        if future.cancelled():
            self._end(job, "cancelled", "given up")
            return
        error = future.exception()
        if error is None:
            self._end(job, "done", future.result())
        elif isinstance(error, AgentError):
            self._end(job, "failed", error.message, error.dbus_name)
        else:
            _log.error("%s %s failed", job.kind, job.subject, exc_info=error)
            self._end(job, "failed", "internal error", Broken.dbus_name)

    def _end(self, job: Job, state: str, message: str, error: str = "") -> None:
        if job.state != "running":
            return
        job.state, job.message, job.error = state, message, error
        self._on_end(job)
        self._later(KEPT_SECONDS, lambda: self._forget(job))

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.path, None)
