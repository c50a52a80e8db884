"""balena-agentctl: the agent from a shell, over D-Bus and with no powers of its own.

Theory: parse, ask, print, exit. This module has the command line and the end; what the commands do
is in ctl_commands.py and ctl_host.py. What may be done is polkit's decision, what happens is the
agent's.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 an update lock is held, 4 not allowed,
5 the agent is not running.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

from . import __version__, ctl_commands, ctl_host
from .core.errors import AgentError, InvalidInput
from .ctl_shell import CODES, FAILED, HINTS, NOT_RUNNING, USAGE, Shell

if TYPE_CHECKING:
    from .ctl_client import Client

_ABSENT = "balena-agent is not running; see: systemctl status balena-agent"


def main(
    argv: Sequence[str] | None = None,
    connect: Callable[[], Client] | None = None,
    out: IO[str] | None = None,
) -> int:
    """The entry point; `connect` and `out` are for tests."""
    options = _parser().parse_args(argv)
    out = out or sys.stdout
    try:
        client = (connect or _connect)()
    except AgentError as error:
        return _report(error, bool(options.json), out, str(error))
    try:
        try:
            return int(options.command(Shell(client, options, out)))
        finally:
            client.close()
    except AgentError as error:
        return _report(error, bool(options.json), out)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no complaint at exit
        return FAILED


def _connect() -> Client:
    from .ctl_client import Client  # the bus library is not needed for --help

    return Client.connect()


def _report(error: AgentError, as_json: bool, out: IO[str], said: str = _ABSENT) -> int:
    """Say what went wrong, and find its exit code. `said`: what the absence of the agent means."""
    name = getattr(error, "error_name", error.dbus_name)
    code = USAGE if isinstance(error, InvalidInput) else CODES.get(name, FAILED)
    words = str(getattr(error, "words", "") or error.message)
    if code == NOT_RUNNING:
        words = said
    if as_json:
        print(json.dumps({"error": name, "message": words}), file=out)
    else:
        hint = HINTS.get(code, "")
        print(f"balena-agentctl: {words}{hint}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    parser = argparse.ArgumentParser(
        prog="balena-agentctl",
        description="Look at balena-agent and tell it what to do.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 an update lock is held, "
        "4 not allowed, 5 the agent is not running.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(command=ctl_commands.status)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, command, text in _PLAIN:
        commands.add_parser(name, parents=[shared], help=text).set_defaults(command=command)
    for verb in ("start", "stop", "restart"):
        _add_service(commands, shared, verb)
    _add_apps(commands, shared)
    for verb, text in (("reboot", "reboot the device"), ("poweroff", "power the device off")):
        power = commands.add_parser(verb, parents=[shared], help=text)
        power.add_argument("--force", action="store_true", help="override update locks")
        power.set_defaults(command=ctl_commands.power, verb=verb)
    ctl_host.add(commands, shared)
    _add_target(commands, shared)
    _add_update(commands, shared)
    _add_key(commands, shared)
    _add_logs(commands, shared)
    _add_monitor(commands, shared)
    return parser


_PLAIN = (
    (
        "status",
        ctl_commands.status,
        "device, cloud, engine, apps, and what is waited for (default)",
    ),
    ("services", ctl_commands.services, "all services as a table"),
    ("describe", ctl_commands.describe, "everything the agent knows, as JSON"),
    ("cleanup", ctl_commands.clean_up, "remove the volumes that nobody needs"),
)


def _add_service(commands: Any, shared: argparse.ArgumentParser, verb: str) -> None:
    parser = commands.add_parser(verb, parents=[shared], help=f"{verb} a service, and wait for it")
    parser.add_argument("service", metavar="[APP/]SERVICE", help="APP is a name, an id or a uuid")
    if verb == "start":
        parser.set_defaults(force=False)
    else:
        parser.add_argument("--force", action="store_true", help="override update locks")
    parser.set_defaults(command=ctl_commands.service, verb=verb)


def _add_apps(commands: Any, shared: argparse.ArgumentParser) -> None:
    for verb, text in (
        ("restart-app", "replace all containers of an app; its volumes stay"),
        ("purge", "the same, and all data in the volumes of the app is lost"),
    ):
        parser = commands.add_parser(verb, parents=[shared], help=text)
        optional = {} if verb == "purge" else {"nargs": "?", "default": ""}
        parser.add_argument("app", metavar="APP", help="a name, an id or a uuid", **optional)
        parser.add_argument("--force", action="store_true", help="override update locks")
        parser.set_defaults(command=ctl_commands.app, verb=verb)


def _add_target(commands: Any, shared: argparse.ArgumentParser) -> None:
    target = commands.add_parser("target", help="the target state")
    inner = target.add_subparsers(metavar="COMMAND", required=True)
    show = inner.add_parser("show", parents=[shared], help="print the target in force")
    show.set_defaults(command=ctl_commands.target_show)
    diff = inner.add_parser("diff", parents=[shared], help="print what a target would do")
    diff.add_argument("file", metavar="FILE", help="a local target as JSON; - is standard input")
    diff.set_defaults(command=ctl_commands.target_diff)
    given = inner.add_parser("set", parents=[shared], help="set it, and wait until it is applied")
    given.add_argument("file", metavar="FILE", help="a local target as JSON; - is standard input")
    given.add_argument("--force", action="store_true", help="override update locks")
    given.set_defaults(command=ctl_commands.target_set)


def _add_update(commands: Any, shared: argparse.ArgumentParser) -> None:
    update = commands.add_parser(
        "update", parents=[shared], help="fetch the target and apply it, and wait for it"
    )
    update.add_argument("--force", action="store_true", help="override update locks")
    update.add_argument("--cancel", action="store_true", help="begin running downloads anew")
    update.set_defaults(command=ctl_commands.update)


def _add_key(commands: Any, shared: argparse.ArgumentParser) -> None:
    key = commands.add_parser("key", help="the device's key for the HTTP API")
    inner = key.add_subparsers(metavar="COMMAND", required=True)
    fresh = inner.add_parser("regenerate", parents=[shared], help="replace it; print the new one")
    fresh.set_defaults(command=ctl_commands.key_regenerate)


def _add_logs(commands: Any, shared: argparse.ArgumentParser) -> None:
    logs = commands.add_parser("logs", parents=[shared], help="print what services have logged")
    logs.add_argument("-f", "--follow", action="store_true", help="and what they log from now on")
    logs.add_argument(
        "-n", "--lines", type=_count, default=100, metavar="N", help="the last N lines (100)"
    )
    logs.add_argument("service", nargs="?", default="", metavar="[APP/]SERVICE")
    logs.set_defaults(command=ctl_commands.logs)


def _add_monitor(commands: Any, shared: argparse.ArgumentParser) -> None:
    monitor = commands.add_parser("monitor", parents=[shared], help="print signals as they come")
    monitor.add_argument(
        "--count", type=_count, default=-1, metavar="N", help="end after N signals"
    )
    monitor.set_defaults(command=ctl_commands.monitor)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
