"""Work that a run of the agent before this one had put off is put off still.

Theory: a registry that is down would be asked again by every restart of the agent, at once and by
every device, if back-off were only in memory. So downloads that failed are noted in the store, and
the ledger begins with them. A note about an image that no target names any more is left out; the
first plan then forgets it.
"""

from __future__ import annotations

from ..core.steps import Fetch
from .ledger import Ledger
from .policy import Memory


def resume_fetches(ledger: Ledger, memory: Memory, now: float) -> None:
    """Take the remembered failures of downloads into the ledger. `now` is wall time."""
    apps = memory.target.apps.values() if memory.target else ()
    for app in apps:
        for service in app.release.services.values() if app.release else ():
            known = memory.fetch_failures.get(service.image)
            if known:
                step = Fetch(service.image, app.uuid, app.app_id, service.name)
                ledger.resume(step, known, now)
