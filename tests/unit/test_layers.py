"""The house's arrows and fences (architecture B3): a wrong import fails the build."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "balena_agent"
PACKAGE = "balena_agent"

ALLOWED = {
    "core": set(),
    "loading": set(),
    "openssl": {"loading"},
    "watchdog": set(),
    "runtime": {"core", "watchdog"},
    "engine": {"core", "watchdog", "loading", "openssl"},
    "host": {"core", "watchdog"},
    "store": {"core", "watchdog", "database", "schema"},
    "schema": set(),
    "database": {"core"},
    "peer": {"core"},
    "config": {"core", "watchdog"},
    "api": {"core", "runtime", "watchdog", "loading", "openssl"},
    "cloud": {"core", "runtime", "watchdog", "openssl"},
    "daemon": {
        "core",
        "runtime",
        "watchdog",
        "api",
        "cloud",
        "engine",
        "host",
        "store",
        "config",
        "peer",
        "startup",
        "hostside",
        "faces",
    },
    "faces": {"core", "runtime", "api", "cloud", "host", "store", "config", "hostside"},
    "hostside": {"core", "runtime", "host", "config"},
    "startup": {"core", "runtime", "store", "peer"},
    "__main__": {"daemon", "config", "core", "openssl"},
    "ctl": {"core", "ctl_client", "ctl_commands", "ctl_host", "ctl_shell"},
    "ctl_commands": {"core", "ctl_client", "ctl_shell", "ctl_view"},
    "ctl_host": {"core", "ctl_shell"},
    "ctl_shell": {"core", "ctl_client"},
    "ctl_client": {"core", "ctl_view"},
    "ctl_view": {"core"},
}
"""layer -> layers that it may import besides itself. Adapters never import each other."""

EXCEPTIONS = (
    # One bus connection, for the exported service and for calls.
    ("api/dbus", "host.bus"),
    ("api/dbus", "host.wire"),
    ("ctl_client.py", "host.bus"),  # balena-agentctl is a D-Bus client
    ("ctl_client.py", "host.wire"),
    ("__main__.py", "host.journal"),  # log set-up comes before everything else
    ("__main__.py", "watchdog"),
)
"""(start of the importing module's path, imported module)."""

FENCES = {
    "docker": ("engine/",),
    "dbus_next": ("host/", "api/dbus"),
    "bottle": ("api/",),
    "cheroot": ("api/",),
    "sqlite3": ("store.py", "database.py", "peer.py"),
    "configobj": ("config.py",),
    "validate": ("config.py",),
    "sdnotify": ("watchdog.py",),
    "systemd": ("host/journal", "__main__.py"),
    "requests": ("engine/", "cloud/"),
    "urllib3": ("engine/", "cloud/"),
}
"""library -> the only places that may import it."""

IMPURE = {"os", "socket", "time", "threading", "logging", "subprocess", "asyncio", "pathlib",
          "random", "datetime", "tempfile", "shutil", "queue"}  # fmt: skip


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything a module imports, wherever in it the import stands."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    inside = list(parts if path.name == "__init__.py" else parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` may name a module: then x is what is imported.
            for alias in node.names:
                whole = f"{stem}.{alias.name}"
                yield whole if _is_module(whole) else stem


def _is_module(name: str) -> bool:
    path = ROOT.parent / Path(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def layer(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_arrows_between_layers(path: Path) -> None:
    if path.name == "__init__.py":
        return
    mine = layer(path)
    assert mine in ALLOWED, f"{name_of(path)}: no such layer; add it to the picture first"
    for name in imports(path):
        if not name.startswith(PACKAGE + "."):
            continue
        inner = name.removeprefix(PACKAGE + ".")
        other = inner.split(".")[0]
        excepted = any(name_of(path).startswith(p) and inner == m for p, m in EXCEPTIONS)
        allowed = other == mine or other in ALLOWED[mine] or excepted
        assert allowed, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_library_fences(path: Path) -> None:
    for name in imports(path):
        library = name.split(".")[0]
        places = FENCES.get(library, ("",))
        assert name_of(path).startswith(places), f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "core").glob("*.py")), ids=name_of)
def test_core_is_pure(path: Path) -> None:
    for name in imports(path):
        assert name.split(".")[0] not in IMPURE, f"{name_of(path)} imports {name}"


def test_runtime_uses_no_third_party_library() -> None:
    import sys

    known = set(sys.stdlib_module_names) | {PACKAGE, "__future__"}
    for path in (ROOT / "runtime").glob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] in known, f"{name_of(path)} imports {name}"


def test_no_import_cycles() -> None:
    graph = {_dotted(path): _inner(path) for path in modules()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)


def _inner(path: Path) -> set[str]:
    return {name for name in imports(path) if name.startswith(PACKAGE + ".") and _is_module(name)}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_modules_are_of_a_readable_size(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500, f"{name_of(path)} wants to be split"
