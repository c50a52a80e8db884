"""Virtual devices: Debian 12 with real systemd, bus and engine, booted in about one second.

The package behind `tests/vdev`, and the library that the contract and end-to-end tests use.
Theory: a device is one directory (`outer.DEVICES/<name>`) that holds its disk, its record and its
console, plus one keeper process that holds a lock there as long as the device is on. Nothing else
says whether a device lives, so a crash anywhere leaves nothing that `gc` cannot recognise.

Imports go one way: cli -> demo, sweep -> machine, images -> keeper, enter, client -> disk
-> base, install, network -> recipe -> outer.
"""

from .machine import Machine
from .outer import DeviceError, supported

__all__ = ["DeviceError", "Machine", "supported"]
