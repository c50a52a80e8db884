"""The command line of `tests/vdev`: words in, one Machine call, result on stdout, progress on
stderr. Exit status: that of the command for `exec`; 77 where virtual devices cannot run; else 0, 1
on failure, 2 on wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import demo, images, sweep
from .machine import Machine, machines
from .outer import DeviceError, say, supported

UNSUPPORTED = 77


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="vdev", description="Virtual devices to run the agent on.")
    calls = top.add_subparsers(dest="call", required=True, metavar="CALL")

    up = calls.add_parser("up", help="make and boot a device with the agent; print its facts")
    up.add_argument("name")
    up.add_argument("--apps", type=Path, help="becomes /mnt/data/apps.json")
    up.add_argument("--config", type=Path, help="becomes /mnt/boot/config.json")
    up.add_argument("--conf", type=Path, help="becomes /etc/balena-agent/agent.conf")
    agent = up.add_mutually_exclusive_group()
    agent.add_argument("--agent", action="store_const", const=True, dest="agent",
                       help="install this checkout, also over an installed one")  # fmt: skip
    agent.add_argument("--no-agent", action="store_const", const=False, dest="agent",
                       help="leave the agent alone")  # fmt: skip
    up.add_argument("--deadline", type=float, default=60.0, help="seconds (default 60)")

    calls.add_parser("demo", help="two services on a fresh device, watched until they run")

    run = calls.add_parser("exec", help="run a command inside; its exit status is passed on")
    run.add_argument("name")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...")

    shell = calls.add_parser("shell", help="a shell inside")
    shell.add_argument("name")

    logs = calls.add_parser("logs", help="the device's journal; further words go to journalctl")
    logs.add_argument("name")
    logs.add_argument("arguments", nargs=argparse.REMAINDER, metavar="[-f] [ARG...]")

    for name, text in (
        ("reboot", "orderly reboot"),
        ("kill", "power cut; the disk is kept for the next `up`"),
        ("down", "stop and remove"),
    ):
        calls.add_parser(name, help=text).add_argument("name")

    image = calls.add_parser("image", help="build a busybox image into the device's registry")
    image.add_argument("name")
    image.add_argument("tag")
    image.add_argument("directory", nargs="?", type=Path, metavar="DIR",
                       help="its files; a file `cmd` in it holds the command")  # fmt: skip
    image.add_argument("--engine", action="store_true", help="into the engine only")

    calls.add_parser("list", help="all devices")
    calls.add_parser("gc", help="remove the leftovers of dead runs")
    return top


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    reason = supported()
    if reason:
        say(reason)
        return UNSUPPORTED
    try:
        return _act(options)
    except DeviceError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _act(options: argparse.Namespace) -> int:
    call = options.call
    if call == "list":
        return _list()
    if call == "gc":
        for line in sweep.collect():
            print(line)
        return 0
    if call == "demo":
        print(json.dumps(demo.run_demo()))
        return 0
    machine = Machine(options.name)
    if call == "up":
        return _up(machine, options)
    if call == "down":
        machine.down()
    elif call == "kill":
        machine.kill()
    elif call == "reboot":
        machine.reboot()
    elif call == "image":
        return _image(machine, options)
    elif call == "exec":
        return _enter(machine, _after_dashes(options.command) or ["true"])
    elif call == "logs":
        return _enter(machine, ["journalctl", "--no-pager", *_after_dashes(options.arguments)])
    elif call == "shell":
        return _shell(machine)
    return 0


def _up(machine: Machine, options: argparse.Namespace) -> int:
    started = time.monotonic()
    facts = machine.up(
        agent=options.agent, apps=options.apps, config=options.config, conf=options.conf,
        deadline=options.deadline,
    )  # fmt: skip
    say(f"{machine.name} is up after {time.monotonic() - started:.1f} s")
    print(json.dumps(facts), flush=True)
    return 0


def _image(machine: Machine, options: argparse.Namespace) -> int:
    cmd: Sequence[str] = images.DEFAULT_CMD
    files: dict[str, Path] = {}
    if options.directory:
        if not options.directory.is_dir():
            raise DeviceError(f"{options.directory} is no directory")
        cmd, files = images.from_directory(options.directory)
    built = images.build(machine, options.tag, cmd=cmd, files=files, engine_only=options.engine)
    print(json.dumps({"image": built.reference, "id": built.id, "digest": built.digest}))
    return 0


def _after_dashes(words: list[str]) -> list[str]:
    return words[1:] if words[:1] == ["--"] else words


def _enter(machine: Machine, words: Sequence[str]) -> int:
    """Become the command: streams, signals and exit status are passed on by being the same."""
    command = machine.shell_command(*words)
    os.execv(command[0], command)


def _shell(machine: Machine) -> int:
    if not sys.stdin.isatty():
        return _enter(machine, ["bash", "-l"])
    # The outer terminal does not exist inside, so systemd makes one there and carries it.
    terminal = f"--setenv=TERM={os.environ.get('TERM', 'linux')}"
    run = ["systemd-run", "--quiet", "--pty", "--wait", "--collect", "--working-directory=/root"]
    return _enter(machine, [*run, terminal, "/bin/bash", "-l"])


def _list() -> int:
    rows = [("NAME", "PHASE", "ADDRESS", "LEADER", "AGENT")]
    for machine in machines():
        record, phase = machine.record, machine.phase
        address = machine.address if machine.exists else "-"
        leader = str(machine.status.get("leader") or "-") if machine.on else "-"
        rows.append((machine.name, phase, address, leader, "yes" if record.get("agent") else "no"))
    for row in rows:
        print(f"{row[0]:<24} {row[1]:<9} {row[2]:<16} {row[3]:<8} {row[4]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
