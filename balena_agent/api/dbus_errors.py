"""Refusals that only D-Bus knows, under their standard names."""

from __future__ import annotations

from ..core.errors import Refused

_ERROR = "org.freedesktop.DBus.Error."


class UnknownObject(Refused):
    dbus_name = _ERROR + "UnknownObject"


class UnknownInterface(Refused):
    dbus_name = _ERROR + "UnknownInterface"


class UnknownMethod(Refused):
    dbus_name = _ERROR + "UnknownMethod"


class UnknownProperty(Refused):
    dbus_name = _ERROR + "UnknownProperty"


class PropertyReadOnly(Refused):
    dbus_name = _ERROR + "PropertyReadOnly"
