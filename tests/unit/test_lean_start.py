"""What the agent must not load: each of these costs memory that a device has little of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LATER = (
    "balena_agent.cloud.logs",
    "balena_agent.cloud.upload",
    "balena_agent.core.logupload",
    "balena_agent.ctl",
    "balena_agent.engine.delta",
    "balena_agent.engine.pull",
    "balena_agent.engine.registry",
    "balena_agent.engine.web",
    "charset_normalizer",
    "configobj",
    "decimal",
    "difflib",
    "docker",
    "html",
    "multiprocessing",
    "requests",
    "sdnotify",
    "unittest",
    "urllib.request",
    "urllib3",
    "uuid",
)
"""Not before somebody needs them, if at all."""


def loaded(code: str) -> set[str]:
    """The modules of a fresh interpreter that has run `code`."""
    told = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert not told.stderr
    return set(told.stdout.split())


def test_the_start_loads_nothing_that_can_wait() -> None:
    modules = loaded("import balena_agent.daemon")
    assert "balena_agent.daemon" in modules
    assert not modules & set(LATER)


def test_calls_to_the_engine_load_nothing_more() -> None:
    call = """
from balena_agent.core.errors import EngineUnavailable
from balena_agent.engine.client import Client, Link
try:
    Client(Link("/none")).ping()
except EngineUnavailable:
    pass
"""
    start = "import balena_agent.daemon"
    assert loaded(start + call) == loaded(start)
