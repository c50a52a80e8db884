"""The main job: a target comes in, the engine ends up in it (spec 20 §31)."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

from device import images
from e2e_device import SUPERVISED, Device
from e2e_targets import IMAGE, OTHER_IMAGE, app, apps, many, pair, service, target


def test_S01_a_target_is_brought_about(device: Device) -> None:
    found = device.apply(pair())
    assert set(found) == {"one_11_1_c1", "two_12_1_c1"}
    assert {each["State"] for each in found.values()} == {"running"}
    assert "1_default" in device.networks()
    status = device.api("GET", "/v2/state/status").json()
    assert (status["appState"], status["release"]) == ("applied", "c1")
    assert {each["status"] for each in status["containers"]} == {"Running"}
    assert device.lock_files() == []


def test_the_answer_to_a_target_is_not_followed_by_older_states(device: Device) -> None:
    """Who was told OK must not read the state from before."""
    device.apply(pair())
    for release in range(2, 12):
        device.post(pair(release))
        status = device.api("GET", "/v2/state/status").json()
        shown = device.api("GET", "/v2/local/target-state").json()["state"]["local"]["apps"]["1"]
        assert shown["commit"] == f"c{release}"
        assert status["appState"] == "applying" or status["release"] == f"c{release}"
    device.settled()


def test_S02_the_same_target_again_changes_nothing(device: Device) -> None:
    device.apply(pair())
    before = device.ids()
    with device.engine_events() as events:
        device.apply(pair())
    assert device.ids() == before
    assert events == []
    assert device.lock_files() == []


def test_S03_a_new_commit_alone_renames(device: Device) -> None:
    device.apply(pair())
    before = {name.split("_")[0]: each for name, each in device.ids().items()}
    started = {name: device.inspect(name)["State"]["StartedAt"] for name in before}
    device.apply(pair(release=2))
    after = device.ids()
    assert set(after) == {"one_11_2_c2", "two_12_2_c2"}
    assert {name.split("_")[0]: each for name, each in after.items()} == before
    assert {name: device.inspect(name)["State"]["StartedAt"] for name in before} == started


def test_S04_a_changed_service_is_replaced_alone(device: Device) -> None:
    device.apply(pair())
    before = device.ids()
    after = device.apply(pair(environment={"COLOUR": "blue"}))
    assert after["two_12_1_c1"]["Id"] == before["two_12_1_c1"]
    assert after["one_11_1_c1"]["Id"] != before["one_11_1_c1"]
    assert "COLOUR=blue" in device.inspect("one")["Config"]["Env"]
    assert device.running("one", "two")


def test_S05_a_service_leaves_the_target(device: Device) -> None:
    mounted = {"volumes": ["data:/data"]}
    one, two = service("one", 1), service("two", 2, image=OTHER_IMAGE, **mounted)
    device.apply(target(one, two, volumes={"data": {}}))
    device.apply(target(one, volumes={"data": {}}))
    assert device.running("one")
    assert "1_data" in device.volumes()
    assert device.engine("GET", f"/images/{OTHER_IMAGE}/json")["Id"]


def test_S06_an_app_leaves_the_target(device: Device) -> None:
    one = service("one", 1, volumes=["data:/data"], networks=["back"])
    first = app(one, volumes={"data": {}}, networks={"back": {}})
    other = app(service("other", 5), name="other")
    device.apply(apps({"1": first, "2": other}))
    assert {"1_default", "1_back", "2_default"} <= device.networks()
    kept = device.of("other")["Id"]
    device.apply(apps({"2": other}))
    assert device.of("other")["Id"] == kept
    assert device.running("other")
    assert not [name for name in device.networks() if name.startswith("1_")]
    assert "1_data" in device.volumes()
    device.apply(apps({}))
    assert device.containers() == {}
    assert device.networks() <= {"supervisor0"}
    assert "1_data" in device.volumes()


def test_S07_a_fresh_service_that_shall_not_run_is_only_created(device: Device) -> None:
    device.apply(pair(running=False))
    assert device.inspect("one")["State"]["StartedAt"].startswith("0001-01-01")
    assert device.of("one")["State"] == "created"
    assert device.of("two")["State"] == "running"


def test_S08_a_service_that_shall_not_run_any_more_is_stopped(device: Device) -> None:
    before = device.apply(pair())["one_11_1_c1"]["Id"]
    device.apply(pair(running=False))
    assert (device.of("one")["State"], device.of("one")["Id"]) == ("exited", before)
    assert device.lock_files() == []
    device.apply(pair(running=False))
    assert device.of("one")["State"] == "exited"


def test_S09_what_was_stopped_in_the_engine_stays_stopped(device: Device) -> None:
    before = device.apply(pair())["one_11_1_c1"]["Id"]
    device.engine("POST", f"/containers/{before}/stop?t=5")
    device.until(lambda: device.of("one")["State"] == "exited", 10, "one is stopped")
    device.apply(pair())
    assert (device.of("one")["State"], device.of("one")["Id"]) == ("exited", before)


def test_S10_what_was_removed_in_the_engine_comes_back(device: Device) -> None:
    before = device.apply(pair())["one_11_1_c1"]["Id"]
    device.engine("DELETE", f"/containers/{before}?force=1")
    device.until(lambda: device.running("one", "two"), 30, "one is back")
    assert device.of("one")["Id"] != before
    device.settled()


def test_S57_of_two_targets_the_last_one_counts(device: Device) -> None:
    device.apply(pair())
    for image in (OTHER_IMAGE, IMAGE):
        device.post(pair(release=2, image=OTHER_IMAGE, environment={"A": "1"}))
        time.sleep(0.05)  # the case says: 50 ms apart
        device.post(pair(release=3, image=image, environment={"A": "2"}))
        found = device.settled()
        assert set(found) == {"one_11_3_c3", "two_12_3_c3"}
        assert device.running("one", "two")
        assert "A=2" in device.inspect("one")["Config"]["Env"]
        device.apply(pair())


def test_S60_a_stranger_with_our_label_is_left_alone(device: Device) -> None:
    ours = {SUPERVISED: "true", "io.balena.app-id": "1", "io.balena.service-id": "1"}
    for name, labels in (("bare", {SUPERVISED: "true"}), ("stranger", ours)):
        words = [word for item in labels.items() for word in ("--label", "=".join(item))]
        last = ["--label", "io.balena.service-name=one", IMAGE] if labels is ours else [IMAGE]
        device.exec("docker", "run", "-d", "--name", name, *words, *last)
    device.apply(pair())
    assert device.running("bare", "one", "stranger", "two")
    assert "container stranger has our label but not our name" in device.said()
    assert device.plan()["failures"] == []


def test_volumes_and_networks_bear_our_labels(device: Device) -> None:
    one = service("one", 1, volumes=["data:/data"], networks=["back"])
    volumes = {"data": {"labels": {"mine": "yes"}}}
    device.apply(target(one, volumes=volumes, networks={"back": {"internal": True}}))
    volume = device.engine("GET", "/volumes/1_data")
    assert volume["Labels"][SUPERVISED] and volume["Labels"]["mine"] == "yes"
    network = device.engine("GET", "/networks/1_back")
    assert network["Labels"][SUPERVISED] and network["Internal"]
    container = device.inspect("one")
    assert [m["Name"] for m in container["Mounts"] if m["Destination"] == "/data"] == ["1_data"]
    assert set(container["NetworkSettings"]["Networks"]) == {"1_back"}
    assert "one" in container["NetworkSettings"]["Networks"]["1_back"]["Aliases"]


def test_a_changed_network_takes_its_users_along(device: Device) -> None:
    one, two = service("one", 1, networks=["back"]), service("two", 2)
    device.apply(target(one, two, networks={"back": {}}))
    before = device.ids()
    ipam = {"ipam": {"config": [{"subnet": "10.66.1.0/24", "gateway": "10.66.1.1"}]}}
    device.apply(target(one, two, networks={"back": ipam}))
    assert device.running("one", "two")
    assert device.ids()["two_12_1_c1"] == before["two_12_1_c1"]
    found = device.engine("GET", "/networks/1_back")["IPAM"]["Config"]
    assert [each["Subnet"] for each in found] == ["10.66.1.0/24"]
    assert device.networks() >= {"1_back", "1_default"}


def test_what_was_shown_can_be_posted_and_changes_nothing(device: Device) -> None:
    one = service(
        "one", 1, environment={"A": "b c"}, labels={"io.balena.features.supervisor-api": "1"},
        volumes=["data:/data"], ports=["8081:80"], command=["sleep", "3600"],
        stop_grace_period="1s",
    )  # fmt: skip
    two = service("two", 2, depends_on=["one"], networks=["default", "back"])
    document = target(one, two, volumes={"data": {}}, networks={"back": {}}, name="my fleet")
    device.apply(document)
    before = device.ids()
    shown = device.api("GET", "/v2/local/target-state").json()["state"]
    with device.engine_events() as events:
        device.apply(shown)
    assert device.ids() == before
    assert events == []
    assert device.api("GET", "/v2/local/target-state").json()["state"] == shown


def test_twenty_services_and_an_unchanged_target(device: Device) -> None:
    document = many(20, stop_grace_period="1s")
    device.apply(document, seconds=60)
    before = device.ids()
    assert device.running(*(f"s{n}" for n in range(1, 21)))
    with device.engine_events() as events:
        device.apply(document)
        device.apply(document)
    assert (events, device.ids()) == ([], before)


def test_services_start_after_what_they_depend_on(device: Device) -> None:
    last = service("last", 1, depends_on=["middle"])
    middle = service("middle", 2, depends_on=["first"])
    device.apply(target(last, middle, service("first", 3)))
    names = ("first", "middle", "last")
    started = [device.inspect(name)["State"]["StartedAt"] for name in names]
    assert started == sorted(started)


def test_S29_a_dependency_that_ran_to_its_end(device: Device) -> None:
    a = service("a", 1, command=["true"], restart="no")
    device.apply(target(a, service("b", 2, depends_on=["a"])))
    device.until(lambda: device.of("a")["State"] == "exited", 10, "a has ended")
    assert device.of("b")["State"] == "running"
    device.settled()


def test_S30_a_circle_of_dependencies_rejects_its_app_alone(device: Device) -> None:
    a, b = service("a", 1, depends_on=["b"]), service("b", 2, depends_on=["a"])
    good = app(service("good", 5), name="good")
    device.apply(apps({"1": app(a, b, name="circle"), "2": good}))
    assert device.running("good")
    state = device.api("GET", "/v2/applications/state").json()
    assert state["circle"]["updateStatus"] == "rejected"
    assert "circle" in device.said() and "rejected" in device.said()


def test_images_come_from_a_registry(device: Device) -> None:
    device.exec("systemctl", "start", "docker-registry")
    made = images.build(device.machine, "pulled:1", engine_only=False)
    device.mark()
    device.apply(pair(image=made.reference))
    assert device.running("one", "two")
    assert device.inspect("one")["Image"] == made.id
    assert f"Downloaded image '{made.reference}'" in device.said()


def test_requests_side_by_side_are_all_answered(device: Device) -> None:
    """Eight clients read while targets change: no error, no half state."""
    device.apply(pair())

    def read(_: int) -> set[int]:
        paths = ("/v2/state/status", "/v2/applications/state", "/v2/state/plan", "/ping")
        return {device.api("GET", path).status for path in paths}

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(read, range(80))
        for release in range(2, 6):
            device.post(pair(release, environment={"R": str(release)}))
        assert set().union(*answers) == {200}
    assert set(device.settled()) == {"one_11_5_c5", "two_12_5_c5"}


def test_a_preview_tells_what_is_then_done(device: Device) -> None:
    """The dry run over HTTP and in the shell, held against the real engine."""
    device.apply(pair())
    ids, wanted = device.ids(), pair(environment={"A": "1"})
    answer = device.api("POST", "/v2/state/plan", wanted)
    told = answer.json()
    assert answer.status == 200, answer
    steps = [f"{step['step']} {step['service']}".rstrip() for step in told["steps"]]
    assert steps == ["take-locks", "stop one", "remove one", "create one", "start one",
                     "release-locks"]  # fmt: skip
    assert told["untouched"] == [{"app": "1", "service": "two"}]
    shown = device.exec("balena-agentctl", "target", "diff", "-", input=json.dumps(wanted)).stdout
    assert "create one" in shown and "untouched: two" in shown
    assert device.ids() == ids and device.is_settled()
    device.apply(wanted)
    assert {name for name, known in device.ids().items() if known == ids[name]} == {"two_12_1_c1"}
    answer = device.api("POST", "/v2/state/plan", wanted)
    assert answer.json()["steps"] == []
    assert device.api("POST", "/v2/state/plan", {"local": 1}).status == 400
