"""Commands under way: what each of them waits for, and when its caller gets an answer.

Theory: a command changes the intent at once; whether it has been *met* is read off the world, like
everything else. An order keeps a command together with its caller's future. It ends when the world
shows what was asked for, or when a step that it depends on has failed since: then the intent is
taken back, because a caller who was told "no" must not find it done later. Callers are told once
the state that has it so is published.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

from ..core.cleanup import still_unneeded
from ..core.desired import Desired
from ..core.errors import AgentError, EngineUnavailable
from ..core.intent import (
    AppCommand,
    ConfigureNetwork,
    HostCommand,
    Intent,
    Power,
    RestartService,
    ServiceCommand,
    ServiceKey,
    StartService,
    StopService,
    as_before,
    without,
)
from ..core.observed import Container, Observed
from ..core.renewal import left_over
from ..core.traits import service_subject
from . import app_orders, telling
from .app_orders import AppOrder
from .ledger import Ledger

Answer = Future[str]


@dataclass(frozen=True, slots=True)
class Order:
    """`old` are the containers (ids) that the service had when the command came, `before` is the
    intent of then; `app` is there for a command about a whole app."""

    command: ServiceCommand | AppCommand | HostCommand
    answer: Answer
    key: ServiceKey = ("", "")
    app_id: int = -1
    old: frozenset[str] = field(default_factory=frozenset)
    app: AppOrder | None = None
    before: Intent = field(default_factory=Intent)

    def subjects(self) -> frozenset[str]:
        """What the steps work on whose failure is this order's failure."""
        if isinstance(self.command, HostCommand):
            return frozenset({"host"})
        if self.app:
            return self.app.subjects
        return frozenset({service_subject(*self.key), f"locks {self.app_id}"})

    def resolve(self, message: str) -> None:
        if not self.answer.done():
            self.answer.set_result(message)

    def reject(self, error: AgentError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class OrderBook:
    """All commands under way. Used by one thread."""

    def __init__(self) -> None:
        self._open: list[Order] = []
        self._owed: list[Callable[[], None]] = []

    def give(self, order: Order) -> None:
        self._open.append(order)

    def power_accepted(self) -> None:
        self._end(Power, "accepted by the host")

    def network_configured(self) -> None:
        self._end(ConfigureNetwork, "done")

    def _end(self, kind: type[HostCommand], message: str) -> None:
        for order in [o for o in self._open if isinstance(o.command, kind)]:
            self._owed.append(partial(order.resolve, message))
            self._open.remove(order)

    def answer(self) -> None:
        """Tell how the orders ended that have ended; to be called when that can be seen, so that
        whoever reads after an answer reads no state of before it."""
        owed, self._owed = self._owed, []
        for tell in owed:
            tell()

    def settle(
        self,
        intent: Intent,
        observed: Observed,
        desired: Desired,
        ledger: Ledger,
        busy: frozenset[str],
        engine_error: str,
    ) -> Intent:
        """End what is met or has failed; the intent without what was refused. With an engine that
        does not answer (`engine_error`) every order has failed. The newest goes first, so that
        several that are refused are taken back in turn, down to what was before them all."""
        for order in reversed(list(self._open)):
            message: str | None = None
            if order.app:
                intent = app_orders.spared(intent, order.app, ledger)
            if not engine_error and not order.subjects() & busy:
                message = met(order, intent, observed, desired)
            error = _error_about(order, intent, desired, ledger, engine_error)
            if message is not None:
                self._owed.append(partial(order.resolve, message))
            elif error:
                intent = take_back(intent, order)
                self._owed.append(partial(order.reject, error))
            else:
                continue
            telling.order_ended(order.command, error if message is None else None)
            self._open.remove(order)
        return intent


def _error_about(
    order: Order, intent: Intent, desired: Desired, ledger: Ledger, engine_error: str
) -> AgentError | None:
    if order.app:
        error = app_orders.error_about(order.app, intent, desired, ledger)
        return error or (EngineUnavailable(engine_error) if engine_error else None)
    errors = ledger.errors_about(order.subjects())
    command = order.command
    if isinstance(command, HostCommand):
        errors = ledger.lock_errors() + errors
    if errors:
        return errors[0]
    if not engine_error or (isinstance(command, HostCommand) and command.force):
        return None
    return EngineUnavailable(engine_error)


def containers_of(observed: Observed, key: ServiceKey) -> list[Container]:
    return [c for c in observed.containers.values() if c.key == key and c.name]


def intend(
    intent: Intent, command: ServiceCommand | HostCommand, old: frozenset[str], commit: str
) -> Intent:
    """The intent after a command about a service, or about the machine."""
    match command:
        case StartService(key=key):
            plain = without(intent, key)
            return replace(plain, start=plain.start | {key})
        case StopService(key=key, force=force):
            plain = _forced(without(intent, key), key, force)
            return replace(plain, stopped={**plain.stopped, key: commit})
        case RestartService(key=key, force=force):
            plain = _forced(without(intent, key), key, force)
            return replace(plain, recreate=plain.recreate | old)
        case Power():
            return replace(intent, power=command)
        case ConfigureNetwork():
            return replace(intent, network=command)


def take_back(intent: Intent, order: Order) -> Intent:
    """The intent as if the command had not been given, for a caller who was refused: what users
    had said before of the service's running state is in force again."""
    if order.app:
        return app_orders.take_back(intent, order.app)
    match order.command:
        case StartService(key=key) | StopService(key=key):
            return as_before(intent, key, order.before)
        case RestartService(key=key):
            restored = as_before(intent, key, order.before)
            return replace(restored, recreate=intent.recreate - order.old)
        case ConfigureNetwork():
            return replace(intent, network=None)
        case _:
            return replace(intent, power=None)


def met(order: Order, intent: Intent, observed: Observed, desired: Desired) -> str | None:
    """A short message when the world shows what was asked for, else None. Nothing is certain while
    a step on one of the order's subjects is under way."""
    if order.app:
        return app_orders.met(order.app, intent, observed, desired)
    known = containers_of(observed, order.key)
    match order.command:
        case StartService():
            return "started" if any(c.running for c in known) else None
        case StopService():
            return None if any(c.running for c in known) else "stopped"
        case RestartService():
            fresh = [c for c in known if c.id not in order.old]
            gone = all(c.id not in order.old for c in known)
            return "restarted" if gone and any(c.state != "created" for c in fresh) else None
        case _:
            return None  # that the host accepted it is an outcome, not something to be seen


def pruned(
    intent: Intent,
    observed: Observed,
    wanted: Mapping[ServiceKey, str],
    unjudged: Collection[str] = (),
) -> Intent:
    """The intent without what has been met or overtaken. `wanted` are the services of the target
    with their commits; a service that is not among them is forgotten, unless its app (uuid) is
    `unjudged`: then the target says nothing about it."""
    stopped = {
        key: commit
        for key, commit in intent.stopped.items()
        if key[0] in unjudged or wanted.get(key) == commit
    }
    running = {c.key for c in observed.containers.values() if c.running}
    start = intent.start - running
    recreate = intent.recreate & observed.containers.keys()
    if (len(stopped), start, recreate) == (len(intent.stopped), intent.start, intent.recreate):
        return intent
    return replace(intent, stopped=stopped, start=start, recreate=recreate)


def _forced(intent: Intent, key: ServiceKey, force: bool) -> Intent:
    return replace(intent, force=intent.force | {key[0]}) if force else intent


def pruned_of_apps(intent: Intent, observed: Observed, desired: Desired) -> Intent:
    """The intent without what has gone of apps under renewal and of unneeded volumes."""
    renewals = left_over(intent, observed) if intent.renewals else intent.renewals
    cleanup = still_unneeded(intent, observed, desired)
    if (renewals, cleanup) == (intent.renewals, intent.cleanup):
        return intent
    return replace(intent, renewals=renewals, cleanup=cleanup)
