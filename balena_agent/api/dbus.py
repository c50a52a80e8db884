"""The face of the agent on the system bus: io.balena.Agent1.

Theory: every call comes through `AgentService._handle`: which object, which interface, which
method, does the signature fit, may the caller (polkit, by the sender that the bus has proved). Then
a method of a few lines reads the snapshot or submits a command. Nothing is decided here. The form
of everything is in dbus_interface.py, the values in dbus_tree.py, announcements in
dbus_objects.py.

Invariants: everything but `start` and `stop` runs in the bus thread and never blocks. What goes
wrong reaches a caller as an error with a name and a sentence (host/bus.py), never as a traceback.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..core.describe import describe
from ..core.errors import (
    AgentError,
    InvalidInput,
    NoSuchApp,
    NotFound,
    Unavailable,
)
from ..core.intent import (
    CleanupVolumes,
    Command,
    PurgeApp,
    RestartApp,
    RestartService,
    ServiceKey,
    StartService,
    StopService,
)
from ..core.preview import preview, preview_state
from ..core.renewal import in_current_state
from ..core.report import local_target_state
from ..core.target import read_local
from ..host.bus import Bus, Reply
from ..host.wire import Call, plain
from ..runtime.ports import Submit
from ..runtime.state import Published
from .checks import engine_needed
from .dbus_errors import (
    PropertyReadOnly,
    UnknownInterface,
    UnknownMethod,
    UnknownObject,
    UnknownProperty,
)
from .dbus_host import Body, HostMethods, Implementation, Machine, done
from .dbus_interface import (
    APP,
    BUS_NAME,
    INTROSPECTABLE,
    JOB,
    LOG_CONTROL,
    MANAGER,
    OBJECT_MANAGER,
    OURS,
    PROPERTIES,
    SERVICE,
    STANDARD,
    Interface,
    Method,
    introspection,
)
from .dbus_log import LogControl
from .dbus_objects import Objects, typed
from .dbus_polkit import Authority
from .dbus_tree import Facts, Place, in_target
from .dbus_updates import UpdateMethods, local_document

OpenLog = Callable[[Mapping[str, Any]], int]
"""The read end of a pipe with the log that the options ask for."""

_PATIENCE = 60.0
_BY_NAME: Mapping[str, Interface] = {face.name: face for face in (*OURS, *STANDARD)}


class AgentService:
    """Exports the agent on `bus`. `submit` is the reconciler's; `logger` is what the standard
    LogControl1 object turns up and down."""

    def __init__(
        self,
        bus: Bus,
        published: Published,
        submit: Submit,
        facts: Facts,
        machine: Machine,
        logger: logging.Logger | None = None,
        open_log: OpenLog | None = None,
    ) -> None:
        self._bus = bus
        self._open_pipe = open_log
        self._submit = submit
        self._facts = facts
        self._authority = Authority(bus)
        self._obstacles = machine.obstacles
        self._host = HostMethods(submit, self._authority, machine)
        self._log = LogControl(logger or logging.getLogger("balena_agent"), facts.log_name)
        self._objects = Objects(bus, published, facts, self._log.values)
        self._updates = UpdateMethods(submit, machine, self._objects, bus.post)
        self._implementations = self._table()

    def start(self, timeout: float = 10.0) -> None:
        """Export everything, then own the name. Errors as for Bus.request_name."""
        self._bus.run(self._open(), timeout)
        self._bus.request_name(BUS_NAME, timeout)

    def stop(self, timeout: float = 1.0) -> None:
        """Tell those who wait for a job that they wait in vain. The bus itself stays open."""
        try:
            self._bus.run(self._close(), timeout)
        except AgentError:
            pass  # the bus went first

    # -- dispatch -----------------------------------------------------------------------------

    def _table(self) -> Mapping[tuple[str, str], Implementation]:
        return {
            **self._host.table(),
            **self._updates.table(),
            (MANAGER.name, "StartService"): self._start_service,
            (MANAGER.name, "StopService"): self._stop_service,
            (MANAGER.name, "RestartService"): self._restart_service,
            (MANAGER.name, "RestartApp"): self._restart_app,
            (MANAGER.name, "PurgeApp"): self._purge_app,
            (MANAGER.name, "CleanupVolumes"): self._clean_up,
            (MANAGER.name, "GetApp"): self._get_app,
            (MANAGER.name, "GetService"): self._get_service,
            (MANAGER.name, "ListServices"): self._list_services,
            (MANAGER.name, "GetTargetState"): self._get_target_state,
            (MANAGER.name, "OpenLog"): self._open_log,
            (MANAGER.name, "PreviewTarget"): self._preview_target,
            (MANAGER.name, "Describe"): self._describe,
            (APP.name, "Restart"): self._restart_this_app,
            (APP.name, "Purge"): self._purge_this_app,
            (SERVICE.name, "Start"): self._start_this,
            (SERVICE.name, "Stop"): self._stop_this,
            (SERVICE.name, "Restart"): self._restart_this,
            (JOB.name, "Cancel"): self._cancel,
            (OBJECT_MANAGER.name, "GetManagedObjects"): self._managed_objects,
            (INTROSPECTABLE.name, "Introspect"): self._introspect,
            (PROPERTIES.name, "Get"): self._get,
            (PROPERTIES.name, "GetAll"): self._get_all,
            (PROPERTIES.name, "Set"): self._set,
        }

    async def _open(self) -> None:
        self._objects.open()
        self._bus.serve(self._handle)

    async def _close(self) -> None:
        self._objects.close()

    async def _handle(self, call: Call) -> Reply:
        interface, method = self._find(call)
        if call.signature != method.in_signature:
            wanted = method.in_signature
            raise InvalidInput(f"{method.name} takes ({wanted}), not ({call.signature})")
        if method.action:
            await self._authority.check(call, method.action)
        body = await self._implementations[interface.name, method.name](call, *call.body)
        return method.out_signature, body

    def _find(self, call: Call) -> tuple[Interface, Method]:
        """The method that is meant. A call without an interface means the first that fits."""
        if call.member == "Introspect" and call.interface in ("", INTROSPECTABLE.name):
            return INTROSPECTABLE, INTROSPECTABLE.methods[0]  # also on paths between objects
        faces = (*self._faces(call.path), *STANDARD)
        if call.interface:
            faces = tuple(face for face in faces if face.name == call.interface)
            if not faces:
                raise UnknownInterface(f"no interface {call.interface} at {call.path}")
        for face in faces:
            if method := face.method(call.member):
                return face, method
        raise UnknownMethod(f"no method {call.member} at {call.path}")

    def _faces(self, path: str) -> tuple[Interface, ...]:
        """Our interfaces on an object. UnknownObject if there is none."""
        return tuple(_BY_NAME[name] for name in self._values(path))

    def _values(self, path: str) -> Mapping[str, Mapping[str, Any]]:
        found = self._objects.tree().get(path)
        if found is None:
            raise UnknownObject(f"no object at {path}")
        return found

    # -- standard interfaces --------------------------------------------------------------------

    async def _introspect(self, call: Call) -> Body:
        tree = self._objects.tree()
        base = call.path.rstrip("/") + "/"
        children = {path[len(base) :].split("/")[0] for path in tree if path.startswith(base)}
        if call.path not in tree and not children:
            raise UnknownObject(f"no object at {call.path}")
        faces = [*map(_BY_NAME.__getitem__, tree.get(call.path, {})), *STANDARD]
        return [introspection(faces, sorted(children))]

    async def _managed_objects(self, call: Call) -> Body:
        return [self._objects.managed()]

    async def _get(self, call: Call, interface: str, name: str) -> Body:
        for face, values in self._values(call.path).items():
            if interface in ("", face) and name in values:
                return [typed(face, values)[name]]
        raise UnknownProperty(f"no property {interface}.{name} at {call.path}")

    async def _get_all(self, call: Call, interface: str) -> Body:
        values = self._values(call.path)
        if interface and interface not in values:
            if interface in _BY_NAME:
                return [{}]
            raise UnknownInterface(f"no interface {interface} at {call.path}")
        chosen = [interface] if interface else list(values)
        return [{k: v for face in chosen for k, v in typed(face, values[face]).items()}]

    async def _set(self, call: Call, interface: str, name: str, value: Any) -> Body:
        await self._get(call, interface, name)
        prop = LOG_CONTROL.property(name) if interface == LOG_CONTROL.name else None
        if prop is None or not prop.writable:
            raise PropertyReadOnly(f"{name} cannot be set")
        await self._authority.root_only(call)
        self._log.set(name, plain(value))
        return ()

    # -- Manager --------------------------------------------------------------------------------

    async def _met(self, command: Command) -> str:
        return await done(self._submit(command), _PATIENCE)

    async def _start_service(self, call: Call, app_id: int, service: str) -> Body:
        return self._start_key(self._place(app_id, service).key)

    async def _stop_service(self, call: Call, app_id: int, service: str, force: bool) -> Body:
        return self._stop_key(self._place(app_id, service).key, force)

    async def _restart_service(self, call: Call, app_id: int, service: str, force: bool) -> Body:
        return self._restart_key(self._place(app_id, service).key, force)

    async def _restart_app(self, call: Call, app_id: int, force: bool) -> Body:
        return self._app_job("restart-app", RestartApp(app_id, force))

    async def _purge_app(self, call: Call, app_id: int, force: bool) -> Body:
        return self._app_job("purge", PurgeApp(app_id, force))

    async def _clean_up(self, call: Call) -> Body:
        return [(await self._met(CleanupVolumes())).split()]

    async def _get_app(self, call: Call, app_id: int) -> Body:
        for path, faces in self._objects.tree().items():
            if faces.get(APP.name, {}).get("Id") == app_id:
                return [path]
        raise NoSuchApp(f"no app {app_id}")

    async def _get_service(self, call: Call, app_id: int, service: str) -> Body:
        return [self._place(app_id, service).path]

    async def _list_services(self, call: Call) -> Body:
        rows = ((place.row, place.path) for place in self._objects.places())
        return [[(r.app_id, r.service, r.status, r.container_id, path) for r, path in rows]]

    async def _get_target_state(self, call: Call) -> Body:
        return [_json(local_target_state(self._objects.snapshot, lambda app_id: True))]

    async def _open_log(self, call: Call, options: Any) -> Body:
        if self._open_pipe is None:
            raise Unavailable("there are no logs here")
        return [await asyncio.to_thread(self._open_pipe, plain(options))]

    async def _preview_target(self, call: Call, target: str) -> Body:
        snapshot = self._objects.snapshot
        engine_needed(snapshot)
        wanted = read_local(local_document(target))
        found = await asyncio.to_thread(preview, snapshot, wanted)  # large apps take a while
        return [_json(preview_state(found))]

    async def _describe(self, call: Call) -> Body:
        snapshot = self._objects.snapshot
        problems = [text for text in self._facts.problems() if text not in snapshot.notices]
        problems += await asyncio.to_thread(self._obstacles)  # logind's word, on this very bus
        return [_json(describe(snapshot, self._facts.version) | {"problems": problems})]

    # -- App, Service and Job ----------------------------------------------------------------------

    async def _restart_this_app(self, call: Call, force: bool) -> Body:
        return self._app_job("restart-app", RestartApp(self._app_here(call), force))

    async def _purge_this_app(self, call: Call, force: bool) -> Body:
        return self._app_job("purge", PurgeApp(self._app_here(call), force))

    async def _start_this(self, call: Call) -> Body:
        return self._start_key(self._here(call).key)

    async def _stop_this(self, call: Call, force: bool) -> Body:
        return self._stop_key(self._here(call).key, force)

    async def _restart_this(self, call: Call, force: bool) -> Body:
        return self._restart_key(self._here(call).key, force)

    async def _cancel(self, call: Call) -> Body:
        self._objects.jobs.cancel(call.path)
        return ()

    def _start_key(self, key: ServiceKey) -> Body:
        return self._job("start", key, StartService(key))

    def _stop_key(self, key: ServiceKey, force: bool) -> Body:
        return self._job("stop", key, StopService(key, force))

    def _restart_key(self, key: ServiceKey, force: bool) -> Body:
        return self._job("restart", key, RestartService(key, force))

    def _job(self, kind: str, key: ServiceKey, command: Command) -> Body:
        if not in_target(self._objects.snapshot, key):
            raise NotFound(f"{key[1]!r} is not in the target release")
        return self._followed(kind, key, command)

    def _app_job(self, kind: str, command: RestartApp | PurgeApp) -> Body:
        if not in_current_state(command.app_id, self._objects.snapshot.observed):
            raise NoSuchApp(f"nothing of app {command.app_id} is on this device")
        return self._followed(kind, (str(command.app_id), ""), command)

    def _followed(self, kind: str, key: ServiceKey, command: Command) -> Body:
        job = self._objects.jobs.follow(kind, key, self._submit(command))
        self._objects.soon()
        return [job.path]

    def _app_here(self, call: Call) -> int:
        return int(self._values(call.path)[APP.name]["Id"])

    def _here(self, call: Call) -> Place:
        return next(place for place in self._objects.places() if place.path == call.path)

    def _place(self, app_id: int, service: str) -> Place:
        """The service that is meant. NoSuchApp, NotFound."""
        mine = [place for place in self._objects.places() if place.row.app_id == app_id]
        if not mine:
            raise NoSuchApp(f"no app {app_id} with services")
        for place in mine:
            if place.row.service == service:
                return place
        raise NotFound(f"app {app_id} has no service {service!r}")


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
