"""Plans compared as text: whole behaviours in a few lines."""

from __future__ import annotations

from dataclasses import replace

import pytest
from worlds import LOCKED, NETWORK, VOLUME, spec, target, text, there, wanted, world

from balena_agent.core.desired import (
    Dependency,
    Desired,
    DesiredApp,
)
from balena_agent.core.intent import Intent, Power
from balena_agent.core.names import ContainerName
from balena_agent.core.observed import Observed, Volume
from balena_agent.core.planner import plan
from balena_agent.core.situation import Backoff, Situation
from balena_agent.core.spec import NetworkSpec, VolumeSpec
from balena_agent.core.steps import (
    CreateContainer,
    Fetch,
    ReleaseLocks,
    StartContainer,
    StopContainer,
)
from balena_agent.core.target import SUPERVISOR_APPS
from balena_agent.core.traits import identity


def test_a_fresh_app_begins_with_its_network_and_takes_its_locks_for_the_services() -> None:
    web = wanted("web")
    assert text(target(web), world(network=False), Situation()) == [
        "create-network 1_default: no such network yet",
        "wait service 1/web: waits for 1_default",
    ]
    assert text(target(web), world(), Situation()) == [
        "take-locks 1: create service 1/web: no container yet"
    ]
    assert text(target(web), world()) == ["create web: no container yet"]


def test_what_is_right_needs_nothing_and_locks_go_back() -> None:
    web = wanted("web")
    assert text(target(web), world(there(web)), Situation()) == []
    assert text(target(web), world(there(web))) == ["release-locks 1: nothing left to do"]


def test_nothing_begins_under_locks_that_are_just_given_back() -> None:
    web = wanted("web")
    old = there(web, spec=spec("i1:latest", 0, ["1_default"], [], ""))
    release = ReleaseLocks("1", 1)
    found = plan(target(web), world(old), replace(LOCKED, running={identity(release): release}))
    assert (found.steps, identity(release) in found.wanted) == ((), True)
    (stop,) = plan(target(web), world(old), LOCKED).steps
    assert isinstance(stop, StopContainer)


def test_a_difference_is_the_cause_of_the_stop() -> None:
    web = wanted("web")
    old = there(web, spec=spec("i1:latest", 0, ["1_default"], [], ""))
    (line,) = text(target(web), world(old))
    assert line.startswith("stop web: ")
    assert "Cmd" in line and "run0" not in line  # a password may stand there


def test_nothing_is_stopped_before_every_image_is_here() -> None:
    web, db = wanted("web"), wanted("db", image="new:latest", image_present=False)
    old = there(web, spec=spec("i1:latest", 0, ["1_default"], [], ""))
    assert text(target(web, db), world(old, there(db))) == [
        "fetch new:latest for db: image is missing",
        "release-locks 1: nothing left to do",
        "wait service 1/web: keeps running until the image of db is here",
    ]


def test_a_download_whose_image_is_here_already_may_come_to_its_end() -> None:
    web = wanted("web")
    fetch = Fetch("i1:latest", "1", 1, "web")
    under_way = Situation(running={identity(fetch): fetch})
    found = plan(target(web), world(there(web)), under_way)
    assert (found.steps, found.waits) == ((), ())
    assert identity(fetch) in found.wanted
    assert not plan(target(web), world(there(web)), Situation()).wanted


def test_no_service_joins_a_release_before_every_image_is_here() -> None:
    web, db = wanted("web"), wanted("db", image="new:latest", image_present=False)
    off = wanted("off", running=False)
    old = [there(s, name=ContainerName(s.name, 1, 0, "c0"), raw_name="old") for s in (web, off)]
    fetch = "fetch new:latest for db: image is missing"
    waits = [
        f"wait service 1/{name}: joins its release when the image of db is here"
        for name in ("off", "web")
    ]
    everything = target(web, db, off)
    assert text(everything, world(*old), Situation()) == [fetch, *waits]
    stopped = Situation(locked=frozenset({1}), intent=Intent(stopped={("1", "web"): "c1"}))
    assert text(everything, world(*old), stopped) == [
        fetch,
        "stop web: stopped by request",
        *waits,
    ]


@pytest.mark.parametrize("strategy", ["kill-then-download", "delete-then-download"])
def test_S32_S33_the_old_container_and_its_image_make_room_first(strategy: str) -> None:
    new = wanted("web", image="new:latest", image_present=False, strategy=strategy)
    old = there(wanted("web"), spec=spec("i1:latest", 0, ["1_default"], [], ""))
    keeping = replace(LOCKED, owned_images=frozenset({"i1:latest", "new:latest"}))
    removing = replace(keeping, keep_images=False)
    first = f"web: makes room first: strategy {strategy}"
    assert text(target(new), world(old), removing) == [f"stop {first}"]
    assert text(target(new), world(replace(old, state="exited")), removing) == [f"remove {first}"]
    fetch = "fetch new:latest for web: image is missing"
    remove = "remove-image i1:latest: no service uses it"
    if strategy == "delete-then-download":
        waits = "wait service 1/web: waits for the removal of image i1:latest"
        assert text(target(new), world(), removing) == [remove, waits]
        assert text(target(new), world(), keeping) == [fetch]
    else:
        assert text(target(new), world(), removing) == [fetch, remove]


def test_dependencies_order_starts_and_name_what_they_wait_for() -> None:
    db = wanted("db")
    web = wanted("web", depends_on=(Dependency("db", "healthy"),))
    both = target(db, web)
    created = world(there(db, "created"), there(web, "created"))
    assert text(both, created) == [
        "start db: created, not started yet",
        "wait service 1/web: waits for db to be started",
    ]
    starting = world(there(db, health="starting"), there(web, "created"))
    assert text(both, starting) == ["wait service 1/web: waits for db to be healthy (is starting)"]
    healthy = world(there(db, health="healthy"), there(web, "created"))
    assert text(both, healthy) == ["start web: created, not started yet"]


@pytest.mark.parametrize(("code", "met"), [(0, True), (1, False)])
def test_completed_means_exited_with_success(code: int, met: bool) -> None:
    job = wanted("job")
    web = wanted("web", depends_on=(Dependency("job", "completed"),))
    seen = world(there(job, "exited", exit_code=code), there(web, "created"))
    lines = text(target(job, web), seen)
    assert lines == (
        ["start web: created, not started yet"]
        if met
        else ["wait service 1/web: waits for job to complete (is exited)"]
    )


def test_S09_an_exited_container_is_left_to_the_engine() -> None:
    web = wanted("web")
    assert text(target(web), world(there(web, "exited")), Situation()) == []


def test_an_exited_container_is_started_when_asked_or_when_the_agent_stopped_it() -> None:
    web = wanted("web")
    seen = world(there(web, "exited"))
    asked = Situation(intent=Intent(start=frozenset({web.key})))
    ours = Situation(stopped_by_agent={"id-web": ""})
    for situation in (asked, ours):
        assert text(target(web), seen, situation) == ["start web: was stopped"]


def test_S36_of_two_containers_the_right_and_newest_stays() -> None:
    web = wanted("web")
    old = there(web, id="old", created_at="1", raw_name="old_web_1_1_c1")
    new = there(web, id="new", created_at="2")
    (line,) = text(target(web), world(old, new))
    assert line == "stop web: second container of the service"
    (step,) = plan(target(web), world(old, new), LOCKED).steps
    assert isinstance(step, StopContainer) and step.container_id == "old"


def test_S44_dead_containers_go_without_a_lock() -> None:
    web = wanted("web")
    assert text(target(web), world(there(web, "dead")), Situation()) == [
        "remove web: container is dead"
    ]


def test_S21_a_changed_network_drives_its_users_out_first() -> None:
    web = wanted("web")
    changed = replace(NETWORK, spec=NetworkSpec(internal=True))
    lines = text(target(web, networks=(changed,)), world(there(web)))
    assert lines[0].startswith("stop web: uses 1_default, which has to go: internal")
    assert "wait removal of 1_default: a container still uses it" in lines
    gone = text(target(web, networks=(changed,)), world())
    assert gone[0].startswith("remove-network 1_default: internal")


def test_S26_volumes_outlive_the_target_until_their_app_goes_for_good() -> None:
    kept = Volume("1_data", 1, "f1ee", "data", VolumeSpec())
    seen = replace(world(), volumes={"1_data": kept}, networks={})
    without = target(networks=())
    assert text(without, seen, Situation(keep_volumes=False)) == []
    assert text(Desired(), seen, Situation(keep_volumes=True)) == []
    assert text(Desired(), seen, Situation(keep_volumes=False)) == [
        "remove-volume 1_data: app is not in the target"
    ]


@pytest.mark.parametrize("uuid", ["1", *sorted(SUPERVISOR_APPS)])
def test_S06_volumes_that_no_target_of_a_cloud_has_made_do_not_go_with_their_app(uuid: str) -> None:
    """Those of a local user, and what the peer has of its own."""
    seen = replace(world(network=False), volumes={"1_d": Volume("1_d", 1, uuid, "d", VolumeSpec())})
    assert text(Desired(), seen, Situation(keep_volumes=False)) == []


def test_S25_a_changed_volume_is_replaced_after_its_users_are_gone() -> None:
    web = wanted("web", spec=spec("i1:latest", 1, ["1_default"], ["1_data"], ""))
    changed = replace(VOLUME, spec=VolumeSpec(labels={"a": "b"}))
    old = Volume("1_data", 1, "1", "data", VolumeSpec())
    seen = replace(world(there(web)), volumes={"1_data": old})
    assert text(target(web, volumes=(changed,)), seen)[0].startswith("stop web: uses 1_data")
    free = replace(world(), volumes={"1_data": old})
    assert text(target(web, volumes=(changed,)), free) == [
        'remove-volume 1_data: labels: {} -> {"a": "b"}',
        "wait service 1/web: waits for 1_data",
    ]


def test_S60_a_container_of_a_foreign_name_is_left_alone() -> None:
    stranger = there(wanted("x"), name=None, raw_name="by-hand")
    assert text(target(), replace(world(stranger)), Situation()) == []


def test_an_app_with_a_problem_is_left_exactly_as_it_is() -> None:
    web = wanted("web")
    broken = target(web, problem="service web: ports: bad")
    assert text(broken, world(there(wanted("other"))), Situation()) == []


def test_locks_are_released_though_the_app_is_rejected_or_there_is_no_target_at_all() -> None:
    there_now = world(there(wanted("web")))
    broken = target(wanted("web"), problem="service web: ports: bad")
    assert text(broken, there_now) == ["release-locks 1: nothing left to do"]
    assert text(Desired((), asked=False), there_now) == ["release-locks 1: no such app"]


def test_steps_under_way_and_steps_in_back_off_are_not_planned_again() -> None:
    web = wanted("web")
    create = CreateContainer(web)
    under_way = replace(LOCKED, running={identity(create): create})
    assert text(target(web), world(), under_way) == []
    paused = replace(LOCKED, backoff={identity(create): Backoff(5.0, "no such device", 3)})
    assert text(target(web), world(), paused) == [
        "wait service 1/web: no such device (attempt 3 failed)"
    ]
    assert identity(create) in plan(target(web), world(), paused).wanted


def test_no_two_steps_on_one_service_at_once() -> None:
    web = wanted("web", running=False)
    start = StartContainer("1", "web", "id-web")
    situation = replace(LOCKED, running={identity(start): start})
    assert text(target(web), world(there(web)), situation) == []


def test_a_network_that_a_creation_under_way_will_use_is_not_removed() -> None:
    create = CreateContainer(wanted("web"))
    situation = Situation(running={identity(create): create})
    assert text(Desired(), world(), situation) == [
        "wait removal of 1_default: a container still uses it"
    ]


def test_a_reboot_takes_all_locks_waits_for_steps_and_plans_nothing_else() -> None:
    web = wanted("web")
    intent = Intent(power=Power(who="test"))
    seen = world(there(web, "created"))
    assert text(target(web), seen, Situation(intent=intent)) == [
        "take-locks 1: reboot was asked for"
    ]
    start = StartContainer("1", "web", "id-web")
    busy = replace(LOCKED, intent=intent, running={identity(start): start})
    assert text(target(web), seen, busy) == ["wait reboot: waits for start service 1/web to end"]
    assert text(target(web), seen, replace(LOCKED, intent=intent)) == [
        "reboot device: asked for by test"
    ]
    accepted = replace(LOCKED, intent=intent, power_requested=True)
    assert text(target(web), seen, accepted) == ["wait reboot: was accepted by the host"]


def test_shutdown_stops_dependents_first_and_needs_no_lock() -> None:
    db, web = wanted("db"), wanted("web", depends_on=(Dependency("db"),))
    both, stopping = target(db, web), Situation(stopping=True)
    assert text(both, world(there(db), there(web)), stopping) == [
        "stop web: the host is shutting down",
        "wait service 1/db: stops after web",
    ]
    assert text(both, world(there(db), there(web, "exited")), stopping) == [
        "stop db: the host is shutting down"
    ]


def test_containers_of_an_older_release_are_found_by_app_id() -> None:
    """A device that moved between backends: the uuid is another, the app is the same."""
    web = wanted("web")
    moved = replace(there(web), app_uuid="")
    assert text(target(web), world(moved), Situation()) == []


def test_two_apps_never_plan_the_same_download_twice() -> None:
    one = wanted("web", image="new:latest", image_present=False)
    two = replace(one, app_uuid="2", app_id=2)
    apps = Desired(
        (DesiredApp("1", 1, "a", "c1", services=(one,)),
         DesiredApp("2", 2, "b", "c1", services=(two,)))
    )  # fmt: skip
    assert len(plan(apps, Observed(), Situation()).steps) == 1


def test_a_mark_of_the_agents_stop_says_nothing_of_a_later_run() -> None:
    web = wanted("web")
    marked = Situation(stopped_by_agent={"id-web": "2026-01-01T00:00:00Z"})
    for started, lines in (("2026-01-01T00:00:00Z", ["start web: was stopped"]), ("2026-02", [])):
        assert text(target(web), world(there(web, "exited", started_at=started)), marked) == lines
