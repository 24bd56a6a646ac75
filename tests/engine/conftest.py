"""One world of one rank for all tests of the engine: a process joins its process group once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from engine.world import World, close_world, init_world


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """This process alone, with a real process group for DeepSpeed; other tests' programs must not inherit its rank."""
    environment = dict(os.environ)
    alone = init_world()
    os.environ.clear()
    os.environ.update(environment)
    yield alone
    close_world()
