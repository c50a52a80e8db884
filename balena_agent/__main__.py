"""The command `balena-agent`: command line, log set-up, then the daemon."""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
from types import SimpleNamespace

from . import openssl  # noqa: F401  before all others, see there

# isort: split
from . import __version__
from .config import load
from .core.errors import AgentError
from .host.journal import start as start_log


def main(arguments: list[str] | None = None) -> int:
    """Run the agent in the foreground, as systemd starts it. Returns the exit status."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    # SIGABRT is how systemd's watchdog ends us: then every thread tells where it stood.
    faulthandler.enable()
    settings = load(options.config)
    start_log(options.log_level or settings.agent.log_level)
    logging.getLogger(__name__).info("balena-agent %s starts", __version__)
    from .daemon import THREAD_STACK, Daemon
    from .watchdog import systemd_notifier

    threading.stack_size(THREAD_STACK)
    try:
        daemon = Daemon(settings, systemd_notifier())
    except AgentError as error:
        logging.getLogger(__name__).critical("The agent cannot start: %s", error.message)
        return 1
    return daemon.run()


def _options(arguments: list[str]) -> SimpleNamespace:
    """What the command line says; where it says nothing, nothing is loaded to read it."""
    options = SimpleNamespace(config="", log_level="")
    if not arguments:
        return options
    import argparse

    parser = argparse.ArgumentParser(
        prog="balena-agent",
        description="Keeps the containers of this device in the state that its target asks for.",
    )
    parser.add_argument("--config", default="", metavar="FILE", help="settings file")
    parser.add_argument("--log-level", default="", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--version", action="version", version=__version__)
    return parser.parse_args(arguments, options)


if __name__ == "__main__":
    sys.exit(main())
