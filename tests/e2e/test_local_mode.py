"""Local mode on a device of a cloud: a user borrows it and gives it back (spec 20 §25).

Nothing answers at the cloud's address. What the cloud says is put where the agent keeps it, while
the agent is down: from there on all is as if the cloud had said it just before. So each change of
the mode is seen by an agent that has just started; that a running one does the same is shown by
tests/unit/test_local_mode.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from device import images
from device.client import Answer
from e2e_device import CONFIG, STORE, UNIT, Device
from e2e_targets import IMAGE, Json, app, apps, service

CLOUD = "http://127.0.0.1:9"
DEVICE, FLEET = "c" * 32, "f" * 32
ON = {"RESIN_SUPERVISOR_LOCAL_MODE": "1"}
LAB, STRANGE, SHELF = "lab:1", "strange:1", "shelf:1"
SAY = f"""
import sqlite3, sys
store = sqlite3.connect("{STORE}")
row = ("{CLOUD}", sys.stdin.read())
store.execute("INSERT OR REPLACE INTO target_doc (source, raw, received_at) VALUES (?, ?, 0)", row)
store.commit()
"""
ASK = f"""
import json, sqlite3
store = sqlite3.connect("file:{STORE}?mode=ro", uri=True)
sources = [source for source, in store.execute("SELECT source FROM target_doc")]
note = store.execute("SELECT v FROM setting WHERE k = 'before_local_mode'").fetchall()
print(json.dumps([sources, bool(note)]))
"""


def cloud_target(config: Mapping[str, str]) -> Json:
    main = {
        "id": 11, "image_id": 21, "image": IMAGE, "environment": {}, "labels": {},
        "composition": {"stop_grace_period": "1s", "volumes": ["data:/data"]},
    }  # fmt: skip
    release = {"id": 500, "services": {"main": main}, "volumes": {"data": {}}, "networks": {}}
    fleet = {"id": 1011, "name": "fleet", "class": "fleet", "releases": {"c0ffee": release}}
    return {DEVICE: {"name": "lent", "config": dict(config), "apps": {FLEET: fleet}}}


def local_target() -> Json:
    mine = service(
        "mine", 1, image=LAB, volumes=["scratch:/scratch"], networks=["lab"], stop_grace_period="1s"
    )
    return apps({"5": app(mine, name="mine", volumes={"scratch": {}}, networks={"lab": {}})})


def named(image: Json) -> list[str]:
    return [tag for tag in image["RepoTags"] or () if not tag.startswith("<none>")]


class Lent:
    """A device of a cloud. It is asked from within: a managed device answers nobody else."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.causeless: list[Json] = []

    def cloud_says(self, **config: str) -> None:
        self.device.exec("systemctl", "stop", UNIT)
        self.device.exec("python3", "-c", SAY, input=json.dumps(cloud_target(config)))
        self.device.exec("systemctl", "start", UNIT)
        self.device.ready()

    def api(self, method: str, path: str, body: Any = None) -> Answer:
        return self.device.api(method, path, body, inside=True)

    def post(self, document: Json) -> Answer:
        return self.api("POST", "/v2/local/target-state", document)

    def apps_of_target(self) -> set[str]:
        answer = self.api("GET", "/v2/local/target-state")
        assert answer.status == 200, answer
        return set(answer.json()["state"]["local"]["apps"])

    def settled(self) -> bool:
        """Also takes note of steps that the plan gives no cause for."""
        plan = self.api("GET", "/v2/state/plan").json()
        self.causeless += [step for step in plan["steps"] + plan["running"] if not step["cause"]]
        return bool(plan["settled"])

    def comes_to_rest(self, what: str, *services: str) -> None:
        """These services run, and nothing is left to do."""

        def so() -> bool:
            found = {name.split("_")[0]: c["State"] for name, c in self.device.containers().items()}
            return self.settled() and found == dict.fromkeys(services, "running")

        self.device.until(so, 40, what)

    def images(self) -> dict[str, list[str]]:
        """Tags by id; the engine's own list, nameless ones included."""
        listed = self.device.engine("GET", "/images/json")
        return {each["Id"]: named(each) for each in listed}

    def kept(self) -> tuple[list[str], bool]:
        """Whose targets the agent keeps, and whether there is a note about local mode."""
        sources, note = json.loads(self.device.exec("python3", "-c", ASK).stdout)
        return sources, note


@pytest.fixture
def lent(device: Device) -> Iterator[Lent]:
    """The device as one of a fleet, whose service runs; afterwards as it was."""
    config = device.machine.inner_path(CONFIG)
    made = Lent(device)
    try:
        document = {"uuid": DEVICE, "apiEndpoint": CLOUD, "deviceApiKey": "k"}
        config.write_text(json.dumps(document))
        device.start_over()
        made.cloud_says()
        made.comes_to_rest("the fleet's service runs", "main")
        yield made
    finally:
        config.unlink()
        device.exec("docker", "rm", "-f", "stranger", check=False)
        device.start_over()
        device.clean()
        device.exec("docker", "image", "prune", "-f")
        device.exec("docker", "rmi", "-f", LAB, STRANGE, SHELF, check=False)
        device.furnish()


def build(device: Device, tag: str, content: str) -> str:
    return images.build(device.machine, tag, files={"/content": content}).id


def borrow(lent: Lent) -> set[str]:
    """Local mode, with an app of the user's, and a stranger besides. Ids of the images that have
    come and shall go again."""
    lent.cloud_says(**ON)
    nameless, mine = build(lent.device, LAB, "first try"), build(lent.device, LAB, "second try")
    build(lent.device, STRANGE, "strange")
    named = build(lent.device, "lab:spare", "never used")
    assert lent.images()[nameless] == []
    assert lent.post(local_target()).status == 200
    lent.comes_to_rest("the user's service runs alone", "mine")
    for words in (("network", "create", "theirs"), ("volume", "create", "theirs")):
        lent.device.exec("docker", *words)
    run = ("run", "-d", "--name", "stranger", "--network", "theirs", "-v", "theirs:/x", STRANGE)
    lent.device.exec("docker", *run)
    return {nameless, mine, named}


def given_back(lent: Lent, before: Mapping[str, list[str]], came: set[str]) -> None:
    device = lent.device
    lent.comes_to_rest("the fleet's service runs again", "main", "stranger")
    gone = "local mode is over"
    device.until(lambda: lent.kept() == ([CLOUD], False), 20, gone)
    after = lent.images()
    assert not came & after.keys()
    strange = {key for key, tags in after.items() if STRANGE in tags}
    assert {key: tags for key, tags in after.items() if key not in strange} == before
    assert len(strange) == 1
    assert device.volumes() == {"1011_data", "theirs"}
    assert device.networks() == {f"{FLEET}_default", "theirs"}
    assert device.exec("cat", data(device)).stdout == "precious"
    assert lent.apps_of_target() == {"1011"}
    refused = lent.post(local_target())
    assert refused.status == 400 and "device is in local mode" in refused.text
    state = lent.api("GET", "/v2/state/status").json()
    assert state["appState"] == "applied"
    assert lent.causeless == []


def data(device: Device) -> str:
    mountpoint = device.engine("GET", "/volumes/1011_data")["Mountpoint"]
    return f"{mountpoint}/file"


def test_a_device_is_lent_to_a_user_and_given_back(lent: Lent) -> None:
    device = lent.device
    device.exec("sh", "-c", f"printf precious >{data(device)}")
    build(device, SHELF, "what stood there before")
    before = lent.images()
    assert lent.post(local_target()).status == 400
    came = borrow(lent)
    assert lent.apps_of_target() == {"5"}
    assert device.volumes() == {"1011_data", "5_scratch", "theirs"}
    assert "5_lab" in device.networks()
    assert before.keys() <= lent.images().keys()
    device.mark()
    lent.cloud_says()
    given_back(lent, before, came)
    told = device.said().splitlines()
    goes = [n for n, line in enumerate(told) if line.startswith("Local mode has ended: ")]
    done = [n for n, line in enumerate(told) if line.startswith(("Deleting image", "Removing vol"))]
    assert len(goes) == 5 and done and max(goes) < min(done), told


def test_an_agent_that_is_killed_over_and_over_still_gives_the_device_back(lent: Lent) -> None:
    """At one moment or another of the clearing up, wherever the machine has come to."""
    device = lent.device
    device.exec("sh", "-c", f"printf precious >{data(device)}")
    before = lent.images()
    came = borrow(lent)
    lent.cloud_says()
    for seen in ("Local mode has ended", "Deleting image", "Deleted image"):
        device.until(_come_to(lent, seen), 30, seen)
        device.exec("systemctl", "kill", "-s", "KILL", UNIT)
        device.exec("systemctl", "reset-failed", UNIT, check=False)
        device.exec("systemctl", "start", UNIT)
    device.ready()
    given_back(lent, before, came)


def _come_to(lent: Lent, words: str) -> Callable[[], bool]:
    """It is told, or all is done: what a killed agent has done nobody tells."""
    return lambda: words in lent.device.said() or lent.kept() == ([CLOUD], False)
