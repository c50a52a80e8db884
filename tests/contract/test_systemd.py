"""host/systemd.py and the unit file against the real systemd of a virtual device."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from balena_agent.core.errors import DeadlineExceeded, RefusedByHost
from balena_agent.host.bus import Bus
from balena_agent.host.systemd import Systemd
from balena_agent.host.wire import BusRefusal

pytestmark = pytest.mark.skipif(
    os.environ.get("BALENA_AGENT_TEST_DEVICE") != "1",
    reason="needs a virtual device with systemd: set BALENA_AGENT_TEST_DEVICE=1 inside one",
)

UNITS = Path("/run/systemd/system")
CHECKOUT = Path(__file__).parents[2]
SERVICES = {
    "good": "ExecStart=/bin/sleep 1000",
    "bad": "Type=oneshot\nExecStart=/bin/false",
    "slow": "Type=oneshot\nExecStart=/bin/sleep 30",
    "conditional": "Type=oneshot\nExecStart=/bin/true",
}


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    bus = Bus()
    bus.start()
    yield Systemd(bus)
    bus.close()


@pytest.fixture(scope="module", autouse=True)
def services() -> Iterator[None]:
    for name, text in SERVICES.items():
        condition = "[Unit]\nConditionPathExists=/no/where\n" if name == "conditional" else ""
        (UNITS / f"probe-{name}.service").write_text(f"{condition}[Service]\n{text}\n")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    yield
    for name in SERVICES:
        subprocess.run(["systemctl", "stop", f"probe-{name}.service"], check=False)
        (UNITS / f"probe-{name}.service").unlink()
    subprocess.run(["systemctl", "daemon-reload"], check=True)


def test_the_system_is_not_stopping(systemd: Systemd) -> None:
    assert systemd.system_state() in ("running", "degraded", "starting")
    assert not systemd.is_stopping()


def test_a_unit_is_started_restarted_and_stopped(systemd: Systemd) -> None:
    systemd.start("probe-good.service")
    first = systemd.unit("probe-good.service")
    assert (first.load, first.active, first.sub) == ("loaded", "active", "running")
    assert first.exists and first.running and first.path.endswith("probe_2dgood_2eservice")
    systemd.start("probe-good.service")
    systemd.restart("probe-good.service")
    assert systemd.unit("probe-good.service").running
    systemd.stop("probe-good.service")
    systemd.stop("probe-good.service")
    assert systemd.unit("probe-good.service").active == "inactive"


def test_a_failing_unit_is_a_refusal_that_says_so(systemd: Systemd) -> None:
    with pytest.raises(RefusedByHost, match=r"^start of probe-bad\.service: failed$"):
        systemd.start("probe-bad.service")
    assert systemd.unit("probe-bad.service").active == "failed"


def test_a_condition_that_is_not_met_is_no_error(systemd: Systemd) -> None:
    systemd.start("probe-conditional.service")
    assert not systemd.unit("probe-conditional.service").running


def test_an_unknown_unit(systemd: Systemd) -> None:
    assert systemd.unit("probe-none.service").load == "not-found"
    with pytest.raises(BusRefusal) as refusal:
        systemd.start("probe-none.service")
    assert refusal.value.error_name == "org.freedesktop.systemd1.NoSuchUnit"
    states = systemd.units(["probe-none.service", "dbus.service"])
    assert not states["probe-none.service"].exists and states["dbus.service"].running


def test_a_job_that_takes_too_long(systemd: Systemd) -> None:
    with pytest.raises(DeadlineExceeded):
        systemd.start("probe-slow.service", timeout=1.0)
    systemd.stop("probe-slow.service")


def test_jobs_side_by_side_get_their_own_results(systemd: Systemd) -> None:
    outcomes: dict[str, str] = {}

    def work(name: str) -> None:
        for _ in range(10):
            try:
                systemd.restart(name)
                outcomes[name] = "done"
            except RefusedByHost as error:
                outcomes[name] = str(error)

    names = [f"probe-{name}.service" for name in ("good", "bad", "conditional")]
    for name in names:  # ten starts in a row are more than systemd lets pass by itself
        limit = UNITS / f"{name}.d"
        limit.mkdir(exist_ok=True)
        (limit / "limit.conf").write_text("[Unit]\nStartLimitIntervalSec=0\n")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == dict(
        zip(names, ["done", "restart of probe-bad.service: failed", "done"], strict=True)
    )
    assert systemd._results == {} and systemd._waiting == 0


def test_the_unit_file_is_without_fault() -> None:
    path = CHECKOUT / "units" / "balena-agent.service"
    # verify insists on an existing program; the one of the installation may not be there yet
    copy = Path("/run/verify/balena-agent.service")
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(path.read_text().replace("ExecStart=balena-agent", "ExecStart=/bin/true"))
    said = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_the_unit_gives_away_what_it_can() -> None:
    path = CHECKOUT / "units" / "balena-agent.service"
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=40", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
