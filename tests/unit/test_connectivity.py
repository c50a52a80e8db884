"""When a device tells that it has no way to its cloud."""

from __future__ import annotations

from dataclasses import replace

import pytest

from balena_agent.core.cloudanswer import CloudStatus
from balena_agent.core.connectivity import OK, WAITING, trouble
from balena_agent.core.hostconfig import HostConfig
from balena_agent.core.observed import HostFacts
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.target import Target
from balena_agent.runtime.connectivity import Connectivity


def seen(
    word: str,
    addresses: tuple[str, ...] = ("192.0.2.7",),
    managed: bool = True,
    vpn: bool = False,
    config: dict[str, str] | None = None,
) -> Snapshot:
    endpoint = "https://cloud.test" if managed else ""
    facts = HostFacts(api_endpoint=endpoint, addresses=addresses, connectivity=word)
    target = None if config is None else Target("d", config, {})
    return Snapshot(facts=facts, host=HostConfig(vpn_connected=vpn), target=target)


@pytest.mark.parametrize("word", ["none", "portal", "limited"])
def test_networkmanagers_word_counts(word: str) -> None:
    assert trouble(seen(word)) == f"NetworkManager says {word}"
    assert trouble(seen(word, managed=False)) == ""
    assert trouble(seen(word, vpn=True)) == ""
    assert trouble(seen(word, config={"SUPERVISOR_CONNECTIVITY_CHECK": "0"})) == ""
    assert trouble(seen(word, config={"SUPERVISOR_CONNECTIVITY_CHECK": "1"})) != ""


def test_a_cloud_that_answers_is_proof_enough() -> None:
    """What NetworkManager asks may be blocked where the cloud is not."""
    online = replace(seen("limited"), cloud=CloudStatus("online"))
    assert trouble(online) == ""
    for state in ("offline", "refused", ""):
        assert trouble(replace(online, cloud=CloudStatus(state))) != "", state
    unplugged = replace(seen("none", addresses=()), cloud=CloudStatus("online"))
    assert trouble(unplugged) == "NetworkManager says none", "it has answered before that"


def test_where_nobody_checks_an_address_is_enough() -> None:
    assert trouble(seen("unknown")) == "" and trouble(seen("full")) == ""
    assert trouble(seen("unknown", addresses=())) == "the device has no address"
    assert trouble(seen("", addresses=())) == "", "nobody has looked yet"


def test_only_changes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    shown: list[bool] = []
    follower = Connectivity(shown.append)
    lost = seen("limited")
    for snapshot in (seen("full"), lost, replace(lost, version=2), seen("none"), seen("full")):
        follower.seen(snapshot)
    assert shown == [True, False]
    assert [r.message for r in caplog.records] == [
        f"{WAITING} (NetworkManager says limited)", OK
    ]  # fmt: skip
