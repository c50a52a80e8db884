"""`supervisor0`, the network on which containers reach our API (spec 20 §13.1.1).

Theory: it belongs to no app, so no app's rules may mend it. While it is missing or not as
specified, every container that was to be on it goes, like the users of any other network that is
to be replaced; only then is it made anew, and the services come back by the ordinary rules. Their
update locks are not asked for: what they guard against has happened already.

Where no service of a target uses it, nobody cares what it is like.
"""

from __future__ import annotations

from collections.abc import Iterable

from .desired import Desired
from .names import SUPERVISOR_NETWORK
from .networks import supervisor_differences
from .observed import Container, Observed
from .situation import Draft
from .steps import CreateContainer, EnsureSupervisorNetwork


def fault(observed: Observed) -> str:
    """What is wrong with the network, "" when it is as specified."""
    known = [n for n in observed.networks.values() if n.engine_name == SUPERVISOR_NETWORK]
    if not known:
        return "network is missing"
    if len(known) > 1:
        return "there are two networks of this name"
    return "; ".join(str(difference) for difference in supervisor_differences(known[0].spec))


def uses(container: Container) -> bool:
    """Whether a container was made to be on the network, or is on it."""
    asked, real = container.effective_spec.networks, container.spec.networks
    return SUPERVISOR_NETWORK in (*asked, *real)


def plan_network(draft: Draft, desired: Desired, observed: Observed, wrong: str) -> None:
    """Make it, when a service needs it and its old users have gone. `wrong` is its fault; rejected
    apps, of which nothing is touched, are not waited for."""
    accepted = [app for app in desired.apps if not app.problem]
    wanted = any(SUPERVISOR_NETWORK in s.spec.networks for app in accepted for s in app.services)
    if not (wrong and wanted):
        return
    rejected = {app.app_id for app in desired.apps if app.problem}
    if names := sorted({*_users(observed, rejected), *_coming(draft)}):
        draft.wait(f"network {SUPERVISOR_NETWORK}", f"waits until {', '.join(names)} has let it go")
    else:
        draft.emit(EnsureSupervisorNetwork(wrong))


def _users(observed: Observed, rejected: set[int]) -> Iterable[str]:
    """Services whose containers are to go first; those with foreign names stay anyway."""
    return (
        container.service
        for container in observed.containers.values()
        if container.name is not None and container.app_id not in rejected and uses(container)
    )


def _coming(draft: Draft) -> Iterable[str]:
    """Services whose containers are being made on the network that there was."""
    return (
        step.service.name
        for step in draft.situation.running.values()
        if isinstance(step, CreateContainer) and SUPERVISOR_NETWORK in step.service.spec.networks
    )
