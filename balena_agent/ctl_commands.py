"""What the commands of balena-agentctl do, but for those about the machine (ctl_host.py).

Theory: every command is one function from a `Shell` to an exit code. It asks the agent, prints a
text or, with `--json`, a document, and decides nothing. What people call their services and apps is
looked up in what the agent describes.

Invariant: with `--json` nothing but JSON goes to standard output.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .core.errors import InvalidInput, NotFound
from .ctl_shell import CODES, DONE, FAILED, HINTS, Shell

if TYPE_CHECKING:
    from .ctl_client import Event, JobResult


def status(shell: Shell) -> int:
    document = shell.client.describe()
    if shell.as_json:
        shell.document(document)
        return DONE
    from .ctl_view import Style, status_lines

    for line in status_lines(document, Style(shell.out.isatty(), time.time())):
        shell.line(line)
    return DONE


def services(shell: Shell) -> int:
    from .ctl_view import Style, rows_of, service_table

    rows = rows_of(shell.client.describe())
    if shell.as_json:
        shell.document(rows)
    else:
        for line in service_table(rows, Style(shell.out.isatty())):
            shell.line(line)
    return DONE


def describe(shell: Shell) -> int:
    shell.document(shell.client.describe())
    return DONE


def target_show(shell: Shell) -> int:
    shell.document(shell.client.target())
    return DONE


def target_diff(shell: Shell) -> int:
    """What a target would do; it is only asked for."""
    document = shell.client.preview(shell.text_of(shell.options.file))
    if shell.as_json:
        shell.document(document)
        return DONE
    from .ctl_view import preview_lines

    for line in preview_lines(document):
        shell.line(line)
    return DONE


def target_set(shell: Shell) -> int:
    """Set the local target, and wait until it is applied."""
    text = shell.text_of(shell.options.file)
    result = shell.client.set_target(text, shell.options.force, _progress(shell))
    return _ended(shell, "target", result)


def update(shell: Shell) -> int:
    """Fetch the target and apply it, and wait for the end of it."""
    asked = shell.options
    return _ended(shell, "update", shell.client.update(asked.force, asked.cancel, _progress(shell)))


def key_regenerate(shell: Shell) -> int:
    key = shell.client.regenerate_key()
    if shell.as_json:
        shell.document({"key": key})
    else:
        shell.line(key)
    return DONE


def service(shell: Shell) -> int:
    """Start, stop or restart, and wait for the end of it."""
    options = shell.options
    app_id, name = resolve(shell.client.describe(), options.service)
    show = _progress(shell)
    return _ended(
        shell, name, shell.client.service(options.verb, app_id, name, options.force, show)
    )


def app(shell: Shell) -> int:
    """Restart or purge an app, and wait for the end of it."""
    options = shell.options
    app_id, name = resolve_app(shell.client.describe(), options.app)
    show = _progress(shell)
    return _ended(shell, name, shell.client.app(options.verb, app_id, options.force, show))


def clean_up(shell: Shell) -> int:
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
        hint = HINTS.get(_job_code(result), "")
        print(f"balena-agentctl: {name}: {result.message}{hint}", file=sys.stderr)
    return _job_code(result)


def _job_code(result: JobResult) -> int:
    return DONE if result.state == "done" else CODES.get(result.error, FAILED)


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


def power(shell: Shell) -> int:
    off = shell.options.verb == "poweroff"
    shell.client.power(off, shell.options.force)
    if shell.as_json:
        shell.document({"state": "done", "message": "accepted"})
    return DONE


def logs(shell: Shell) -> int:
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


def monitor(shell: Shell) -> int:
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
