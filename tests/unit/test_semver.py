"""Version ranges by npm's rules: a table of what lies in which range, and of what is no range."""

from __future__ import annotations

import pytest

from balena_agent.core.semver import Version, read_range, read_version, satisfies


def matches(version: str, wanted: str) -> bool:
    known, span = read_version(version), read_range(wanted)
    assert known is not None and span is not None
    return satisfies(known, span)


IN_RANGE = """
    1.2.3           1.2.3
    1.2.3           =1.2.3
    1.2.3           v1.2.3
    1.2.3           = 1.2.3
    1.2.3+b         1.2.3
    1.2.3           1.2.3+other
    5.5.5+rev3      >=5.5.5+rev2
    0.0.0           *
    9.9.9           x
    9.9.9           X.x
    7.0.0           >=*
    1.2.3           (empty)
    1.9.9           1
    1.9.9           1.x
    1.2.9           1.2
    1.2.9           1.2.*
    1.2.9           =1.2.x
    2.0.0           >1
    1.3.0           >1.2
    1.2.4           >1.2.3
    1.0.0           >=1
    1.2.0           >= 1.2
    0.9.9           <1
    1.1.9           <1.2
    1.9.9           <=1
    1.2.9           <=1.2
    1.2.3           <=1.2.3
    1.2.3           ^1.2.3
    1.9.0           ^1.2.3
    1.9.0           ^ 1.2.3
    1.9.0           ^v1.2
    0.2.9           ^0.2.3
    0.0.3           ^0.0.3
    0.0.9           ^0.0
    0.9.9           ^0
    3.0.0           ^*
    1.2.9           ~1.2.3
    1.2.9           ~> 1.2.3
    1.2.0           ~1.2
    1.9.9           ~1
    0.0.9           ~0.0.1
    1.2.3           1.2.3 - 2
    2.9.9           1.2.3 - 2
    2.3.9           1.2 - 2.3
    2.3.4           1.2.3 - 2.3.4
    5.0.0           1 - *
    1.5.0           >=1.2.3 <2
    1.5.0           >=1.2.3   <2.0.0
    3.0.1           1 || 3.0.x
    1.0.0           1||2
    2.1.0           <1 || >=2 <3
    19.0.5          >=10.0.0
    1.2.3-beta.2    ^1.2.3-beta.1
    1.2.3-beta.10   >1.2.3-beta.9
    1.2.3-beta      >1.2.3-1
    1.2.3-alpha.1   >1.2.3-alpha
    1.2.3           >1.2.3-rc
    1.9.0           ^1.2.3-beta
    1.2.3-rc-1      1.2.3-rc-1
    1.2.3-b         ~1.2.3-a
    1.2.3-b         >=1.2.3-a <2
    0.0.0-b         <0.0.0-c
    1.2.3-a         1.2.0 - 1.2.3-b
"""

OUT_OF_RANGE = """
    1.2.4           1.2.3
    5.5.5+rev3      >5.5.5+rev2
    1.2.3+b         <1.2.3+c
    1.2.3           >*
    1.2.3           <*
    2.0.0           1
    1.3.0           1.2.x
    1.9.9           >1
    1.2.9           >1.2
    1.0.0           <1
    1.2.0           <1.2
    2.0.0           <=1
    2.0.0           ^1.2.3
    1.2.2           ^1.2.3
    0.3.0           ^0.2.3
    0.0.4           ^0.0.3
    0.1.0           ^0.0
    1.3.0           ~1.2.3
    2.0.0           ~1
    3.0.0           1.2.3 - 2
    2.3.5           1.2.3 - 2.3.4
    2.0.0           >=1.2.3 <2
    2.0.0           1 || 3.0.x
    19.0.5          >=999
    1.2.3-beta      *
    1.2.3-beta      >=1.0.0
    1.2.4-beta      ^1.2.3-beta
    2.0.0-alpha     ^1.2.3
    2.0.0-alpha     <2.0.0
    1.2.3-beta      1.2.3
    1.2.3-beta      1.2.x
    1.2.3-alpha     >=1.2.3-beta
    1.2.3-2         >1.2.3-10
    1.2.3           <1.2.3-rc
    1.3.0-a         1.2.3-a - 1.3.0
"""

NO_RANGE = [
    "latest", ">", "~", "^", "1.2.3.4", "01.2.3", "1.2.03", "1.2.3-", "1.2.3-01", "1.2-beta",
    "1.x.3", "x.1", "1 || latest", ">1 - 2", "- 2", "1.2.3 -", "==1.2.3", "1.2.3+", "1,2", "٣.0.0",
    "9007199254740993.0.0", "1.2.3-" + "a" * 300, "1" * 400, "<>1", "!1.2.3", "1.2.3\0",
]  # fmt: skip

NO_VERSION = [
    "", "1", "1.2", "1.2.3.4", "=1.2.3", "1.2.3-", "01.2.3", "22.04", "1.2.3 4", "a.b.c",
    "9007199254740993.0.0", "1.2.3-" + "a" * 300, "1.2.3-a..b", "²." + "0.0",
]  # fmt: skip


def rows(table: str) -> list[tuple[str, str]]:
    """(version, range) of each line."""
    pairs = (line.split(maxsplit=1) for line in table.strip().splitlines())
    return [(version, "" if wanted == "(empty)" else wanted) for version, wanted in pairs]


@pytest.mark.parametrize(("version", "wanted"), rows(IN_RANGE))
def test_versions_in_a_range(version: str, wanted: str) -> None:
    assert matches(version, wanted)


@pytest.mark.parametrize(("version", "wanted"), rows(OUT_OF_RANGE))
def test_versions_out_of_a_range(version: str, wanted: str) -> None:
    assert not matches(version, wanted)


@pytest.mark.parametrize("text", NO_RANGE)
def test_what_is_no_range(text: str) -> None:
    assert read_range(text) is None


@pytest.mark.parametrize("text", NO_VERSION)
def test_what_is_no_version(text: str) -> None:
    assert read_version(text) is None


def test_the_parts_of_a_version() -> None:
    assert read_version(" v1.20.3-rc.1.x-7+build.5 ") == Version(1, 20, 3, ("rc", 1, "x-7"))


def test_versions_in_the_order_of_the_standard() -> None:
    order = [
        "0.0.0-0", "0.0.0", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta",
        "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.1.0", "2.0.0-1",
        "2.0.0-A", "2.0.0-a", "2.0.0", "10.0.0",
    ]  # fmt: skip
    ranks = [known.rank for text in order if (known := read_version(text))]
    assert len(ranks) == len(order)
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)


def test_long_texts_are_read_in_no_time() -> None:
    assert read_range("1.2.3 " * 20_000) is not None
    assert read_range("+a" * 50_000) is not None
    assert read_range("-" * 100_000) is None
    assert read_range("1.2.3 -" * 20_000) is None
    assert read_range("> " * 50_000) is None
