"""TLS, and OpenSSL not before somebody is asked over it.

Theory: OpenSSL and Python's module for it keep 5 MB in memory. A device without a cloud never
speaks TLS, but half of the standard library loads it in passing: asyncio and http.client in case of
a TLS connection, hashlib for hashes that Python has of its own. All of them can do without. This
module imports them so; the process that wants it imports it first.

What http.client then lacks is `HTTPSConnection`: `TlsConnection` is all that we need of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .loading import absent

if TYPE_CHECKING:
    import socket
    from ssl import SSLContext

OPENSSL = ("ssl", "_ssl", "OpenSSL")


def _hashes() -> tuple[str, ...]:
    """What hashlib can do without: nothing where Python was built without hashes of its own."""
    try:
        importlib.import_module("_md5")
    except ImportError:
        return ()
    return ("_hashlib",)


with absent(*OPENSSL, *_hashes()):
    import asyncio  # noqa: F401
    import hashlib  # noqa: F401
    import hmac  # noqa: F401
    import http.client


class TlsConnection(http.client.HTTPConnection):
    """Like HTTPSConnection, for one host and without a proxy."""

    default_port = 443

    def __init__(
        self, host: str, port: int | None, context: SSLContext, timeout: float | None = None
    ) -> None:
        super().__init__(host, port, timeout=timeout)
        self._context = context

    def connect(self) -> None:
        super().connect()
        self.sock = self.secured(self.sock)

    def secured(self, sock: socket.socket) -> socket.socket:
        """TLS with our host over a connection that there is; the certificate is checked."""
        return self._context.wrap_socket(sock, server_hostname=self.host)
