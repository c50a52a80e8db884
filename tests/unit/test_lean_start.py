"""What the agent must not load: each of these costs memory that a device has little of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LATER = (
    "_hashlib",
    "_ssl",
    "argparse",
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
    "importlib.metadata",
    "more_itertools",
    "multiprocessing",
    "requests",
    "sdnotify",
    "ssl",
    "unittest",
    "urllib.request",
    "urllib3",
    "uuid",
    "zipfile",
)
"""Not before somebody needs them, if at all."""


def test_tls_and_the_hashes_of_openssl_can_still_be_had_afterwards() -> None:
    modules = loaded(
        "import balena_agent.openssl; from balena_agent.engine.library import api_client;"
        " api_client(); import ssl, _hashlib, idna.core, hashlib; ssl.create_default_context();"
        " assert hashlib.md5(b'', usedforsecurity=False).hexdigest().startswith('d41d8cd9')"
    )
    assert {"_ssl", "ssl", "_hashlib", "idna.core"} <= modules


def test_what_one_thread_does_without_is_there_for_the_others() -> None:
    loaded(
        "import concurrent.futures; from balena_agent.loading import absent\n"
        "def other():\n"
        "    import ssl\n"
        "with concurrent.futures.ThreadPoolExecutor(1) as pool, absent('ssl'):\n"
        "    pool.submit(other).result()"
    )


def loaded(code: str) -> set[str]:
    """The modules of a fresh interpreter that has run `code`."""
    told = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert not told.stderr
    return set(told.stdout.split())


def test_the_start_loads_nothing_that_can_wait() -> None:
    modules = loaded("import balena_agent.__main__, balena_agent.daemon")
    assert "balena_agent.daemon" in modules
    assert not modules & set(LATER)


def test_what_stood_in_for_a_library_is_gone_afterwards() -> None:
    modules = loaded(
        "import balena_agent.api.server; from importlib import metadata; import more_itertools;"
        " metadata.version('cheroot'); more_itertools.consume([])"
    )
    assert {"importlib.metadata", "more_itertools.more", "cheroot.wsgi"} <= modules


def test_a_server_that_needs_more_gets_it(tmp_path: Path) -> None:
    (tmp_path / "cheroot").mkdir()
    (tmp_path / "cheroot/__init__.py").write_text("from more_itertools import consume\n")
    (tmp_path / "cheroot/server.py").write_text("")
    (tmp_path / "cheroot/wsgi.py").write_text("")
    modules = loaded(f"sys.path.insert(0, {str(tmp_path)!r}); import balena_agent.api.library")
    assert {"cheroot.wsgi", "more_itertools.more"} <= modules


def test_the_engine_is_called_without_the_guesser_of_text_encodings() -> None:
    modules = loaded(
        "import balena_agent.openssl;"
        " from balena_agent.engine.client import Link; Link('/none').pool(); import docker.errors"
    )
    assert {"docker", "urllib3"} <= modules
    assert not modules & {"charset_normalizer", "chardet", "_ssl", "ssl", "idna.core"}


def test_the_guesser_can_still_be_loaded_afterwards() -> None:
    modules = loaded(
        "from balena_agent.engine.client import Link; Link('/none').api();"
        " import charset_normalizer"
    )
    assert "charset_normalizer" in modules


def test_a_library_that_needs_the_guesser_gets_it(tmp_path: Path) -> None:
    """Older ones load it without asking whether it is there."""
    (tmp_path / "docker.py").write_text("import charset_normalizer\nclass APIClient: pass\n")
    (tmp_path / "charset_normalizer.py").write_text("")
    modules = loaded(
        f"sys.path.insert(0, {str(tmp_path)!r});"
        " from balena_agent.engine.library import api_client; api_client()()"
    )
    assert {"docker", "charset_normalizer"} <= modules
