"""balena-agentctl: the agent from a shell, over D-Bus and with no powers of its own.

Theory: parse, ask, print, exit. Every command is one function from a `Client` to a text or document
and an exit code. What may be done is polkit's decision, what happens is the agent's.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 an update lock is held, 4 not allowed,
5 the agent is not running.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

from . import __version__, ctl_host
from .core.errors import AgentError, InvalidInput, NotFound
from .ctl_shell import Shell

if TYPE_CHECKING:
    from .ctl_client import Client, Event, JobResult

DONE, FAILED, USAGE, LOCKED, REFUSED, NOT_RUNNING = range(6)

_CODES = {
    "io.balena.Agent1.Error.Locked": LOCKED,
    "org.freedesktop.DBus.Error.AccessDenied": REFUSED,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": REFUSED,
    "org.freedesktop.DBus.Error.ServiceUnknown": NOT_RUNNING,
}
_WHO_MAY = "\nAllowed are root, members of the group balena-agent, and who polkit lets in."
_FORCE = "\n--force overrides update locks."
_HINTS = {REFUSED: _WHO_MAY, LOCKED: _FORCE}
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
    code = USAGE if isinstance(error, InvalidInput) else _CODES.get(name, FAILED)
    words = str(getattr(error, "words", "") or error.message)
    if code == NOT_RUNNING:
        words = said
    if as_json:
        print(json.dumps({"error": name, "message": words}), file=out)
    else:
        hint = _HINTS.get(code, "")
        print(f"balena-agentctl: {words}{hint}", file=sys.stderr)
    return code


# -- commands -------------------------------------------------------------------------------------


def _status(shell: Shell) -> int:
    document = shell.client.describe()
    if shell.as_json:
        shell.document(document)
        return DONE
    from .ctl_view import Style, status_lines

    for line in status_lines(document, Style(shell.out.isatty(), time.time())):
        shell.line(line)
    return DONE


def _services(shell: Shell) -> int:
    from .ctl_view import Style, rows_of, service_table

    rows = rows_of(shell.client.describe())
    if shell.as_json:
        shell.document(rows)
    else:
        for line in service_table(rows, Style(shell.out.isatty())):
            shell.line(line)
    return DONE


def _describe(shell: Shell) -> int:
    shell.document(shell.client.describe())
    return DONE


def _target_show(shell: Shell) -> int:
    shell.document(shell.client.target())
    return DONE


def _target_diff(shell: Shell) -> int:
    """What a target would do; it is only asked for."""
    document = shell.client.preview(shell.text_of(shell.options.file))
    if shell.as_json:
        shell.document(document)
        return DONE
    from .ctl_view import preview_lines

    for line in preview_lines(document):
        shell.line(line)
    return DONE


def _target_set(shell: Shell) -> int:
    """Set the local target, and wait until it is applied."""
    text = shell.text_of(shell.options.file)
    result = shell.client.set_target(text, shell.options.force, _progress(shell))
    return _ended(shell, "target", result)


def _update(shell: Shell) -> int:
    """Fetch the target and apply it, and wait for the end of it."""
    asked = shell.options
    return _ended(shell, "update", shell.client.update(asked.force, asked.cancel, _progress(shell)))


def _key_regenerate(shell: Shell) -> int:
    key = shell.client.regenerate_key()
    if shell.as_json:
        shell.document({"key": key})
    else:
        shell.line(key)
    return DONE


def _service(shell: Shell) -> int:
    """Start, stop or restart, and wait for the end of it."""
    options = shell.options
    app_id, name = resolve(shell.client.describe(), options.service)
    show = _progress(shell)
    return _ended(
        shell, name, shell.client.service(options.verb, app_id, name, options.force, show)
    )


def _app(shell: Shell) -> int:
    """Restart or purge an app, and wait for the end of it."""
    options = shell.options
    app_id, name = resolve_app(shell.client.describe(), options.app)
    show = _progress(shell)
    return _ended(shell, name, shell.client.app(options.verb, app_id, options.force, show))


def _clean_up(shell: Shell) -> int:
    removed = shell.client.clean_up()
    if shell.as_json:
        shell.document(removed)
    for name in () if shell.as_json else removed:
        shell.line(name)
    return DONE


def _ended(shell: Shell, name: str, result: JobResult) -> int:
    """Say how a job has ended."""
    if shell.as_json:
        shell.document({"state": result.state, "message": result.message, "error": result.error})
    elif result.state == "done":
        shell.line(f"{name}: {result.message}")
    else:
        hint = _HINTS.get(_job_code(result), "")
        print(f"balena-agentctl: {name}: {result.message}{hint}", file=sys.stderr)
    return _job_code(result)


def _job_code(result: JobResult) -> int:
    return DONE if result.state == "done" else _CODES.get(result.error, FAILED)


def _progress(shell: Shell) -> Callable[[float, str], None]:
    """Shows the progress of a job in place, on a terminal only."""
    if shell.as_json or not shell.out.isatty():
        return lambda percent, message: None
    from .ctl_view import Style, printable

    def show(percent: float, message: str) -> None:
        bar = Style(rich=True).progress(percent) if percent < 100 else ""
        width = shutil.get_terminal_size().columns - 1
        line = f"{bar} {printable(message)}".strip()
        print(f"\r{line[:width]}\x1b[K", end="" if line else "\r", file=shell.out)
        shell.out.flush()

    return show


def _power(shell: Shell) -> int:
    off = shell.options.verb == "poweroff"
    shell.client.power(off, shell.options.force)
    if shell.as_json:
        shell.document({"state": "done", "message": "accepted"})
    return DONE


def _logs(shell: Shell) -> int:
    """Log lines of one service or all, until they end or Ctrl-C."""
    asked = shell.options
    options: dict[str, Any] = {"follow": asked.follow, "count": asked.lines}
    if asked.service:
        _, options["service"] = resolve(shell.client.describe(), asked.service)
    from .ctl_view import log_line

    with shell.client.log(options) as lines:
        for raw in lines:
            shell.line(raw.decode().rstrip("\n") if shell.as_json else log_line(json.loads(raw)))
    return DONE


def _monitor(shell: Shell) -> int:
    """Signals as lines, until Ctrl-C or `--count` lines."""
    left = shell.options.count
    for event in shell.client.events():
        shell.line(_event_json(event) if shell.as_json else _event_text(event))
        left -= 1
        if left == 0:
            break
    return DONE


def _event_text(event: Event) -> str:
    from .ctl_view import signal_line

    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    return f"{clock} {signal_line(event.name, event.path, event.body)}"


def _event_json(event: Event) -> str:
    return json.dumps(
        {"time": event.time, "signal": event.name, "path": event.path, "body": list(event.body)}
    )


def resolve(document: Any, text: str) -> tuple[int, str]:
    """(app id, service) for `SERVICE` or `APP/SERVICE`; APP is a name, an id or a uuid.

    NotFound without any; InvalidInput when several apps have such a service.
    """
    app_text, slash, name = text.rpartition("/")
    found = [
        (int(app["id"]), str(app["name"] or app["uuid"]))
        for app in document["apps"]
        if not slash or app_text in (str(app["id"]), app["name"], app["uuid"])
        for service in app["services"]
        if service["name"] == name
    ]
    if not found:
        raise NotFound(f"no service {text!r} on this device; see: balena-agentctl services")
    if len(found) > 1:
        apps = ", ".join(f"{app}/{name}" for _, app in found)
        raise InvalidInput(f"{name!r} is in several apps, say which one: {apps}")
    return found[0][0], name


def resolve_app(document: Any, text: str) -> tuple[int, str]:
    """(app id, what to call it) for a name, an id or a uuid; "" is the only app there is.

    NotFound without any; InvalidInput when several are meant.
    """
    found = [
        (int(app["id"]), str(app["name"] or app["uuid"]))
        for app in document["apps"]
        if text in ("", str(app["id"]), app["name"], app["uuid"])
    ]
    if not found:
        raise NotFound(f"no app {text!r} on this device" if text else "no app on this device")
    if len(found) > 1:
        ids = ", ".join(f"{app_id} ({name})" for app_id, name in found)
        raise InvalidInput(f"there are several apps, say which one: {ids}")
    return found[0]


# -- command line ---------------------------------------------------------------------------------


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
    parser.set_defaults(command=_status)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, command, text in _PLAIN:
        commands.add_parser(name, parents=[shared], help=text).set_defaults(command=command)
    for verb in ("start", "stop", "restart"):
        _add_service(commands, shared, verb)
    _add_apps(commands, shared)
    for verb, text in (("reboot", "reboot the device"), ("poweroff", "power the device off")):
        power = commands.add_parser(verb, parents=[shared], help=text)
        power.add_argument("--force", action="store_true", help="override update locks")
        power.set_defaults(command=_power, verb=verb)
    ctl_host.add(commands, shared)
    _add_target(commands, shared)
    _add_update(commands, shared)
    _add_key(commands, shared)
    _add_logs(commands, shared)
    _add_monitor(commands, shared)
    return parser


_PLAIN = (
    ("status", _status, "device, cloud, engine, apps, and what is waited for (default)"),
    ("services", _services, "all services as a table"),
    ("describe", _describe, "everything the agent knows, as JSON"),
    ("cleanup", _clean_up, "remove the volumes that nobody needs"),
)


def _add_service(commands: Any, shared: argparse.ArgumentParser, verb: str) -> None:
    parser = commands.add_parser(verb, parents=[shared], help=f"{verb} a service, and wait for it")
    parser.add_argument("service", metavar="[APP/]SERVICE", help="APP is a name, an id or a uuid")
    if verb == "start":
        parser.set_defaults(force=False)
    else:
        parser.add_argument("--force", action="store_true", help="override update locks")
    parser.set_defaults(command=_service, verb=verb)


def _add_apps(commands: Any, shared: argparse.ArgumentParser) -> None:
    for verb, text in (
        ("restart-app", "replace all containers of an app; its volumes stay"),
        ("purge", "the same, and all data in the volumes of the app is lost"),
    ):
        parser = commands.add_parser(verb, parents=[shared], help=text)
        optional = {} if verb == "purge" else {"nargs": "?", "default": ""}
        parser.add_argument("app", metavar="APP", help="a name, an id or a uuid", **optional)
        parser.add_argument("--force", action="store_true", help="override update locks")
        parser.set_defaults(command=_app, verb=verb)


def _add_target(commands: Any, shared: argparse.ArgumentParser) -> None:
    target = commands.add_parser("target", help="the target state")
    inner = target.add_subparsers(metavar="COMMAND", required=True)
    show = inner.add_parser("show", parents=[shared], help="print the target in force")
    show.set_defaults(command=_target_show)
    diff = inner.add_parser("diff", parents=[shared], help="print what a target would do")
    diff.add_argument("file", metavar="FILE", help="a local target as JSON; - is standard input")
    diff.set_defaults(command=_target_diff)
    given = inner.add_parser("set", parents=[shared], help="set it, and wait until it is applied")
    given.add_argument("file", metavar="FILE", help="a local target as JSON; - is standard input")
    given.add_argument("--force", action="store_true", help="override update locks")
    given.set_defaults(command=_target_set)


def _add_update(commands: Any, shared: argparse.ArgumentParser) -> None:
    update = commands.add_parser(
        "update", parents=[shared], help="fetch the target and apply it, and wait for it"
    )
    update.add_argument("--force", action="store_true", help="override update locks")
    update.add_argument("--cancel", action="store_true", help="begin running downloads anew")
    update.set_defaults(command=_update)


def _add_key(commands: Any, shared: argparse.ArgumentParser) -> None:
    key = commands.add_parser("key", help="the device's key for the HTTP API")
    inner = key.add_subparsers(metavar="COMMAND", required=True)
    fresh = inner.add_parser("regenerate", parents=[shared], help="replace it; print the new one")
    fresh.set_defaults(command=_key_regenerate)


def _add_logs(commands: Any, shared: argparse.ArgumentParser) -> None:
    logs = commands.add_parser("logs", parents=[shared], help="print what services have logged")
    logs.add_argument("-f", "--follow", action="store_true", help="and what they log from now on")
    logs.add_argument(
        "-n", "--lines", type=_count, default=100, metavar="N", help="the last N lines (100)"
    )
    logs.add_argument("service", nargs="?", default="", metavar="[APP/]SERVICE")
    logs.set_defaults(command=_logs)


def _add_monitor(commands: Any, shared: argparse.ArgumentParser) -> None:
    monitor = commands.add_parser("monitor", parents=[shared], help="print signals as they come")
    monitor.add_argument(
        "--count", type=_count, default=-1, metavar="N", help="end after N signals"
    )
    monitor.set_defaults(command=_monitor)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
