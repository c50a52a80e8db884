"""Commands: taken in, made durable, turned into intent, and answered when they are met.

Theory: a command never acts. It changes the target or the intent, in the store first where that
must outlive us, and the planner does the rest. A new target or an `Apply` is answered as soon as
the state that says so is published; a command about a service or the machine is an order, which
is answered when the world shows what was asked for, or when a step that it needs has failed.

Invariant: used by the reconciler's thread alone, which also publishes what is changed here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace

from ..core.desired import Desired, DesiredService
from ..core.errors import AgentError, Broken, EngineUnavailable, Unavailable
from ..core.intent import (
    AppCommand,
    Apply,
    CleanupVolumes,
    ConfigureNetwork,
    HostCommand,
    Intent,
    NoteCloud,
    PurgeApp,
    RestartApp,
    RestartService,
    ServiceCommand,
    SetTarget,
)
from ..core.looks import Touch
from ..core.observed import HostFacts
from ..core.snapshot import NOT_ASKED
from ..core.sources import LOCAL, KeptTarget, in_force
from . import app_orders, telling
from .borrowing import Borrowing
from .damper import Damper
from .ledger import Ledger
from .lookout import Lookout
from .mailbox import Given
from .orders import Order, OrderBook, containers_of, intend, pruned, pruned_of_apps
from .ports import Store
from .state import Present
from .world import World

_log = logging.getLogger(__name__)


class Commands:
    """See the module. `compile` gives the desired state as of the newest target and look, `wake`
    asks for another turn. `forget` makes the next one compile everything: a key that was rotated
    reaches its service when a target is applied, not while the caller still talks to us."""

    def __init__(
        self,
        present: Present,
        store: Store,
        ledger: Ledger,
        damper: Damper,
        lookout: Lookout,
        world: World,
        compile: Callable[[], Desired],
        wake: Callable[[Touch], None],
        forget: Callable[[], None],
        borrowing: Borrowing,
    ) -> None:
        self._present = present
        self._store = store
        self._ledger = ledger
        self._damper = damper
        self._lookout = lookout
        self._world = world
        self._compile = compile
        self._wake = wake
        self._forget = forget
        self._borrowing = borrowing
        self._orders = OrderBook()
        self._accepted: list[Future[str]] = []
        self._owed = False
        """Whether the store does not know yet which services are stopped."""

    def take(self, given: Given) -> None:
        """Take a command in; its answer comes now, after publication, or when it is met."""
        command, answer = given.command, given.answer
        if not answer.set_running_or_notify_cancel():
            return
        try:
            if isinstance(command, SetTarget):
                self._set_target(command)
                self._accepted.append(answer)
            elif isinstance(command, Apply):
                self._apply(command.force)
                self._accepted.append(answer)
            elif isinstance(command, NoteCloud):
                self._present.change(cloud=command.status)
                self._accepted.append(answer)
            elif isinstance(command, RestartApp | PurgeApp | CleanupVolumes):
                self._app_order(command, answer)
            else:
                self._order(command, answer)
        except AgentError as error:
            answer.set_exception(error)
        except Exception:
            _log.exception("defect in command %s", type(command).__name__)
            answer.set_exception(Broken("internal error"))

    def published(self) -> None:
        """What was accepted or has ended can be seen now: whoever is told so reads a state that
        says so."""
        accepted, self._accepted = self._accepted, []
        for answer in accepted:
            answer.set_result("accepted")
        self._orders.answer()

    def new_facts(self, facts: HostFacts) -> None:
        """The host is not what it was. With another cloud, or none, another target may count; then
        the world is looked at anew, as for any other target."""
        now = self._present.now
        # The name is the target's business, not the host's.
        self._present.change(facts=replace(facts, device_name=now.facts.device_name))
        if facts.api_endpoint == now.facts.api_endpoint:
            return
        self._bring_in_force(now.targets)
        chosen = self._present.now
        if chosen.target is not now.target:
            telling.another_source(chosen.source)
            self._apply(force=False)

    def intend(self, intent: Intent) -> None:
        """Take on an intent that follows from the world; the part that must outlive us goes to the
        store. A store that does not take it, on a full disk say, must not keep the plan from going
        on: what is owed to it is tried again every turn."""
        try:
            if self._owed:
                self._store.save_stopped(intent.stopped)
                self._owed = False
            self._promise(intent)
        except AgentError as error:
            if not self._owed:
                _log.warning("Cannot note which services are stopped: %s", error.message)
            self._owed = True
            self._present.change(intent=intent)

    def _promise(self, intent: Intent) -> None:
        """Durable first, then visible. Unavailable: nothing has changed."""
        if intent.stopped != self._present.now.intent.stopped:
            self._store.save_stopped(intent.stopped)
            self._owed = False
        self._present.change(intent=intent)

    def settle(self, busy: frozenset[str]) -> None:
        """End the orders that are met or have failed. `busy`: subjects of steps under way."""
        now = self._present.now
        error = "" if now.engine_error == NOT_ASKED else now.engine_error
        after = self._orders.settle(
            now.intent, self._world.observed, now.desired, self._ledger, busy, error
        )
        if after is not now.intent:
            self.intend(after)
            self._wake(Touch(everything=True))

    def prune(self) -> None:
        """Forget what of the intent is met, overtaken, or about what is no more."""
        now, observed = self._present.now, self._world.observed
        wanted = {s.key: s.container_name.commit for app in now.desired.apps for s in app.services}
        self._damper.keep_only(frozenset(wanted))
        unjudged = {app.uuid for app in now.desired.apps if app.problem}
        if now.target is None:
            unjudged = {uuid for uuid, _ in now.intent.stopped}
        intent = pruned(now.intent, observed, wanted, unjudged)
        self.intend(pruned_of_apps(intent, observed, now.desired))
        intent, forget = self._borrowing.turn(self._present.now, observed)
        self.intend(intent)
        if forget:
            kept = {name: each for name, each in now.targets.items() if name != LOCAL}
            self._bring_in_force(kept)
            self._wake(Touch(everything=True))

    def power_accepted(self) -> None:
        self._orders.power_accepted()

    def network_configured(self) -> None:
        """The host is as the command under way wants it."""
        self.intend(replace(self._present.now.intent, network=None))
        self._orders.network_configured()

    def _set_target(self, command: SetTarget) -> None:
        """Durable first, then visible. The world is looked at anew before anything is planned:
        an image behind an unchanged name may be another one now (spec 11 §4)."""
        now = self._present.now
        kept = KeptTarget(command.raw, command.target)
        if now.targets.get(command.source) != kept:
            self._store.save_target(command.source, command.raw)
            telling.new_target(command.source, command.target)
            self._end_force(now.intent.force)  # it was meant for what was wanted before
            self._bring_in_force({**now.targets, command.source: kept})
            if command.target.name and self._present.now.source == command.source:
                self._present.change(facts=replace(now.facts, device_name=command.target.name))
        self._apply(command.force)

    def release_settled(self, apps: frozenset[str]) -> None:
        """These apps (uuids) are settled: whoever locks them from now on is heeded again."""
        self._end_force(apps)

    def _end_force(self, names: frozenset[str]) -> None:
        intent = self._present.now.intent
        if intent.force & names:
            self._present.change(intent=replace(intent, force=intent.force - names))

    def _bring_in_force(self, targets: Mapping[str, KeptTarget]) -> None:
        chosen = in_force(targets, self._present.now.facts)
        self._present.change(
            target=chosen.target, source=chosen.source, raw_target=chosen.raw, targets=targets
        )

    def _apply(self, force: bool) -> None:
        self._ledger.forgive()
        self._damper.forgive()
        self._forget()
        if force:
            intent = self._present.now.intent
            self._present.change(intent=replace(intent, force=intent.force | {""}))
        self._present.change(looked=False, update_pending=True)
        self._lookout.ask_all()

    def _app_order(self, command: AppCommand, answer: Future[str]) -> None:
        if self._unreachable(host_only=False):
            reason = self._present.now.engine_error
            raise EngineUnavailable(reason)
        now = self._present.now
        order, intent = app_orders.take(command, now, self._world.observed, self._compile())
        telling.order_taken(command)
        self._ledger.forgive_subjects(order.subjects)
        self._promise(intent)
        self._orders.give(Order(command, answer, app=order))

    def _order(self, command: ServiceCommand | HostCommand, answer: Future[str]) -> None:
        forced = isinstance(command, HostCommand) and command.force
        if not forced and self._unreachable(isinstance(command, HostCommand)):
            reason = self._present.now.engine_error
            raise EngineUnavailable(reason)
        if isinstance(command, ConfigureNetwork) and self._present.now.intent.network:
            raise Unavailable("Another change of the host's settings is under way")
        before = self._present.now.intent
        order, commit = Order(command, answer), ""
        if not isinstance(command, HostCommand):
            service = self._service(command.key)
            known = containers_of(self._world.observed, command.key)
            app_id = service.app_id if service else known[0].app_id if known else -1
            commit = service.container_name.commit if service else ""
            old = frozenset(container.id for container in known)
            order = Order(command, answer, command.key, app_id, old, before=before)
            if isinstance(command, RestartService) and service and not service.image_present:
                raise Unavailable(f"The image of service {service.name} is not here yet")
        if isinstance(command, HostCommand):
            self._ledger.forgive()
        else:
            self._damper.forgive(command.key[0])
        self._ledger.forgive_subjects(order.subjects())
        self._promise(intend(before, command, order.old, commit))
        self._orders.give(order)

    def _unreachable(self, host_only: bool) -> bool:
        """Whether a command must be refused for want of the engine: what the host alone can do
        only needs to know, of a first look that is still to come, that it did not fail."""
        error = self._present.now.engine_error
        return bool(error) and not (host_only and error == NOT_ASKED)

    def _service(self, key: tuple[str, str]) -> DesiredService | None:
        """As the newest target and look have it: they may have come in the same turn."""
        services = (s for app in self._compile().apps for s in app.services)
        return next((service for service in services if service.key == key), None)
