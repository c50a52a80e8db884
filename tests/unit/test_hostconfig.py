"""The host's configuration always comes to rest, and no wish is ever given a second reboot.

One case is a random board with random files and a target with random variables, good and bad. The
planner is asked again and again; a random part of its steps fails. Whenever a reboot is due the
device may reboot, and with some luck somebody puts the files back on the way.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from agent import observed, rig, service, target
from fakes.machine import FakeHost

from balena_agent.core.boot import Board
from balena_agent.core.boot_backends import backends
from balena_agent.core.desired import Desired
from balena_agent.core.hostconfig import (
    BootFile,
    HostConfig,
    after,
    boot_variables,
    known_variables,
    plan_host,
    surviving,
)
from balena_agent.core.looks import Touch
from balena_agent.core.observed import HostFacts, Observed
from balena_agent.core.planner import plan
from balena_agent.core.preview import preview
from balena_agent.core.situation import Situation
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.steps import (
    ChangeConfig,
    DumpConfig,
    HostConfigStep,
    SetBootConfig,
    Step,
)
from balena_agent.core.target import Target

TEXTS = {
    "config.txt": ("", "gpu_mem=1\n# x\n[pi4]\na=1\n", "dtoverlay=x\ndtparam=p,audio=on\n"),
    "extra_uEnv.txt": ("", "custom_fdt_file=a\nfoo=1\nextra_os_cmdline=quiet isolcpus=1\n"),
    "extlinux.conf": ("DEFAULT a\nLABEL a\nAPPEND x isolcpus=2\n", "LABEL none\n"),
    "configfs.json": ("", '{"ssdt":["a"]}', "{bad"),
    "ODMDATA": ("060606", "000001"),
    "splash image": ("", "sha256:12"),
    "power and fan": ("{}", '{"power_mode": "low"}'),
}  # fmt: skip
VALUES = ("1", "x", '"a","b"', '"bad', "a=b,audio=on", "two\nlines", "")
NAMES = (
    "HOST_CONFIG_gpu_mem", "HOST_CONFIG_dtparam", "HOST_CONFIG_dtoverlay", "HOST_CONFIG_kernel",
    "HOST_CONFIG_power_mode", "HOST_CONFIG_fan_profile", "HOST_EXTLINUX_fdt", "HOST_SPLASH_image",
    "HOST_EXTLINUX_isolcpus", "HOST_ODMDATA_configuration", "HOST_CONFIGFS_ssdt",
    "SUPERVISOR_POLL_INTERVAL", "SUPERVISOR_PERSISTENT_LOGGING", "HOST_FIREWALL_MODE", "OTHER",
    "SUPERVISOR_VPN_CONTROL", "HOST_DISCOVERABILITY",
)  # fmt: skip
SLUGS = ("raspberrypi4-64", "fincm3", "jetson-tx2", "jetson-nano", "up-board", "x-orin-nano-x")


@dataclass
class Case:
    variables: dict[str, str]
    host: HostConfig
    rng: random.Random


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    board = Board(rng.choice(SLUGS), rng.choice(("2.40.0", "6.0.0")))
    boot = {b.name: BootFile(rng.choice(TEXTS[b.name])) for b in backends(board)}
    config = rng.choice((None, {}, {"persistentLogging": "on", "appUpdatePollInterval": "x"}))
    host = HostConfig("balenaos", "b0", board, config, boot, dump=rng.choice((None, "")))
    states = {name: rng.choice(("on", "off", "idle")) for name in ("vpn", "discoverability")}
    host = replace(host, switches=states)
    variables = {
        rng.choice(("", "BALENA_", "RESIN_")) + name: rng.choice(VALUES)
        for name in NAMES
        if rng.random() < 0.5
    }
    return Case(variables, host, rng)


def steps_of(case: Case) -> tuple[Step, ...]:
    found = plan_host(case.variables, True, case.host)
    planned = plan(Desired(()), Observed(), Situation(host_steps=found.steps))
    assert planned.steps == found.steps and planned.waits == ()
    return planned.steps


def come_to_rest(case: Case) -> None:
    for _ in range(40):
        steps = steps_of(case)
        if not steps:
            return
        for step in steps:
            if case.rng.random() < 0.7:
                assert isinstance(step, HostConfigStep)
                case.host = after(step, case.host)
    raise AssertionError(f"never at rest: {steps}")


@pytest.mark.parametrize("adversary", [0.0, 0.5, 1.0])
def test_every_case_comes_to_rest_and_reboots_once_at_most(adversary: float) -> None:
    reboots: Counter[int] = Counter()
    for seed in range(400):
        case = random_case(seed)
        first = case.host
        for boot in range(1, 6):
            come_to_rest(case)
            if not case.host.reboot:
                break
            reboots[seed] += 1
            back = first if case.rng.random() < adversary else case.host
            case.host = replace(case.host, boot_id=f"b{boot}", reboot=())
            late = case.rng.random() < 0.5  # after the agent's start
            if late:
                case.host = replace(case.host, attempts=surviving(case.host))
            case.host = replace(case.host, boot=back.boot, config=back.config)
            if not late:
                case.host = replace(case.host, attempts=surviving(case.host))
        else:
            raise AssertionError(f"seed {seed}: still rebooting")
    # config.json and boot files are two wishes of their own, in two boots at most.
    assert set(reboots.values()) <= {1, 2}
    assert reboots and (adversary or set(reboots.values()) == {1})


def test_what_was_set_is_what_is_reported() -> None:
    for seed in range(200):
        case = random_case(seed)
        come_to_rest(case)
        again = Case(dict(boot_variables(case.host)), replace(case.host, config=None, dump=None),
                     case.rng)  # fmt: skip
        kept = again.host.boot
        if again.host.board.slug == "fincm3" or kept["splash image"].text:
            continue  # an overlay of its own; images are not reported
        if {"extlinux.conf", "extra_uEnv.txt"} <= kept.keys():
            continue  # two files with the same variables
        assert steps_of(again) == (), seed


def test_unknown_variables_are_dropped() -> None:
    given = {"RESIN_OTHER": "1", "BALENA_HOST_CONFIG_x": "2", "RESIN_SUPERVISOR_DELTA": "1"}
    assert known_variables(given) == {"HOST_CONFIG_x": "2", "SUPERVISOR_DELTA": "1"}


BOARD = HostConfig(
    "balenaos", "b1", Board("raspberrypi4-64"), {}, {"config.txt": BootFile("a=1\n")}, dump=""
)
BAD = {"HOST_CONFIG_kernel": "evil", "HOST_FIREWALL_MODE": "sideways", "HOST_CONFIG_a": "1"}


def test_H10_H16_bad_variables_are_told_once_and_hold_up_no_app() -> None:
    document = target(service("one"))
    document["local"]["config"] = BAD
    host = FakeHost(settings=BOARD)
    with rig(observed("busybox"), host=host) as agent:
        agent.post(document)
        snapshot = agent.settled()
        assert agent.containers() == {"one": "running"}
        assert [line for line in snapshot.notices if "Ignoring" in line] == [
            "Warning: Ignoring invalid device configuration value for firewallMode, value:"
            " 'sideways'. Falling back to default (off)",
            "Ignoring HOST_CONFIG_kernel: managed by the OS",
        ]
        assert snapshot.settings.firewall_mode == "off" and snapshot.host.reboot == ()
    assert host.settings.boot["config.txt"].text == "a=1\n"


def test_a_change_on_the_host_is_put_right_again() -> None:
    document = target()
    document["local"]["config"] = {"HOST_CONFIG_a": "1"}
    host = FakeHost(settings=BOARD)
    with rig(host=host) as agent:
        agent.post(document)
        agent.settled()
        host.settings = replace(host.settings, boot={"config.txt": BootFile("a=2\nb=1\n")})
        agent.reconciler.new_facts(HostFacts(device_uuid="d0d0"))
        snapshot = agent.until(lambda s: s.host.reboot, "put right")
        assert snapshot.host.reboot == ("HOST_CONFIG_a", "HOST_CONFIG_b")
        assert snapshot.host.boot["config.txt"].text == "a=1\n"


def test_the_host_is_seen_to_while_the_engine_is_away() -> None:
    document = target(service("one"))
    document["local"]["config"] = {"HOST_CONFIG_a": "7"}
    host = FakeHost(settings=BOARD)
    with rig(host=host) as agent:
        agent.engine.down = True
        agent.reconciler.wake(Touch(everything=True))
        agent.until(lambda s: s.engine_error and not s.looked, "the engine is away")
        agent.post(document)
        snapshot = agent.until(lambda s: s.host.reboot, "written")
        assert snapshot.engine_error and host.settings.boot["config.txt"].text == "a=7\n"


def test_a_preview_tells_the_steps_on_the_host_once() -> None:
    now = Snapshot(host=BOARD, looked=True, engine_error="")
    config = {"HOST_CONFIG_a": "2", "SUPERVISOR_POLL_INTERVAL": "60000"}
    steps = preview(now, Target("x", config, {})).steps
    assert [type(step) for step in steps] == [ChangeConfig, DumpConfig, SetBootConfig]
