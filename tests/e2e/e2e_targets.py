"""Targets in the local (v2) form and in the forms of apps.json, built from few words."""

from __future__ import annotations

from typing import Any

IMAGE, OTHER_IMAGE = "e2e:1", "e2e:2"
UUID = "0123456789abcdef0123456789abcdef"

CHAIN = ("web", "api", "db")

Json = dict[str, Any]


def service(name: str, number: int, *, image: str = IMAGE, **more: Any) -> Json:
    """A service with the id `number` and the image id 10 + `number`; `more` overrides members."""
    return {
        "imageId": 10 + number, "serviceId": number, "serviceName": name, "image": image,
        "environment": {}, "labels": {}, "running": True, **more,
    }  # fmt: skip


def app(*services: Json, name: str = "fleet", release: int = 1, **more: Any) -> Json:
    """An app at release `release`, whose commit is `c` and the number."""
    return {
        "name": name, "commit": f"c{release}", "releaseId": release,
        "services": {str(each["serviceId"]): each for each in services},
        "volumes": {}, "networks": {}, **more,
    }  # fmt: skip


def target(*services: Json, release: int = 1, **more: Any) -> Json:
    """A target with the one app 1."""
    return apps({"1": app(*services, release=release, **more)})


def apps(numbered: Json) -> Json:
    return {"local": {"name": "e2e", "config": {}, "apps": numbered}}


def pair(release: int = 1, **one: Any) -> Json:
    """The two services `one` and `two`; `one` overrides members of the first."""
    return target(service("one", 1, **one), service("two", 2), release=release)


def chain(release: int = 1, restart: str = "no", **more: Any) -> Json:
    """web needs api, api needs db; `restart` is what the engine shall do with db."""
    return target(
        service("web", 1, depends_on=["api"], **more),
        service("api", 2, depends_on=["db"], **more),
        service("db", 3, restart=restart, **more),
        release=release,
    )


def many(count: int, release: int = 1, **more: Any) -> Json:
    numbers = range(1, count + 1)
    return target(*(service(f"s{n}", n, **more) for n in numbers), release=release)


def apps_json_v3(image: str, name: str = "main") -> Json:
    made = {
        "id": 1, "image_id": 11, "image": image, "running": True, "environment": {}, "labels": {},
        "composition": {"restart": "always"},
    }  # fmt: skip
    release = {"id": 1, "services": {name: made}, "volumes": {}, "networks": {}}
    fleet = {"id": 1, "name": "fleet", "class": "fleet", "releases": {"c1": release}}
    return {"config": {}, "apps": {UUID: fleet}, "pinDevice": False}


def apps_json_v2(image: str, name: str = "main") -> Json:
    return {"config": {}, "apps": {"1": app(service(name, 1, image=image))}}
