"""The state directory is damaged or full while the agent runs: it goes on, says so, and mends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from device import DeviceError
from e2e_device import UNIT, Device
from e2e_targets import pair

STATE = "/var/lib/balena-agent"
DAMAGE = f"""
import os, sqlite3
path = "{STATE}/agent.sqlite"
other = sqlite3.connect(path)  # a write of others empties the agent's cache
other.execute("INSERT OR REPLACE INTO setting VALUES ('e2e', '1')")
other.commit()
other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
other.close()
with open(path, "r+b") as file:
    file.seek(4096)
    file.write(b"\\xff" * (os.path.getsize(path) - 4096))
"""


def test_a_database_that_is_damaged_in_use_is_repaired_by_a_restart(device: Device) -> None:
    device.apply(pair())
    ids, pid = device.ids(), device.main_pid()
    device.exec("python3", "-c", DAMAGE)
    device.mark()
    with contextlib.suppress(DeviceError):  # the agent may end before it answers
        device.api("POST", "/v2/local/target-state", pair(2))
    device.until(lambda: device.main_pid() not in (0, pid), 60, "systemd has started it again")
    device.ready()
    device.apply(pair(3))
    assert set(device.ids().values()) == set(ids.values()), "the containers never noticed"
    said = device.said()
    assert "The agent ends: the state could not be" in said and "restored from" in said


@pytest.fixture
def cramped(device: Device) -> Iterator[Device]:
    """A state directory on a small disk of its own, as it was before."""
    device.apply(pair())
    device.exec("systemctl", "stop", UNIT)
    device.exec(
        "sh", "-ec",
        f"rm -rf /root/state; cp -a {STATE} /root/state; rm -f /root/state/*aside*;"
        f"mount -t tmpfs -o size=1M,mode=700 tmpfs {STATE}; cp -a /root/state/. {STATE}/",
    )  # fmt: skip
    device.exec("systemctl", "start", UNIT)
    device.ready()
    yield device
    device.exec("sh", "-c", f"systemctl stop {UNIT}; umount {STATE}; systemctl start {UNIT}")
    device.ready()


def test_a_full_disk_is_told_and_nothing_stops_for_it(cramped: Device) -> None:
    device = cramped
    device.settled()
    assert device.action("stop", serviceName="one").status == 200
    device.settled()
    device.exec("sh", "-c", f"cat /dev/zero >{STATE}/fill", check=False)
    answer = device.api("POST", "/v2/local/target-state", pair(2, environment={"A": "1"}))
    assert answer.status == 503 and "cannot be kept" in answer.text
    device.engine("DELETE", f"/containers/{device.of('two')['Id']}?force=1")
    device.until(lambda: device.of("two").get("State") == "running", 20, "two is there again")
    device.until(lambda: "cannot be" in str(device.call("Describe")), 30, "the trouble is shown")
    device.restart()
    device.settled()
    assert device.of("one")["State"] == "exited", "what a user has stopped stays stopped"
    device.exec("rm", f"{STATE}/fill")

    def kept() -> bool:  # until the room is really free the answer is 503, with Retry-After
        document = pair(2, environment={"A": "1"})
        return device.api("POST", "/v2/local/target-state", document).status == 200

    device.until(kept, 20, "the target is kept")
    device.settled()
    assert device.running("one", "two")
    assert device.notices() == []
    assert "defect" not in device.said()
