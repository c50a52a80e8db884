"""What balena-agentctl prints: the agent's documents as text for people.

Theory: pure functions from a Describe document (core/describe.py) to lines, so that every layout
can be tested from a file. Members that an older or newer agent does not send are simply not shown.
Invariant: text that came from elsewhere (registries, containers) loses its control characters.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]

_LABEL = 10
_BAR = 20
_GREEN, _YELLOW, _RED, _BOLD, _DIM = "32", "33", "31", "1", "2"
_GOOD = frozenset({"running", "handing over"})
_BAD = frozenset({"dead", "exited"})


@dataclass(frozen=True, slots=True)
class Style:
    """`rich` is for terminals: colours and bars. `now` is wall time, for "in 12 s"."""

    rich: bool = False
    now: float = 0.0

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self.rich and colour and text else text

    def progress(self, percent: float | None) -> str:
        if percent is None or percent < 0:
            return ""
        filled = round(percent / 100 * _BAR)
        bar = f"[{'#' * filled}{'-' * (_BAR - filled)}] " if self.rich else ""
        return f"{bar}{percent:.0f} %"


def printable(text: object) -> str:
    """Text on one line without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in str(text))


def status_lines(document: Document, style: Style) -> Iterator[str]:
    """The whole state: device, cloud, engine, apps as a tree, waits, failures."""
    device = document.get("device") or {}
    yield _headline(document, device, style)
    yield from _field("Status", printable(document.get("status", "")))
    yield from _field("Device", _joined(device, "uuid", "type", "os"))
    yield from _field("Agent", printable(document.get("version", "")))
    yield from _field("Cloud", _cloud(document, device))
    yield from _field("Engine", _engine(document.get("engine") or {}, style))
    yield from _field("Update", _update(document.get("update") or {}, style))
    yield from _block("Apps", _tree(document.get("apps") or (), style))
    yield from _block("Waiting", (_wait(w, style) for w in document.get("waits") or ()))
    yield from _block("Doing", (_running(r, style) for r in document.get("running") or ()))
    yield from _block("Failing", (_failure(f, style) for f in document.get("failures") or ()))
    yield from _block("Problems", (printable(text) for text in document.get("problems") or ()))
    yield from _block("Notices", (printable(note) for note in document.get("notices") or ()))
    yield from _last_error(document, style)


def service_table(rows: Sequence[Document], style: Style) -> Iterator[str]:
    """One line per service, in columns."""
    head = ("APP", "SERVICE", "STATUS", "PROGRESS", "COMMIT", "CONTAINER")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(head))]
    for number, line in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        colour = _DIM if number == 0 else _colour(line[2])
        shown = range(len(head)) if number == 0 else (2,)
        yield "  ".join(
            style.paint(cell, colour) if place in shown else cell
            for place, cell in enumerate(padded)
        ).rstrip()


def rows_of(document: Document) -> list[dict[str, Any]]:
    """The services of a Describe document with their app beside them."""
    return [
        {**service, "app": app["name"] or app["uuid"], "appId": app["id"], "appUuid": app["uuid"]}
        for app in document.get("apps") or ()
        for service in app["services"]
    ]


def signal_line(name: str, path: str, body: Sequence[Any]) -> str:
    """One signal as a line. `path` is the object's, without the common root."""
    match name, list(body):
        case "StepStarted" | "StepFailed", [_, service, step, why]:
            text = f"{step} {service}".rstrip() + (f": {why}" if why else "")
        case "UpdateFinished", [commit, success, message]:
            text = f"{short(commit)} " + ("done" if success else f"failed: {message}")
        case "UpdateStarted", [commit]:
            text = short(commit)
        case "PropertiesChanged", [_, changed, *_]:
            text = ", ".join(f"{key}={value}" for key, value in changed.items())
        case "InterfacesAdded" | "InterfacesRemoved", [added, _]:
            text = _below(added)
        case _, values:
            text = " ".join(str(value) for value in values)
    return printable(" ".join(filter(None, (f"{name:<18}", _below(path), text))).rstrip())


def log_line(line: Document) -> str:
    """`TIME SERVICE | text`; what is told about the device itself has no service."""
    clock = time.strftime("%H:%M:%S", time.localtime(line["timestamp"] / 1000))
    name = printable(line.get("serviceName", "")) or "-"
    return f"{clock} {name} | {printable(line['message'])}"


def preview_lines(document: Document) -> Iterator[str]:
    """What a target would do (core/preview.py): steps in order, then what stays, waits, is wrong.

    Apps are named where the document speaks of several.
    """
    parts = [document.get(name) or () for name in ("steps", "untouched", "rejected")]
    several = len({entry["app"] for part in parts for entry in part if entry["app"]}) > 1
    for step in parts[0]:
        yield printable(_planned(step, several))
    if not parts[0]:
        yield "nothing to do"
    if parts[1]:
        names = (_named(entry["app"], entry["service"], several) for entry in parts[1])
        yield printable(f"untouched: {', '.join(names)}")
    for wait in document.get("waits") or ():
        yield printable(f"wait {wait['subject']}: {wait['reason']}")
    for entry in parts[2]:
        yield printable(f"rejected app {entry['app']}: {entry['problem']}")
    for text in document.get("warnings") or ():
        yield printable(f"warning: {text}")


def _planned(step: Document, several: bool) -> str:
    """The same words as core/traits.py has for a plan."""
    thing = step["subject"].partition(" ")[2] or step["subject"]
    service = _named(step["app"], step["service"], several)
    if step["step"] == "fetch":
        name = f"{thing} for {service}"
    else:
        name = service if step["service"] else thing
    return f"{step['step']} {name}" + (f": {step['cause']}" if step["cause"] else "")


def _named(app: str, service: str, several: bool) -> str:
    return f"{app}/{service}" if several else service


def _last_error(document: Document, style: Style) -> Iterator[str]:
    """The last error there was, unless it is told above; nobody should take it for a present one
    when all is well again."""
    error = printable(document.get("lastError") or "")
    if any(printable(entry["error"]) in error for entry in document.get("failures") or ()):
        return
    well = document.get("settled") and not (document.get("update") or {}).get("failed")
    yield from _field(
        "Earlier" if well else "Last error", error if well else style.paint(error, _RED)
    )


def short(commit: str) -> str:
    return commit[:7]


def _headline(document: Document, device: Document, style: Style) -> str:
    update = document.get("update") or {}
    good = document.get("settled") and not update.get("failed")
    engine_down = (document.get("engine") or {}).get("state") == "down"
    colour = _RED if engine_down else _GREEN if good else _YELLOW
    name = printable(device.get("name") or device.get("hostname") or "device")
    return f"{style.paint('●', colour)} {style.paint(name, _BOLD)}"


def _field(label: str, text: str) -> Iterator[str]:
    if text:
        yield f"{label:>{_LABEL}}: {text}"


def _block(label: str, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{label:>{_LABEL}}: {line}" if number == 0 else f"{'':{_LABEL}}  {line}"


def _joined(document: Document, *names: str) -> str:
    return ", ".join(printable(document[name]) for name in names if document.get(name))


def _cloud(document: Document, device: Document) -> str:
    if not document.get("managed"):
        return "unmanaged: targets come from this device's own users"
    local = " (local mode: its targets are ignored)" if document.get("localMode") else ""
    cloud = document.get("cloud") or {}
    told = [printable(text) for text in (cloud.get("state"), cloud.get("error")) if text]
    state = f" ({': '.join(told)})" if told else ""
    return printable(device.get("apiEndpoint", "")) + state + local


def _engine(engine: Document, style: Style) -> str:
    socket = printable(engine.get("socket", ""))
    if engine.get("state") == "up":
        return f"{style.paint('up', _GREEN)} ({socket})"
    told = [style.paint("down", _RED), printable(engine.get("error") or "")]
    return ": ".join(filter(None, told)) + (f" ({socket})" if socket else "")


def _update(update: Document, style: Style) -> str:
    words = [word for word in ("pending", "downloaded", "failed") if update.get(word)]
    if progress := style.progress(update.get("progress")):
        words.append(f"downloading {progress}")
    return ", ".join(words)


def _tree(apps: Sequence[Document], style: Style) -> Iterator[str]:
    for app in apps:
        yield _app(app, style)
        services = app["services"]
        width = max((len(printable(service["name"])) for service in services), default=0)
        for number, service in enumerate(services):
            last = number == len(services) - 1
            yield ("└─ " if last else "├─ ") + _service(service, width, style)
            if service.get("waiting"):
                yield ("   " if last else "│  ") + " " * width + _because(service, style)


def _app(app: Document, style: Style) -> str:
    name = style.paint(printable(app["name"] or app["uuid"]), _BOLD)
    words = [name, f"({app['id']})", _release(app)]
    if app.get("problem"):
        words.append(style.paint(f"rejected: {printable(app['problem'])}", _RED))
    return " ".join(filter(None, words))


def _release(app: Document) -> str:
    if not app.get("inTarget", True):
        return "not in the target, being removed"
    wanted, applied = short(app.get("commit") or ""), short(app.get("appliedCommit") or "")
    return wanted if wanted == applied else f"{applied or 'nothing'} → {wanted}"


def _service(service: Document, width: int, style: Style) -> str:
    name, status = printable(service["name"]), printable(service["status"])
    painted = style.paint(status, _colour(status))
    progress = style.progress(service.get("downloadProgress"))
    if progress and status != "Downloading":  # the old container still runs
        painted += ", downloading"
    return f"{name:<{width}}  {painted} {progress}".rstrip()


def _because(service: Document, style: Style) -> str:
    return "  " + style.paint(f"waiting: {printable(service['waiting'])}", _YELLOW)


def _wait(wait: Document, style: Style) -> str:
    again = _when(wait.get("until"), style)
    return f"{printable(wait['subject'])}: {printable(wait['reason'])}{again}"


def _running(entry: Document, style: Style) -> str:
    percent = style.progress(entry.get("percent"))
    cause = f": {printable(entry['cause'])}" if entry.get("cause") else ""
    what = f"{entry['step']} {printable(entry['subject'])}{cause}"
    return f"{what}, {percent}" if percent else what


def _failure(entry: Document, style: Style) -> str:
    times = f" ({entry['attempts']} attempts)" if entry["attempts"] > 1 else ""
    what = f"{entry['step']} {printable(entry['subject'])}"
    again = _when(entry.get("retryAt"), style)
    return f"{what}: {style.paint(printable(entry['error']), _RED)}{times}{again}"


def _when(instant: float | None, style: Style) -> str:
    if not instant:
        return ""
    left = instant - style.now
    return f", again in {left:.0f} s" if left >= 1 else ", again now"


def _cells(row: Document) -> tuple[str, ...]:
    progress = row.get("downloadProgress")
    return (
        printable(row["app"]),
        printable(row["name"]),
        printable(row["status"]),
        "" if progress is None else f"{progress} %",
        short(row["commit"]),
        row["containerId"][:12],
    )


def _colour(status: str) -> str:
    word = status.lower()
    return _GREEN if word in _GOOD else _RED if word in _BAD else _YELLOW


def _below(path: str) -> str:
    return path.removeprefix("/io/balena/Agent1").lstrip("/")
