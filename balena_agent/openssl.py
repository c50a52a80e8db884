"""TLS, and OpenSSL not before somebody is asked over it.

Theory: OpenSSL and Python's module for it keep 5 MB in memory. A device without a cloud never
speaks TLS, but half of the standard library loads it in passing: asyncio and http.client in case of
a TLS connection, hashlib for hashes that Python has of its own. All of them can do without. This
module imports them so; the process that wants it imports it first.

What http.client then lacks is `HTTPSConnection`: `TlsConnection` is all that we need of it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from .loading import absent

if TYPE_CHECKING:
    import socket
    from ssl import DefaultVerifyPaths, SSLContext

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


def client_context() -> SSLContext:
    """What we speak TLS with: whom the host trusts, we trust.

    A context that has read all of the host's authorities keeps 1 MB of memory and takes some
    milliseconds to make, and each connection has its own. From a directory OpenSSL reads the one
    authority that it needs; where the host has such a directory, and it lacks none of those in the
    host's file, that will do."""
    import ssl

    return ssl.create_default_context(capath=_directory(ssl.get_default_verify_paths()))


def _directory(paths: DefaultVerifyPaths) -> str | None:
    """The host's authorities by the hash of their name, if they are all there."""
    if not (paths.capath and paths.cafile) or paths.openssl_cafile_env in os.environ:
        return None
    try:
        with open(paths.cafile, "rb") as file:
            wanted = sum(line.startswith(b"-----BEGIN ") for line in file)
        return paths.capath if sum(map(_is_hash, os.listdir(paths.capath))) >= wanted else None
    except OSError:
        return None


def _is_hash(name: str) -> bool:
    return len(name) > 9 and name[8] == "." and name[9:].isdigit()


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
