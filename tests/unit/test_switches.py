"""What variables switch on the host: which difference becomes a step, and what a failure costs."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from agent import observed, rig, service, target
from fakes.machine import FakeHost

from balena_agent.core.desired import Desired
from balena_agent.core.errors import RefusedByHost
from balena_agent.core.hostconfig import HostConfig, after, plan_host
from balena_agent.core.observed import HostFacts, HostState, Observed
from balena_agent.core.planner import plan
from balena_agent.core.situation import Backoff, Situation
from balena_agent.core.steps import ChangeConfig, HostStep, RequestReboot, SwitchFeature
from balena_agent.core.ticket import Ticket
from balena_agent.core.traits import identity
from balena_agent.runtime.ledger import JITTER, Ledger, pace

VPN_VARIABLE, DISCOVERY_VARIABLE = "SUPERVISOR_VPN_CONTROL", "HOST_DISCOVERABILITY"
JOURNAL_VARIABLE = "SUPERVISOR_PERSISTENT_LOGGING"
DEFAULTS = {VPN_VARIABLE: "true", DISCOVERY_VARIABLE: "true", JOURNAL_VARIABLE: "false"}
"""As `GET /v2/local/target-state` shows them and clients write them back."""


def switched(
    found: dict[str, str], variables: dict[str, str], profile: str = "generic", managed: bool = True
) -> dict[str, str]:
    """The steps as switch -> setting; and that the model comes to rest with them."""
    host = HostConfig(profile=profile, switches=found)
    steps = [s for s in plan_host(variables, managed, host).steps if isinstance(s, SwitchFeature)]
    for step in steps:
        assert step.cause
        host = after(step, host)
    left = plan_host(variables, managed, host).steps
    assert not any(isinstance(step, SwitchFeature) for step in left)
    return {step.switch: step.setting for step in steps}


@pytest.mark.parametrize("name", [VPN_VARIABLE, f"RESIN_{VPN_VARIABLE}", f"BALENA_{VPN_VARIABLE}"])
def test_a_variable_switches_the_vpn_off_and_on(name: str) -> None:
    assert switched({"vpn": "on"}, {name: "0"}) == {"vpn": "off"}
    assert switched({"vpn": "idle"}, {name: "0"}) == {"vpn": "off"}, "held off, not just stopped"
    assert switched({"vpn": "off"}, {name: "0"}) == {}
    assert switched({"vpn": "off"}, {name: "1"}) == {"vpn": "on"}
    assert switched({"vpn": "on"}, {name: "1"}) == {}


def test_without_a_variable_what_we_held_off_is_let_go() -> None:
    assert switched({"vpn": "off", "discoverability": "off"}, {}) == {
        "vpn": "on", "discoverability": "on"
    }  # fmt: skip
    assert switched({"vpn": "on", "discoverability": "on"}, {}) == {}


def test_what_an_administrator_stopped_stays_so_but_on_balenaos() -> None:
    idle = {"vpn": "idle", "discoverability": "idle"}
    assert switched(idle, {}) == {}
    assert switched(idle, DEFAULTS) == {}
    assert switched(idle, {}, "balenaos") == {"vpn": "on", "discoverability": "on"}


def test_an_unmanaged_devices_vpn_is_nobodys_business() -> None:
    for found in ("on", "off", "idle"):
        assert switched({"vpn": found}, {VPN_VARIABLE: "0"}, managed=False) == {}


def test_H42_what_the_host_has_not_is_never_switched() -> None:
    wanted = {VPN_VARIABLE: "0", DISCOVERY_VARIABLE: "0", JOURNAL_VARIABLE: "1"}
    for profile in ("generic", "balenaos"):
        assert switched({}, wanted, profile) == {}


def test_the_journal_is_the_hosts_own_until_a_variable_says_otherwise() -> None:
    assert switched({"journal": "own"}, {}) == {}
    assert switched({"journal": "own"}, {JOURNAL_VARIABLE: "1"}) == {"journal": "persistent"}
    assert switched({"journal": "own"}, DEFAULTS) == {}
    assert switched({"journal": "persistent"}, DEFAULTS) == {"journal": "volatile"}
    assert switched({"journal": "volatile"}, DEFAULTS) == {}
    assert switched({"journal": "persistent"}, {}) == {"journal": "own"}


def test_on_balenaos_the_journal_takes_config_json_and_a_reboot() -> None:
    assert switched({"journal": "own"}, {JOURNAL_VARIABLE: "1"}, "balenaos") == {}
    for profile, reboot in (("balenaos", True), ("generic", False)):
        host = HostConfig(profile=profile, config={}, switches={"journal": "own"})
        first = plan_host({JOURNAL_VARIABLE: "1"}, True, host).steps[0]
        assert first == ChangeConfig({JOURNAL_VARIABLE: "true"}, reboot)


# ---- failures ------------------------------------------------------------------------------------

STEP = SwitchFeature("vpn", "on", "a test")


def test_a_failed_switch_is_tried_again_after_minutes() -> None:
    assert [pace(STEP, count) / 60 for count in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    ledger = Ledger(random.Random(1))
    failure = ledger.fail(STEP, RefusedByHost("no"), 1000.0)
    assert failure.muted and abs(failure.retry_at - 1060.0) <= 60 * JITTER
    assert ledger.fail(STEP, RefusedByHost("no"), 1000.0).count == 2


def test_a_failed_switch_holds_up_neither_the_plan_nor_a_reboot() -> None:
    pause = {identity(STEP): Backoff(2000.0, "no", 1, muted=True)}
    situation = Situation(host_steps=(STEP,), backoff=pause, host=HostState(reboot_required=True))
    found = plan(Desired(()), Observed(), situation)
    assert [type(step) for step in found.steps] == [RequestReboot]
    assert identity(STEP) in found.remembered, "so that its failures go on counting"
    assert plan(Desired(()), Observed(), replace(situation, host=HostState())).waits == ()


class Stubborn(FakeHost):
    """A host whose unit does not run however often it is started."""

    tries = 0

    def perform(self, step: HostStep, ticket: Ticket) -> None:
        if isinstance(step, SwitchFeature):
            self.tries += 1
            raise RefusedByHost("openvpn.service does not run")
        super().perform(step, ticket)


def test_apps_settle_beside_a_switch_that_fails() -> None:
    host = Stubborn(settings=HostConfig(switches={"vpn": "off"}))
    facts = HostFacts(device_uuid="d0d0", api_endpoint="https://cloud.test")
    document = target(service("one"))
    document["local"]["config"] = {VPN_VARIABLE: "true", "SUPERVISOR_LOCAL_MODE": "1"}
    with rig(observed("busybox"), host=host, facts=facts) as agent:
        agent.post(document)
        snapshot = agent.until(lambda s: s.settled and s.failures, "settled, the failure is shown")
        assert agent.containers() == {"one": "running"} and not snapshot.update_failed
        (failure,) = snapshot.failures.values()
        assert failure.error == "openvpn.service does not run" and host.tries == 1


def test_apps_settle_when_the_host_is_switched() -> None:
    host = FakeHost(settings=HostConfig(switches={"discoverability": "on"}))
    document = target(service("one"))
    document["local"]["config"] = {DISCOVERY_VARIABLE: "0"}
    with rig(observed("busybox"), host=host) as agent:
        agent.post(document)
        agent.settled()
        assert host.settings.switches == {"discoverability": "off"}
        document["local"]["config"] = {}
        agent.post(document)
        agent.settled()
        assert host.settings.switches == {"discoverability": "on"}
