"""balena-agentctl's commands about the machine: blink, hostname, proxy.

Theory: as in ctl_commands.py, every command is one function from a `Shell` to an exit code. A
password comes from a file or standard input, never from the command line, where every user of the
machine could read it; it is not printed either, unless JSON is asked for.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .core.redsocks import TYPES
from .ctl_shell import DONE

if TYPE_CHECKING:
    from .ctl_shell import Shell

_HIDDEN = "(set)"


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Put the commands into the parser."""
    blink = commands.add_parser("blink", parents=[shared], help="blink the identification LED")
    blink.set_defaults(command=_blink)
    name = commands.add_parser("hostname", parents=[shared], help="print or set the host's name")
    name.add_argument("name", metavar="NAME", nargs="?", help='the new name; "" is the default')
    name.add_argument("--force", action="store_true", help="override update locks")
    name.set_defaults(command=_hostname)
    _add_proxy(commands.add_parser("proxy", help="the host's proxy"), shared)


def _add_proxy(proxy: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    inner = proxy.add_subparsers(metavar="COMMAND", required=True)
    inner.add_parser("show", parents=[shared], help="print it").set_defaults(command=_proxy_show)
    clear = inner.add_parser("clear", parents=[shared], help="use no proxy")
    clear.set_defaults(command=_proxy_clear)
    given = inner.add_parser("set", parents=[shared], help="use this proxy and no other")
    given.add_argument("--type", required=True, choices=TYPES)
    given.add_argument("--ip", required=True, metavar="HOST", help="address or name of the proxy")
    given.add_argument("--port", required=True, type=_port, metavar="PORT")
    given.add_argument("--login", metavar="NAME")
    given.add_argument("--password-file", metavar="FILE", help="- is standard input")
    given.add_argument("--dns", metavar="ADDRESS:PORT", help="where names are asked for, over it")
    given.add_argument("--no-proxy", metavar="NETWORK", nargs="*", help="what is reached directly")
    given.set_defaults(command=_proxy_set)
    for parser in (clear, given):
        parser.add_argument("--force", action="store_true", help="override update locks")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 65535")
    return int(text)


def _blink(shell: Shell) -> int:
    shell.client.blink()
    return DONE


def _hostname(shell: Shell) -> int:
    if shell.options.name is not None:
        shell.client.set_hostname(shell.options.name, shell.options.force)
        return DONE
    name = shell.client.host_config()["hostname"]
    if shell.as_json:
        shell.document({"hostname": name})
    else:
        shell.line(name)
    return DONE


def _proxy_show(shell: Shell) -> int:
    proxy = shell.client.host_config().get("proxy")
    if shell.as_json:
        shell.document(proxy)
    elif proxy is None:
        shell.line("no proxy")
    else:
        for key, value in proxy.items():
            text = " ".join(value) if isinstance(value, list) else str(value)
            shell.line(f"{key}: {_HIDDEN if key == 'password' else text}")
    return DONE


def _proxy_clear(shell: Shell) -> int:
    shell.client.set_proxy({}, shell.options.force)
    return DONE


def _proxy_set(shell: Shell) -> int:
    options = shell.options
    proxy: dict[str, Any] = {"type": options.type, "ip": options.ip, "port": options.port}
    if options.login is not None:
        proxy["login"] = options.login
    if options.password_file is not None:
        proxy["password"] = shell.text_of(options.password_file).rstrip("\n")
    if options.dns is not None:
        proxy["dns"] = options.dns
    if options.no_proxy:
        proxy["noProxy"] = options.no_proxy
    shell.client.set_proxy(proxy, options.force)
    return DONE
