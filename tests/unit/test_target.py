"""Reading targets: three forms, every problem found, none half-read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from balena_agent.core.errors import InvalidInput, InvalidTarget
from balena_agent.core.jsonread import parse_object, truth, whole_number
from balena_agent.core.target import (
    SUPERVISOR_APPS,
    images_of,
    images_to_run,
    read_local,
    read_preload,
    read_v3,
)

DATA = Path(__file__).parent / "data" / "targets"
BAD = json.loads((DATA / "bad-local.json").read_text())

GOOD: dict[str, Any] = {
    "local": {
        "name": "dev",
        "config": {"SUPERVISOR_LOCAL_MODE": "1", "HOST_CONFIG_hdmi_mode:1": "4"},
        "apps": {
            "1": {
                "name": "shop",
                "commit": "c1",
                "releaseId": "7",
                "services": {
                    "1": {
                        "imageId": "01",
                        "serviceName": "web",
                        "image": "local_web",
                        "environment": {"A": "b"},
                        "labels": {},
                        "running": None,
                        "ports": ["80:80"],
                        "depends_on": ["db"],
                    }
                },
                "volumes": {"data": None},
                "networks": {},
            }
        },
    }
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    for path, value in changes.items():
        at: Any = document
        keys = ["local", *filter(None, path.split("."))]
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = "1" * 5000 if value == "DIGITS" else value
    return document


def test_local_form_becomes_the_internal_one() -> None:
    target = read_local(GOOD)
    app = target.apps["1"]
    assert (target.name, app.app_id, app.name) == ("dev", 1, "shop")
    assert app.release is not None
    assert (app.release.commit, app.release.release_id) == ("c1", 7)
    service = app.release.services["web"]
    assert (service.service_id, service.image_id, service.running) == (1, 1, True)
    assert service.composition == {"ports": ["80:80"], "depends_on": ["db"]}
    assert app.release.volumes == {"data": {}}
    assert images_of(target) == {"local_web:latest"}


@pytest.mark.parametrize("case", BAD, ids=[case["case"] for case in BAD])
def test_bad_local_targets_name_path_value_and_rule(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidTarget) as refused:
        read_local(changed(case["set"]))
    assert str(refused.value).startswith("Invalid target state.\n")
    for words in case["expect"]:
        assert words in str(refused.value)


def test_all_problems_are_found_at_once() -> None:
    with pytest.raises(InvalidTarget) as refused:
        read_local(changed({"apps.1.releaseId": "x", "apps.1.services.1.imageId": "y", "name": 5}))
    assert len(refused.value.problems) == 3


@pytest.mark.parametrize("name", ["API_TOKEN", "PIN"])
def test_values_of_secret_fields_and_of_variables_are_not_shown(name: str) -> None:
    with pytest.raises(InvalidTarget) as refused:
        read_local(changed({"apps.1.services.1.environment": {name: 12345}}))
    assert "12345" not in str(refused.value) and f"environment.{name}" in str(refused.value)


def test_a_name_that_no_variable_can_have_is_shown() -> None:
    with pytest.raises(InvalidTarget, match='instead got: "1A="'):
        read_local(changed({"apps.1.services.1.environment": {"1A=": "x"}}))


def test_an_app_without_commit_has_no_release_and_null_or_missing_parts_are_empty() -> None:
    assert read_local({"local": {"apps": {"5": {"name": "x"}}}}).apps["5"].release is None
    assert read_local({}).apps == {}
    assert read_local({"local": None}).apps == {}


def test_S38_a_service_id_below_zero_is_refused() -> None:
    document = changed({})
    services = document["local"]["apps"]["1"]["services"]
    services["-5"] = {**services["1"], "serviceName": "other"}
    with pytest.raises(
        InvalidTarget, match=r"service id .* as key at \$\.local\.apps\.1\.services\.-5"
    ):
        read_local(document)


def test_two_services_of_one_name_are_refused() -> None:
    document = changed({})
    services = document["local"]["apps"]["1"]["services"]
    services["2"] = dict(services["1"])
    with pytest.raises(InvalidTarget, match="each serviceName only once"):
        read_local(document)


def v3(**app: Any) -> dict[str, Any]:
    service = {"id": 3, "image_id": 4, "image": "img:1", "environment": {}, "labels": {}}
    release = {"id": 5, "services": {"main": {**service, "composition": {"tty": False}}}}
    whole = {"id": 7, "name": "app", "releases": {"c0ffee": release}, **app}
    return {"dev1": {"name": "d", "config": {}, "apps": {"abcd": whole}}, "other": "ignored"}


def test_cloud_form() -> None:
    target = read_v3(v3(**{"class": "block", "is_host": True}), "dev1")
    app = target.apps["abcd"]
    assert (app.app_id, app.app_class, app.is_host) == (7, "block", True)
    assert app.release is not None
    assert app.release.services["main"].composition == {"tty": False}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class": "x"}, "one of fleet, app, block"),
        ({"id": None}, "$.dev1.apps.abcd.id"),
        ({"id": 10**18}, "$.dev1.apps.abcd.id but instead got: 1000"),
        ({"id": 10**25}, "$.dev1.apps.abcd.id but instead got: 1000"),
        ({"id": 2.0**63}, "$.dev1.apps.abcd.id but instead got: 9.2"),
        ({"releases": {"c": {"id": 1, "services": {"bad name": {}}}}}, "bad name"),
        ({"releases": {"c": {"id": 1, "services": {"a": {"image": "x"}}}}}, "environment"),
    ],
)
def test_S38_bad_cloud_targets(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidTarget) as refused:
        read_v3(v3(**change), "dev1")
    assert words in str(refused.value)


def test_images_of_the_os_and_of_the_peer_are_not_ours_to_remove_or_to_wait_for() -> None:
    """What the agent owns it removes once no service needs it: never the way back to the peer."""
    document = v3()
    apps = document["dev1"]["apps"]

    def release(**images: str) -> dict[str, Any]:
        plain = {"id": 3, "image_id": 4, "environment": {}, "labels": {}}
        root = {"labels": {"io.balena.image.store": "root"}}
        services = {
            name: plain | {"image": image} | (root if name == "os" else {})
            for name, image in images.items()
        }
        return {"r": {"id": 9, "services": services}}

    peer, os = sorted(SUPERVISOR_APPS)[0], "05"
    apps[peer] = {"id": 8, "name": "peer", "releases": release(main="r.x/peer:1")}
    parts = release(os="r.x/os:1", extra="r.x/extra:1")
    apps[os] = {"id": 9, "name": "os", "is_host": True, "releases": parts}
    target = read_v3(document, "dev1")
    assert images_to_run(target) == {"img:1", "r.x/extra:1"}
    assert images_of(target) == {"img:1", "r.x/extra:1", "r.x/peer:1", "r.x/os:1"}


def test_a_target_for_another_device_is_refused() -> None:
    with pytest.raises(InvalidTarget, match="for local device with uuid 'mine'"):
        read_v3(v3(), "mine")


def test_S51_preload_v3() -> None:
    target = read_preload({"config": {"A": "b"}, "apps": v3()["dev1"]["apps"], "pinDevice": True})
    assert target.apps["abcd"].app_id == 7
    assert target.name is None


def test_preload_v2_takes_the_id_for_the_uuid_unless_it_is_known() -> None:
    document = {"config": {}, "apps": GOOD["local"]["apps"]}
    assert list(read_preload(document).apps) == ["1"]
    assert list(read_preload(document, {1: "beef"}).apps) == ["beef"]


def test_preload_v1() -> None:
    old = {
        "appId": 12,
        "name": "oldest",
        "commit": "abc",
        "imageId": "registry/old",
        "env": {"A": "b", "RESIN_X": "no"},
        "config": {"RESIN_SUPERVISOR_UPDATE_STRATEGY": "hand-over"},
    }
    target = read_preload([old])
    (app,) = target.apps.values()
    assert app.release is not None
    service = app.release.services["main"]
    assert service.environment == {"A": "b"}
    assert service.labels["io.resin.update.strategy"] == "hand-over"
    assert service.composition["network_mode"] == "host"
    assert app.release.volumes == {"resin-data": {}}


def test_a_preload_app_needs_a_release() -> None:
    with pytest.raises(InvalidTarget, match="app with a release"):
        read_preload({"apps": {"abcd": {"id": 1, "name": "x"}}})


@pytest.mark.parametrize(
    ("raw", "words"),
    [("{", "not JSON"), ("[1]", "must be an object"), ("[" * 100_000, "not JSON"), ("5", "object")],
)
def test_what_is_no_object_is_refused_in_words(raw: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_object(raw, "body")


@pytest.mark.parametrize(
    ("value", "meant"),
    [(1, 1), ("01", 1), ("1.0", 1), (1.0, 1), ("-1", -1), (True, None), (1.5, None), ("", None),
     ("1e3", None), (" 1", None), ("0x1", None), (None, None), ({}, None)],
)  # fmt: skip
def test_whole_numbers(value: Any, meant: int | None) -> None:
    assert whole_number(value) == meant


def test_truth() -> None:
    assert all(map(truth, (True, 1, "1", "true", "ON")))
    assert not any(map(truth, (False, 0, 2, "yes", "", None, [], {})))
