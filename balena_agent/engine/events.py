"""The engine's events, as nothing but a reason to look again.

Theory: an event may be missed, doubled or misunderstood; only a look tells the truth. So an event
becomes a `Touch` of the object that it names. What is not understood touches everything, what says
nothing about state (exec, attach, top, resize, push, mount) is not even asked for. When the stream
ends, everything is woken, because nobody knows what is missed; when it is back, `reconnected` is
called after the stream is open and before its first event, so that the full look that follows
overlaps with the events and leaves no gap (spec 60 §4.3).

Containers that are not ours are told apart by the labels that their events carry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..core.errors import AgentError
from ..core.looks import Touch
from .client import Link, filters
from .observe import is_ours
from .stream import Stream

FIRST_PAUSE = 0.2
LAST_PAUSE = 5.0
OPENING = 10.0

_ASKED = {
    "container": (
        "create", "start", "die", "destroy", "rename", "pause", "unpause", "update",
        "health_status", "stop",
    ),
    "network": ("create", "destroy", "remove", "update", "connect", "disconnect"),
    "volume": ("create", "destroy"),
    "image": ("pull", "tag", "untag", "delete", "load", "import"),
}  # fmt: skip

EVERYTHING = Touch(everything=True)

Wake = Callable[[Touch], None]


class Stop(Protocol):
    """What a threading.Event is to us."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Events:
    """The event stream of one engine: `watch` is the body of a thread, `close` ends it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._closed = False

    def watch(self, wake: Wake, stop: Stop, reconnected: Callable[[], None]) -> None:
        """Wake until `stop` is set or `close` is called. Raises nothing of the engine's: while it
        is away the stream is tried again, with pauses that grow and that `stop` cuts short. An
        engine that takes us in only to drop us again gets the same growing pauses."""
        pause = FIRST_PAUSE
        while not stop.is_set() and (stream := self._next_stream()):
            began = time.monotonic()
            self._follow(stream, wake, reconnected)
            if time.monotonic() - began > LAST_PAUSE:
                pause = FIRST_PAUSE
            if self._closed or stop.wait(pause):
                return
            pause = min(2 * pause, LAST_PAUSE)

    def close(self) -> None:
        """End the stream for good; a blocked `watch` returns within milliseconds. In a pause it
        returns when the pause is over, unless `stop` was set before."""
        with self._lock:
            self._closed = True
            stream = self._stream
        if stream:
            stream.close()

    def _next_stream(self) -> Stream | None:
        wanted = {
            "type": list(_ASKED),
            "event": sorted({name for names in _ASKED.values() for name in names}),
        }
        stream = Stream(self._link, "GET", "/events", filters(**wanted), opening=OPENING)
        with self._lock:
            if self._closed:
                return None
            self._stream = stream
        return stream

    def _follow(self, stream: Stream, wake: Wake, reconnected: Callable[[], None]) -> None:
        """Read one stream to its end."""
        opened = False
        try:
            with stream:
                opened = True
                reconnected()
                for event in stream:
                    if touch := touch_of(event):
                        wake(touch)
        except AgentError:
            pass  # an engine that is away is a state, which the next full look reports
        if opened and not stream.closed:
            wake(EVERYTHING)


def touch_of(event: Mapping[str, Any]) -> Touch:
    """What an event says to look at; an empty touch when it concerns nothing of ours."""
    actor = event.get("Actor")
    kind, action = event.get("Type"), event.get("Action")
    if not isinstance(actor, Mapping) or not isinstance(action, str) or kind not in _ASKED:
        return EVERYTHING
    about, attributes = actor.get("ID"), actor.get("Attributes") or {}
    if not isinstance(about, str) or not about or not isinstance(attributes, Mapping):
        return EVERYTHING
    if action.partition(":")[0] not in _ASKED[kind]:
        return Touch()
    return _touch(kind, action, about, attributes)


def _touch(kind: str, action: str, about: str, attributes: Mapping[str, Any]) -> Touch:
    one = frozenset({about})
    if kind == "container":
        return Touch(containers=one) if is_ours(attributes) else Touch()
    if kind == "volume":
        return Touch(volumes=one)
    if kind == "image":
        return Touch(images=one)
    if action not in ("connect", "disconnect"):
        return Touch(networks=one)
    member = attributes.get("container")  # who joins or leaves changes, the network does not
    return Touch(containers=frozenset({member})) if isinstance(member, str) else EVERYTHING
