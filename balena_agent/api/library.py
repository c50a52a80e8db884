"""The HTTP server's library, brought in as small as it can be had.

Theory: Cheroot asks `importlib.metadata` for its own version, and for one decorator it loads
`jaraco.functools`, which loads all of `more_itertools`. With what these load it makes 1.5 MB for
nothing that is ever used here. So empty modules stand in for the two while Cheroot is imported: it
calls itself "unknown" then. A version of the libraries that wants more of them gets them.

Invariant: nothing is kept away from anybody afterwards.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

__all__ = ["cheroot"]

_UNUSED = ("importlib.metadata", "more_itertools")


@contextlib.contextmanager
def _empty(names: tuple[str, ...]) -> Iterator[None]:
    """Empty modules under these names, but for those that are there already."""
    stand_ins = {name: ModuleType(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


try:
    with _empty(_UNUSED):
        import cheroot.server
        import cheroot.wsgi
except (ImportError, AttributeError):
    import cheroot.server
    import cheroot.wsgi
