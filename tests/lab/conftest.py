"""The lab for tests: put up once for a module, taken down after it, and never somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from lab import cluster, machine
from lab.layout import INVENTORY, Layout, Node, layout
from lab.podman import Podman

Grow = Callable[[int], list[Node]]


@pytest.fixture(scope="module")
def place() -> Iterator[Layout]:
    """Returns the lab's place on this machine, with no node in it."""
    reason = machine.why_not()
    if reason:
        pytest.skip(reason)
    if INVENTORY.exists():
        pytest.fail("a lab is up, and these tests would take it down; `make lab-down` first")
    yield layout()
    cluster.down(layout(), purge=False)


@pytest.fixture(scope="module")
def grow(place: Layout) -> Grow:
    """Returns the function that makes the lab have so many nodes."""
    return lambda num_nodes: cluster.up(place, num_nodes, base_image="")[0]


@pytest.fixture(scope="module")
def grow_bare(place: Layout) -> Grow:
    """Returns the function that makes the lab have so many nodes that know no package source of this machine."""
    return lambda num_nodes: cluster.up(place, num_nodes, base_image="", bare=True)[0]


@pytest.fixture(scope="module")
def podman(place: Layout) -> Podman:
    """Returns the lab's podman."""
    return Podman(place)
