"""Compose cases that live side by side on one device, and what is expected of them, as data.

Theory: `data/compose-cases.json` has one entry per case: services with their composition, and what
`docker inspect` shall then show. All of them go into one target, which is applied once and looked
at; posted again, it must change nothing. Then comes the second target, with the `then` of each
service, looked at and posted again in the same way. So a case costs a container, not a device.

A service says of its container: `expect` (path -> value), `exec`, `says` (words of one line of the
journal), `after`. Values are compared as they are, or by one of the rules in `RULES`; `{app}`,
`{image_id}`, `{hostname}` and `{id:service}` in them are filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device import DeviceError, images
from e2e_device import Device
from e2e_targets import Json, app, service

DATA = json.loads((Path(__file__).parent / "data/compose-cases.json").read_text())
CASES: list[Json] = DATA["cases"]
SIDE_BY_SIDE = [case for case in CASES if "services" in case]

COMMON_APP = "7"
_FILLED = re.compile(r"\{(app|image_id|hostname|id:\w+)\}")


# ---- the target ----------------------------------------------------------------------------------


def app_id(case: Json) -> str:
    """Cases that say something of a whole app, or that have it rejected, have one of their own."""
    return f"7{case['id'][1:]}" if case.get("own") else COMMON_APP


def composed(parts: Json, number: int, name: str, image: str, *, running: bool = True) -> Json:
    """The service as the target has it."""
    return service(
        name, number, image=f"case-{image}:1", composition=parts.get("composition", {}),
        environment=parts.get("environment", {}), labels=parts.get("labels", {}), running=running,
    )  # fmt: skip


def target(privileged: bool, skipped: set[str], *, second: bool = False) -> Json:
    """All cases in one target. Privileged ones are only created where the machine forbids them."""
    apps: dict[str, Json] = {
        COMMON_APP: app(name="common", networks=DATA["networks"], volumes=DATA["volumes"])
    }
    for number, (case, name, parts) in enumerate(parts_of_cases(), 100):
        if case["id"] in skipped:
            continue
        if case.get("own"):
            release = case.get("released", 1) if second else 1
            label = case.get("renamed") if second else None
            apps.setdefault(
                app_id(case),
                app(name=label or app_name(case), release=release, volumes=case.get("volumes", {})),
            )
        then = parts.get("then", {}) if second else {}
        if not then.get("gone"):
            running = parts.get("running", True) and (privileged or not parts.get("privileged"))
            image = parts.get("image", "plain")
            made = composed({**parts, **then}, number, name, image, running=running)
            _add(apps[app_id(case)], made, parts.get("ids"))
    name = "second" if second else "first"
    return {"local": {"name": name, "config": {}, "apps": apps}}


def _add(into: Json, made: Json, ids: list[Any] | None) -> None:
    if ids:
        made["serviceId"], made["imageId"], into["releaseId"], into["commit"] = ids
    into["services"][str(made["serviceId"])] = made


def app_name(case: Json) -> str:
    return str(case["id"]).lower()


def parts_of_cases() -> Iterator[tuple[Json, str, Json]]:
    """(case, service name, what is said of it)."""
    for case in SIDE_BY_SIDE:
        for name, parts in case["services"].items():
            yield case, name, parts


# ---- the look ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """The device at one moment; containers by (app id, service)."""

    settled: bool
    plan: Json
    containers: Mapping[tuple[str, str], Json]
    apps: Json
    said: tuple[str, ...]
    volumes: frozenset[str]

    def of(self, case: Json, name: str) -> Json:
        return self.containers.get((app_id(case), name), {})

    def troubles(self, name: str) -> list[str]:
        """What the agent still wants to do, or could not do, for a service."""
        told = [str(e) for kind in ("steps", "running", "failures") for e in self.plan[kind]
                if e["service"] == name]  # fmt: skip
        return told + [str(w) for w in self.plan["waits"] if str(w["subject"]).endswith(f"/{name}")]


@dataclass(slots=True)
class Bench:
    """All looks at the cases, and what their programs printed."""

    device: Device
    info: Json = field(default_factory=dict)
    privileged: bool = False
    looks: dict[str, Look] = field(default_factory=dict)
    printed: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        self._furnish()
        skipped = {c["id"] for c in SIDE_BY_SIDE if c.get("needs") and not self.info[c["needs"]]}
        first = target(self.privileged, skipped)
        second = target(self.privileged, skipped, second=True)
        self._apply(first, "first")
        self._execute()
        self._apply(first, "first again")
        self._apply(second, "second")
        self._apply(second, "second again")
        self.device.start_over()
        self._apply(second, "adopted")

    def _furnish(self) -> None:
        images.build(self.device.machine, "case-plain:1", cmd=("sleep", "3600"))
        for name, lines in DATA["images"].items():
            # The import of an image knows no STOPSIGNAL, a build does.
            recipe = "\n".join(("FROM case-plain:1", *lines))
            command = ("docker", "build", "-q", "-t", f"case-{name}:1", "-")
            self.device.exec(*command, input=recipe)
        self.info = self.device.engine("GET", "/info")
        probe = ("docker", "run", "--rm", "--privileged", "case-plain:1", "true")
        self.privileged = self.device.exec(*probe, check=False).returncode == 0
        self.device.exec("sh", "-c", "mkdir -p /lib/modules; rm -rf /lib/firmware")
        self.device.restart()

    def _apply(self, document: Json, name: str) -> None:
        """POST, and once more while nothing is left to do, so that it is applied twice."""
        self.device.mark()
        for _ in range(2):
            self.device.post(document)
            settled = self._settle()
        self.looks[name] = self._look(settled)

    def _settle(self) -> bool:
        try:
            self.device.settled(90)
        except (AssertionError, DeviceError):
            return False
        return True

    def _look(self, settled: bool) -> Look:
        found: dict[tuple[str, str], Json] = {}
        for each in self.device.ids().values():
            container = self.device.engine("GET", f"/containers/{each}/json")
            labels = container["Config"]["Labels"]
            found[labels["io.balena.app-id"], labels["io.balena.service-name"]] = container
        return Look(
            settled,
            self.device.plan(),
            found,
            self.device.api("GET", "/v2/applications/state").json(),
            tuple(str(entry.get("MESSAGE")) for entry in self.device.journal()),
            frozenset(self.device.volumes()),
        )

    def _execute(self) -> None:
        for case, name, parts in parts_of_cases():
            container = self.looks["first"].of(case, name)
            if "exec" in parts and container:
                command = ("docker", "exec", container["Id"], *parts["exec"]["command"])
                done = self.device.exec(*command, check=False)
                self.printed[name] = done.stdout + done.stderr


# ---- the judgement -------------------------------------------------------------------------------


def faults(bench: Bench, case: Json) -> list[str]:
    """What is not as expected of a case, in words; and what the second posting changed."""
    found: list[str] = []
    for stage in ("first", "second"):
        look, again = bench.looks[stage], bench.looks[f"{stage} again"]
        for name, parts in case["services"].items():
            asked = parts if stage == "first" else parts.get("then", {})
            where = f"{stage}: {name}: "
            refused = case.get("rejected") or asked.get("rejected")
            for fault in _service_faults(bench, case, name, asked, look, refused):
                found.append(where + fault)
            if life(look.of(case, name)) != life(again.of(case, name)):
                found.append(f"{where}the same target again replaced or restarted it")
    for name, parts in case["services"].items():
        found += _change_faults(bench, case, name, parts.get("then", {}))
    return found


def _service_faults(
    bench: Bench, case: Json, name: str, asked: Json, look: Look, refused: list[str] | None
) -> Iterator[str]:
    container = look.of(case, name)
    if refused:
        status = look.apps.get(app_name(case), {}).get("updateStatus")
        if status != "rejected":
            yield f"the app is {status}, not rejected"
        if not any(_said(earlier, refused) for earlier in bench.looks.values()):
            yield f"no line of the journal says {refused}"
        if case.get("rejected") and container:
            yield "a rejected app has a container"
        return
    yield from look.troubles(name)
    if asked.get("gone"):
        if container:
            yield "the container is still there"
        return
    if not container:
        yield "there is no container"
        return
    if (state := container["State"]["Status"]) != _wanted_state(bench, case["services"][name]):
        yield f"it is {state}"
    if container["RestartCount"]:
        yield f"restarted {container['RestartCount']} times"
    for path, wanted in _expectations(bench, asked):
        wanted = _fill(wanted, bench, case, look, container)
        path = _fill(path, bench, case, look, container)
        actual = at(container, path)
        if not matches(actual, wanted, container):
            yield f"{path} is {actual!r}, not {wanted!r}"
    for key in ("says", "says_too"):
        if key in asked and not _said(look, [repr(name), *asked[key]]):
            yield f"no line of the journal says {asked[key]}"
    if asked.get("says_once") and len(told := _said(look, [repr(name), *asked["says"]])) != 1:
        yield f"the journal says {len(told)} times, not once: {told}"
    if "exec" in asked and asked["exec"]["prints"] not in bench.printed.get(name, ""):
        yield f"the program printed {bench.printed.get(name)!r}"
    if "after" in asked:
        earlier = look.of(case, asked["after"])["State"]["StartedAt"]
        if not earlier < container["State"]["StartedAt"]:
            yield f"it was not started after {asked['after']}"


def _wanted_state(bench: Bench, parts: Json) -> str:
    forbidden = parts.get("privileged") and not bench.privileged
    return "created" if forbidden or not parts.get("running", True) else "running"


def _expectations(bench: Bench, asked: Json) -> Iterator[tuple[str, Any]]:
    yield from asked.get("expect", {}).items()
    for support, expected in asked.get("expect_with", {}).items():
        if bench.info[support]:
            yield from expected.items()


def _change_faults(bench: Bench, case: Json, name: str, then: Json) -> Iterator[str]:
    before, after = bench.looks["first again"], bench.looks["second"]
    old, new = before.of(case, name), after.of(case, name)
    if then.get("gone"):
        mounted = {m["Name"] for m in old.get("Mounts", ()) if m["Type"] == "volume"}
        if (left := mounted & after.volumes) != set(then["keeps"]):
            yield f"the volumes {sorted(left)} are left"
        return
    replaced = old.get("Id") != new.get("Id")
    if replaced != (then.get("container") == "new"):
        yield f"second: {name}: the container was {'' if replaced else 'not '}replaced"
    if not replaced and life(old) != life(new):
        yield f"second: {name}: the container was restarted"


def life(container: Json) -> tuple[Any, ...]:
    """What stays equal as long as nobody replaces or restarts a container."""
    if not container:
        return ()
    return container["Id"], container["RestartCount"], container["State"]["StartedAt"]


def _said(look: Look, words: list[str]) -> list[str]:
    return [line for line in look.said if all(word in line for word in words)]


def at(container: Json, path: str) -> Any:
    value: Any = container
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _fill(value: Any, bench: Bench, case: Json, look: Look, container: Json) -> Any:
    def known(found: re.Match[str]) -> str:
        kind, _, other = found[1].partition(":")
        if kind == "id":
            return str(look.of(case, other).get("Id"))
        if kind == "app":
            return app_id(case)
        if kind == "image_id":
            return str(10 + int(container["Config"]["Labels"]["io.balena.service-id"]))
        return str(bench.info["Name"])

    if isinstance(value, str):
        return _FILLED.sub(known, value)
    if isinstance(value, list):
        return [_fill(item, bench, case, look, container) for item in value]
    if isinstance(value, dict):
        return {
            _fill(key, bench, case, look, container): _fill(item, bench, case, look, container)
            for key, item in value.items()
        }
    return value


def matches(actual: Any, wanted: Any, container: Json) -> bool:
    if isinstance(wanted, dict) and any(key in RULES for key in wanted):
        return all(RULES[rule](actual, value, container) for rule, value in wanted.items())
    return bool(actual == wanted)


def _has(actual: Any, wanted: Any, _: Json) -> bool:
    if isinstance(wanted, dict):
        return all((actual or {}).get(key) == value for key, value in wanted.items())
    return all(item in (actual or ()) for item in wanted)


def _same_set(actual: Any, wanted: Any, _: Json) -> bool:
    return sorted(map(str, map(_ordered, actual or ()))) == sorted(map(str, map(_ordered, wanted)))


def _ordered(value: Any) -> Any:
    return dict(sorted(value.items())) if isinstance(value, dict) else value


def _variables(actual: Any, wanted: Any, _: Json) -> bool:
    """Each variable exactly once with this value, or not at all."""
    values: dict[str, list[str]] = {}
    for entry in actual or ():
        name, _, value = entry.partition("=")
        values.setdefault(name, []).append(value)
    return all(
        values.get(name, []) == ([] if value is None else [value]) for name, value in wanted.items()
    )


RULES: dict[str, Callable[[Any, Any, Json], bool]] = {
    "$has": _has,
    "$lacks": lambda actual, wanted, _: not any(item in (actual or ()) for item in wanted),
    "$set": _same_set,
    "$keys": lambda actual, wanted, _: sorted(actual or ()) == sorted(wanted),
    "$empty": lambda actual, _wanted, _: not actual,
    "$env": _variables,
    "$short_id": lambda actual, _wanted, container: actual == container["Id"][:12],
}
