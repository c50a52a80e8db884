"""Specs, services, containers and worlds as tests of the planner want them, and plans as text."""

from __future__ import annotations

from dataclasses import replace

from balena_agent.core.desired import (
    Desired,
    DesiredApp,
    DesiredNetwork,
    DesiredService,
    DesiredVolume,
)
from balena_agent.core.names import ContainerName
from balena_agent.core.observed import Container, Image, Network, Observed
from balena_agent.core.planner import plan
from balena_agent.core.situation import Situation
from balena_agent.core.spec import ContainerSpec, Endpoint, NetworkSpec, VolumeSpec

NETWORK = DesiredNetwork("default", "1_default", NetworkSpec())
VOLUME = DesiredVolume("data", "1_data", VolumeSpec())
LOCKED = Situation(locked=frozenset({1}))


def spec(
    image: str, config: int, nets: list[str], vols: list[str], parent: str, port: str = ""
) -> ContainerSpec:
    """`port` is published by its number, or, as a range, by one that the engine chooses."""
    mode = f"service:{parent}" if parent else (nets[0] if nets else "none")
    fields = {
        "Cmd": [f"run{config}"],
        "HostConfig.Binds": sorted(f"{name}:/{name}" for name in vols),
        "HostConfig.NetworkMode": mode,
    }
    if port:
        fields["HostConfig.PortBindings"] = {"80/tcp": [{"HostIp": "", "HostPort": port}]}
    ends = () if parent else tuple(Endpoint(name) for name in nets)
    return ContainerSpec(f"sha256:{image}", fields, ends)


def wanted(name: str, **more: object) -> DesiredService:
    made = DesiredService(
        app_uuid="1", app_id=1, name=name, container_name=ContainerName(name, 1, 1, "c1"),
        service_id=1, image="i1:latest", image_present=True, running=True,
        spec=spec("i1:latest", 1, ["1_default"], [], ""),
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def container_of(
    name: ContainerName, spec: ContainerSpec, app: int = 1, state: str = "running", **more: object
) -> Container:
    """A container of app `app`, as the agent itself would make it."""
    made = Container(
        id=f"id-{name.service}", app_uuid=str(app), app_id=app, service=name.service,
        service_id=1, name=name, state=state, spec=spec, raw_name=str(name),
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def there(service: DesiredService, state: str = "running", **more: object) -> Container:
    made = container_of(service.container_name, service.spec, service.app_id, state)
    return replace(made, **more)  # type: ignore[arg-type]


def target(*services: DesiredService, **more: object) -> Desired:
    app = DesiredApp("1", 1, "shop", "c1", services=services, networks=(NETWORK,))
    return Desired((replace(app, **more),))  # type: ignore[arg-type]


def world(*containers: Container, network: bool = True) -> Observed:
    made = Network("n1", "1_default", "1", 1, "default", NetworkSpec())
    return Observed(
        {c.id: c for c in containers},
        {"n1": made} if network else {},
        {},
        {"sha256:i1:latest": Image("sha256:i1:latest", frozenset({"i1:latest"}))},
    )


def text(desired: Desired, observed: Observed, situation: Situation = LOCKED) -> list[str]:
    return str(plan(desired, observed, situation)).splitlines()
