"""Fixtures of the engine's contract suite: the two worlds, and a registry to disturb."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_front import Front
from engine_worlds import FakeWorld, RealWorld, World, needs_engine, real_engine_socket


@pytest.fixture(params=["fake", pytest.param("real", marks=needs_engine)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = FakeWorld() if request.param == "fake" else RealWorld(real_engine_socket())
    yield made
    made.clean()


@pytest.fixture
def real() -> Iterator[RealWorld]:
    made = RealWorld(real_engine_socket())
    yield made
    made.clean()


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front()
    yield made
    made.close()
