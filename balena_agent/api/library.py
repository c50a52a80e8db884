"""The HTTP server's library, brought in as small as it can be had.

Theory: Cheroot asks `importlib.metadata` for its own version, and for one decorator it loads
`jaraco.functools`, which loads all of `more_itertools`. With what these load it makes 1.5 MB for
nothing that is ever used here. So they are hollow while Cheroot is imported, and OpenSSL, of which
it asks the version, is absent. A version of the libraries that wants more of them gets them.
"""

from __future__ import annotations

from ..loading import absent, hollow
from ..openssl import OPENSSL

__all__ = ["cheroot"]

try:
    with absent(*OPENSSL), hollow({"importlib.metadata": (), "more_itertools": ()}):
        import cheroot.server
        import cheroot.wsgi
except (ImportError, AttributeError):
    import cheroot.server
    import cheroot.wsgi
