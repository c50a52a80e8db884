"""core/images.py: which images go and when, and from what a delta may be made."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from test_planner import LOCKED, target, text, there, wanted, world

from balena_agent.core.desired import Desired, DesiredService
from balena_agent.core.effects import effect
from balena_agent.core.errors import DeadlineExceeded, EngineFailed
from balena_agent.core.imageindex import ImageIndex
from balena_agent.core.images import Bases, mute
from balena_agent.core.intent import Intent
from balena_agent.core.observed import Image, Observed, Obtained
from balena_agent.core.planner import plan
from balena_agent.core.situation import Backoff, Situation
from balena_agent.core.steps import CreateContainer, Fetch, RemoveContainer, RemoveImage
from balena_agent.core.traits import identity, verb

REGISTRY = "r.example"
LEAN = replace(LOCKED, keep_images=False)
DELTAS = replace(LOCKED, deltas=True)


def digest(letter: str) -> str:
    return f"sha256:{letter * 64}"


def old_image(*notes: Obtained, **more: object) -> Image:
    made = Image("sha256:old", digests=frozenset({f"{REGISTRY}/old@{digest('1')}"}),
                 obtained=frozenset(notes))  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def with_images(observed: Observed, *images: Image) -> Observed:
    return replace(observed, images={**observed.images, **{i.id: i for i in images}})


NEW = f"{REGISTRY}/new@{digest('2')}"


def missing(name: str = "web", **more: object) -> DesiredService:
    known: dict[str, object] = {"image": NEW, "image_present": False}
    return wanted(name, **known | more)


def delta_source(service: DesiredService, observed: Observed) -> str:
    return Bases(observed).of(service)[1]


def fetches(desired: object, observed: Observed, situation: Situation) -> list[Fetch]:
    found = plan(desired, observed, situation)  # type: ignore[arg-type]
    return [step for step in found.steps if isinstance(step, Fetch)]


# ---- tidying -------------------------------------------------------------------------------------


def stray(**more: object) -> Image:
    notes = frozenset({Obtained("web:1", 1, "web")})
    return replace(Image("sha256:stray", obtained=notes), **more)  # type: ignore[arg-type]


def test_what_was_fetched_for_us_and_lost_its_name_goes() -> None:
    web = wanted("web")
    seen = with_images(world(there(web)), stray())
    removal = "remove-image sha256:stray: no name leads to it any more"
    assert removal in text(target(web), seen, LEAN)
    assert removal not in text(target(web), seen)  # images are kept
    after = effect(RemoveImage("sha256:stray"), seen)
    assert "sha256:stray" not in after.images


@pytest.mark.parametrize(
    "image",
    [
        stray(obtained=frozenset()),  # somebody else's: a user built it
        stray(tags=frozenset({"mine:1"})),
        stray(digests=frozenset({f"mine@{digest('3')}"})),
    ],
)
def test_what_is_not_ours_or_has_a_name_stays(image: Image) -> None:
    web = wanted("web")
    assert not any("stray" in line for line in text(target(web), with_images(world(), image), LEAN))


def test_a_nameless_image_that_a_target_or_a_container_needs_stays() -> None:
    """What a power cut left between a delta and its name is claimed before anything goes."""
    new = stray(obtained=frozenset({Obtained(f"{REGISTRY}/new@{digest('2')}", 1, "web")}))
    named = missing(image_present=True)
    assert not any("stray" in li for li in text(target(named), with_images(world(), new), LEAN))
    web = wanted("web")
    used = there(web, spec=replace(web.spec, image="sha256:stray"))
    lines = text(target(web), with_images(world(used), stray()), LEAN)
    assert not any("remove-image" in line for line in lines)


def test_nothing_is_tidied_while_a_download_runs() -> None:
    step = Fetch("r.example/other:1", "2", 2, "other")
    busy = replace(LEAN, running={identity(step): step})
    web = wanted("web")
    lines = text(target(web), with_images(world(there(web)), stray()), busy)
    assert not any("remove-image" in line for line in lines)


def test_an_image_that_a_target_knows_by_another_name_stays() -> None:
    """Or it would be fetched again at once: its tag goes with it."""
    both = Image("sha256:both", frozenset({"r.example/a:latest"}),
                 frozenset({f"r.example/a@{digest('4')}"}))  # fmt: skip
    owned = replace(LEAN, owned_images=frozenset({"r.example/a:latest", *both.digests}))
    web = wanted("web", image="r.example/a:latest")
    assert not any(
        "remove-image" in li for li in text(target(web), with_images(world(), both), owned)
    )
    assert any("remove-image" in li for li in text(target(), with_images(world(), both), owned))


@pytest.mark.parametrize("told", [False, True])
def test_the_peers_images_go_only_if_the_administrator_says_so(told: bool) -> None:
    names = ("balena/amd64-supervisor:v19", "resin/rpi-supervisor:v7", "balena/web:1",
             "me/my-supervisor:1")  # fmt: skip
    images = [Image(f"sha256:{n}", frozenset({n})) for n in names]
    web = wanted("web")
    lines = text(
        target(web), with_images(world(there(web)), *images), replace(LEAN, remove_peer=told)
    )
    gone = [line for line in lines if "peer's supervisor" in line]
    assert [line.split(":")[0].split("/")[0] for line in gone] == [
        "remove-image balena",
        "remove-image resin",
    ] * told
    kept = replace(LEAN, remove_peer=told, keep_images=True)
    assert not any(
        "supervisor" in li for li in text(target(web), with_images(world(), *images), kept)
    )


CAME = replace(LEAN, intent=Intent(images=frozenset({"sha256:came"})))


def removals(lines: list[str]) -> list[str]:
    """What is removed because it came with local mode."""
    cause = ": it came with local mode, which has ended"
    found = [li.removeprefix("remove-image ").removesuffix(cause) for li in lines if cause in li]
    return sorted(found)


@pytest.mark.parametrize(
    ("image", "by"),
    [
        (Image("sha256:came"), "sha256:came"),
        (Image("sha256:came", frozenset({"b:2", "a:1"}), frozenset({f"a@{digest('3')}"})), "a:1"),
        (Image("sha256:came", digests=frozenset({f"a@{digest('3')}"})), f"a@{digest('3')}"),
    ],
    ids=["nameless", "by one tag at a time", "by digest"],
)
def test_an_image_that_came_with_local_mode_goes_though_nobody_fetched_it(
    image: Image, by: str
) -> None:
    web = wanted("web")
    seen = with_images(world(there(web)), image)
    assert removals(text(target(web), seen, CAME)) == [by]
    assert not removals(text(target(web), seen, LEAN))
    assert not removals(text(target(web), seen, replace(CAME, keep_images=True)))
    rejected = replace(target(web).apps[0], problem="too new")
    assert removals(text(Desired((rejected,)), seen, CAME)) == [by]


def test_what_came_with_local_mode_stays_where_it_is_needed() -> None:
    """By a container, a target, a creation under way, or as the base of a wanted delta."""
    base = old_image(Obtained(f"{REGISTRY}/old@{digest('1')}", 1, "web"), id="sha256:came")
    web = missing()
    assert not removals(text(target(web), with_images(world(), base), replace(CAME, deltas=True)))
    assert removals(text(target(web), with_images(world(), base), CAME)) == list(base.digests)
    came = Image("sha256:came", frozenset({"a:1"}))
    used = there(web, spec=replace(web.spec, image="sha256:came"))
    assert not removals(text(target(web), with_images(world(used), came), CAME))
    named = wanted("web", image="a:1")
    assert not removals(text(target(named), with_images(world(), came), CAME))
    other = wanted("web")
    creation = CreateContainer(replace(other, spec=replace(other.spec, image="sha256:came")))
    busy = replace(CAME, running={identity(creation): creation})
    assert not removals(text(target(other), with_images(world(), came), busy))


def test_two_names_of_one_image_never_go_at_once() -> None:
    both = Image("sha256:came", frozenset({"a:1", "b:1"}))
    owned = replace(CAME, owned_images=frozenset({"b:1"}))
    lines = text(target(), with_images(world(), both), owned)
    assert [line for line in lines if line.startswith("remove-image")] == [
        "remove-image b:1: no service uses it"
    ]


def test_which_failures_of_tidying_are_left_in_peace() -> None:
    held, ill = EngineFailed("image is being used", 409), EngineFailed("disk", 500)
    assert mute(RemoveImage("web:1"), held) and not mute(RemoveImage("web:1"), ill)
    assert mute(RemoveImage("sha256:1"), ill) and mute(RemoveImage("sha256:1"), DeadlineExceeded())
    assert not mute(RemoveContainer("1", "web", "c"), held)


def test_a_muted_removal_is_neither_planned_nor_waited_for() -> None:
    web = wanted("web")
    name = identity(RemoveImage("old:latest"))
    muted = replace(
        LEAN,
        owned_images=frozenset({"old:latest"}),
        backoff={name: Backoff(5.0, "image is being used", 1, muted=True)},
    )
    old = Image("sha256:o", frozenset({"old:latest"}))
    found = plan(target(web), with_images(world(there(web)), old), muted)
    assert [verb(step) for step in found.steps] == ["release-locks"]
    assert not found.waits and name in found.remembered
    first = wanted("web", image="r.example/x:1", image_present=False,
                   strategy="delete-then-download")  # fmt: skip
    lines = text(target(first), with_images(world(), old), muted)
    assert lines == ["fetch r.example/x:1 for web: image is missing"]
    eager = replace(muted, backoff={})
    assert "fetch" not in "".join(text(target(first), with_images(world(), old), eager))


# ---- deltas --------------------------------------------------------------------------------------


def test_a_fetch_names_its_source_where_deltas_are_on() -> None:
    note = Obtained(f"{REGISTRY}/old@{digest('1')}", 1, "web")
    seen = with_images(world(), old_image(note))
    assert [step.source for step in fetches(target(missing()), seen, DELTAS)] == [note.reference]
    assert [step.source for step in fetches(target(missing()), seen, LOCKED)] == [""]


@pytest.mark.parametrize(
    ("note", "more"),
    [
        (Obtained(f"{REGISTRY}/old:1", 2, "web"), {}),  # another app
        (Obtained(f"{REGISTRY}/old:1", 1, "db"), {}),  # another service
        (Obtained("other.example/old:1", 1, "web"), {}),  # another registry
        (Obtained("old:1", 1, "web"), {}),  # none
        (Obtained(f"{REGISTRY}/new@{digest('2')}", 1, "web"), {}),  # the very image
        (Obtained(f"{REGISTRY}/old:1", 1, "web"), {"strategy": "delete-then-download"}),
        (Obtained(f"{REGISTRY}/old:1", 1, "web"), {"image": "new:1"}),
    ],
)
def test_what_is_no_source(note: Obtained, more: dict[str, str]) -> None:
    service = replace(missing(), **more)  # type: ignore[arg-type]
    assert delta_source(service, with_images(world(), old_image(note, digests=frozenset()))) == ""


def test_the_running_image_is_the_first_choice_also_without_a_note() -> None:
    web = missing()
    old = old_image()
    other = Image("sha256:0", obtained=frozenset({Obtained(f"{REGISTRY}/older:1", 1, "web")}))
    running = there(web, spec=replace(web.spec, image=old.id))
    seen = with_images(world(running), old, other)
    assert delta_source(web, seen) == f"{REGISTRY}/old@{digest('1')}"
    assert delta_source(web, with_images(world(), old, other)) == f"{REGISTRY}/older:1"


def test_a_source_is_kept_until_the_delta_is_here() -> None:
    """With kill-then-download nothing but the plan holds the old image."""
    name = f"{REGISTRY}/old@{digest('1')}"
    seen = with_images(world(), old_image(Obtained(name, 1, "web")))
    early = missing(strategy="kill-then-download")
    owned = replace(LEAN, owned_images=frozenset({name}))
    on = replace(owned, deltas=True)
    assert not any("remove-image" in line for line in text(target(early), seen, on))
    assert any("remove-image" in line for line in text(target(early), seen, owned))
    here = Image("sha256:new", digests=frozenset({early.image}))
    done = target(replace(early, image_present=True))
    assert any("remove-image" in line for line in text(done, with_images(seen, here), on))


def several(count: int) -> list[DesiredService]:
    return [missing(f"s{n}", image=f"{REGISTRY}/s{n}:1") for n in range(count)]


@pytest.mark.parametrize(("running", "begun"), [(0, 3), (2, 1), (3, 0), (5, 0)])
def test_three_downloads_at_a_time_where_deltas_are_on(running: int, begun: int) -> None:
    web = there(wanted("old"))
    under_way = [Fetch(f"{REGISTRY}/r{n}:1", "9", 9, "x") for n in range(running)]
    now = replace(DELTAS, running={identity(step): step for step in under_way})
    found = plan(target(wanted("old"), *several(5)), world(web), now)
    steps = [step for step in found.steps if isinstance(step, Fetch)]
    assert len(steps) == begun
    waits = [wait for wait in found.waits if "images at most are fetched" in wait.reason]
    assert len(waits) == 5 - begun
    assert all(f"fetch image {REGISTRY}/s{n}:1" in found.wanted for n in range(5))
    off = replace(now, deltas=False)
    assert len(fetches(target(wanted("old"), *several(5)), world(web), off)) == 5


def test_an_app_with_nothing_on_the_device_is_not_held_up() -> None:
    under_way = [Fetch(f"{REGISTRY}/r{n}:1", "9", 9, "x") for n in range(3)]
    now = replace(DELTAS, running={identity(step): step for step in under_way})
    assert len(fetches(target(*several(5)), world(), now)) == 5


# ---- the model -----------------------------------------------------------------------------------


def test_the_model_notes_what_an_image_was_fetched_for() -> None:
    step = Fetch("web:1", "u", 7, "web")
    after = effect(step, Observed())
    (image,) = after.images.values()
    assert image.obtained == {Obtained("web:1", 7, "web")}
    assert effect(RemoveImage("web:1"), after).images == {}


def test_the_index_gives_the_answers_of_the_images_themselves() -> None:
    repositories, digests = ("a", "b", "reg.io/a"), (f"sha256:{n:064x}" for n in range(4))
    known = tuple(digests)
    names = [f"{repo}:{tag}" for repo in repositories for tag in ("1", "latest")]
    names += [f"{repo}@{digest}" for repo in repositories for digest in known]
    asked = [*names, *known, "a", "docker.io/library/a", "nobody", f"x@{known[0]}"]
    for seed in range(300):
        rng = random.Random(seed)
        ids, free = list(known[:3]), rng.sample(names, len(names))  # ids that look like digests
        images = {
            i: Image(
                i,
                frozenset(n for n in taken if "@" not in n),
                frozenset(n for n in taken if "@" in n),
                obtained=frozenset({Obtained(rng.choice(names))} if rng.random() < 0.5 else ()),
            )
            for i, taken in zip(ids, (free[:3], free[3:5], ()), strict=True)
        }
        index = ImageIndex(images)
        for reference in asked:
            meant = [image for image in images.values() if image.answers_to(reference)]
            found = index.get(reference)
            assert found in meant if meant else found is None, (seed, reference)
