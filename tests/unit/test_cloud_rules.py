"""What answers of the cloud mean, when it is asked next, and what is kept back from it."""

from __future__ import annotations

from typing import Any

import pytest

from balena_agent.core import polling, withheld
from balena_agent.core.cloudanswer import (
    BAD,
    BUSY,
    DENIED,
    GONE,
    OFFLINE,
    OK,
    UNCHANGED,
    CloudStatus,
    Outcome,
    asked_wait,
    judged,
    status_after,
)
from balena_agent.core.withheld import Withheld, after, after_bad_request, allowed, expired

DOWN = Outcome(OFFLINE, "nobody there")
REFUSED = judged(401)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, OK), (201, OK), (304, UNCHANGED), (401, DENIED), (403, DENIED), (404, GONE),
        (410, GONE), (429, BUSY), (500, BUSY), (503, BUSY), (302, BAD), (400, BAD), (409, BAD),
    ],
)  # fmt: skip
def test_one_classification_for_every_status(status: int, kind: str) -> None:
    outcome = judged(status)
    assert outcome.kind == kind
    assert outcome.worked is (kind in (OK, UNCHANGED)) is (outcome.reason == "")


def test_C16_unchanged_of_what_was_never_had_means_that_the_device_is_unknown() -> None:
    outcome = judged(304, sent_etag=False)
    assert outcome.kind == GONE
    told = status_after(outcome)
    assert told == CloudStatus("refused", "device unknown to the cloud (status 304)")


def test_how_the_device_stands_after_an_answer() -> None:
    assert status_after(Outcome(UNCHANGED)) == CloudStatus("online")
    assert status_after(DOWN) == CloudStatus("offline", "nobody there")
    assert status_after(judged(503)).state == "offline"
    assert status_after(REFUSED).state == "refused"


NOON = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0), (" 5 ", 5.0), ("0", 1.0), ("86400", 3600.0), ("9" * 40, 3600.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0), ("Tue, 14 Nov 2023 22:00:00 GMT", 1.0),
        ("", None), ("soon", None), ("-5", None), ("Tue, soon", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert asked_wait(text, NOON) == seconds


def waits(count: int, interval: float, chance: float) -> list[float]:
    return [polling.next_poll(DOWN, n, interval, chance) for n in range(count)]


def test_C18_failed_polls_wait_longer_and_longer() -> None:
    assert waits(8, 900, 1.0) == [15, 30, 60, 120, 240, 480, 900, 900]
    assert waits(3, 900, 0.0) == [7.5, 15, 30]
    assert waits(2, 10, 1.0) == [10, 10]
    assert polling.next_poll(DOWN, 10_000, 900, 1.0) == 900


@pytest.mark.parametrize("kind", [OK, UNCHANGED])
def test_C19_polls_are_an_interval_apart_and_up_to_a_minute_more(kind: str) -> None:
    assert polling.next_poll(Outcome(kind), 0, 600, 0.0) == 600
    assert polling.next_poll(Outcome(kind), 5, 600, 1.0) == 660


def test_no_variable_cuts_a_device_off_or_lets_a_request_go_on_for_ever() -> None:
    assert polling.request_limit(59_000) == 118
    assert polling.request_limit(0) == polling.request_limit(-(10**15)) == 10
    assert polling.request_limit(10**15) == 600


def test_the_first_poll_comes_at_once_unless_updates_shall_not() -> None:
    assert polling.first_poll(True, 600, 0.5) == 0
    assert polling.first_poll(False, 600, 0.5) == 630


def test_C17_the_cloud_is_left_alone_for_as_long_as_it_asks() -> None:
    busy = judged(503, "120", NOON)
    assert polling.next_poll(busy, 0, 10, 0.0) == 120
    assert polling.next_poll(busy, 9, 900, 1.0) == pytest.approx(132)


def test_C50_a_clock_that_is_not_set_is_asked_for_again_soon() -> None:
    assert polling.next_poll(Outcome("untimed"), 9, 900, 1.0) == 15


def test_reports_are_ten_seconds_apart_and_those_of_load_five_minutes() -> None:
    assert polling.report_due(False, 4.0) == 6.0
    assert polling.report_due(False, 11.0) == 0.0
    assert polling.report_due(True, 60.0) == 240.0
    assert polling.report_due(True, float("inf")) == 0.0


# -- what is kept back

OLD, NEW = ("a1", "old"), ("a1", "new")
BOTH, WANTED = frozenset({OLD, NEW}), frozenset({NEW})
RELEASE: dict[str, Any] = {"update_status": "done", "services": {}}
APPS: dict[str, Any] = {"a1": {"release_uuid": "old", "releases": {"old": RELEASE, "new": RELEASE}}}
WHOLE: dict[str, Any] = {"status": "Idle", "cpu_usage": 3, "ip_address": "192.0.2.1", "apps": APPS}


def test_C29_a_deleted_release_does_not_silence_the_device() -> None:
    held = Withheld()
    assert allowed(WHOLE, held, WANTED) == WHOLE
    held = after(held, REFUSED, WHOLE, BOTH, WANTED, 0.0)
    sent = allowed(WHOLE, held, WANTED)
    assert (held.apps, sent) == (withheld.TRIAL, {k: v for k, v in WHOLE.items() if k != "apps"})
    held = after(held, Outcome(OK), sent, BOTH, WANTED, 1.0)
    sent = allowed(WHOLE, held, WANTED)
    assert (held.apps, sent["apps"]) == (withheld.REDUCED, {"a1": {"releases": {"new": RELEASE}}})
    held = after(held, REFUSED, sent, BOTH, WANTED, 11.0)
    assert held.apps == withheld.HELD and "apps" not in allowed(WHOLE, held, WANTED)
    assert expired(held, BOTH, 599.0) == held
    assert expired(held, WANTED, 20.0).apps == "", "there is another set of releases to tell"
    assert expired(held, frozenset(), 20.0) == held, "none could be told at all"
    assert expired(held, BOTH, 600.0).apps == ""


def test_what_the_cloud_takes_reduced_goes_on_so() -> None:
    held = Withheld(withheld.REDUCED, BOTH, 600.0)
    assert after(held, Outcome(OK), WHOLE, BOTH, WANTED, 5.0) == held


def test_apps_that_cannot_be_reduced_are_held_at_once() -> None:
    held = after(Withheld(), REFUSED, WHOLE, WANTED, WANTED, 0.0)
    assert after(held, Outcome(OK), {"status": "Idle"}, WANTED, WANTED, 0.0).apps == withheld.HELD


def test_a_bad_key_is_not_taken_for_bad_apps() -> None:
    held = after(Withheld(), REFUSED, WHOLE, BOTH, WANTED, 0.0)
    assert after(held, REFUSED, {"status": "Idle"}, BOTH, WANTED, 1.0).apps == ""
    assert after(Withheld(), REFUSED, {"status": "Idle"}, BOTH, WANTED, 1.0) == Withheld()


def test_an_outage_in_the_middle_changes_nothing() -> None:
    held = after(Withheld(), REFUSED, WHOLE, BOTH, WANTED, 0.0)
    assert after(held, DOWN, {"status": "Idle"}, BOTH, WANTED, 1.0) == held


def test_what_breaks_the_clouds_rules_is_left_out_class_by_class() -> None:
    held, seen = Withheld(), []
    for now in (1.0, 2.0, 3.0):
        held = after_bad_request(held, now)
        seen.append(sorted(allowed(WHOLE, held, WANTED)))
    assert seen == [["apps", "ip_address", "status"], ["apps", "status"], ["status"]]
    assert expired(held, BOTH, 3602.0) == held
    assert expired(held, BOTH, 3603.0).classes == 0
    assert after_bad_request(held, 4.0).classes == 0, "it was none of them"
