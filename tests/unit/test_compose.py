"""What a composition means: the parsers, the deviations D1-D19 of spec 21 §15, and the app rules.

Cases of the conformance table (M.., S..) carry their number in the name.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from golden_bodies import (
    FACTS,
    app,
    compile_main,
    desired,
    main_of,
    our_body,
    problem_of,
    service,
)

from balena_agent.core.body import image_from_inspect, joins
from balena_agent.core.compose import desired_app
from balena_agent.core.composition import _FIELDS
from balena_agent.core.dependencies import cycle
from balena_agent.core.desired import DesiredService
from balena_agent.core.observed import HostFacts
from balena_agent.core.process import clean_path, split_command
from balena_agent.core.target import SUPERVISOR_APPS, App

RICH = image_from_inspect(
    {
        "Id": "sha256:rich",
        "Config": {
            "Entrypoint": ["/bin/busybox"],
            "Cmd": ["sleep", "3600"],
            "Env": ["IMGVAR=img"],
            "Volumes": {"/var/img": {}},
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 30_000_000_000},
            "StopSignal": "SIGINT",
            "WorkingDir": "/tmp/",
            "User": "1000",
            "Labels": {"maker": "x"},
        },
    }
)


def field(name: str, composition: dict[str, Any], **parts: Any) -> Any:
    """One field of the create body of service main."""
    body = our_body(compile_main(composition, **parts))
    for key in name.split("."):
        body = body[key]
    return body


def host(name: str, composition: dict[str, Any], **parts: Any) -> Any:
    return field(f"HostConfig.{name}", composition, **parts)


def variables(found: DesiredService) -> dict[str, str]:
    return dict(found.spec.fields["Env"])


def warns(composition: dict[str, Any], *words: str, **parts: Any) -> bool:
    found = compile_main(composition, **parts)
    return any(all(word in line for word in words) for line in found.warnings)


# ---- scalars -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("64m", 64 << 20), ("64M", 64 << 20), ("64mb", 64 << 20), ("1g", 1 << 30),
        ("10K", 10 << 10), ("5b", 5), ("1.5g", 1_610_612_736), ("2 GiB", 2 << 30),
        ("512ki", 512 << 10), ("1t", 1 << 40), (1048576, 1048576), ("1048576", 1048576),
        (" 64m ", 64 << 20), (".5m", 1 << 19), (6e6, 6_000_000),
    ],
)  # fmt: skip
def test_d9_memory(value: Any, expected: int) -> None:
    found = compile_main({"mem_limit": value})
    assert found.spec.fields["HostConfig.Memory"] == expected
    assert not found.warnings


@pytest.mark.parametrize("value", ["-1", "64q", "", "m", "1..5g", True, [], -5, "1g1"])
def test_d9_memory_that_does_not_parse_is_said_aloud(value: Any) -> None:
    assert host("Memory", {"mem_limit": value}) == 0
    assert warns({"mem_limit": value}, "mem_limit", "NO limit")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1m30s", 90), ("1500ms", 1), ("500ms", 1), ("1ns", 1), ("0s", 0), ("0", 0), (0, 0),
        ("10", 10), (7, 7), (2.5, 2), ("1h", 3600), ("1.5h", 5400), ("1d", 86400),
        ("1w", 604800), ("999999us", 1), ("2000000µs", 2), (" 10s ", 10),
    ],
)  # fmt: skip
def test_m18_m19_m20_grace_period(value: Any, seconds: int) -> None:
    assert field("StopTimeout", {"stop_grace_period": value}) == seconds


@pytest.mark.parametrize("value", ["10 s", "x", "-1s", "", "1m 30s", "s", True, {}, -3])
def test_d4_a_bad_duration_is_ignored(value: Any) -> None:
    assert field("StopTimeout", {"stop_grace_period": value}) == 10
    assert warns({"stop_grace_period": value}, "stop_grace_period", "duration")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True), (False, False), ("false", False), ("No", False), ("off", False),
        ("0", False), ("", False), ("true", True), ("yes", True), (1, True), (0, False),
    ],
)  # fmt: skip
def test_m17_booleans(value: Any, expected: bool) -> None:
    assert host("ReadonlyRootfs", {"read_only": value}) is expected


def test_m14_m15_tty_defaults_to_true_and_init_is_not_sent_unless_asked_for() -> None:
    assert field("Tty", {}) is True
    assert field("Tty", {"tty": False}) is False
    assert "Init" not in our_body(compile_main({}))["HostConfig"]
    assert host("Init", {"init": True}) is True
    assert host("Init", {"init": False}) is False


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0.5", 500_000_000), (1, 1_000_000_000), (1.5, 1_500_000_000), ("0.1", 100_000_000)],
)
def test_d13_cpus(value: Any, expected: int) -> None:
    assert host("NanoCpus", {"cpus": value}) == expected


@pytest.mark.parametrize("value", ["x", "nan", "inf", -1, True, []])
def test_cpus_that_are_no_number_are_ignored(value: Any) -> None:
    assert host("NanoCpus", {"cpus": value}) == 0
    assert warns({"cpus": value}, "cpus")


def test_cpus_win_over_cpu_quota() -> None:
    both = {"cpus": 1, "cpu_quota": 5000}
    assert (host("NanoCpus", both), host("CpuQuota", both)) == (10**9, 0)
    assert warns(both, "cpu_quota", "cpus is set")


def test_m30_m32_values_that_the_engine_changes_are_asked_for_in_its_form() -> None:
    assert host("ShmSize", {"shm_size": 0}) == 67108864
    assert host("PidsLimit", {"pids_limit": -1}) == 0
    assert host("CpuShares", {"cpu_shares": "512"}) == 512


def test_oom_score_outside_of_the_range_of_linux_is_ignored() -> None:
    assert host("OomScoreAdj", {"oom_score_adj": 1001}) == 0
    assert host("OomScoreAdj", {"oom_score_adj": "-1000"}) == -1000


# ---- process -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('a "b c" $X && d *.txt', ["a", "b c", "$X", "&&", "d", "*.txt"]),
        ("a&&b *.x", ["a", "&&", "b", "*.x"]),
        ("a # c", ["a", "#", "c"]),
        ("a '' b", ["a", "", "b"]),
        ("2>&1", ["2", ">&", "1"]),
        ("a $(b c)", ["a", "$", "(", "b", "c", ")"]),
        (r"a\ b \$X", ["a b", "$X"]),
        (r'sh -c "echo \$X \"q\" \n"', ["sh", "-c", r'echo $X "q" \n']),
        (r"'\$X'", [r"\$X"]),
        ("a'b c'\"d e\"f", ["ab cd ef"]),
        ("a \\\n b", ["a", "b"]),
        ("a;b||c|d<e", ["a", ";", "b", "||", "c", "|", "d", "<", "e"]),
        ("{a,b} `x` ~/y", ["{a,b}", "`x`", "~/y"]),
        ("  ", []),
    ],
)
def test_m08_m09_command_lines(line: str, words: list[str]) -> None:
    assert split_command(line) == (words, True)


@pytest.mark.parametrize(("line", "words"), [("it's", ["it", "s"]), ('a "b', ["a", "b"])])
def test_m09_a_stray_quote_is_a_blank(line: str, words: list[str]) -> None:
    assert split_command(line) == (words, False)
    assert warns({"command": line}, "command", "unbalanced")


def test_commands_as_lists_become_texts_without_nulls() -> None:
    assert field("Cmd", {"command": ["a", None, 5, True]}) == ["a", "5", "true"]


def test_m05_m06_entrypoint_leaves_the_images_command() -> None:
    replaced = {"entrypoint": ["/bin/busybox", "echo"]}
    assert field("Cmd", replaced, image=RICH) == ["sleep", "3600"]
    cleared = {"entrypoint": "", "command": ["/bin/busybox", "sleep", "999"]}
    assert field("Entrypoint", cleared, image=RICH) == []
    assert field("Cmd", {"command": []}, image=RICH) == []


def test_m07_d18_explicit_empty_texts_mean_absent() -> None:
    empty = {"user": "", "working_dir": "", "stop_signal": "", "ipc": "", "hostname": ""}
    assert our_body(compile_main(empty, image=RICH)) == our_body(compile_main({}, image=RICH))
    assert not compile_main(empty, image=RICH).warnings


@pytest.mark.parametrize(
    ("path", "clean"),
    [("/tmp//", "/tmp"), ("/tmp/../x", "/x"), ("//a/./b/", "/a/b"), ("/", "/"), ("///", "/")],
)
def test_m22_working_directories_are_cleaned_like_in_the_engine(path: str, clean: str) -> None:
    assert clean_path(path) == clean
    assert field("WorkingDir", {"working_dir": path}) == clean


def test_a_relative_working_directory_rejects_the_app_and_says_where() -> None:
    problem = problem_of({"working_dir": "tmp"})
    for word in ("'app'", "'main'", "working_dir", '"tmp"', "absolute"):
        assert word in problem


@pytest.mark.parametrize("value", ["SIGUSR1", "usr1", "RTMIN+3", 9, "9"])
def test_m18_signals_keep_their_spelling(value: Any) -> None:
    assert field("StopSignal", {"stop_signal": value}) == str(value)


@pytest.mark.parametrize("value", ["SIGNOPE", 0, 99, True, ["SIGTERM"]])
def test_an_unknown_signal_is_ignored(value: Any) -> None:
    assert field("StopSignal", {"stop_signal": value}) == "SIGTERM"
    assert warns({"stop_signal": value}, "stop_signal")


@pytest.mark.parametrize(
    ("value", "name", "retries"),
    [
        ("on-failure:3", "on-failure", 3), ("on-failure", "on-failure", 0), ("no", "no", 0),
        (False, "no", 0), (True, "always", 0), ("Unless-Stopped ", "unless-stopped", 0),
        ("", "always", 0),
    ],
)  # fmt: skip
def test_d8_m11_m12_restart_policies(value: Any, name: str, retries: int) -> None:
    wanted = {"Name": name, "MaximumRetryCount": retries}
    assert host("RestartPolicy", {"restart": value}) == wanted
    assert not warns({"restart": value}, "restart")


@pytest.mark.parametrize("value", ["bogus", "on-failure:x", "always:3", 5, {}])
def test_m13_an_unknown_restart_policy_means_always(value: Any) -> None:
    assert host("RestartPolicy", {"restart": value})["Name"] == "always"
    assert warns({"restart": value}, "restart")


def test_d1_m25_nested_keys_count_in_both_spellings() -> None:
    check = {"test": "true", "start_period": "3s", "startPeriod": "9s"}
    assert field("Healthcheck.StartPeriod", {"healthcheck": check}) == 3_000_000_000
    check = {"test": "true", "startPeriod": "9s"}
    assert field("Healthcheck.StartPeriod", {"healthcheck": check}) == 9_000_000_000
    mount = {"type": "volume", "source": "q", "target": "/q", "readOnly": True}
    assert host("Mounts", {"volumes": [mount]})[0]["ReadOnly"] is True


def test_d1_fields_count_in_both_spellings_and_snake_case_wins() -> None:
    assert field("WorkingDir", {"workingDir": "/a"}) == "/a"
    assert field("WorkingDir", {"workingDir": "/a", "working_dir": "/b"}) == "/b"
    assert field("WorkingDir", {"workingDir": "/a", "working_dir": None}) == "/a"


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ({"interval": "5s"}, {"Test": ["CMD", "true"], "Interval": 5_000_000_000}),
        ({"interval": "0s", "retries": 0}, {"Test": ["CMD", "true"], "Interval": 30_000_000_000}),
        ({"disable": True}, {"Test": ["NONE"], "Interval": 30_000_000_000}),
        ({"disable": "false"}, {"Test": ["CMD", "true"], "Interval": 30_000_000_000}),
        ({"test": []}, {"Test": ["CMD", "true"], "Interval": 30_000_000_000}),
        ({"test": "x y"}, {"Test": ["CMD-SHELL", "x y"], "Interval": 30_000_000_000}),
    ],
)
def test_m26_m27_health_checks_lie_over_the_images(check: Any, expected: Any) -> None:
    assert field("Healthcheck", {"healthcheck": check}, image=RICH) == expected


@pytest.mark.parametrize(
    "part",
    [{"interval": "1us"}, {"retries": -1}, {"timeout": "x"}, {"start_interval": "1s"}],
)
def test_parts_of_a_health_check_that_the_engine_refuses_are_ignored(part: Any) -> None:
    check = {"test": "true", **part}
    assert field("Healthcheck", {"healthcheck": check}) == {"Test": ["CMD-SHELL", "true"]}
    assert warns({"healthcheck": check}, f"healthcheck.{next(iter(part))}")


@pytest.mark.parametrize("test", [["CMD"], ["CMD-SHELL"], ["curl", "-f", "http://x"], [""]])
def test_a_check_that_is_none_is_ignored(test: Any) -> None:
    """The engine (20.10) panics at the first try of a bare CMD, and never tries a strange kind."""
    composition = {"healthcheck": {"test": test, "retries": 2}}
    assert field("Healthcheck", composition) == {"Test": ["NONE"], "Retries": 2}
    assert field("Healthcheck", composition, image=RICH)["Test"] == ["CMD", "true"]
    assert warns(composition, "healthcheck.test", "ignored")


# ---- host configuration --------------------------------------------------------------------------


def test_d3_m23_numbers_are_taken_for_texts() -> None:
    assert field("User", {"user": 1000}) == "1000"
    assert host("GroupAdd", {"group_add": [100, "audio"]}) == ["100", "audio"]
    assert field("Labels.n", {"labels": {"n": 5}}) == "5"


def test_d3_wrong_types_are_ignored_and_noted() -> None:
    for name, value in {"user": {}, "dns": 5, "cap_add": {"a": 1}, "ulimits": [1]}.items():
        assert our_body(compile_main({name: value})) == our_body(compile_main({}))
        assert warns({name: value}, name, "'main'", "'app'")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a=1.1.1.1", "b:2.2.2.2", "c=::1"], ["a:1.1.1.1", "b:2.2.2.2", "c:::1"]),
        ({"a": "1.1.1.1", "b": ["::1", "[::2]"]}, ["a:1.1.1.1", "b:::1", "b:::2"]),
        (["h=[::1]", "g:host-gateway"], ["g:host-gateway", "h:::1"]),
    ],
)
def test_m41_m42_extra_hosts(value: Any, expected: list[str]) -> None:
    assert host("ExtraHosts", {"extra_hosts": value}) == expected


@pytest.mark.parametrize("entry", ["db:database", "a:1.1.1.1,b:2.2.2.2", "a:1.2.3", "a:1.1.1.300"])
def test_a_host_without_an_address_is_ignored(entry: str) -> None:
    """The engine would never create the container."""
    wanted = {"extra_hosts": [entry, "up:host-gateway", "c:::1"]}
    assert host("ExtraHosts", wanted) == ["c:::1", "up:host-gateway"]
    assert warns(wanted, "extra_hosts", entry, "IP address")


@pytest.mark.parametrize("mac", ["zz", "02:42:ac:11:65", "0242ac116543"])
def test_what_is_no_hardware_address_is_ignored(mac: str) -> None:
    for wanted in ({"mac_address": mac}, {"networks": {"a": {"mac_address": mac}}}):
        assert field("MacAddress", wanted) == ""
        assert warns(wanted, "mac_address", mac, "expecting")


@pytest.mark.parametrize("value", [-1, "-5", "x"])
def test_cpu_shares_below_zero_mean_the_default(value: Any) -> None:
    assert host("CpuShares", {"cpu_shares": value}) == 0
    assert warns({"cpu_shares": value}, "cpu_shares", "ignored")


@pytest.mark.parametrize(
    "limits",
    [
        {"nofiles": 5},
        {"nofile": {"soft": 2048, "hard": 1024}},
        {"nofile": {"soft": -1, "hard": 1024}},
    ],
    ids=str,
)
def test_limits_that_the_kernel_refuses_are_ignored(limits: Any) -> None:
    wanted = {"ulimits": {**limits, "memlock": -1, "core": {"soft": 0, "hard": -1}}}
    names = [limit["Name"] for limit in host("Ulimits", wanted)]
    assert sorted(names) == ["core", "memlock"]
    assert warns(wanted, "ulimits", *limits, "ignored")


def test_a_variable_with_a_null_character_is_left_out_without_its_value() -> None:
    found = compile_main({"environment": {"A": "se\0cret"}}, environment={"B": "\0", "C": "c"})
    assert {"A", "B", "C"} & variables(found).keys() == {"C"}
    told = " ".join(found.warnings)
    assert "environment.A" in told and "environment.B" in told and "cret" not in told


def test_m34_d2_sysctls_as_list_are_split_at_the_first_equals_sign() -> None:
    assert host("Sysctls", {"sysctls": ["a.b=c=d"]}) == {"a.b": "c=d"}
    assert host("Sysctls", {"sysctls": {"a.b": 1}}) == {"a.b": "1"}


def test_m35_network_settings_of_the_kernel_are_dropped_in_host_mode() -> None:
    settings = {"net.core.somaxconn": 1024, "kernel.shmmax": 5}
    wanted = {"sysctls": settings, "network_mode": "host"}
    assert host("Sysctls", wanted) == {"kernel.shmmax": "5"}
    assert warns(wanted, "sysctls", "net.core.somaxconn")


def test_m33_ulimits() -> None:
    limits = {"nofile": 1024, "core": {"soft": 0, "hard": -1}, "nproc": {"hard": "7"}, "x": "y"}
    assert host("Ulimits", {"ulimits": limits}) == [
        {"Name": "nofile", "Soft": 1024, "Hard": 1024},
        {"Name": "core", "Soft": 0, "Hard": -1},
        {"Name": "nproc", "Soft": 7, "Hard": 7},
    ]
    assert warns({"ulimits": limits}, "ulimits.x")


def test_m39_selinux_labels_are_removed() -> None:
    options = ["label=disable", "label:user:x", "no-new-privileges"]
    assert host("SecurityOpt", {"security_opt": options}) == ["no-new-privileges"]
    assert warns({"security_opt": options}, "security_opt", "label=disable")


def test_what_the_engine_would_refuse_for_ever_is_ignored() -> None:
    bad = {
        "cgroup_parent": "/x",
        "userns_mode": "private",
        "pid": "container:x",
        "hostname": "a" * 64 + ".example",
        "devices": ["vendor.com/class=x", "/dev/a:/dev/b:q", 5],
    }
    assert our_body(compile_main(bad)) == our_body(compile_main({}))
    assert all(warns(bad, name) for name in bad)


def test_m40_devices_as_text_and_object() -> None:
    found = host("Devices", {"devices": ["/dev/null:/dev/nn:r", {"source": "/dev/zero"}]})
    assert found == [
        {"PathOnHost": "/dev/null", "PathInContainer": "/dev/nn", "CgroupPermissions": "r"},
        {"PathOnHost": "/dev/zero", "PathInContainer": "/dev/zero", "CgroupPermissions": "rwm"},
    ]


def test_m51_m97_unknown_fields_are_listed_in_one_line() -> None:
    unknown = {"expose": ["5000"], "container_name": "z", "storage_opt": {"size": "1G"}, "x": None}
    found = compile_main(unknown)
    assert our_body(found) == our_body(compile_main({}))
    assert len(found.warnings) == 1
    assert found.warnings[0].endswith("compose fields: expose, container_name, storage_opt")


@pytest.mark.parametrize(
    ("composition", "paths"),
    [
        ({"build": {"context": "."}, "logging": {"driver": "none"}}, "build, logging"),
        (
            {"healthcheck": {"test": "true", "startPeriod": "1s", "foo": 1, "start": "1s"}},
            "healthcheck.foo, healthcheck.start",
        ),
        (
            {"volumes": ["a:/a", {"type": "volume", "source": "b", "target": "/b", "ro": True}]},
            "volumes[1].ro",
        ),
        (
            {"volumes": [{"type": "volume", "target": "/b", "volume": {"subpath": "x"}}]},
            "volumes[0].volume.subpath",
        ),
        (
            {"volumes": [{"type": "tmpfs", "target": "/b", "tmpfs": {"size": 4096, "uid": 3}}]},
            "volumes[0].tmpfs.uid",
        ),
        ({"ports": [{"target": 80, "mode": "host", "hostIp": "127.0.0.1"}]}, "ports[0].mode"),
        ({"networks": {"a": {"ipv4Address": "10.0.0.9", "gw": 1}}}, "networks.a.gw"),
        (
            {"depends_on": {"one": {"condition": "service_started", "required": True, "z": 1}}},
            "depends_on.one.z",
        ),
        ({"devices": [{"source": "/dev/null", "major": 1}]}, "devices[0].major"),
        ({"ulimits": {"core": {"soft": 1, "hard": 2, "max": 3}}}, "ulimits.core.max"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_m51_unknown_keys_are_named_by_their_path(composition: Any, paths: str) -> None:
    (line,) = compile_main(composition).warnings
    assert line.endswith(f"Ignoring unsupported or unknown compose fields: {paths}")


def test_m51_what_has_no_value_counts_as_absent() -> None:
    check = {"test": ["CMD", "true"], "foo": None}
    assert not compile_main({"healthcheck": check}).warnings


def test_entries_of_an_images_environment_that_are_no_assignment_are_told() -> None:
    image = image_from_inspect({"Id": "i", "Config": {"Env": ["A=1", "NAKED", "=s3cret", "B="]}})
    found = compile_main({}, image=image)
    assert variables(found).items() >= {"A": "1", "B": ""}.items()
    assert [line.partition("environment of ")[2] for line in found.warnings] == [
        'image img:1: "NAKED" is ignored: expecting NAME=VALUE',
        'image img:1: "=" is ignored: expecting NAME=VALUE',
    ]


@pytest.mark.parametrize(
    ("mode", "expected"), [("host", "host"), ("private", "private"), ("container:x", "shareable")]
)
def test_ipc_modes(mode: str, expected: str) -> None:
    assert host("IpcMode", {"ipc": mode}) == expected


def test_an_unknown_ipc_mode_rejects_the_app() -> None:
    assert "ipc" in problem_of({"ipc": "bogus"})


def test_d17_pid_and_ipc_of_a_service_are_its_containers_and_a_dependency() -> None:
    found = compile_main({"pid": "service:one", "ipc": "service: x"})
    assert found.spec.fields["HostConfig.PidMode"] == "service:one"
    assert found.spec.fields["HostConfig.IpcMode"] == "service:x"
    assert [d.service for d in found.depends_on] == ["one", "x"]
    assert "nobody" in problem_of({"pid": "service:nobody"})


# ---- ports ---------------------------------------------------------------------------------------


def bound(*ports: Any) -> set[tuple[str, str, str]]:
    found = host("PortBindings", {"ports": list(ports)})
    return {(port, h["HostIp"], h["HostPort"]) for port, hosts in found.items() for h in hosts}


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ("80", {("80/tcp", "", "80")}),
        ("80/UDP", {("80/udp", "", "80")}),
        ("127.0.0.1:81:82/udp", {("82/udp", "127.0.0.1", "81")}),
        ("8000-8001:9000-9001", {("9000/tcp", "", "8000"), ("9001/tcp", "", "8001")}),
        (8080, {("8080/tcp", "", "8080")}),
        ("80:80/sctp", {("80/sctp", "", "80")}),
        ("::1:8081:80", {("80/tcp", "::1", "8081")}),
        ("[::1]:8081:80", {("80/tcp", "::1", "8081")}),
        ("[::]:81:81-81", {("81/tcp", "::", "81")}),
        ("127.0.0.1::80", {("80/tcp", "127.0.0.1", "")}),
        ({"target": 90, "published": "9090", "protocol": "udp"}, {("90/udp", "", "9090")}),
        ({"target": 90}, {("90/tcp", "", "90")}),
        ({"target": "90-91", "published": "8-9", "host_ip": "::1"},
         {("90/tcp", "::1", "8"), ("91/tcp", "::1", "9")}),
    ],
)  # fmt: skip
def test_d7_m44_m46_m48_ports(port: Any, expected: set[tuple[str, str, str]]) -> None:
    assert bound(port) == expected
    exposed = field("ExposedPorts", {"ports": [port]})
    assert exposed == {inside: {} for inside, _, _ in expected}


def test_d7_m45_a_range_after_its_neighbour_loses_nothing() -> None:
    assert {host for _, _, host in bound("80:80", "81-83:81-83")} == {"80", "81", "82", "83"}


def test_d7_m47_m49_doubles_and_order_do_not_count() -> None:
    assert len(bound("8080:80", "8080:80")) == 1
    one, two = {"ports": ["1:1", "2:2"]}, {"ports": ["2:2", "1:1"]}
    assert compile_main(one).spec.digest() == compile_main(two).spec.digest()


@pytest.mark.parametrize(
    "port",
    ["x", "8000:80-81", "83-81", "0", "65536", "80/icmp", ":80", "1.2:80:80", "a::80", True,
     {"published": 80}, None, "80:", {"target": 90, "host_ip": 5}, ["80"], -1, "80:80:80:80"],
)  # fmt: skip
def test_m50_a_bad_port_rejects_only_its_app_in_words(port: Any) -> None:
    assert "ports" in problem_of({"ports": [port]})


# ---- volumes -------------------------------------------------------------------------------------


def binds(*volumes: Any) -> list[str]:
    found = host("Binds", {"volumes": list(volumes)})
    return [bind for bind in found if not bind.startswith("/tmp/balena-supervisor/")]


def test_m52_short_volumes() -> None:
    found = compile_main({"volumes": ["data:/d:ro", " w : /b ", "/anon"]})
    body = our_body(found)
    assert body["HostConfig"]["Binds"] == [
        "/tmp/balena-supervisor/services/7/main:/tmp/balena",
        "/tmp/balena-supervisor/services/7/main:/tmp/resin",
        "7_data:/d:ro",
        "7_w:/b",
    ]
    assert body["Volumes"] == {"/anon": {}}
    assert found.spec.volumes == {"7_data", "7_w"}
    assert not found.warnings


@pytest.mark.parametrize(
    "volume",
    ["/etc:/x", "./r:/y", "~/x:/y", "../x:/y", {"type": "bind", "source": "/etc", "target": "/e"}],
)
def test_d11_m53_paths_of_the_host_are_ignored(volume: Any) -> None:
    assert binds(volume) == []
    assert warns({"volumes": [volume]}, "Ignoring invalid bind mount")


def test_a_path_for_which_there_is_a_label_is_told() -> None:
    assert warns({"volumes": ["/run/dbus:/x"]}, "use label io.balena.features.dbus")
    assert warns({"volumes": ["/sys/:/sys"]}, "use label io.balena.features.sysfs")


@pytest.mark.parametrize(
    "volume",
    ["v:/a:bad", "v:a", "a b:/x", "v:/a:ro:z", 5, {"type": "npipe", "target": "/x"}, "v:/",
     {"type": "volume", "source": "/abs", "target": "/x"}, {"type": "volume"}, "rel", "",
     {"type": "volume", "source": 5, "target": "/x"}, "v:/tmp/balena", "v:/tmp/resin/",
     "v:/a:ro,rw", "v:/a:z,Z", "v:/a:ro,ro", "v:/a:", "v:/a:rshared"],
)  # fmt: skip
def test_volumes_that_the_engine_would_refuse_are_ignored(volume: Any) -> None:
    found = compile_main({"volumes": [volume]})
    assert our_body(found) == our_body(compile_main({}))
    assert found.warnings


@pytest.mark.parametrize("mode", ["cached", "delegated", "rw,nocopy,z", "ro,consistent"])
def test_modes_of_which_the_engine_takes_one_of_each_kind(mode: str) -> None:
    assert binds(f"v:/a:{mode}") == [f"7_v:/a:{mode}"]


@pytest.mark.parametrize(
    ("entry", "sent"),
    [
        ({"type": "tmpfs", "bind": {"propagation": "rshared"}}, {"Type": "tmpfs"}),
        ({"type": "tmpfs", "volume": {"nocopy": True}}, {"Type": "tmpfs"}),
        (
            {"type": "volume", "source": "v", "bind": {"propagation": "rshared"}},
            {"Type": "volume", "Source": "7_v"},
        ),
        (
            {"type": "volume", "source": "v", "tmpfs": {"size": "1m"}},
            {"Type": "volume", "Source": "7_v"},
        ),
        ({"type": "volume", "read_only": True}, {"Type": "volume"}),
    ],
    ids=str,
)
def test_options_that_the_engine_refuses_for_this_kind_of_mount_are_ignored(
    entry: Any, sent: Any
) -> None:
    composition = {"volumes": [{**entry, "target": "/x"}]}
    assert host("Mounts", composition) == [{**sent, "Target": "/x"}]
    assert warns(composition, "volumes.", "ignored")


@pytest.mark.parametrize("path", ["/", "//", "/tmp/balena", "/tmp/resin/:size=1m"])
def test_a_tmpfs_that_cannot_be_is_ignored(path: str) -> None:
    assert host("Tmpfs", {"tmpfs": [path, "/run"]}) == {"/run": ""}
    assert warns({"tmpfs": [path]}, "tmpfs", path, "ignored")


def test_m54_m55_long_volumes() -> None:
    volumes = [
        {"type": "volume", "source": "q", "target": "/q", "read_only": True},
        {"type": "volume", "source": "n", "target": "/n", "volume": {"nocopy": True}},
        {"type": "tmpfs", "target": "/t", "source": "x", "tmpfs": {"size": "1m", "mode": "1777"}},
        {"type": "volume", "target": "/z", "read_only": False},
    ]
    assert host("Mounts", {"volumes": volumes}) == [
        {"Type": "volume", "Source": "7_n", "Target": "/n", "VolumeOptions": {"NoCopy": True}},
        {"Type": "volume", "Source": "7_q", "Target": "/q", "ReadOnly": True},
        {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1777}},
        {"Type": "volume", "Target": "/z"},
    ]


@pytest.mark.parametrize(
    "volumes",
    [
        ["a:/d", "b:/d"],
        ["a:/d", "a:/d/"],
        ["a:/d", {"type": "volume", "source": "a", "target": "/d"}],
        [{"type": "tmpfs", "target": "/d"}, {"type": "volume", "target": "/d"}],
    ],
)
def test_m56_two_things_on_one_path_reject_the_app(volumes: Any) -> None:
    assert "/d" in problem_of({"volumes": volumes})


def test_a_volume_on_the_path_of_a_feature_rejects_the_app() -> None:
    labels = {"io.balena.features.dbus": "1"}
    assert "/host/run/dbus" in problem_of({"volumes": ["v:/host/run/dbus"], "labels": labels})


def test_equal_doubles_and_anonymous_volumes_below_a_bind_are_no_conflict() -> None:
    assert binds("a:/d", " a:/d") == ["7_a:/d"]
    assert field("Volumes", {"volumes": ["v:/var/img"]}, image=RICH) == {"/var/img": {}}


def test_d10_m43_tmpfs_options() -> None:
    assert host("Tmpfs", {"tmpfs": "/run"}) == {"/run": ""}
    wanted = ["/run:size=64m", "/x", "/x", "rel"]
    assert host("Tmpfs", {"tmpfs": wanted}) == {"/run": "size=64m", "/x": ""}
    assert "/run" in problem_of({"tmpfs": ["/run", "/run:size=1m"]})
    assert "/run" in problem_of({"tmpfs": ["/run"], "volumes": ["v:/run"]})


def test_volumes_without_declaration_are_declared_empty() -> None:
    found = desired(app(service(composition={"volumes": ["used:/a"]}), volumes={"kept": {}}))
    assert {v.name: v.engine_name for v in found.volumes} == {"used": "7_used", "kept": "7_kept"}


# ---- environment and labels ----------------------------------------------------------------------


def test_d2_m84_m85_m86_sources_of_the_environment() -> None:
    composition = {"environment": ["A=1", "B=x=y", "C"]}
    found = compile_main(composition, environment={"A": "2"})
    assert (variables(found)["A"], variables(found)["B"]) == ("2", "x=y")
    assert "C" not in variables(found)
    assert warns(composition, "environment", '"C"')
    typed = compile_main({"environment": {"N": 5, "F": 0.5, "T": True, "Z": None}})
    assert variables(typed).items() >= {("N", "5"), ("F", "0.5"), ("T", "true")}
    assert "Z" not in variables(typed)
    assert not typed.warnings


def test_an_entry_of_a_list_that_is_no_assignment_is_named_without_its_value() -> None:
    entries = [{"io.balena.features.dbus": "s3cret"}, 5, None, "=s3cret"]
    found = compile_main({"labels": entries, "environment": entries})
    told = "\n".join(found.warnings)
    assert "labels: entry with io.balena.features.dbus: is ignored" in told
    assert "environment: entry of type int is ignored: expecting NAME=VALUE" in told
    assert "environment: entry of type null is ignored" in told
    assert "s3cret" not in told


def test_names_of_variables_that_the_engine_refuses_are_left_out() -> None:
    found = compile_main({"environment": {"": "x", "A=B": "y", "OK": "z"}})
    assert variables(found)["OK"] == "z"
    assert not {"", "A=B"} & variables(found).keys()


def test_m04_m83_the_user_overrides_what_is_injected_and_that_the_image() -> None:
    user = {"BALENA_APP_ID": "99", "USER": "me", "IMGVAR": "mine"}
    found = variables(compile_main({}, environment=user, image=RICH))
    assert found.items() >= user.items()
    assert found["RESIN_APP_ID"] == "7"
    assert variables(compile_main({}, image=RICH))["IMGVAR"] == "img"


def test_the_name_of_the_device_is_never_part_of_the_environment() -> None:
    found = compile_main({}, environment={"BALENA_DEVICE_NAME_AT_INIT": "mine"})
    assert "BALENA_DEVICE_NAME_AT_INIT" not in variables(found)


def test_m88_renaming_the_app_changes_its_services() -> None:
    one = main_of(desired(app(service())))
    two = main_of(desired(App("abcd", 7, "other", release=app(service()).release)))
    assert variables(two)["BALENA_APP_NAME"] == "other"
    assert one.spec.digest() != two.spec.digest()


def test_d15_unknown_values_are_omitted_not_invented() -> None:
    labels = {
        "io.balena.features.balena-api": "1",
        "io.balena.features.supervisor-api": "1",
        "io.balena.features.host-os.board-rev": "1",
    }
    main = service(labels=labels)
    found = variables(main_of(desired(app(main), facts=HostFacts(), key="")))
    missing = ("API_KEY", "API_URL", "SUPERVISOR_API_KEY", "HOST_OS_BUILD", "HOST_OS_VERSION")
    assert not {f"BALENA_{name}" for name in missing} & found.keys()
    assert "undefined" not in found.values()
    assert "" not in found.values()
    assert found["BALENA_SUPERVISOR_PORT"] == "48484"


def test_d16_the_address_of_the_api_never_depends_on_what_exists_yet() -> None:
    labels = {"io.balena.features.supervisor-api": "1"}
    found = compile_main({}, labels=labels)
    assert variables(found)["RESIN_SUPERVISOR_ADDRESS"] == "http://10.114.104.1:48484"
    assert found.spec.networks == ("abcd_default", "supervisor0")
    assert found.spec.endpoints[1].aliases == ()


def test_m71_in_host_mode_the_api_is_on_the_host() -> None:
    labels = {"io.balena.features.supervisor-api": "1"}
    found = compile_main({"network_mode": "host"}, labels=labels)
    assert variables(found)["BALENA_SUPERVISOR_HOST"] == "127.0.0.1"
    assert found.spec.endpoints == ()


def test_m74_the_socket_is_mounted_once_per_path() -> None:
    labels = {"io.balena.features.balena-socket": "TRUE"}
    facts = HostFacts(engine_socket="/var/run/balena.sock")
    found = compile_main({}, labels=labels, facts=facts)
    mounts = our_body(found)["HostConfig"]["Mounts"]
    assert [m["Target"] for m in mounts] == [
        "/host/run/balena-engine.sock",
        "/var/run/balena.sock",
    ]
    assert variables(found)["DOCKER_HOST"] == "unix:///host/run/balena-engine.sock"


def test_m75_m76_features_that_need_the_host_to_have_something() -> None:
    names = ("kernel-modules", "firmware", "sysfs", "procfs", "journal-logs")
    labels = {f"io.balena.features.{name}": "1" for name in names}
    facts = HostFacts(has_modules=True, has_firmware=False)
    found = our_body(compile_main({}, labels=labels, facts=facts))["HostConfig"]["Binds"]
    assert "/lib/modules:/lib/modules" in found
    assert "/lib/firmware:/lib/firmware" not in found
    assert {"/sys:/sys", "/proc:/proc", "/etc/machine-id:/etc/machine-id:ro"} <= set(found)


@pytest.mark.parametrize(
    ("value", "on", "warned"),
    [("0", False, False), ("", False, False), ("yes", False, True), ("on", True, False)],
)
def test_m79_values_of_feature_labels(value: str, on: bool, warned: bool) -> None:
    labels = {"io.balena.features.dbus": value}
    found = compile_main({}, labels=labels)
    binds = our_body(found)["HostConfig"]["Binds"]
    assert ("/run/dbus:/host/run/dbus" in binds) is on
    assert bool(found.warnings) is warned


def test_m80_m81_labels_of_the_resin_era_and_of_the_image_count() -> None:
    found = compile_main({}, labels={"io.resin.features.dbus": "1"})
    assert found.spec.fields["Labels"]["io.balena.features.dbus"] == "1"
    assert not any("resin" in key for key in found.spec.fields["Labels"])
    image = image_from_inspect({"Id": "i", "Config": {"Labels": {"io.balena.features.dbus": "1"}}})
    assert "/run/dbus:/host/run/dbus" in host("Binds", {}, image=image)


def test_features_that_only_the_image_asks_for_are_told() -> None:
    image = image_from_inspect({"Id": "i", "Config": {"Labels": {"io.resin.features.dbus": "1"}}})
    sysfs = {"labels": {"io.balena.features.sysfs": "1"}}
    told = [line for line in compile_main(sysfs, image=image).warnings if "switch on" in line]
    assert [line.partition("labels of ")[2] for line in told] == ["image img:1 switch on: dbus"]
    same = {"labels": ["io.balena.features.dbus=1"]}
    assert not compile_main(same, image=image).warnings
    assert not compile_main({}, labels={"io.resin.features.dbus": "1"}, image=image).warnings


def test_m82_our_labels_cannot_be_overridden() -> None:
    theirs = {"io.balena.app-id": "99", "io.resin.service-name": "x", "io.balena.supervised": "no"}
    found = compile_main({"labels": theirs}, labels=theirs).spec.fields["Labels"]
    assert found["io.balena.app-id"] == "7"
    assert found["io.balena.service-name"] == "main"
    assert found["io.balena.supervised"] == "true"


def test_labels_as_list_and_with_odd_values() -> None:
    found = compile_main({"labels": ["a=1", "b"]}, labels={"a": "2"})
    assert found.spec.fields["Labels"].items() >= {("a", "2"), ("b", "")}
    found = compile_main({"labels": {"t": True, "z": None, "o": {}}})
    assert found.spec.fields["Labels"].items() >= {("t", "true"), ("z", "")}
    assert warns({"labels": {"o": {}}}, "labels.o")


@pytest.mark.parametrize(
    ("label", "strategy"),
    [("hand-over", "hand-over"), ("handover", "download-then-kill"), ("", "download-then-kill")],
)
def test_d14_strategies(label: str, strategy: str) -> None:
    found = compile_main({}, labels={"io.resin.update.strategy": label})
    assert found.strategy == strategy


@pytest.mark.parametrize(
    ("label", "seconds"),
    [("3000", 3.0), ("1", 0.001), ("0", 60.0), ("-5", 60.0), ("soon", 60.0), ("1.5", 60.0)],
)
def test_the_time_for_a_hand_over(label: str, seconds: float) -> None:
    """A positive whole number of milliseconds; everything else is ignored and told."""
    labels = {"io.balena.update.handover-timeout": label}
    assert compile_main({}, labels=labels).handover_timeout == seconds
    assert warns({"labels": labels}, "handover-timeout") == (seconds == 60.0)
    assert compile_main({}).handover_timeout == 60.0


# ---- networks of a service -----------------------------------------------------------------------


def test_m58_networks_with_addresses() -> None:
    networks = {"a": {"aliases": ["z"], "ipv4_address": "172.31.77.9"}, "b": None}
    found = compile_main({"networks": networks})
    body = our_body(found)["NetworkingConfig"]["EndpointsConfig"]
    assert body == {
        "abcd_a": {"IPAMConfig": {"IPv4Address": "172.31.77.9"}, "Aliases": ["main", "z"]}
    }
    assert [end.network for end in joins(found.spec)] == ["abcd_b"]


def test_priority_decides_which_network_is_main_and_its_address_is_the_containers() -> None:
    networks = {"a": None, "b": {"priority": 5, "mac_address": "02:42:ac:11:65:43"}}
    found = our_body(compile_main({"networks": networks}))
    assert found["HostConfig"]["NetworkMode"] == "abcd_b"
    assert found["MacAddress"] == "02:42:ac:11:65:43"


def test_options_of_an_endpoint_in_both_spellings() -> None:
    networks = {"a": {"driverOpts": {"x": 1}, "ipv6_address": "fd00::2", "linkLocalIps": ["::9"]}}
    assert our_body(compile_main({"networks": networks}))["NetworkingConfig"] == {
        "EndpointsConfig": {
            "abcd_a": {
                "IPAMConfig": {"IPv6Address": "fd00::2", "LinkLocalIPs": ["::9"]},
                "Aliases": ["main"],
                "DriverOpts": {"x": "1"},
            }
        }
    }


@pytest.mark.parametrize("mode", ["host", "none", "service:one"])
def test_d6_m62_these_modes_drop_declared_networks(mode: str) -> None:
    wanted = {"network_mode": mode, "networks": ["b"]}
    assert compile_main(wanted).spec.endpoints == ()
    assert warns(wanted, "networks", mode)


def test_bridge_mode_joins_declared_networks_afterwards() -> None:
    found = compile_main({"network_mode": "bridge", "networks": ["b"]})
    body = our_body(found)
    assert body["HostConfig"]["NetworkMode"] == "bridge"
    assert body["NetworkingConfig"] == {"EndpointsConfig": {}}
    assert [end.network for end in joins(found.spec)] == ["abcd_b"]


def test_d5_m67_m68_container_modes() -> None:
    found = compile_main({"network_mode": "container:one"})
    assert found.spec.parent == "one"
    foreign = {"network_mode": "container:foreign"}
    assert host("NetworkMode", foreign) == "abcd_default"
    assert warns(foreign, "network_mode", "container:foreign")


@pytest.mark.parametrize(
    "composition",
    [{"network_mode": "nope"}, {"networks": ["nope"]}, {"network_mode": "service:nope"}],
)
def test_what_is_not_in_the_app_rejects_it(composition: Any) -> None:
    assert "nope" in problem_of(composition)


def test_m66_d6_what_belongs_to_the_parents_network_is_dropped() -> None:
    wanted = {
        "network_mode": "service:one",
        "hostname": "h",
        "domainname": "d",
        "dns": ["8.8.8.8"],
        "extra_hosts": ["a=1.1.1.1"],
        "ports": ["80"],
        "mac_address": "02:42:ac:11:65:43",
        "dns_search": ["kept"],
    }
    found = compile_main(wanted)
    left = our_body(compile_main({"network_mode": "service:one", "dns_search": ["kept"]}))
    assert our_body(found) == left
    assert len(found.warnings) == 6


def test_d6_m72_the_parent_joins_our_network_for_its_child() -> None:
    labels = {"io.balena.features.supervisor-api": "1"}
    child = service(composition={"network_mode": "service:one"}, labels=labels)
    grandchild = service("deep", composition={"network_mode": "service:main"}, labels=labels)
    found = desired(app(child, grandchild, service("one")))
    one = next(s for s in found.services if s.name == "one")
    assert one.spec.networks == ("abcd_default", "supervisor0")
    assert "BALENA_SUPERVISOR_API_KEY" not in variables(one)
    main = main_of(found)
    assert main.spec.endpoints == ()
    assert variables(main)["BALENA_SUPERVISOR_API_KEY"] == "APIKEY"


def test_a_parent_in_host_mode_joins_nothing() -> None:
    labels = {"io.balena.features.supervisor-api": "1"}
    child = service(composition={"network_mode": "service:one"}, labels=labels)
    found = desired(app(child, service("one", composition={"network_mode": "host"})))
    assert all(s.spec.endpoints == () for s in found.services)


def test_in_mode_none_there_are_variables_but_no_network() -> None:
    labels = {"io.balena.features.supervisor-api": "1"}
    found = compile_main({"network_mode": "none"}, labels=labels)
    assert found.spec.endpoints == ()
    assert "BALENA_SUPERVISOR_API_KEY" in variables(found)


def test_m73_nobody_joins_our_network_by_its_name() -> None:
    wanted = {"networks": ["supervisor0"]}
    assert compile_main(wanted).spec.networks == ("abcd_default",)
    assert warns(wanted, "supervisor0", "use label")


def test_m61_host_mode_takes_the_name_of_the_device() -> None:
    assert field("Hostname", {"network_mode": "host"}) == "hosty"
    assert field("Hostname", {"network_mode": "host", "hostname": "own"}) == "own"
    assert field("MacAddress", {"network_mode": "host", "mac_address": "02:42:ac:11:65:43"}) == ""


# ---- dependencies --------------------------------------------------------------------------------


def test_depends_on_in_its_long_form() -> None:
    wanted = {
        "one": {"condition": "service_healthy", "restart": True},
        "x": {"condition": "service_completed_successfully"},
        "gone": {"condition": "service_started", "required": False},
    }
    found = compile_main({"depends_on": wanted})
    assert [(d.service, d.condition, d.restart) for d in found.depends_on] == [
        ("one", "healthy", True),
        ("x", "completed", False),
    ]
    odd = {"one": {"restart": ["perhaps"]}}
    assert warns({"depends_on": odd}, "depends_on.one.restart")
    assert [d.restart for d in compile_main({"depends_on": odd}).depends_on] == [False]


def test_an_unknown_condition_means_started() -> None:
    wanted = {"depends_on": {"one": {"condition": "service_lucky"}, "x": None}}
    assert [d.condition for d in compile_main(wanted).depends_on] == ["started", "started"]
    assert warns(wanted, "service_lucky")


def test_a_stronger_condition_survives_a_shared_network() -> None:
    depends_on = {"one": {"condition": "service_healthy"}}
    found = compile_main({"network_mode": "service:one", "depends_on": depends_on})
    assert [d.condition for d in found.depends_on] == ["healthy"]


def test_a_circle_rejects_the_app_and_is_named() -> None:
    main = service(composition={"depends_on": ["one"]})
    one = service("one", composition={"network_mode": "service:main"})
    assert "main -> one -> main" in desired(app(main, one)).problem
    assert "main -> main" in desired(app(service(composition={"depends_on": ["main"]}))).problem


def test_cycle_finds_a_circle_that_does_not_start_at_the_first_service() -> None:
    assert cycle({"a": ["b"], "b": ["c", "d"], "c": [], "d": ["b"]}) == ("b", "d", "b")
    assert cycle({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}) == ()
    long = {str(n): [str(n + 1)] for n in range(5000)}
    assert cycle(long) == ()


# ---- apps ----------------------------------------------------------------------------------------


def test_d4_every_bad_service_of_an_app_is_named_and_other_apps_go_on() -> None:
    bad = desired(
        app(
            service(composition={"ports": ["x"]}),
            service("one", composition={"working_dir": "rel"}),
            service("good"),
        )
    )
    assert "'main': ports" in bad.problem
    assert "'one': working_dir" in bad.problem
    assert (bad.services, bad.networks, bad.volumes) == ((), (), ())
    assert desired(app(service())).problem == ""


def test_an_app_without_a_release_wants_nothing() -> None:
    found = desired(App("abcd", 7, "app"))
    assert (found.commit, found.services, found.networks, found.volumes) == ("", (), (), ())


@pytest.mark.parametrize(
    ("modes", "config_only"), [([], True), (["host", "host"], True), (["host", None], False)]
)
def test_s23_s24_the_default_network_is_empty_if_nobody_needs_it(
    modes: list[Any], config_only: bool
) -> None:
    services = [
        service(f"s{n}", composition={"network_mode": mode}) for n, mode in enumerate(modes)
    ]
    found = desired(app(*services, networks={}))
    assert [(n.name, n.engine_name, n.spec.config_only) for n in found.networks] == [
        ("default", "abcd_default", config_only)
    ]


def test_a_declared_default_network_is_as_declared() -> None:
    networks = {"default": {"internal": True}}
    found = desired(app(service(composition={"network_mode": "host"}), networks=networks))
    assert [(n.spec.internal, n.spec.config_only) for n in found.networks] == [(True, False)]


def test_s53_services_of_the_host_app_that_are_parts_of_the_os_are_left_out() -> None:
    labels: dict[str, dict[str, str]] = {
        "os": {"io.balena.image.store": "root"},
        "overlay": {"io.resin.image.class": "overlay"},
        "ordinary": {"io.balena.image.class": "service", "io.balena.image.store": "data"},
        "plain": {},
    }
    services = [service(name, labels=found) for name, found in labels.items()]
    assert [s.name for s in desired(app(*services, is_host=True)).services] == [
        "ordinary",
        "plain",
    ]
    assert len(desired(app(*services)).services) == 4


@pytest.mark.parametrize("commit", ["v1.2.3", "local_1-2", "c0ffee"])
def test_a_commit_of_a_user_is_known_again_in_the_name_of_the_container(commit: str) -> None:
    made = app(service())
    assert made.release
    found = main_of(desired(replace(made, release=replace(made.release, commit=commit))))
    assert found.container_name.commit == commit


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"commit": "my release"}, ("commit", "my release", "letters, digits")),
        ({"commit": "a/b"}, ("commit", "a/b")),
        ({"uuid": "my-app"}, ("uuid", "my-app", "hexadecimal")),
    ],
    ids=str,
)
def test_an_app_whose_objects_cannot_be_named_is_rejected(parts: Any, words: Any) -> None:
    made = app(service())
    assert made.release
    commit = parts.get("commit", "c0ffee")
    release = replace(made.release, commit=commit)
    found = desired(replace(made, uuid=parts.get("uuid", "abcd"), release=release))
    assert not found.services
    assert all(word in found.problem for word in words), found.problem


@pytest.mark.parametrize("uuid", sorted(SUPERVISOR_APPS))
def test_s54_the_peers_own_app_is_never_run(uuid: str) -> None:
    found = desired(App(uuid, 9, "peer", release=app(service("main")).release))
    assert (found.services, found.networks, found.problem) == ((), (), "")
    assert found.commit == "c0ffee"


def test_an_absent_image_leaves_its_reference() -> None:
    found = compile_main({})
    assert (found.image_present, found.spec.image) == (False, "img:1")
    found = compile_main({}, image=RICH)
    assert (found.image_present, found.spec.image) == (True, "sha256:rich")


def test_a_key_is_asked_for_only_where_it_is_needed() -> None:
    asked: list[tuple[int, str]] = []

    def key(app_id: int, name: str) -> str:
        asked.append((app_id, name))
        return "k"

    labels = {"io.balena.features.supervisor-api": "1"}
    desired_app(app(service(), service("one", labels=labels)), lambda _: None, FACTS, key)
    assert asked == [(7, "one")]


def test_warnings_about_networks_are_seen_once() -> None:
    found = desired(app(service(), service("one"), networks={"a": {"external": True}}))
    assert sum("external" in w for s in found.services for w in s.warnings) == 1


def test_no_input_makes_it_raise() -> None:
    """Random rubbish in every field: an app is compiled or has a problem, and says why."""
    chance = random.Random(21)
    atoms: list[Any] = [
        None, True, False, 0, -1, 1.5, float("inf"), "", "x", "/a", "a:b", "80:80", "service:one",
        "9" * 5000, "\0", "é", "'", "\\", 10**30, "container:", "on-failure:", ":", "=", "::", "/",
    ]  # fmt: skip

    def rubbish(depth: int) -> Any:
        kind = chance.randrange(4) if depth else 0
        if kind == 1:
            return [rubbish(depth - 1) for _ in range(chance.randrange(4))]
        if kind == 2:
            keys = ["type", "source", "target", "test", "a", "", "driver", "ipam", "config", "soft"]
            return {chance.choice(keys): rubbish(depth - 1) for _ in range(chance.randrange(4))}
        return chance.choice(atoms)

    names = [*_FIELDS, "environment", "labels", "networks", "network_mode", "volumes", "pid",
             "healthcheck", "depends_on", "ipc", "bogus"]  # fmt: skip
    problems = 0
    for _ in range(3000):
        composition = {chance.choice(names): rubbish(3) for _ in range(3)}
        networks = {"a": rubbish(2)} if chance.random() < 0.3 else {}
        found = desired(app(service(composition=composition), service("one"), networks=networks))
        problems += bool(found.problem)
        assert bool(found.problem) != bool(found.services)
        assert "cannot be compiled" not in found.problem, composition
        for compiled in found.services:
            compiled.spec.to_json()
            our_body(compiled)
    assert 0 < problems < 3000
