"""The settings file: nothing in it can stop the agent, and everything wrong in it is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from balena_agent.config import CONF, ENVIRONMENT, RULES, load, rule_of, settings_from

EXAMPLE = Path(__file__).parents[2] / "units" / "agent.conf"


def problems(text: str) -> tuple[str, ...]:
    return settings_from(text, "f.conf").problems


def test_without_a_file_every_default_holds_and_nothing_is_wrong(tmp_path: Path) -> None:
    found = load(environment={})
    assert found.problems == () or Path(CONF).exists()
    found = settings_from("")
    assert (found.api.port, found.api.address, found.api.workers) == (48484, "", 12)
    assert found.agent.stop_services_on_shutdown is True
    assert found.host.config_json == "/mnt/boot/config.json"
    assert found.engine.socket in ("/var/run/balena-engine.sock", "/var/run/docker.sock")


def test_a_file_asked_for_by_name_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "no.conf"
    assert load(str(missing), {}).problems == (f"{missing}: no such file; defaults are used",)
    assert load("", {"BALENA_AGENT_CONF": str(missing)}).problems != ()
    assert "cannot be read" in load(str(tmp_path), {}).problems[0]


def test_values_arrive_in_their_type() -> None:
    found = settings_from(
        """
        [api]
        port = 8080
        address = "127.0.0.1"   # quoted, with a comment
        open_in_local_mode = always
        [agent]
        stop_services_on_shutdown = off
        """
    )
    assert found.problems == ()
    assert (found.api.port, found.api.address) == (8080, "127.0.0.1")
    assert found.api.open_in_local_mode == "always"
    assert found.agent.stop_services_on_shutdown is False


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[api]\nport = 70000",
         'f.conf: [api] port = "70000": must be a whole number from 1 to 65535; using 48484'),
        ("[api]\nport = eight", "must be a whole number from 1 to 65535; using 48484"),
        ("[api]\nport = 1, 2", 'port = ["1", "2"]: must be'),
        ("[api]\nport =", 'port = "": must be'),
        ("[api]\naddress = nowhere", "must be all, or an IP address; using all"),
        ("[api]\naddress = 1, 2", "must be all, or an IP address; using all"),
        ("[agent]\nprofile = Pi", "must be one of auto, balenaos, generic; using auto"),
        ("[agent]\nstop_services_on_shutdown = maybe", "must be yes or no; using yes"),
        ("[paths]\nboot = mnt", "must be an absolute path; using /mnt/boot"),
        ("[engine]\nsocket = x", "must be auto, or an absolute path; using auto"),
        ("[engine]\napi_version = 1", "must be a version like 1.41; using 1.41"),
        ("[api]\ncompat_version = ''", "must be a text of 1 to 64 characters; using 19.0.5"),
        ("[api]\nprot = 1", "f.conf: [api] unknown setting prot; ignored (did you mean port?)"),
        ("[api]\nzzz = 1", "f.conf: [api] unknown setting zzz; ignored"),
        ("[api]\n[[port]]\nx = 1", "port = "),
        ("[apis]\nport = 1", "f.conf: unknown section [apis]; ignored (did you mean api?)"),
        ("port = 1", "f.conf: port stands before any [section]; ignored"),
        ("[api]\nport = 1\nrubbish", "f.conf: line 3: "),
        ("[api]\nport = 1\nport = 2", "f.conf: line 3: Duplicate keyword name"),
        ("[api\nport = 1", "f.conf: line 1: "),
    ],
)  # fmt: skip
def test_every_fault_is_told_and_the_default_used(line: str, said: str) -> None:
    found = settings_from(line, "f.conf")
    assert len(found.problems) == 1 and said in found.problems[0]
    assert found == settings_from("", problems=found.problems)


def test_one_fault_does_not_spoil_the_rest() -> None:
    found = settings_from("[api]\nport = 0\nworkers = 20\n[agnet]\n[agent]\npullers = 2", "f")
    assert (found.api.port, found.api.workers, found.agent.pullers) == (48484, 20, 2)
    assert len(found.problems) == 2


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[api]\n\x80", b"\x00" * 50, b"[" * 99])
def test_rubbish_never_raises(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent.conf"
    path.write_bytes(content)
    found = load(str(path), {})
    assert "line" in found.problems[0] and found.api.port == 48484


def test_the_root_is_put_before_the_hosts_paths_only() -> None:
    found = settings_from("[paths]\nroot = /mnt/root/\nboot = /b\n[host]\nled = /sys/x")
    assert (found.paths.boot, found.paths.state) == ("/mnt/root/b", "/mnt/root/mnt/state")
    assert found.paths.locks == "/mnt/root/tmp/balena-supervisor/services"
    assert found.paths.store == "/var/lib/balena-agent"
    assert found.host.config_json == "/mnt/root/b/config.json"
    assert found.host.led == "/mnt/root/sys/x"


def test_the_peers_environment_wins_over_the_file() -> None:
    found = settings_from(
        "[api]\nport = 1\n[paths]\nboot = /x",
        environment={
            "LISTEN_PORT": "2",
            "BOOT_MOUNTPOINT": "/env",
            "DOCKER_SOCKET": "/s",
            "A": "b",
        },
    )
    assert (found.api.port, found.paths.boot, found.engine.socket) == (2, "/env", "/s")
    assert found.host.config_json == "/env/config.json" and found.problems == ()


def test_a_wrong_environment_variable_leaves_the_files_value() -> None:
    found = settings_from("[api]\nport = 81", environment={"LISTEN_PORT": "x", "LED_FILE": ""})
    assert found.api.port == 81
    assert found.problems == (
        'environment LISTEN_PORT: [api] port = "x": must be a whole number from 1 to 65535;'
        " using 81",
    )
    assert all(key in RULES[section] for section, key in ENVIRONMENT.values())


def shipped() -> dict[tuple[str, str], tuple[str, str]]:
    """(section, key) -> (rule, default), as the example file tells them."""
    known, section, rule = {}, "", ""
    for line in EXAMPLE.read_text().splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            section = found[1]
        elif found := re.fullmatch(r"# Rule: (.*?)\.( Not under root\.)?", line):
            rule = found[1]
        elif found := re.fullmatch(r"#(\w+) = (.*)", line):
            known[section, found[1]] = (rule, found[2])
    return known


def test_the_shipped_example_is_without_fault() -> None:
    assert load(str(EXAMPLE), {}).problems == ()
    assert load(str(EXAMPLE), {}) == settings_from("")


def test_the_shipped_example_shows_every_setting_its_rule_and_its_default() -> None:
    assert shipped() == {
        (section, key): (rule_of(section, key), default)
        for section, keys in RULES.items()
        for key, (_, default) in keys.items()
    }


def test_the_shipped_example_works_when_everything_is_uncommented() -> None:
    text = re.sub(r"(?m)^#(\w+ = )", r"\1", EXAMPLE.read_text())
    assert settings_from(text) == settings_from("")
