"""TLS as the agent's own process speaks it, which has loaded http.client without it."""

from __future__ import annotations

import http.server
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certificates import hashed, self_signed

from balena_agent.openssl import TlsConnection, client_context

ROOT = Path(__file__).parents[2]

ASK = """
import sys
import balena_agent.__main__, balena_agent.daemon
from balena_agent.core.errors import Unavailable
from balena_agent.engine.library import api_client
from balena_agent.engine.web import get
from balena_agent.cloud.client import exchange

api_client()
print("ssl" in sys.modules)
for ask in (
    lambda url: get(url, {}, 10.0).body,
    lambda url: exchange(url, "k", "GET", "/").body,
):
    try:
        print(ask(sys.argv[1]))
    except Unavailable as error:
        print(error.message)
print("ssl" in sys.modules)
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(self.headers["Host"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Its address, and its certificate."""
    context, certificate = self_signed(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.socket = context.wrap_socket(made.socket, server_side=True)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"127.0.0.1:{made.server_port}", certificate
        made.shutdown()
        thread.join()


def asked(address: str, trusted: Path | None) -> list[str]:
    """What the agent's process says: is TLS loaded, both answers, is it loaded now."""
    environment = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, f"https://{address}"], cwd=ROOT, capture_output=True, text=True,
        timeout=60, env=environment | ({"SSL_CERT_FILE": str(trusted)} if trusted else {}),
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.splitlines()


def test_registry_and_cloud_are_asked_over_tls_when_it_comes_to_that(
    server: tuple[str, Path],
) -> None:
    address, certificate = server
    said = f"b'\"{address}\"'"
    assert asked(address, certificate) == ["False", said, said, "True"]


def test_a_certificate_that_nobody_trusts_is_refused(server: tuple[str, Path]) -> None:
    before, *refusals, after = asked(server[0], None)
    assert (before, after) == ("False", "True")
    assert len(refusals) == 2 and all("certificate" in one for one in refusals), refusals


@pytest.fixture
def host_trusts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], None]:
    """Has the host keep its authorities in this file and that directory."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)

    def keep(file: Path, directory: Path) -> None:
        paths = ssl.get_default_verify_paths()
        found = paths._replace(cafile=str(file), capath=str(directory))
        monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: found)

    return keep


def speak(address: str) -> int:
    host, _, port = address.partition(":")
    connection = TlsConnection(host, int(port), client_context(), 10.0)
    connection.request("GET", "/")
    with connection.getresponse() as answer:
        return answer.status


def test_of_a_directory_of_authorities_none_is_read_before_it_is_needed(
    server: tuple[str, Path], tmp_path: Path, host_trusts: Callable[[Path, Path], None]
) -> None:
    address, certificate = server
    (directory := tmp_path / "hashed").mkdir()
    host_trusts(certificate, hashed(directory, certificate))
    assert client_context().cert_store_stats()["x509"] == 0
    assert speak(address) == 200


def test_a_server_that_nobody_in_the_directory_vouches_for_is_refused(
    server: tuple[str, Path], tmp_path: Path, host_trusts: Callable[[Path, Path], None]
) -> None:
    (other := tmp_path / "other").mkdir()
    (directory := tmp_path / "hashed").mkdir()
    _, stranger = self_signed(other)
    host_trusts(stranger, hashed(directory, stranger))
    with pytest.raises(ssl.SSLCertVerificationError):
        speak(server[0])


def test_a_directory_that_lacks_some_is_not_relied_on(
    server: tuple[str, Path],
    tmp_path: Path,
    host_trusts: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenSSL is left to find them, by its own rules; so it is where the user names a file."""
    address, certificate = server
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    (directory := tmp_path / "hashed").mkdir()
    host_trusts(certificate, hashed(directory, certificate))
    assert client_context().cert_store_stats()["x509"] == 1, "the user names a file"
    assert speak(address) == 200
    asked: list[object] = []
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setattr(ssl, "create_default_context", lambda capath: asked.append(capath))
    for lacking in (hashed(tmp_path, certificate) / "none", directory):
        (both := tmp_path / "both").write_bytes(certificate.read_bytes() * 2)
        host_trusts(both, lacking)
        client_context()
    assert asked == [None, None]
