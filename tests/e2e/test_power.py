"""Reboots, power cuts, and the end of the system bus."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from e2e_device import Device
from e2e_targets import CHAIN, OTHER_IMAGE, chain, service, target


def test_an_orderly_reboot_stops_in_order_and_starts_again(rough: Device) -> None:
    before = {name: each["Id"] for name, each in rough.apply(chain()).items()}
    boot = rough.boot_id()
    rough.machine.reboot()
    assert rough.boot_id() != boot
    rough.until(lambda: rough.running(*CHAIN), 20, "the services run again")
    rough.settled()
    assert rough.ids() == before
    rough.stopped_in_order(*CHAIN)


def test_what_a_user_stopped_stays_stopped_over_a_reboot(rough: Device) -> None:
    rough.apply(chain())
    assert rough.action("stop", serviceName="web").status == 200
    rough.machine.reboot()
    rough.settled()
    rough.until(lambda: rough.of("db")["State"] == "running", 20, "db runs again")
    assert (rough.of("web")["State"], rough.of("api")["State"]) == ("exited", "running")


def _at_once(device: Device) -> bool:
    return True


def _stopping(device: Device) -> bool:
    return device.doing("stop")


def _one_is_gone(device: Device) -> bool:
    return sum(name.endswith("c1") for name in device.containers()) < 3


def _one_new_runs(device: Device) -> bool:
    found = device.containers().items()
    return any(name.endswith("c2") and each["State"] == "running" for name, each in found)


@pytest.mark.parametrize("moment", [_at_once, _stopping, _one_is_gone, _one_new_runs])
def test_a_power_cut_during_an_update(rough: Device, moment: Callable[[Device], bool]) -> None:
    # A service that does not hear SIGTERM makes each moment long enough to be met. All of them are
    # the engine's to restart: one that is not stays down when the power cut ended it.
    rough.apply(chain(restart="always", command=["sleep", "3600"], stop_grace_period="1s"))
    rough.post(chain(2, restart="always", image=OTHER_IMAGE))
    rough.until(lambda: moment(rough), 40, "the moment of the power cut")
    rough.machine.kill()
    rough.machine.up()
    rough.ready()
    rough.settled(60)
    assert set(rough.containers()) == {"web_11_2_c2", "api_12_2_c2", "db_13_2_c2"}
    assert rough.running(*CHAIN)
    image = rough.engine("GET", f"/images/{OTHER_IMAGE}/json")["Id"]
    assert {each["ImageID"] for each in rough.containers().values()} == {image}
    assert rough.networks() <= {"1_default", "supervisor0"}
    assert rough.lock_files() == []
    assert rough.plan()["failures"] == []


def test_the_bus_restarts_and_the_agent_with_it(rough: Device) -> None:
    rough.apply(chain())
    before = rough.ids()
    started = {name: rough.inspect(name)["State"]["StartedAt"] for name in CHAIN}
    pid = rough.main_pid()
    rough.exec("systemctl", "restart", "dbus.service", check=False)
    rough.until(lambda: rough.main_pid() not in (0, pid), 40, "the agent was started again")
    rough.ready()
    rough.until(lambda: rough.get("EngineState") == "up", 40, "the agent is on the bus")
    rough.settled()
    assert rough.ids() == before
    assert {name: rough.inspect(name)["State"]["StartedAt"] for name in CHAIN} == started
    assert "the system bus is lost" in rough.said()
    assert "Traceback" not in rough.said()


def test_H39_somebody_elses_reboot_waits_for_the_services(rough: Device) -> None:
    """`systemctl reboot` by hand, with a service that takes its time to stop."""
    slow = "trap 'sleep 3; echo stopped in peace; exit 0' TERM; while :; do sleep 0.1; done"
    rough.apply(target(service("one", 1, command=["sh", "-c", slow], restart="always")))
    held = rough.exec("systemd-inhibit", "--list", "--no-pager").stdout
    assert "balena-agent" in held and "stopping services" in held
    boot = rough.boot_id()
    rough.machine.reboot()
    rough.ready()
    assert rough.boot_id() != boot
    words = ("journalctl", "-q", "-b", "-1", "-o", "short-monotonic", "--no-pager")
    lines = rough.exec(*words).stdout.splitlines()

    def place(text: str) -> int:
        return next(n for n, line in enumerate(lines) if text in line)

    assert place("The host is shutting down") < place("stopped in peace")
    assert place("stopped in peace") < place("Stopping docker.service")
    rough.until(lambda: rough.running("one"), 30, "the service is back")
