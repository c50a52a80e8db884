"""The exported interfaces as one table: names, signatures, change signals, polkit actions.

Theory: introspection, dispatch, the type of every property and the question "who may call this"
are read from the same values, so they cannot disagree. `dbus/io.balena.Agent1.xml` says the same
for people and tools; a test holds the two equal.

Argument lists are written as `u app_id, s service`: signature and name of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BUS_NAME = "io.balena.Agent1"
ROOT = "/io/balena/Agent1"
LOG_PATH = "/org/freedesktop/LogControl1"

ACTION = "io.balena.agent1."
MANAGE = ACTION + "manage-apps"
SET_HOST = ACTION + "set-host-config"
READ_CONFIG = ACTION + "read-config"

CHANGES, CONST, SILENT = "true", "const", "false"
"""Values of EmitsChangedSignal."""

_ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"))

_EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
_HEAD = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)


@dataclass(frozen=True, slots=True)
class Arg:
    signature: str
    name: str


@dataclass(frozen=True, slots=True)
class Method:
    """`action` is the polkit action that a caller needs; "" where anybody may call."""

    name: str
    takes: tuple[Arg, ...] = ()
    gives: tuple[Arg, ...] = ()
    action: str = ""

    @property
    def in_signature(self) -> str:
        return "".join(arg.signature for arg in self.takes)

    @property
    def out_signature(self) -> str:
        return "".join(arg.signature for arg in self.gives)


@dataclass(frozen=True, slots=True)
class Property:
    signature: str
    name: str
    emits: str = CHANGES
    writable: bool = False


@dataclass(frozen=True, slots=True)
class SignalForm:
    name: str
    args: tuple[Arg, ...] = ()

    @property
    def signature(self) -> str:
        return "".join(arg.signature for arg in self.args)


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    methods: tuple[Method, ...] = ()
    properties: tuple[Property, ...] = ()
    signals: tuple[SignalForm, ...] = ()

    def method(self, name: str) -> Method | None:
        return next((method for method in self.methods if method.name == name), None)

    def property(self, name: str) -> Property | None:
        return next((prop for prop in self.properties if prop.name == name), None)

    def signal(self, name: str) -> SignalForm:
        return next(signal for signal in self.signals if signal.name == name)


def _quoted(text: str) -> str:
    """An XML attribute's value (xml.sax would cost 20 ms at start, html 0.3 MB of entities)."""
    for character, entity in _ENTITIES:
        text = text.replace(character, entity)
    return f'"{text}"'


def args(text: str) -> tuple[Arg, ...]:
    return tuple(Arg(*part.split()) for part in text.split(",") if part)


def _method(name: str, takes: str = "", gives: str = "", action: str = "") -> Method:
    return Method(name, args(takes), args(gives), action)


def _signal(name: str, text: str) -> SignalForm:
    return SignalForm(name, args(text))


def _properties(text: str, emits: str = CHANGES) -> tuple[Property, ...]:
    return tuple(Property(arg.signature, arg.name, emits) for arg in args(text))


MANAGER = Interface(
    BUS_NAME + ".Manager",
    methods=(
        _method("Reboot", "b force", "", ACTION + "reboot"),
        _method("PowerOff", "b force", "", ACTION + "power-off"),
        _method("Blink", "", "", ACTION + "blink"),
        _method("Update", "b force, b cancel", "o job", ACTION + "update"),
        _method("GetHostConfig", "", "a{sv} config", READ_CONFIG),
        _method("SetHostname", "s hostname, b force", "", SET_HOST),
        _method("SetProxy", "a{sv} proxy, b force", "", SET_HOST),
        _method("StartService", "u app_id, s service", "o job", MANAGE),
        _method("StopService", "u app_id, s service, b force", "o job", MANAGE),
        _method("RestartService", "u app_id, s service, b force", "o job", MANAGE),
        _method("RestartApp", "u app_id, b force", "o job", MANAGE),
        _method("PurgeApp", "u app_id, b force", "o job", MANAGE),
        _method("CleanupVolumes", "", "as removed", MANAGE),
        _method("GetApp", "u app_id", "o app"),
        _method("GetService", "u app_id, s service", "o path"),
        _method("ListServices", "", "a(ussso) services"),
        _method("GetTargetState", "", "s json", READ_CONFIG),
        _method("SetTargetState", "s target, b force", "o job", ACTION + "set-target"),
        _method("RegenerateApiKey", "", "s key", ACTION + "regenerate-key"),
        _method("OpenLog", "a{sv} options", "h pipe", ACTION + "read-log"),
        _method("PreviewTarget", "s target", "s json", READ_CONFIG),
        _method("Describe", "", "s json"),
    ),
    properties=(
        *_properties("s Version, s DeviceType, s OSVersion", CONST),
        *_properties("s DeviceUuid, s DeviceName, q ApiPort, s ApiEndpoint, b Managed"),
        *_properties("b LocalMode, s CloudState, s EngineState, s Status, s Commit"),
        *_properties("b UpdatePending, b UpdateDownloaded, b UpdateFailed, d DownloadProgress"),
        *_properties("a(ss) Waiting, s LastError, as AddressList, b Healthy"),
    ),
    signals=(
        _signal("UpdateStarted", "s commit"),
        _signal("StepStarted", "s app, s service, s step, s cause"),
        _signal("StepFailed", "s app, s service, s step, s error"),
        _signal("UpdateFinished", "s commit, b success, s message"),
        _signal("PrepareForReboot", "b start"),
    ),
)

APP = Interface(
    BUS_NAME + ".App",
    methods=(
        _method("Restart", "b force", "o job", MANAGE),
        _method("Purge", "b force", "o job", MANAGE),
    ),
    properties=(
        *_properties("u Id, s Uuid", CONST),
        *_properties("s Name, s Commit, s Class, s Status, ao Services"),
    ),
)

SERVICE = Interface(
    BUS_NAME + ".Service",
    methods=(
        _method("Start", "", "o job", MANAGE),
        _method("Stop", "b force", "o job", MANAGE),
        _method("Restart", "b force", "o job", MANAGE),
    ),
    properties=(
        *_properties("s Name, u AppId", CONST),
        *_properties("u ServiceId, u ReleaseId, s Image, s ContainerId, s Status"),
        *_properties("d DownloadProgress, s Waiting"),
    ),
)

JOB = Interface(
    BUS_NAME + ".Job",
    methods=(_method("Cancel", "", "", MANAGE),),
    properties=(
        *_properties("s Kind, s Subject", CONST),
        *_properties("s State, d Progress, s Message, s Error"),
    ),
    signals=(_signal("Finished", "s state, s message"),),
)

LOG_CONTROL = Interface(
    "org.freedesktop.LogControl1",
    properties=(
        Property("s", "LogLevel", SILENT, writable=True),
        Property("s", "LogTarget", SILENT, writable=True),
        Property("s", "SyslogIdentifier", SILENT),
    ),
)

OBJECT_MANAGER = Interface(
    "org.freedesktop.DBus.ObjectManager",
    methods=(_method("GetManagedObjects", "", "a{oa{sa{sv}}} objects"),),
    signals=(
        _signal("InterfacesAdded", "o object, a{sa{sv}} interfaces"),
        _signal("InterfacesRemoved", "o object, as interfaces"),
    ),
)

PROPERTIES = Interface(
    "org.freedesktop.DBus.Properties",
    methods=(
        _method("Get", "s interface, s property", "v value"),
        _method("GetAll", "s interface", "a{sv} properties"),
        _method("Set", "s interface, s property, v value"),
    ),
    signals=(_signal("PropertiesChanged", "s interface, a{sv} changed, as invalidated"),),
)

INTROSPECTABLE = Interface(
    "org.freedesktop.DBus.Introspectable", methods=(_method("Introspect", "", "s xml"),)
)

PEER = Interface(
    "org.freedesktop.DBus.Peer",
    methods=(_method("Ping"), _method("GetMachineId", "", "s machine_id")),
)

OURS = (MANAGER, APP, SERVICE, JOB, OBJECT_MANAGER, LOG_CONTROL)
STANDARD = (PROPERTIES, INTROSPECTABLE, PEER)


def introspection(interfaces: Iterable[Interface], children: Iterable[str]) -> str:
    """The introspection document of one object."""
    lines = [line for interface in interfaces for line in _interface_xml(interface)]
    lines += [f"  <node name={_quoted(child)}/>" for child in children]
    return "\n".join((_HEAD + "<node>", *lines, "</node>\n"))


def _interface_xml(interface: Interface) -> list[str]:
    lines = [f'  <interface name="{interface.name}">']
    for method in interface.methods:
        takes, gives = _args_xml(method.takes, "in"), _args_xml(method.gives, "out")
        lines += _element("method", method.name, takes + gives)
    for prop in interface.properties:
        lines += _property_xml(prop)
    for signal in interface.signals:
        lines += _element("signal", signal.name, _args_xml(signal.args, ""))
    return [*lines, "  </interface>"]


def _element(tag: str, name: str, inside: list[str]) -> list[str]:
    return [f'    <{tag} name="{name}">', *inside, f"    </{tag}>"]


def _args_xml(arguments: Iterable[Arg], direction: str) -> list[str]:
    way = f' direction="{direction}"' if direction else ""
    return [f'      <arg name="{arg.name}" type="{arg.signature}"{way}/>' for arg in arguments]


def _property_xml(prop: Property) -> list[str]:
    access = "readwrite" if prop.writable else "read"
    head = f'    <property name="{prop.name}" type="{prop.signature}" access="{access}"'
    if prop.emits == CHANGES:
        return [head + "/>"]
    note = f'      <annotation name="{_EMITS}" value="{prop.emits}"/>'
    return [head + ">", note, "    </property>"]
