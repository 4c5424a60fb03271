"""The lab for tests: put up once for a module, taken down after it, and never somebody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from cluster.ansible_runs import ROOT, run_playbook
from lab import cluster, machine
from lab.deployed import Deployed
from lab.generations import CUT_OFF_S, SHORT, tokens_across
from lab.jobs import eventually, left_behind
from lab.layout import INVENTORY, Layout, Node, layout
from lab.podman import Podman

Grow = Callable[[int], list[Node]]
DEPLOY_TIMEOUT_S = 1500.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests that share one deployed lab last: those before them put up and take down a lab of their own."""
    items.sort(key=lambda item: "deployed" in getattr(item, "fixturenames", ()))


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


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Returns two nodes with Corebound on them, deployed once for all tests that launch across nodes.

    A test that hurts a node heals it again before it ends. COREBOUND_LAB_KEEP=1 leaves the nodes up, and deploys to
    those that an earlier run has left.
    """
    reason, keep = machine.why_not(), bool(os.environ.get("COREBOUND_LAB_KEEP"))
    if reason:
        pytest.skip(reason)
    if INVENTORY.exists() and not keep:
        pytest.fail("a lab is up, and these tests would take it down; `make lab-down` first")
    subprocess.run([sys.executable, str(ROOT / "runtime/packaging/build_wheel.py")], check=True, timeout=900)
    try:
        members = cluster.up(layout(), 2, base_image="")[0]
        variables = {
            "corebound_reports_dir": str(tmp_path_factory.mktemp("reports")),
            "cluster_tests_max_new_tokens": 4,
        }
        done = run_playbook("site.yml", INVENTORY.parent, timeout_s=DEPLOY_TIMEOUT_S, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        lab = Deployed(layout(), Podman(layout()), members, INVENTORY.parent, variables)
        # Later smoke runs write another report into its place.
        yield replace(lab, first_report=lab.report())
    finally:
        if not keep:
            cluster.down(layout(), purge=False)


@pytest.fixture(scope="session")
def expected(deployed: Deployed) -> list[int]:
    """Returns the tokens that one rank alone says."""
    done = deployed.run("node1", *SHORT, "--num_accelerators", "1")
    assert done.returncode == 0, done.stderr
    tokens: list[int] = json.loads(done.stdout)["outputs"][0]["token_ids"]
    return tokens


@pytest.fixture
def nothing_is_left_and_the_next_launch_works(deployed: Deployed, expected: list[int]) -> Iterator[None]:
    """Lets a test begin on nodes without jobs; after it there is none again, and a launch says what it should."""
    assert eventually(lambda: left_behind(deployed) == {}, CUT_OFF_S), left_behind(deployed)
    yield
    assert eventually(lambda: left_behind(deployed) == {}, CUT_OFF_S), left_behind(deployed)
    assert tokens_across(deployed) == expected
