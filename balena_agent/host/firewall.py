"""Our chain in the kernel's packet filter, by iptables-save and iptables-restore (spec 30 §13).

Theory: level-triggered. The present rules are listed and compared with the wanted ones, and only a
difference is written, in one transaction per family. A listing that does not spell a rule as we do
would differ for ever: so what the listing showed after we had written counts as equal from then on.

A host without these programs, or a kernel without a family, is a reason to tell, not an error.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from ..core.firewall import IPV4, IPV6, Family, Present, Wish, read, rules, transaction

SECONDS = 15.0
_WAIT = "10"
"""Seconds that iptables itself waits for another program that holds its lock."""

PROGRAMS: Mapping[str, str] = {"IPv4": "iptables", "IPv6": "ip6tables"}


class _Failed(Exception):
    """A program that is not there, that failed or did not end; in words."""


class Firewall:
    """Used by one thread. `programs` are the names' first halves, by family."""

    def __init__(self, programs: Mapping[str, str] = PROGRAMS) -> None:
        self._programs = programs
        self._as_listed: dict[tuple[str, ...], tuple[str, ...]] = {}

    def keep(self, wanted: Wish) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Bring about what is wanted. The families that were changed, and why which one is not as
        it should be."""
        changed, problems = [], []
        for family in (IPV4, IPV6):
            try:
                if self._keep(family, rules(wanted, family)):
                    changed.append(family.name)
            except _Failed as error:
                problems.append(f"{family.name}: {error}")
        return tuple(changed), tuple(problems)

    def _keep(self, family: Family, wanted: tuple[str, ...]) -> bool:
        present = self._list(family)
        if present.jump and present.rules in (wanted, self._as_listed.get(wanted)):
            return False
        program = self._programs[family.name] + "-restore"
        _run((program, "--wait", _WAIT, "--noflush"), transaction(wanted, present))
        listed = self._list(family).rules
        if listed is not None:
            self._as_listed = {**self._as_listed, wanted: listed}
        return True

    def _list(self, family: Family) -> Present:
        return read(_run((self._programs[family.name] + "-save", "-t", "filter")))


def _run(words: tuple[str, ...], text: str = "") -> str:
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise _Failed(f"there is no {words[0]}") from error
    except OSError as error:
        raise _Failed(f"{words[0]} cannot be started ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise _Failed(f"{words[0]} did not end within {SECONDS:g} s") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"it ended with {done.returncode}"
        raise _Failed(f"{words[0]}: {said}")
    return done.stdout
