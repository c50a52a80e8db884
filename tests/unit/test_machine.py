"""The machine's own files: read whatever their state, written so that a power cut cannot harm."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from balena_agent.core.errors import Unavailable
from balena_agent.core.observed import HostFacts
from balena_agent.host import machine


@dataclass
class Files:
    config_json: str
    device_type_json: str
    os_release: str
    hostname: str


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(*(str(tmp_path / n) for n in ("config.json", "type.json", "os-release", "name")))


def write(path: str, content: Any) -> None:
    Path(path).write_text(content if isinstance(content, str) else json.dumps(content))


def facts(files: Files, **more: Any) -> tuple[HostFacts, tuple[str, ...]]:
    return machine.facts(files, api_port=48484, engine_socket="/e.sock", **more)


def test_everything_there(files: Files, tmp_path: Path) -> None:
    write(
        files.config_json,
        {"apiEndpoint": "https://api.x/", "uuid": "ab", "deviceApiKey": "s", "listenPort": "80"},
    )
    write(files.device_type_json, {"slug": "raspberrypi4-64", "arch": "aarch64", "x": [1]})
    write(
        files.os_release,
        'ID="balena-os"\nVERSION="6.0.1"\nPRETTY_NAME="balenaOS 6"\nRESIN_BOARD_REV=r1\n#C=d\n',
    )
    write(files.hostname, "kiosk\n")
    (tmp_path / "lib" / "modules").mkdir(parents=True)
    found, problems = facts(files, root=str(tmp_path))
    assert problems == ()
    assert found == HostFacts(
        device_uuid="ab", device_type="raspberrypi4-64", device_arch="aarch64",
        os_name="balenaOS 6", os_variant="prod", board_rev="r1", hostname="kiosk", api_port=80,
        api_endpoint="https://api.x", device_api_key="s", has_modules=True, has_firmware=False,
        engine_socket="/e.sock", os_id="balena-os", os_version="6.0.1",
        kernel_name=os.uname().sysname, kernel_release=os.uname().release,
    )  # fmt: skip
    assert found.managed


def test_nothing_there(files: Files) -> None:
    found, problems = facts(files, stored_uuid="stored")
    assert not found.managed and found.device_uuid == "stored" and found.api_port == 48484
    assert found.hostname == socket.gethostname() and found.os_name == ""
    assert found.device_type == "unknown"
    assert found.device_arch == {"x86_64": "amd64"}.get(platform.machine(), found.device_arch)
    assert problems == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON (line 1)"),
        ('{\n"a": 1,\n"b": x}', "is not valid JSON (line 3)"),
        ("[1]", "must hold a JSON object"),
        ("\x00", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_broken_config_json_is_told(files: Files, text: str, said: str) -> None:
    write(files.config_json, text)
    found, problems = facts(files)
    assert said in problems[0] and not found.managed


def test_wrong_values_are_told_but_no_secret_is(files: Files) -> None:
    write(
        files.config_json,
        {"uuid": 5, "apiEndpoint": None, "deviceApiKey": ["hush"], "listenPort": "x",
         "developmentMode": "maybe"},
    )  # fmt: skip
    found, problems = facts(files)
    assert found.device_uuid == "" and found.api_port == 48484 and found.os_variant == "prod"
    assert problems[:4] == (
        'config.json: listenPort must be a number but is "x"; ignored',
        "config.json: uuid must be text but is 5; ignored",
        'config.json: developmentMode must be true or false but is "maybe"; ignored',
        "config.json: deviceApiKey must be text but is (not shown); ignored",
    )
    assert "hush" not in " ".join(problems)


@pytest.mark.parametrize(
    ("value", "meant"),
    [(8080, 8080), ("8080", 8080), ("42abc", 42), (8080.0, 8080), (None, 48484), (True, 48484),
     ("9" * 5000, 48484), (0, 48484), (70000, 48484), ("", 48484), ([1], 48484), (1.5, 48484),
     (1e999, 48484)],
)  # fmt: skip
def test_numbers(files: Files, value: object, meant: int) -> None:
    write(files.config_json, {"listenPort": value})
    assert facts(files)[0].api_port == meant


@pytest.mark.parametrize(
    ("value", "meant"),
    [("60000", 60_000), (1, 1), (None, 900_000), (0, 900_000), (-1, 900_000), (1e15, 900_000)],
)
def test_how_long_requests_may_wait(files: Files, value: object, meant: int) -> None:
    write(files.config_json, {"apiTimeout": value})
    assert facts(files)[0].api_timeout == meant


@pytest.mark.parametrize(
    ("mode", "release", "variant"),
    [(True, "", "dev"), ("ON", "", "dev"), (1, "", "dev"), ("0", "", "prod"), (None, "", "prod"),
     (True, "VARIANT_ID=prod", "prod"), (False, 'VARIANT_ID="dev"', "dev")],
)  # fmt: skip
def test_variants(files: Files, mode: object, release: str, variant: str) -> None:
    write(files.config_json, {"developmentMode": mode})
    write(files.os_release, release)
    assert facts(files)[0].os_variant == variant


@pytest.mark.parametrize("text", ["[]", "5", "{", '"x"', '{"slug": null}'])
def test_a_device_type_that_is_of_no_use(files: Files, text: str) -> None:
    write(files.device_type_json, text)
    write(files.config_json, {"deviceType": "from-config"})
    assert facts(files)[0].device_type == "from-config"


def test_a_committed_but_interrupted_write_counts(files: Files, tmp_path: Path) -> None:
    write(files.config_json, {"uuid": "old"})
    content = json.dumps({"uuid": "new"}).encode()
    digest = hashlib.md5(content).hexdigest()
    (tmp_path / f".config.json.aaaaaaaa.{digest[::-1]}.md5sum").write_bytes(b'{"uuid": "half"')
    assert facts(files)[0].device_uuid == "old"
    (tmp_path / f".config.json.bbbbbbbb.{digest}.md5sum").write_bytes(content)
    assert facts(files)[0].device_uuid == "new"


def test_profiles(files: Files) -> None:
    assert machine.profile("auto", files.os_release) == "generic"
    write(files.os_release, 'ID="balena-os"')
    assert machine.profile("auto", files.os_release) == "balenaos"
    assert machine.profile("generic", files.os_release) == "generic"


def test_boot_id_is_told() -> None:
    assert len(machine.boot_id()) == 36


def test_durable_writing_replaces_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    machine.write_durable(path, b"one")
    assert path.read_bytes() == b"one" and path.stat().st_mode & 0o777 == 0o600
    machine.write_durable(str(path), b"two", 0o644)
    assert path.read_bytes() == b"two" and path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_durable_writing_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    machine.write_durable(path, b"one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="file cannot be written: No space left"):
        machine.write_durable(path, b"two")
    assert path.read_bytes() == b"one" and os.listdir(tmp_path) == ["file"]
    with pytest.raises(Unavailable):
        machine.write_durable(tmp_path / "none" / "file", b"")


def test_a_file_of_the_hosts_name_may_have_remarks(tmp_path: Path) -> None:
    path = tmp_path / "hostname"
    path.write_text("# written by the installer\n\n  kiosk-1 \n")
    assert machine.read_hostname(str(path)) == "kiosk-1"
    path.write_text("# nothing\n")
    assert machine.read_hostname(str(path)) == socket.gethostname()
