"""When replacing one container again and again has to end (spec 20 §12).

Theory: equality is made so that a fresh container is always equal (spec 21 §10). Should that fail
for a field that nobody thought of, the service must not be killed for ever: one that was recreated
more than `LIMIT` times within `WINDOW_SECONDS`, always for the same spec, is kept as it is. The
plan then waits, and says for which fields. The runtime counts (runtime/damper.py); a new spec, a
new target and a command forgive.

A container that names another one by its id is replaced along with it, which is no such loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .body import MODES
from .desired import DesiredService
from .intent import ServiceKey
from .plan import Plan
from .spec import Difference

LIMIT: Final = 3
WINDOW_SECONDS: Final = 600.0

_REASON: Final = (
    f"kept as it is: recreated more than {LIMIT} times within"
    f" {WINDOW_SECONDS / 60:.0f} minutes and still not as wanted: "
)


def is_kept(
    service: DesiredService, found: Sequence[Difference], damped: Mapping[ServiceKey, str]
) -> bool:
    """Whether what was found is no reason any more to replace the service's container."""
    digest = damped.get(service.key)
    if digest is None or digest != service.spec.digest():
        return False
    return not found or any(difference.field not in MODES for difference in found)


def reason(found: Sequence[Difference], otherwise: str) -> str:
    """What the plan says of a service that is kept: the names of the fields, no values."""
    names = ", ".join(difference.field for difference in found)
    return _REASON + (names or otherwise)


def notices(plan: Plan) -> tuple[str, ...]:
    """The services that a plan keeps, in words."""
    return tuple(str(wait) for wait in plan.waits if wait.reason.startswith(_REASON))
