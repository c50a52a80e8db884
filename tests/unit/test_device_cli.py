"""The virtual device's pure parts: words, addresses, the recipe's key. No root needed."""

from __future__ import annotations

import io
import os
import tarfile
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from device import (
    DeviceError,
    Machine,
    base,
    cli,
    demo,
    disk,
    enter,
    images,
    install,
    keeper,
    recipe,
)
from device.network import MAX_DEVICES, RANGE, Link, free_index
from device.outer import process_start, wait_for

# -- command line ---------------------------------------------------------------------------


def test_exec_passes_the_words_after_the_dashes_untouched():
    options = cli.parser().parse_args(["exec", "dev", "--", "sh", "-c", "exit 3", "--help"])
    assert options.name == "dev"
    assert cli._after_dashes(options.command) == ["sh", "-c", "exit 3", "--help"]


def test_only_the_first_dashes_are_ours():
    assert cli._after_dashes(["--", "env", "--", "x"]) == ["env", "--", "x"]
    assert cli._after_dashes(["ls", "--", "x"]) == ["ls", "--", "x"]


def test_up_knows_three_wishes_about_the_agent():
    parse = cli.parser().parse_args
    assert parse(["up", "dev"]).agent is None
    assert parse(["up", "dev", "--agent"]).agent is True
    assert parse(["up", "dev", "--no-agent", "--apps", "a.json"]).agent is False
    with pytest.raises(SystemExit):
        parse(["up", "dev", "--agent", "--no-agent"])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    odd = tmp_path / "odd.json"
    odd.write_bytes(b"\xff")
    for path in (tmp_path / "none.json", tmp_path, odd):
        with pytest.raises(DeviceError, match=path.name):
            install.configure(tmp_path, apps=path, config=None, conf=None)


def test_logs_pass_options_to_journalctl():
    options = cli.parser().parse_args(["logs", "dev", "-f", "-u", "docker"])
    assert options.arguments == ["-f", "-u", "docker"]


def test_image_takes_a_directory_and_the_engine_option_in_any_order():
    parse = cli.parser().parse_args
    assert parse(["image", "dev", "web:1"]).directory is None
    assert parse(["image", "--engine", "dev", "web:1", "dir"]).directory == Path("dir")
    assert parse(["image", "dev", "web:1", "dir", "--engine"]).engine


def test_a_call_is_needed():
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2


def test_an_unsupported_machine_ends_with_77_and_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "supported", lambda: "virtual devices need root")
    assert cli.main(["list"]) == 77
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "vdev: virtual devices need root\n"


@pytest.mark.parametrize("name", ["", "A", "1a", "a_b", "a/b", "..", "a" * 41, "-a"])
def test_names_that_are_no_host_names_are_refused(name):
    with pytest.raises(DeviceError):
        Machine(name)


def test_a_command_inside_has_neither_our_environment_nor_the_power_over_the_clock():
    line = enter.wrapped(7, Path("/cg/cgroup.procs"), ["date", "-s", "now"], {"HOME": "/root"})
    inside = line[line.index("--") + 1 :]
    assert inside[inside.index("setpriv") + 1 :][:2] == ["--bounding-set", "-sys_time"]
    assert inside[inside.index("env") :] == [
        *("env", "-i", "-C", "/root", "HOME=/root"),
        *("date", "-s", "now"),
    ]


def test_a_device_boots_without_the_power_over_the_clock():
    line = keeper.nspawn_command(disk.Paths("dev"), Link(0), "0" * 32)
    assert "--drop-capability=CAP_SYS_TIME" in line
    assert "--private-network" in line


# -- addresses ------------------------------------------------------------------------------


def test_every_device_has_a_network_of_its_own():
    links = [Link(index) for index in range(MAX_DEVICES)]
    networks = {IPv4Network(f"{link.address}/30", strict=False) for link in links}
    assert len(networks) == MAX_DEVICES
    for link in links:
        network = IPv4Network(f"{link.address}/30", strict=False)
        assert network.subnet_of(RANGE)
        ends = {IPv4Address(link.address), IPv4Address(link.outer_address)}
        assert ends == set(network.hosts())


def test_interface_names_fit_the_kernel():
    assert max(len(Link(index).outer_name) for index in range(MAX_DEVICES)) <= 15


def test_the_lowest_free_index_is_taken_until_none_is_left():
    assert free_index([]) == 0
    assert free_index([0, 1, 3]) == 2
    assert free_index([-1, 7]) == 0
    assert free_index(range(MAX_DEVICES)) is None


def test_the_inner_network_has_no_way_out():
    text = Link(5).keyfile()
    assert f"address1={Link(5).address}/30\n" in text
    assert "never-default=true" in text
    assert "gateway" not in text


# -- recipe ---------------------------------------------------------------------------------

PYTHON = ("bottle", "docker>=7")


def test_the_key_depends_on_packages_requirements_and_files():
    plain = recipe.key(recipe.PACKAGES, PYTHON)
    assert recipe.key((*recipe.PACKAGES, "vim"), PYTHON) != plain
    assert recipe.key(recipe.PACKAGES[1:], PYTHON) != plain
    assert recipe.key(recipe.PACKAGES, ("bottle", "docker>=8")) != plain
    assert recipe.key(recipe.PACKAGES, PYTHON, {"/etc/x": ""}) != plain


def test_the_key_does_not_depend_on_order():
    plain = recipe.key(recipe.PACKAGES, PYTHON)
    assert recipe.key(reversed(recipe.PACKAGES), reversed(PYTHON)) == plain


def test_requirements_are_read_from_setup_py_without_running_it(tmp_path):
    setup = tmp_path / "setup.py"
    setup.write_text(
        "from setuptools import setup\n"
        "raise SystemExit('ran')\n"
        "setup(name='x', install_requires=['zeta', 'alpha>=1', 'systemd-python>=234'])\n"
    )
    found = recipe.requirements(setup)
    assert found == ("alpha>=1", "zeta", *recipe.EXTRA_REQUIREMENTS)


def test_a_checkout_without_setup_py_still_has_requirements(tmp_path):
    assert "dbus-next==0.2.3" in recipe.requirements(tmp_path / "setup.py")


# -- the outer machine's settings -----------------------------------------------------------


def test_both_styles_of_apt_sources_are_read(tmp_path):
    old = tmp_path / "old.list"
    old.write_text(
        "# deb http://never.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://one.example/debian bookworm main contrib\n"
        "deb-src http://src.example/debian bookworm main\n"
        "deb http://two.example/debian bookworm contrib\n"
    )
    new = tmp_path / "new.sources"
    new.write_text(
        "Types: deb\nURIs: http://three.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\n\nTypes: deb-src\nURIs: http://four.example\nSuites: x\n"
        "Components: main\n"
    )
    assert list(base._apt_entries(old)) == [("http://one.example/debian", "bookworm")]
    assert list(base._apt_entries(new)) == [
        ("http://three.example/debian", "bookworm"),
        ("http://three.example/debian", "bookworm-updates"),
    ]


def test_pip_settings_reach_the_device_but_local_directories_do_not():
    environ = {
        "PATH": "/nonexistent",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_EXTRA_INDEX_URL": "file:///srv/simple https://extra.example/simple",
        "PIP_FIND_LINKS": "/srv/wheels",
    }
    wanted = base.pip_environment(environ)
    assert wanted["PIP_EXTRA_INDEX_URL"] == "https://extra.example/simple"
    assert "PIP_FIND_LINKS" not in wanted


# -- images and files -----------------------------------------------------------------------


def test_a_cmd_file_is_a_json_list_or_a_line_for_the_shell(tmp_path):
    assert images.parse_cmd('["/bin/httpd", "-f"]\n') == ("/bin/httpd", "-f")
    assert images.parse_cmd("echo hi; sleep 1\n") == ("/bin/sh", "-c", "echo hi; sleep 1")
    with pytest.raises(DeviceError):
        images.parse_cmd("[1]")
    (tmp_path / "www").mkdir()
    (tmp_path / "cmd").write_text("httpd -f")
    cmd, files = images.from_directory(tmp_path)
    assert cmd == ("/bin/sh", "-c", "httpd -f")
    assert files == {"/www": tmp_path / "www"}


def test_equal_content_gives_an_equal_layer(tmp_path):
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF")
    first = images._layer(busybox, {"/www/index.html": "page", "/run.sh": "#!/bin/sh\n"})
    os.utime(busybox, (1, 1))
    again = images._layer(busybox, {"/www/index.html": "page", "/run.sh": "#!/bin/sh\n"})
    assert first == again
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert tar.getmember("bin/sh").linkname == "busybox"
        assert tar.getmember("run.sh").mode == 0o755
        assert tar.getmember("www/index.html").mode == 0o644


def test_the_wheel_is_named_by_the_content_of_the_tree(tmp_path):
    (tmp_path / "balena_agent/__pycache__").mkdir(parents=True)
    module = tmp_path / "balena_agent/__init__.py"
    module.write_text("A = 1\n")
    plain = install.tree_hash(tmp_path)
    (tmp_path / "balena_agent/__pycache__/x.pyc").write_text("")
    (tmp_path / "notes.txt").write_text("")
    assert install.tree_hash(tmp_path) == plain
    module.write_text("A = 2\n")
    assert install.tree_hash(tmp_path) != plain


def test_the_demo_asks_for_the_two_images_that_it_preloads():
    (app,) = demo.apps_json("web:1", "worker:1")["apps"].values()
    (release,) = app["releases"].values()
    assert {service["image"] for service in release["services"].values()} == {"web:1", "worker:1"}


# -- dead or alive --------------------------------------------------------------------------


def test_an_owner_is_one_process_not_a_reused_number():
    me = {"pid": os.getpid(), "start": process_start(os.getpid())}
    assert not disk.owner_is_gone({"owner": me})
    assert disk.owner_is_gone({"owner": me | {"start": "1"}})
    assert not disk.owner_is_gone({"owner": None})


def test_waiting_ends_with_the_answer_or_with_the_reason():
    answers = iter([0, 0, 7])
    assert wait_for(lambda: next(answers), 5.0, "a seven", pause=0) == 7
    with pytest.raises(DeviceError, match="not within 0 s: the moon"):
        wait_for(lambda: False, 0.0, "the moon")
