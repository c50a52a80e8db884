"""A server's certificate for 127.0.0.1 that nobody has signed but itself."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def self_signed(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """What a server speaks TLS with, and the file that a client must trust."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = directory / "key", directory / "certificate"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=cloud",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def hashed(directory: Path, *certificates: Path) -> Path:
    """A directory of authorities as `openssl rehash` makes it."""
    for certificate in certificates:
        asked = ["openssl", "x509", "-noout", "-hash", "-in", certificate]
        told = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=30).stdout
        shutil.copy(certificate, directory / f"{told.strip()}.0")
    return directory
