"""Hand-made devices for the tests of the faces: the fixtures M1, M2, U and L of spec 10, part B.

Each function returns a settled snapshot; tests change what they are about with `replace`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from balena_agent.core.desired import Desired, DesiredApp, DesiredService
from balena_agent.core.names import ContainerName
from balena_agent.core.observed import Container, HostFacts, Image, Observed
from balena_agent.core.snapshot import Running, Snapshot
from balena_agent.core.spec import ContainerSpec
from balena_agent.core.steps import Fetch
from balena_agent.core.target import App, Release, Service, Target, read_local

MANAGED = HostFacts(
    device_uuid="d" * 32,
    device_name="lab-dev",
    device_type="qemux86-64",
    device_arch="amd64",
    os_name="balenaOS 5.1.20",
    hostname="lab",
    api_endpoint="https://api.example.com",
    device_api_key="secret-device-key",
)
UNMANAGED = HostFacts(device_uuid="d" * 32, device_type="qemux86-64", os_variant="dev")


def service(name: str, service_id: int, image_id: int, **more: Any) -> Service:
    return Service(name, service_id, image_id, f"registry.example.com/{name}:1", **more)


def app(app_id: int, name: str, release: Release | None, kind: str = "fleet") -> App:
    return App(f"{app_id:032x}", app_id, name, kind, release=release)


def release(release_id: int, commit: str, *services: Service) -> Release:
    return Release(commit, release_id, {s.name: s for s in services}, {}, {"data": {}})


def container(app_: App, release_: Release, service_: Service, **more: Any) -> Container:
    """A running container of a release's service."""
    return Container(
        id=f"{service_.image_id:064x}",
        app_uuid=app_.uuid,
        app_id=app_.app_id,
        service=service_.name,
        service_id=service_.service_id,
        name=ContainerName(service_.name, service_.image_id, release_.release_id, release_.commit),
        spec=ContainerSpec(image=image_of(service_).id),
        **{
            "state": "running",
            "created_at": f"2026-03-01T10:00:{service_.image_id % 60:02d}.123456789Z",
            **more,
        },
    )


def image_of(service_: Service) -> Image:
    return Image(f"sha256:{service_.image_id:064x}", tags=frozenset({service_.image}))


def desired_service(app_: App, release_: Release, service_: Service) -> DesiredService:
    live = container(app_, release_, service_)
    assert live.name
    return DesiredService(
        app_.uuid,
        app_.app_id,
        service_.name,
        live.name,
        service_.service_id,
        service_.image,
        True,
        service_.running,
        live.spec,
    )


def device(facts: HostFacts, *apps: App, **more: Any) -> Snapshot:
    """A device on which everything that the apps want is there and runs."""
    pairs = [
        (app_, app_.release, service_)
        for app_ in apps
        if app_.release
        for service_ in app_.release.services.values()
    ]
    live = [container(*pair) for pair in pairs]
    images = [image_of(service_) for _, _, service_ in pairs]
    desired = tuple(
        DesiredApp(
            app_.uuid,
            app_.app_id,
            app_.name,
            app_.release.commit if app_.release else "",
            app_.app_class,
            tuple(desired_service(*pair) for pair in pairs if pair[0] is app_),
        )
        for app_ in apps
    )
    return replace(
        Snapshot(
            target=Target(facts.device_name, {}, {app_.uuid: app_ for app_ in apps}),
            source=facts.api_endpoint or "local",
            desired=Desired(desired),
            observed=Observed(containers={c.id: c for c in live}, images={i.id: i for i in images}),
            facts=facts,
            commits={app_.uuid: app_.release.commit for app_ in apps if app_.release},
            engine_error="",
            looked=True,
        ),
        **more,
    )


def m1() -> Snapshot:
    return device(MANAGED, app(1011, "fleet1", release(500, "c0ffee01", service("main", 11, 21))))


def m2() -> Snapshot:
    pair = service("main", 11, 31), service("side", 12, 32)
    return device(
        MANAGED,
        app(1011, "fleet1", release(501, "c0ffee02", *pair)),
        app(2022, "other", release(700, "dead0001", service("solo", 13, 41)), "app"),
        app(3033, "emptyapp", release(800, "f00d0001"), "app"),
    )


def unmanaged() -> Snapshot:
    return replace(device(UNMANAGED), target=None, source="")


def local_mode() -> Snapshot:
    now = m1()
    assert now.target
    config = {"RESIN_SUPERVISOR_LOCAL_MODE": "1"}
    return replace(now, target=replace(now.target, config=config), source="local")


def local_document(*names: str, **local: Any) -> dict[str, Any]:
    """A local target as the CLI posts it."""
    services = {
        str(number): {
            "imageId": number,
            "serviceName": name,
            "serviceId": number,
            "image": f"local_{name}",
            "environment": {},
            "labels": {},
            "running": True,
            "command": ["sleep", "infinity"],
        }
        for number, name in enumerate(names, 1)
    }
    posted = {"name": "localapp", "commit": "10ca12e1ea5e", "releaseId": "1", "services": services}
    return {"local": {"name": "bench", "config": {}, "apps": {"1": posted}, **local}}


def local_device(document: dict[str, Any]) -> Snapshot:
    """An unmanaged device that runs what was posted to it."""
    target = read_local(document)
    now = device(UNMANAGED, *target.apps.values())
    return replace(now, target=target, raw_target=json.dumps(document))


def updating(percent: float, image_is_here: bool = False) -> Snapshot:
    """An update from c0ffee01 to c0ffee09 that downloads its image."""
    before, uuid = m1(), f"{1011:032x}"
    wanted = app(1011, "fleet1", release(
        509, "c0ffee09", replace(service("main", 11, 91), image="registry/main:9"),
    ))  # fmt: skip
    after = device(MANAGED, wanted)
    observed = after.observed if image_is_here else before.observed
    step = Fetch("registry/main:9", uuid, 1011, "main")
    return replace(
        after,
        observed=replace(observed, containers=before.observed.containers,
                         images={**before.observed.images, **observed.images}),
        desired=replace(after.desired, apps=tuple(
            replace(a, services=tuple(replace(s, image_present=image_is_here) for s in a.services))
            for a in after.desired.apps
        )),
        running={} if image_is_here else {"fetch": Running(step, percent)},
        commits={uuid: "c0ffee01"},
    )  # fmt: skip
