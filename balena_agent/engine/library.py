"""The container library, brought in as small as it can be had.

Theory: `requests`, under docker's client, loads a library of its own that guesses in which
alphabet an answer is written: 3 MB with its tables, for a question that never comes up, because
the engine speaks JSON in UTF-8. It can do without; and without OpenSSL, because the engine is
asked through a socket file. Of two others it only wants that they are there. A version that
insists on any of them gets it.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ..loading import absent, hollow
from ..openssl import OPENSSL

_OPTIONAL = ("chardet", "charset_normalizer", *OPENSSL)
_UNUSED: dict[str, tuple[str, ...]] = {"idna": (), "importlib.metadata": ("version",)}


def api_client() -> Any:
    """docker's `APIClient`. The first call costs 5 MB and a third of a second of a small CPU."""
    with contextlib.suppress(ImportError, AttributeError), absent(*_OPTIONAL), hollow(_UNUSED):
        from docker import APIClient

        return APIClient
    from docker import APIClient

    return APIClient
