"""When to look at the engine, and how much of it.

Theory: the full look is the truth: at start, when the engine is back, after a new target, after
anything unexplained, and once a minute. In between, partial looks refresh what an event or a step
names. While the engine does not answer only the full look is tried, with growing pauses; it is
also how we find out that the engine is back. Looks run on workers and come back as `Looked`.

Most events are echoes of our own steps, and a step looks at its container when it ends. So what an
event says about a container that is in hand is held until then. It is dropped only if a look that
began after the event was taken has seen the container; else it gets a look of its own.

Invariant: at most one full look that counts is under way; one that began before it was asked for
anew is ignored when it comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..core.errors import AgentError, Broken
from ..core.looks import Patch, Touch
from ..core.observed import Observed
from .executor import Executor
from .ports import Clock, Engine

_log = logging.getLogger(__name__)

FULL_LOOK_SECONDS = 60.0
RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Looked:
    """A look has ended: `seen` is a whole world, a patch, or why there is neither."""

    seen: Observed | Patch | AgentError
    asked: int


class Lookout:
    """Used by the reconciler's thread; `post` may be called from workers."""

    def __init__(
        self, engine: Engine, executor: Executor, clock: Clock, post: Callable[[Looked], None]
    ) -> None:
        self._engine = engine
        self._executor = executor
        self._clock = clock
        self._post = post
        self._touch = Touch()
        self._containers: dict[str, int] = {}
        """The touched containers, with the number that a look at them has to exceed."""
        self._due = clock.monotonic()
        self._under_way = 0
        self._failures = 0

    def ask(self, touch: Touch) -> None:
        """Look at this at the next opportunity."""
        if touch.containers:
            self._containers |= dict.fromkeys(touch.containers, self._executor.next_look())
        self._touch = self._touch | replace(touch, containers=frozenset())

    def seen(self, containers: Iterable[str], asked: int) -> None:
        """The look with the number `asked` has shown these containers."""
        for key in containers:
            if self._containers.get(key, asked) < asked:
                del self._containers[key]

    def ask_all(self, delay: float = 0.0) -> None:
        """A full look that begins after now, whatever is under way already."""
        self._under_way = 0
        self._due = self._clock.monotonic() + delay

    def rest(self) -> float | None:
        """Seconds until a full look is due; None while one is under way."""
        return None if self._under_way else self._due - self._clock.monotonic()

    def start(self, engine_up: bool, in_hand: Callable[[str], bool]) -> None:
        """Begin what is due. `in_hand`: whether a step will look at this container anyway."""
        if self._touch.everything:
            self._due = min(self._due, self._clock.monotonic())
            self._touch = replace(self._touch, everything=False)
        if not self._under_way and self._due <= self._clock.monotonic():
            self._begin_full()
        elif engine_up and not self._under_way:
            self._begin_partial(frozenset(key for key in self._containers if not in_hand(key)))

    def is_current(self, looked: Looked) -> bool:
        """Whether a full look that came back is the one that counts; it is then over."""
        current = looked.asked == self._under_way
        if current:
            self._under_way = 0
        return current

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> bool:
        """The engine did not answer: try again, after a growing pause. True the first time."""
        pause = RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)]
        self._failures += 1
        self.ask_all(pause)
        return self._failures == 1

    def _begin_full(self) -> None:
        self._under_way = self._executor.next_look()
        self._due = self._clock.monotonic() + FULL_LOOK_SECONDS
        self._touch, self._containers = Touch(), {}
        self._run(self._engine.observe, self._under_way)

    def _begin_partial(self, containers: frozenset[str]) -> None:
        touch = replace(self._touch, containers=containers)
        if touch:
            self._touch = Touch()
            self._containers = {k: n for k, n in self._containers.items() if k not in containers}
            self._run(lambda: self._engine.look(touch), self._executor.next_look())

    def _run(self, look: Callable[[], Observed | Patch], asked: int) -> None:
        self._executor.submit(lambda: self._post(Looked(_tried(look), asked)))


def _tried(look: Callable[[], Observed | Patch]) -> Observed | Patch | AgentError:
    try:
        return look()
    except AgentError as error:
        return error
    except Exception as error:
        _log.exception("defect in a look")
        return Broken(f"internal error: {type(error).__name__}")
