"""The container library, brought in as small as it can be had.

Theory: `requests`, under docker's client, loads a library of its own that guesses in which
alphabet an answer is written: 3 MB with its tables, for a question that never comes up, because
the engine speaks JSON in UTF-8. It can do without, so that library is kept away while docker is
imported. An old `requests` insists on it and gets it.

Invariant: nothing is kept away from anybody afterwards.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

_GUESSERS = ("chardet", "charset_normalizer")


def api_client() -> Any:
    """docker's `APIClient`. The first call costs 5 MB and a third of a second of a small CPU."""
    with contextlib.suppress(ImportError), _kept_away(_GUESSERS):
        from docker import APIClient

        return APIClient
    from docker import APIClient

    return APIClient


@contextlib.contextmanager
def _kept_away(names: tuple[str, ...]) -> Iterator[None]:
    """None in `sys.modules` is Python's own way to say that a module cannot be had."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # requests says that it misses them
            yield
    finally:
        for name in hidden:
            del sys.modules[name]
