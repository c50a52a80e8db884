"""The golden create bodies as data: inputs, expected bodies, and what an engine makes of them.

`data/golden-bodies.json` holds bodies that the peer produced for inputs of ours; cases list what
differs from the base. `data/golden-deviations.json` lists the cases where we differ on purpose,
with the rule of the specification that says why.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balena_agent.core.body import create_body, image_from_inspect, resolved
from balena_agent.core.compose import desired_app
from balena_agent.core.desired import DesiredApp, DesiredService
from balena_agent.core.observed import HostFacts, Image, ImageConfig
from balena_agent.core.target import App, Release, Service

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "golden-bodies.json").read_text())
DEVIATIONS = json.loads((DATA / "golden-deviations.json").read_text())["cases"]
CASES = {case["case"]: case for case in GOLDEN["cases"]}

FACTS = HostFacts(
    device_uuid="DEVUUID",
    device_name="dev",
    device_type="generic-amd64",
    device_arch="amd64",
    os_name="balenaOS 6.0.0",
    hostname="hosty",
    api_port=48484,
    api_endpoint="https://api.example",
    device_api_key="DAK",
    has_modules=True,
    has_firmware=True,
    engine_socket="/var/run/docker.sock",
)
UNORDERED = (
    "CapAdd", "CapDrop", "Binds", "Devices", "DnsOptions", "ExtraHosts", "GroupAdd", "SecurityOpt",
)  # fmt: skip


def service(name: str = "main", **parts: Any) -> Service:
    """A service with the ids of the golden bodies."""
    return Service(name=name, service_id=3, image_id=4, image="img:1", **parts)


def app(*services: Service, **parts: Any) -> App:
    """App 7 (`abcd`) with release 5 (`c0ffee`); networks a and b are declared."""
    networks = parts.pop("networks", {"a": {}, "b": {}})
    release = Release(
        "c0ffee", 5, {s.name: s for s in services}, networks, parts.pop("volumes", {})
    )
    return App("abcd", 7, "app", release=release, **parts)


def desired(
    wanted: App, image: Image | None = None, facts: HostFacts = FACTS, key: str = "APIKEY"
) -> DesiredApp:
    return desired_app(wanted, lambda _reference: image, facts, lambda _app, _service: key)


def main_of(found: DesiredApp) -> DesiredService:
    assert not found.problem, found.problem
    return next(s for s in found.services if s.name == "main")


def compile_main(composition: Mapping[str, Any], **parts: Any) -> DesiredService:
    """Service `main` of an app that also has the services one and x."""
    image, facts = parts.pop("image", None), parts.pop("facts", FACTS)
    others = parts.pop("others", (service("one"), service("x")))
    main = service(composition=composition, **parts)
    return main_of(desired(app(main, *others), image, facts))


def problem_of(composition: Mapping[str, Any], **parts: Any) -> str:
    found = desired(app(service(composition=composition), service("one"), **parts))
    assert not found.services
    return found.problem


def golden_image(case: Mapping[str, Any]) -> Image | None:
    config = case.get("image_config")
    return image_from_inspect({"Id": "sha256:1111", "Config": config}) if config else None


def compile_case(case: Mapping[str, Any]) -> DesiredApp:
    main = service(
        composition=case["composition"],
        environment=case.get("environment", {}),
        labels=case.get("labels", {}),
        running=case.get("running", True),
    )
    return desired(app(main, service("one"), service("x")), golden_image(case))


def our_body(found: DesiredService) -> dict[str, Any]:
    return create_body(resolved(found.spec, {"one": "CID1"}), "dev")


def expected_body(changed: Mapping[str, Any]) -> dict[str, Any]:
    """The base body with the differences of one case."""
    body = copy.deepcopy(GOLDEN["base"])
    del body["name"]
    for key, value in changed.items():
        section, dot, rest = key.partition(".")
        owner, name = (body[section], rest) if dot else (body, section)
        if name.endswith("+") and isinstance(value, dict):
            owner[name[:-1]] |= value
        elif name.endswith("+"):
            owner[name[:-1]] += value
        elif name.endswith("-"):
            owner[name[:-1]] = [item for item in owner[name[:-1]] if item not in value]
        else:
            owner[name] = value
    return body


def comparable(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without the order of what the engine treats as a set."""
    found = copy.deepcopy(dict(body))
    found["Env"] = sorted(found["Env"])
    host = found["HostConfig"]
    for name in UNORDERED:
        host[name] = sorted(host[name], key=lambda item: json.dumps(item, sort_keys=True))
    host["Mounts"] = sorted(host["Mounts"], key=lambda mount: mount["Target"])
    host["Ulimits"] = sorted(host["Ulimits"], key=lambda limit: limit["Name"])
    for endpoint in found["NetworkingConfig"]["EndpointsConfig"].values():
        endpoint["Aliases"] = sorted(endpoint.get("Aliases", ()))
    return found


def inspected(
    body: Mapping[str, Any],
    image: ImageConfig | None = None,
    joined: Mapping[str, Any] | None = None,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """What `GET /containers/<id>/json` of dockerd 20.10 answers for a container made of a body.

    The engine reports empty lists of HostConfig as null or not at all, fills Config from the
    image, cleans the working directory, names the host after the id, adds that id to all aliases,
    and reports nothing of tmpfs, mounts and sysctls when there are none.
    """
    image = image or ImageConfig()
    made = copy.deepcopy(dict(body))
    host, networking = made.pop("HostConfig"), made.pop("NetworkingConfig")
    own_id = "0123456789abcdef" * 4
    for name, value in list(host.items()):
        if value in ([], {}) and name in ("Tmpfs", "Mounts", "Sysctls"):
            del host[name]
        elif value == []:
            host[name] = None
    host["PidsLimit"] = host["PidsLimit"] or None
    host |= {"LogConfig": {"Type": "journald"}, "Runtime": "runc", "CpuPeriod": 0}
    _like_engine_config(made, host, image, own_id)
    endpoints = {**networking["EndpointsConfig"], **(joined or {})}
    for endpoint in endpoints.values():
        endpoint["IPAMConfig"] = endpoint.get("IPAMConfig") or None
        endpoint["Aliases"] = [*endpoint.get("Aliases", ()), own_id[:12]]
        endpoint |= {"IPAddress": "172.18.0.2", "DriverOpts": endpoint.get("DriverOpts")}
    if host["NetworkMode"] in ("host", "none", "bridge"):
        endpoints[host["NetworkMode"]] = {"IPAMConfig": None, "Aliases": None}
    found = {
        "Id": own_id,
        "Name": "/main_4_5_c0ffee",
        "Image": made["Image"],
        "Created": "2024-05-01T10:00:00.123456789Z",
        "State": {"Status": "running", "StartedAt": "2024-05-01T10:00:01.5Z", "ExitCode": 0},
        "Config": made,
        "HostConfig": host,
        "NetworkSettings": {"Networks": endpoints},
    }
    if change:
        change(found)
    return found


def _like_engine_config(
    made: dict[str, Any], host: Mapping[str, Any], image: ImageConfig, own_id: str
) -> None:
    made["Hostname"] = made["Hostname"] or own_id[:12]
    if str(host["NetworkMode"]).startswith("container:"):
        made["Hostname"], made["Domainname"] = "owner", "example"
    if made["WorkingDir"]:
        made["WorkingDir"] = made["WorkingDir"].rstrip("/") or "/"
    if not made["Cmd"] and not made["Entrypoint"]:
        made["Cmd"] = list(image.command) or None
    made["Entrypoint"] = made["Entrypoint"] or None
    made["Volumes"] = made["Volumes"] or None
    own = {entry.partition("=")[0] for entry in made["Env"]}
    made["Env"] += [f"{k}={v}" for k, v in image.environment.items() if k not in own]
    made["Labels"] = {**image.labels, **made["Labels"]}
    made["ExposedPorts"] = {**made["ExposedPorts"], "9999/tcp": {}}
    made["Healthcheck"] = {**image.healthcheck, **made["Healthcheck"]}
    made |= {"OpenStdin": False, "AttachStdout": False, "OnBuild": None}
