"""Keeps the compiled target up to date at little cost.

Theory: compiling is pure but not free, and most turns of the reconciler change neither target nor
images. An app is compiled again only when something that its compilation reads has changed: the
app itself, an image that one of its services names, a host fact, or one of its API keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..core.compose import desired_app
from ..core.desired import Desired, DesiredApp
from ..core.imageindex import ImageIndex
from ..core.legacy import with_inheritance
from ..core.observed import HostFacts, Image, Observed
from ..core.target import App, Target

ServiceKeys = Callable[[int, str], str]
"""(app id, service) -> API key of that service."""


class Compiler:
    """Used by one thread."""

    def __init__(self, service_keys: ServiceKeys) -> None:
        self._service_keys = service_keys
        self._done: dict[str, tuple[App, tuple[str, ...], HostFacts, DesiredApp]] = {}
        self._images: Mapping[str, Image] = {}
        self._index = ImageIndex({})

    def compile(self, target: Target | None, observed: Observed, facts: HostFacts) -> Desired:
        # What changes by itself is in no service; else an address that comes and goes would hand
        # out a key that was renewed meanwhile, and so make a container anew.
        facts = replace(facts, addresses=(), connectivity="", registered=False)
        apps = target.apps if target else {}
        if observed.images is not self._images:
            self._images, self._index = observed.images, ImageIndex(observed.images)
        self._done = {uuid: done for uuid, done in self._done.items() if uuid in apps}
        found = tuple(self._app(app, facts) for app in apps.values())
        return with_inheritance(Desired(found, asked=target is not None), observed)

    def forget(self) -> None:
        """Compile everything anew next time: an API key may be another one."""
        self._done = {}

    def _app(self, app: App, facts: HostFacts) -> DesiredApp:
        services = app.release.services.values() if app.release else ()
        found = tuple(i.id if (i := self._index.get(s.image)) else "" for s in services)
        done = self._done.get(app.uuid)
        if done and done[0] is app and done[1] == found and done[2] == facts:
            return done[3]
        compiled = desired_app(app, self._index.get, facts, self._service_keys)
        self._done[app.uuid] = (app, found, facts, compiled)
        return compiled
