"""What we ask for is recognised when the engine shows it again, and nothing else is.

The property behind every "stable" in the conformance cases (spec 21 §16): wanted spec -> create
body -> engine -> inspect -> spec has no difference. And the other half, without which it would be
worthless: two cases that differ in their bodies differ in their specs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from golden_bodies import (
    CASES,
    DEVIATIONS,
    comparable,
    compile_case,
    compile_main,
    expected_body,
    golden_image,
    inspected,
    main_of,
    our_body,
)

from balena_agent.core.body import (
    container_from_inspect,
    create_body,
    differences,
    endpoint_body,
    image_config,
    image_from_inspect,
    joins,
    parents,
    resolved,
    spec_from_inspect,
    unsupported_fields,
)
from balena_agent.core.canonical import canonical
from balena_agent.core.errors import InvalidInput
from balena_agent.core.observed import ImageConfig
from balena_agent.core.spec import ContainerSpec, spec_from_json

USABLE = [name for name in CASES if "problem" not in DEVIATIONS.get(name, {})]
SAME_AS_THE_PEER = [name for name in USABLE if name not in DEVIATIONS]
IDS = {"one": "CID1"}


def wanted_of(name: str) -> ContainerSpec:
    return main_of(compile_case(CASES[name])).spec


def config_of(name: str) -> ImageConfig:
    image = golden_image(CASES[name])
    return image.config if image else ImageConfig()


def live(spec: ContainerSpec, image: ImageConfig, **parts: Any) -> ContainerSpec:
    """The spec as it comes back from an engine that made a container of it."""
    body = create_body(resolved(spec, IDS), "dev")
    joined = {end.network: endpoint_body(end) for end in joins(spec)}
    return spec_from_inspect(inspected(body, image, joined, **parts), image)


@pytest.mark.parametrize("name", USABLE)
def test_what_we_made_is_what_we_want(name: str) -> None:
    wanted = wanted_of(name)
    assert differences(wanted, live(wanted, config_of(name)), "CID1", IDS) == ()


@pytest.mark.parametrize("name", SAME_AS_THE_PEER)
def test_s40_containers_of_the_peer_are_adopted(name: str) -> None:
    case, wanted, image = CASES[name], wanted_of(name), config_of(name)
    body = expected_body(case.get("changed", {}))
    body["Image"] = wanted.image
    joined = {
        network: {"Aliases": list(end.get("aliases", ()))}
        for network, end in case.get("join_after_create", {}).items()
    }
    found = container_from_inspect(inspected(body, image, joined), image)
    assert found is not None
    assert differences(wanted, found.spec, "CID1") == ()


@pytest.mark.parametrize("name", USABLE)
def test_two_cases_are_equal_only_if_their_bodies_are(name: str) -> None:
    wanted = wanted_of(name)
    body = comparable(our_body(main_of(compile_case(CASES[name]))))
    for other in USABLE:
        actual = live(wanted_of(other), config_of(other))
        same_body = body == comparable(our_body(main_of(compile_case(CASES[other]))))
        joined = set(wanted.networks) <= set(actual.networks)
        equal = differences(wanted, actual, "CID1", IDS) == ()
        assert equal == (same_body and joined), f"{name} against {other}"


@pytest.mark.parametrize("name", USABLE)
def test_specs_survive_the_store(name: str) -> None:
    wanted = wanted_of(name)
    again = spec_from_json(wanted.to_json())
    assert again == wanted
    assert again.digest() == wanted.digest()
    assert comparable(create_body(again, "dev")) == comparable(create_body(wanted, "dev"))


@pytest.mark.parametrize("name", USABLE)
def test_canonical_forms_are_final(name: str) -> None:
    for field, value in wanted_of(name).fields.items():
        assert canonical(field, value) == value, field


def test_a_spec_stored_before_a_field_existed_means_its_default() -> None:
    wanted = wanted_of("empty")
    older = {key: v for key, v in wanted.fields.items() if key != "HostConfig.NanoCpus"}
    assert differences(wanted, replace(wanted, fields=older)) == ()


def test_a_spec_stored_in_an_older_form_is_read_in_todays() -> None:
    wanted = compile_main({"cap_add": ["NET_ADMIN"]}).spec
    older = replace(wanted, fields={**wanted.fields, "HostConfig.CapAdd": ["cap_net_admin"]})
    assert differences(wanted, older) == ()


# ---- service mode --------------------------------------------------------------------------------


def test_m65_a_container_of_the_former_parent_differs() -> None:
    wanted = wanted_of("service mode")
    actual = live(wanted, ImageConfig())
    assert wanted.parent == "one"
    assert actual.parent == "CID1"
    assert differences(wanted, actual, "CID1") == ()
    assert [d.field for d in differences(wanted, actual, "CID2")] == ["HostConfig.NetworkMode"]
    assert [d.field for d in differences(wanted, actual, None)] == ["HostConfig.NetworkMode"]


def test_leaving_service_mode_is_a_difference() -> None:
    actual = live(wanted_of("service mode"), ImageConfig())
    fields = [d.field for d in differences(wanted_of("empty"), actual, "CID1")]
    assert fields == ["HostConfig.NetworkMode", "Networks.abcd_default"]


def test_all_shared_namespaces_are_resolved_before_creation() -> None:
    spec = compile_main({"network_mode": "service:one", "pid": "service:x"}).spec
    assert parents(spec) == {"one", "x"}
    host = create_body(resolved(spec, {"one": "A", "x": "B"}), "dev")["HostConfig"]
    assert (host["NetworkMode"], host["PidMode"]) == ("container:A", "container:B")


# ---- tolerance and its limits --------------------------------------------------------------------


def test_s41_containers_with_names_of_the_resin_era_are_adopted() -> None:
    wanted = wanted_of("features false")

    def resin(inspect: dict[str, Any]) -> None:
        labels = inspect["Config"]["Labels"]
        inspect["Config"]["Labels"] = {
            key.replace("balena", "resin"): value for key, value in labels.items()
        }
        inspect["Name"] = "/main_4_5"

    body = expected_body(CASES["features false"]["changed"])
    found = container_from_inspect(inspected(body, change=resin), ImageConfig())
    assert found is not None
    assert found.name is not None
    assert (found.app_uuid, found.service_id, found.name.commit) == ("abcd", 3, "")
    assert differences(wanted, found.spec) == ()


def test_m36_a_capability_has_many_spellings() -> None:
    upper = compile_main({"cap_add": ["CAP_NET_ADMIN"], "cap_drop": ["all"]}).spec
    lower = compile_main({"cap_add": ["net_admin"], "cap_drop": ["ALL"]}).spec
    assert differences(upper, live(lower, ImageConfig())) == ()
    assert create_body(lower, "dev")["HostConfig"]["CapAdd"] == ["net_admin"]


def test_m37_order_of_sets_is_no_difference_but_order_of_dns_is() -> None:
    one = {"cap_add": ["A", "B"], "devices": ["/dev/a", "/dev/b"], "group_add": ["1", "2"]}
    two = {key: list(reversed(value)) for key, value in one.items()}
    assert differences(compile_main(one).spec, compile_main(two).spec) == ()
    first = compile_main({"dns": ["8.8.8.8", "1.1.1.1"]}).spec
    second = compile_main({"dns": ["1.1.1.1", "8.8.8.8"]}).spec
    assert [d.field for d in differences(first, second)] == ["HostConfig.Dns"]


def test_m87_renaming_the_device_is_no_difference() -> None:
    wanted = wanted_of("empty")
    body = create_body(wanted, "kitchen")
    assert "BALENA_DEVICE_NAME_AT_INIT=kitchen" in body["Env"]
    assert "RESIN_DEVICE_NAME_AT_INIT=kitchen" in body["Env"]
    assert differences(wanted, spec_from_inspect(inspected(body), ImageConfig())) == ()


def test_a_device_name_with_a_line_break_makes_no_container() -> None:
    with pytest.raises(InvalidInput):
        create_body(wanted_of("empty"), "a\nB=1")


def test_m89_strategy_labels_are_sent_but_not_compared() -> None:
    labels = {"io.balena.update.strategy": "hand-over", "io.balena.update.handover-timeout": "9"}
    wanted = compile_main({}, labels=labels)
    assert wanted.strategy == "hand-over"
    assert create_body(wanted.spec, "dev")["Labels"].items() >= labels.items()
    assert differences(wanted.spec, live(wanted_of("empty"), ImageConfig())) == ()
    other = compile_main({}, labels={**labels, "mine": "1"}).spec
    assert [str(d) for d in differences(wanted.spec, other)] == ['Labels.mine: "1" -> null']


def test_m31_cpus_are_compared() -> None:
    half, whole = compile_main({"cpus": "0.5"}).spec, compile_main({"cpus": 1}).spec
    found = differences(whole, live(half, ImageConfig()))
    assert [(d.field, d.old, d.new) for d in found] == [
        ("HostConfig.NanoCpus", 500_000_000, 1_000_000_000)
    ]


def test_values_of_variables_are_not_shown() -> None:
    old = compile_main({}, environment={"A": "hidden"}).spec
    new = compile_main({}, environment={"A": "secret", "B": "x"}).spec
    assert [str(d) for d in differences(new, old)] == ["Env.A changed", "Env.B changed"]


def test_values_of_command_lines_are_not_shown() -> None:
    old = compile_main({"command": ["serve", "--password", "hidden"]}).spec
    new = compile_main({"command": ["serve", "--password", "secret"]}).spec
    assert [str(d) for d in differences(new, old)] == ["Cmd changed"]


def test_surplus_networks_and_aliases_are_no_difference_but_missing_ones_are() -> None:
    two = compile_main({"networks": {"a": {"aliases": ["z"]}, "b": None}}).spec
    one = compile_main({"networks": {"a": None}}).spec
    assert differences(one, live(two, ImageConfig())) == ()
    fields = [d.field for d in differences(two, live(one, ImageConfig()))]
    assert fields == ["Networks.abcd_a.Aliases", "Networks.abcd_b"]


def test_link_local_addresses_survive_the_engine() -> None:
    spec = compile_main({"networks": {"a": {"link_local_ips": ["169.254.1.2"]}}}).spec
    assert differences(spec, live(spec, ImageConfig())) == ()
    assert differences(compile_main({"networks": ["a"]}).spec, spec) != ()


def test_what_the_kernel_does_not_support_is_no_difference() -> None:
    wanted = compile_main({"mem_limit": "64m", "oom_kill_disable": True}).spec

    def discard(inspect: dict[str, Any]) -> None:
        inspect["HostConfig"] |= {"Memory": 0, "OomKillDisable": None}

    actual = live(wanted, ImageConfig(), change=discard)
    ignored = unsupported_fields({"MemoryLimit": False, "OomKillDisable": False, "CPUSet": True})
    assert len(differences(wanted, actual)) == 2
    assert differences(wanted, actual, ignored=ignored) == ()


def test_a_host_name_that_was_taken_away_is_a_difference() -> None:
    actual = live(compile_main({"hostname": "web"}).spec, ImageConfig())
    assert [d.field for d in differences(wanted_of("empty"), actual)] == ["Hostname"]


def test_m06_a_cleared_entrypoint_differs_from_the_images() -> None:
    image = golden_image(CASES["rich"])
    assert image is not None
    cleared = compile_main({"entrypoint": []}, image=image).spec
    plain = compile_main({}, image=image).spec
    found = differences(plain, live(cleared, image.config))
    assert [d.field for d in found] == ["Entrypoint"]


def test_m10_an_empty_command_falls_back_to_the_images_like_in_the_engine() -> None:
    image = image_from_inspect({"Id": "sha256:p", "Config": {"Cmd": ["sleep", "3600"]}})
    spec = compile_main({"command": []}, image=image).spec
    assert differences(spec, live(spec, image.config)) == ()
    assert create_body(spec, "dev")["Cmd"] == ["sleep", "3600"]


# ---- reading -------------------------------------------------------------------------------------


def test_a_running_container_is_read() -> None:
    found = container_from_inspect(inspected(expected_body({})), ImageConfig())
    assert found is not None
    assert found.key == ("abcd", "main")
    assert (found.app_id, found.service_id, found.state) == (7, 3, "running")
    assert (found.raw_name, str(found.name)) == ("main_4_5_c0ffee", "main_4_5_c0ffee")
    assert found.started_at == "2024-05-01T10:00:01.5Z"


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"io.balena.app-id": "7", "io.balena.service-id": "3"},
        {"io.balena.supervised": "true", "io.balena.app-id": "x", "io.balena.service-id": "3"},
        {"io.balena.supervised": "true", "io.balena.app-id": "7"},
    ],
)
def test_containers_that_are_not_ours_are_none(labels: dict[str, str]) -> None:
    assert container_from_inspect({"Config": {"Labels": labels}}, ImageConfig()) is None


@pytest.mark.parametrize(
    ("raw", "service", "commit"),
    [
        ("/main_4_5_123456", "main", "123456"),
        ("/main_4_5", "main", ""),
        ("/old_main_4_5_c0ffee", "main", "c0ffee"),
        ("/main_4_5_v1.2.3", "main", "v1.2.3"),
        ("/main_4_5_my-release_6_7", "main", "my-release_6_7"),
    ],
)
def test_names_are_read_with_the_help_of_the_label(raw: str, service: str, commit: str) -> None:
    def rename(inspect: dict[str, Any]) -> None:
        inspect["Name"] = raw

    found = container_from_inspect(inspected(expected_body({}), change=rename), ImageConfig())
    assert found is not None
    assert found.name is not None
    assert (found.name.service, found.name.image_id, found.name.release_id) == (service, 4, 5)
    assert found.name.commit == commit
    assert found.service == "main"


def test_s60_a_supervised_container_with_a_foreign_name_is_listed_without_name() -> None:
    def rename(inspect: dict[str, Any]) -> None:
        inspect["Name"] = "/by_hand"

    found = container_from_inspect(inspected(expected_body({}), change=rename), ImageConfig())
    assert found is not None
    assert found.name is None


def test_a_container_that_never_ran_has_no_start_time() -> None:
    def created(inspect: dict[str, Any]) -> None:
        inspect["State"] = {"Status": "created", "StartedAt": "0001-01-01T00:00:00Z"}
        inspect["Config"]["StopTimeout"] = None

    found = container_from_inspect(inspected(expected_body({}), change=created), ImageConfig())
    assert found is not None
    assert (found.started_at, found.stop_timeout) == ("", 10)


def test_image_names_are_read_in_normal_form() -> None:
    found = image_from_inspect(
        {
            "Id": "sha256:1",
            "RepoTags": ["registry.example:5000/a/b:v1", "<none>:<none>"],
            "RepoDigests": ["registry.example:5000/a/b@sha256:" + "a" * 64, "<none>@<none>"],
            "Config": None,
            "Size": 5,
        }
    )
    assert found.tags == {"registry.example:5000/a/b:v1"}
    assert found.digests == {"registry.example:5000/a/b@sha256:" + "a" * 64}
    assert found.config == ImageConfig()


def test_variables_of_an_image_without_name_or_value_are_left_out() -> None:
    env = ["A=1=2", "B", "=C", "BALENA_DEVICE_NAME_AT_INIT=x", "E="]
    assert image_config({"Config": {"Env": env}}).environment == {"A": "1=2", "E": ""}
