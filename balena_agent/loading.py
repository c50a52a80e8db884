"""Importing a library without what it can do without.

Theory: a library that we need loads others for uses that we never make of it, and each costs a
small device megabytes. Most of them are optional: the library asks for them and goes on when they
are missing (`absent`). Of some it only wants that they are there (`hollow`). Both hold while a
block is running and hide nothing that has been loaded before.

Invariant: nothing is kept away from anybody afterwards; what is absent, not even meanwhile from
other threads.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType


@contextlib.contextmanager
def absent(*names: str) -> Iterator[None]:
    """What this thread imports in the block finds no modules of these names."""
    finder = _Nothing(names)
    # A list of its own each time: an import that another thread is at goes through the old one.
    sys.meta_path = [finder, *sys.meta_path]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that something is missed
            yield
    finally:
        sys.meta_path = [other for other in sys.meta_path if other is not finder]


@contextlib.contextmanager
def hollow(modules: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
    """In the block these modules have these attributes, which are None, and nothing else. Who
    wants more of them fails at once, not later."""
    made = {name: ModuleType(name) for name in modules if name not in sys.modules}
    for name, module in made.items():
        vars(module).update(dict.fromkeys(modules[name]))
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


class _Nothing:
    """A finder of modules that ends the search."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in self._names and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is kept away", name=name)
