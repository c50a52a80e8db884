"""engine/progress.py: what a stream of pull events means in percent."""

from __future__ import annotations

from typing import Any

import pytest

from balena_agent.engine.progress import Progress

MEGABYTE = 1_000_000


def layer(name: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    detail = {"current": current, "total": total} if total else {}
    return {"id": name, "status": status, "progressDetail": detail}


def fed(progress: Progress, *events: dict[str, Any]) -> list[int]:
    """The percentage after each event."""
    seen = []
    for event in events:
        progress.feed(event)
        seen.append(progress.percent)
    return seen


def test_one_layer_is_half_download_and_half_extraction() -> None:
    seen = fed(
        Progress("docker"),
        {"status": "Pulling from library/web", "id": "1"},
        layer("a", "Pulling fs layer"),
        layer("a", "Downloading", 1 * MEGABYTE, 4 * MEGABYTE),
        layer("a", "Downloading", 4 * MEGABYTE, 4 * MEGABYTE),
        layer("a", "Verifying Checksum"),
        layer("a", "Download complete"),
        layer("a", "Extracting", 2 * MEGABYTE, 4 * MEGABYTE),
        layer("a", "Pull complete"),
        {"status": "Digest: sha256:1"},
        {"status": "Status: Downloaded newer image for web:1"},
    )
    assert seen == [0, 0, 12, 50, 50, 50, 75, 100, 100, 100]


def test_several_layers_count_alike() -> None:
    progress = Progress("docker")
    fed(progress, *(layer(name, "Pulling fs layer") for name in "abcd"))
    assert fed(progress, layer("a", "Already exists")) == [25]
    assert fed(progress, layer("b", "Downloading", 1 * MEGABYTE, 2 * MEGABYTE)) == [31]
    assert fed(progress, layer("c", "Download complete")) == [43]


def test_small_layers_do_not_count_once_their_size_is_known() -> None:
    progress = Progress("docker")
    fed(progress, layer("a", "Pulling fs layer"), layer("tiny", "Pulling fs layer"))
    assert fed(progress, layer("tiny", "Downloading", 10, 50_000)) == [0]
    assert fed(progress, layer("a", "Downloading", 5 * MEGABYTE, 10 * MEGABYTE)) == [25]
    assert fed(progress, layer("tiny", "Extracting", 50_000, 50_000)) == [25]
    assert fed(progress, layer("tiny", "Pull complete")) == [25]
    assert fed(progress, layer("a", "Pull complete")) == [100]


def test_a_retry_does_not_take_progress_back_and_is_no_move() -> None:
    progress = Progress("docker")
    fed(progress, layer("a", "Downloading", 8 * MEGABYTE, 10 * MEGABYTE))
    assert progress.percent == 40
    assert not progress.feed(layer("a", "Retrying in 5 seconds"))
    assert not progress.feed(layer("a", "Retrying in 4 seconds"))
    assert fed(progress, layer("a", "Downloading", 1 * MEGABYTE, 10 * MEGABYTE)) == [40]


def test_moves_are_told_below_one_percent() -> None:
    progress = Progress("docker")
    big = 100_000 * MEGABYTE
    assert progress.feed(layer("a", "Downloading", 1000, big))
    assert not progress.feed(layer("a", "Downloading", 1000, big))
    assert progress.feed(layer("a", "Downloading", 2000, big))
    assert progress.percent == 0


def test_balena_goes_by_its_total_alone() -> None:
    seen = fed(
        Progress("balena"),
        layer("a", "Ready to download"),
        layer("Total", "", 10, 200),
        layer("a", "Extracting", 199, 200),
        layer("Total", "", 100, 200),
        layer("a", "Pull complete"),
        layer("Total", "", 90, 200),
        layer("Total", "", 200, 200),
        {"status": "Status: Downloaded newer image for web:1"},
    )
    assert seen == [0, 5, 5, 50, 50, 50, 100, 100]


def test_a_percentage_is_exact_to_the_last_whole_one() -> None:
    progress = Progress("balena")
    seen = fed(progress, *(layer("Total", "", current, 100) for current in range(101)))
    assert seen == list(range(101))


@pytest.mark.parametrize("kind", ["balena", "docker"])
def test_an_unknown_total_is_out_of_reach(kind: str) -> None:
    progress = Progress(kind)
    name, status = ("Total", "") if kind == "balena" else ("a", "Downloading")
    progress.feed({"id": name, "status": status, "progressDetail": {"current": 1000}})
    assert progress.percent < 100
    assert not progress.finished


def test_only_the_last_line_finishes() -> None:
    progress = Progress("docker")
    fed(progress, layer("a", "Pull complete"), {"status": "Digest: sha256:1"})
    before = progress.finished
    progress.feed({"status": "Status: Image is up to date for web:1"})
    assert (before, progress.finished) == ("", "Status: Image is up to date for web:1")


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"id": None, "status": None},
        {"id": 1, "status": 2, "progressDetail": []},
        {"id": "a", "status": "Downloading", "progressDetail": {"current": "x", "total": -5}},
        {"id": "Total", "progressDetail": {"current": 5, "total": 1}},
        {"id": "a", "status": "Extracting", "progressDetail": {"current": 5, "units": "s"}},
        {"status": "anything new"},
    ],
)
@pytest.mark.parametrize("kind", ["balena", "docker"])
def test_no_event_is_too_strange(kind: str, event: dict[str, Any]) -> None:
    progress = Progress(kind)
    progress.feed(event)
    assert 0 <= progress.percent <= 100
