"""The exported interface as values: paths, the checked-in documents, differences of trees."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from balena_agent.api.dbus_interface import LOG_CONTROL, OURS, STANDARD, introspection
from balena_agent.api.dbus_tree import (
    Difference,
    app_path,
    difference,
    escaped,
    service_path,
    signature_of,
)

DBUS = Path(__file__).parents[2] / "dbus"
MANAGER, APP = "io.balena.Agent1.Manager", "io.balena.Agent1.App"


@pytest.mark.parametrize(
    ("label", "path"),
    [
        ("web", "web"),
        ("web-2", "web_2d2"),
        ("my_app", "my_5fapp"),
        ("1web", "_31web"),
        ("w1", "w1"),
        ("", "_"),
        ("ü.b", "_c3_bc_2eb"),
        ("a/b c", "a_2fb_20c"),
    ],
)
def test_labels_are_escaped_as_by_sd_bus(label: str, path: str) -> None:
    assert escaped(label) == path


def test_no_two_labels_share_a_path() -> None:
    labels = ["a_b", "a-b", "a.b", "a_2db", "A_b", "a5fb", "_", "__", "", "5f", "_5f"]
    assert len({escaped(label) for label in labels} - {"_"}) == len(labels) - 1
    assert all(re.fullmatch("[A-Za-z0-9_]+", escaped(label)) for label in labels)


def test_an_app_without_a_uuid_goes_by_its_id() -> None:
    assert app_path("", 12) == "/io/balena/Agent1/app/_312"
    assert service_path("ab12", 12, "web") == "/io/balena/Agent1/app/ab12/service/web"


def comparable(element: ET.Element) -> tuple[object, ...]:
    """An element without white space, comments and the order of members."""
    inside = [comparable(child) for child in element]
    if element.tag in ("node", "interface"):
        inside.sort(key=repr)
    attributes = sorted(element.attrib.items())
    return (element.tag, attributes, inside)


def test_the_table_and_the_checked_in_document_are_equal() -> None:
    ours = [interface for interface in OURS if interface is not LOG_CONTROL]
    table = ET.fromstring(introspection(ours, ()))
    written = ET.parse(DBUS / "io.balena.Agent1.xml").getroot()
    assert comparable(table) == comparable(written)


def test_introspection_is_well_formed() -> None:
    document = introspection((*OURS, *STANDARD), ["web", "my_2ddb"])
    nodes = ET.fromstring(document).findall("node")
    assert [node.get("name") for node in nodes] == ["web", "my_2ddb"]


@pytest.mark.parametrize("name", ["io.balena.Agent1.conf", "io.balena.agent1.policy"])
def test_policies_are_well_formed(name: str) -> None:
    ET.parse(DBUS / name)


def test_every_action_has_a_policy_that_denies_by_default() -> None:
    used = {method.action for interface in OURS for method in interface.methods} - {""}
    actions = ET.parse(DBUS / "io.balena.agent1.policy").getroot().findall("action")
    assert {action.get("id") for action in actions} == used
    for action in actions:
        defaults = {element.tag: element.text for element in action.find("defaults") or ()}
        assert defaults == {
            "allow_any": "auth_admin",
            "allow_inactive": "auth_admin",
            "allow_active": "auth_admin_keep",
        }


def test_what_changes_something_needs_an_action() -> None:
    free = {m.name for face in OURS for m in face.methods if not m.action}
    assert free == {"GetApp", "GetService", "ListServices", "Describe", "GetManagedObjects"}


def test_only_root_may_own_the_name() -> None:
    policies = ET.parse(DBUS / "io.balena.Agent1.conf").getroot().findall("policy")
    owners = [p.attrib for p in policies if any("own" in rule.attrib for rule in p)]
    assert owners == [{"user": "root"}]


def test_a_difference_names_only_what_changed() -> None:
    old = {"/a": {APP: {"Name": "x", "Status": "settled", "Id": 1}}, "/b": {APP: {"Name": "y"}}}
    new = {"/a": {APP: {"Name": "x", "Status": "applying", "Id": 2}}, "/c": {APP: {"Name": "z"}}}
    assert difference(old, new) == Difference(
        added={"/c": {APP: {"Name": "z"}}},
        removed={"/b": (APP,)},
        changed=(("/a", APP, {"Status": "applying"}),),
    )
    assert difference(new, new) == Difference()


def test_constants_are_never_announced() -> None:
    old, new = ({"/": {MANAGER: {"Version": version}}} for version in ("1", "2"))
    assert difference(old, new) == Difference()


def test_types_come_from_the_table() -> None:
    assert signature_of(MANAGER, "Waiting") == "a(ss)"
    with pytest.raises(KeyError):
        signature_of(MANAGER, "Nothing")
