"""Contracts: what a service requires of the device, and whether this device has it (spec 20 §6).

Theory: the device is a handful of facts, each with a type and perhaps a slug, a version and data. A
requirement is met when one fact has all that it names; a contract when all its requirements are. A
requirement of a type that we have no facts of is unmet, and so is what cannot be read: whoever
asks for something that we do not know gets no for an answer. One unmet service has its whole app
rejected, unless a label calls the service optional: then the app runs without it.

Nothing here raises, whatever the contract: it is text from strangers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from . import semver
from .jsonread import Json, Node, Problems, truth
from .names import current_labels
from .observed import HostFacts
from .target import Service

OPTIONAL: Final = "io.balena.features.optional"
COMPOSE_VERSION: Final = "2.4.0"
"""The compose specification that we keep to, for requirements of `sw.spec`."""

_DEEPEST: Final = 4
_SHOWN: Final = 3
_LINE: Final = 200
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f]*\Z")
_NOT_EMPTY: Final = re.compile(r"[^\x00-\x1f\x7f]+\Z")
_TEXT_RULE: Final = "text of up to 255 characters without control characters"
_L4T: Final = re.compile(r"-l4t-r([0-9]+\.[0-9]+)(\.[0-9]+)?")
_KERNEL: Final = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that the device is or has; "" where it has no slug or version."""

    type: str
    slug: str = ""
    version: str = ""
    data: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Requirement:
    """What one fact must have; "" where anything will do."""

    type: str
    slug: str = ""
    version: str = ""
    data: Mapping[str, Json] = field(default_factory=dict)

    def __str__(self) -> str:
        data = "with certain data" if self.data else ""
        return " ".join(filter(None, (self.type, self.slug, self.version, data)))


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Requirements of which one is enough. Without any there is nothing to meet."""

    choices: tuple[Need, ...]

    def __str__(self) -> str:
        more = ", ..." if len(self.choices) > _SHOWN else ""
        return f"one of ({', '.join(map(str, self.choices[:_SHOWN]))}{more})"


Need = Requirement | AnyOf


@dataclass(frozen=True, slots=True)
class Contract:
    """A service's contract as read. With `problems` it cannot be met."""

    type: str = "sw.container"
    slug: str = ""
    requires: tuple[Need, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on one app: why each of its `unmet` services is unmet, and which of these are
    `optional`, both by service name."""

    unmet: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    @property
    def accepted(self) -> bool:
        """Whether the app may run, though perhaps without its optional unmet services."""
        return self.unmet.keys() <= self.optional


def device_facts(host: HostFacts) -> tuple[Fact, ...]:
    """What this device offers. What is not known of it is left out."""
    kernel = _KERNEL.match(host.kernel_release)
    known = [
        Fact("sw.supervisor", version=host.compat_version),
        Fact("sw.application", "balena-supervisor", host.compat_version),
        Fact("hw.device-type", host.device_type),
        Fact("arch.sw", host.device_arch),
        Fact("sw.spec", "compose", COMPOSE_VERSION),
    ]
    if l4t := l4t_version(host.kernel_release):
        known.append(Fact("sw.l4t", version=l4t))
    if host.os_id and host.os_version:
        known.append(Fact("sw.os", host.os_id, host.os_version))
    if kernel and host.kernel_name:
        known.append(Fact("sw.kernel", host.kernel_name.lower(), kernel[0]))
    return tuple(known)


def l4t_version(kernel_release: str) -> str:
    """The board support version in the name of an NVIDIA kernel, in three numbers; "" elsewhere."""
    found = _L4T.search(kernel_release)
    return found[1] + (found[2] or ".0") if found else ""


def read_contract(raw: Json) -> Contract:
    """A contract from a target. Members that we do not know are nobody's business."""
    problems = Problems()
    node = Node(raw, "contract", problems)
    node.mapping(required=True)
    requires = tuple(_needs(node.child("requires")))
    kind, slug = _text(node.child("type")) or "sw.container", _text(node.child("slug"))
    return Contract(kind, slug, requires, tuple(problems.lines))


def satisfied(need: Need, facts: tuple[Fact, ...]) -> bool:
    if isinstance(need, AnyOf):
        return not need.choices or any(satisfied(choice, facts) for choice in need.choices)
    return any(_meets(fact, need) for fact in facts)


def reasons(contract: Contract, facts: tuple[Fact, ...]) -> tuple[str, ...]:
    """Why a contract is unmet; () if it is met."""
    unmet = (need for need in contract.requires if not satisfied(need, facts))
    return (*contract.problems, *(_reason(need, facts) for need in unmet))


def judge(services: Mapping[str, Service], facts: tuple[Fact, ...]) -> Verdict:
    """The judgement on an app with these services."""
    unmet: dict[str, tuple[str, ...]] = {}
    for name, service in services.items():
        if service.contract and (why := reasons(read_contract(service.contract), facts)):
            unmet[name] = why
    optional = (n for n in unmet if truth(current_labels(services[n].labels).get(OPTIONAL)))
    return Verdict(unmet, frozenset(optional))


def rejection(app_name: str, verdict: Verdict) -> str:
    """The peer's sentence about a rejected app, and below it why."""
    head = "Some releases were rejected due to having unmet requirements:"
    names = ", ".join(verdict.unmet)
    told = f"  {app_name}: Services with unmet requirements: {names}"
    return "\n".join((head, told, *_details(verdict)))


def omission(verdict: Verdict) -> str:
    """The peer's sentence about services that are left out, and below it why."""
    head = "Not running containers because of contract violations: "
    return "\n".join((head + ". ".join(verdict.unmet), *_details(verdict)))


def _details(verdict: Verdict) -> Iterator[str]:
    for name, why in verdict.unmet.items():
        more = f" (+{len(why) - _SHOWN})" if len(why) > _SHOWN else ""
        told = "; ".join(reason[:_LINE] for reason in why[:_SHOWN])
        yield f"    {name}: {told}{more}"


def _needs(node: Node, depth: int = 0) -> Iterator[Need]:
    """The requirements of a list; null is an empty one."""
    value = node.value
    if value is None:
        return
    if not isinstance(value, list) or depth > _DEEPEST:
        node.bad(f"list, nested up to {_DEEPEST} times,")
        return
    for index, entry in enumerate(value):
        yield _need(Node(entry, f"{node.path}[{index}]", node.problems), depth)


def _need(node: Node, depth: int) -> Need:
    if node.has("or"):
        return AnyOf(tuple(_needs(node.child("or"), depth + 1)))
    kind = ""
    if isinstance(node.value, Mapping):
        kind = node.child("type").matching(_NOT_EMPTY, _TEXT_RULE)
    else:
        node.bad("object")
    slug, version = _text(node.child("slug")), _text(node.child("version"))
    return Requirement(kind, slug, version, node.child("data").mapping())


def _text(node: Node) -> str:
    """A text; missing or null is ""."""
    return "" if node.value is None else node.matching(_TEXT, _TEXT_RULE)


def _meets(fact: Fact, need: Requirement) -> bool:
    return (
        fact.type == need.type
        and need.slug in ("", fact.slug)
        and (not need.version or _in_range(fact.version, need.version))
        and _contains(fact.data, need.data)
    )


def _in_range(version: str, wanted: str) -> bool:
    """By npm's rules where both sides can be read by them, else letter by letter."""
    known, span = semver.read_version(version), semver.read_range(wanted)
    if known is None or span is None:
        return version == wanted
    return semver.satisfies(known, span)


def _contains(whole: Json, part: Json) -> bool:
    if not isinstance(part, Mapping) or not isinstance(whole, Mapping):
        return bool(whole == part)
    return all(name in whole and _contains(whole[name], value) for name, value in part.items())


def _reason(need: Need, facts: tuple[Fact, ...]) -> str:
    """What is missed, and what is here instead."""
    types = {need.type} if isinstance(need, Requirement) else set()
    here = [" ".join(filter(None, (f.slug, f.version))) for f in facts if f.type in types]
    return f"needs {need}" + (f" but this device has {', '.join(here)}" if here else "")
