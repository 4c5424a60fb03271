"""Launches inside allocations of a real Slurm: batch jobs, unequal tasks, cancelled jobs, and steps within steps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab import slurm
from lab.deployed import COMMAND, JOB_USER, Deployed
from lab.launched import FACTS, STUBBORN
from lab.starters import processes, put, ready, segments

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(900)]
# Slurm gives a cancelled step KillWait to end, and looks for new jobs every few seconds.
WAIT_S = 90.0


@pytest.fixture(scope="module")
def cluster(deployed: Deployed) -> Iterator[Deployed]:
    """Returns the nodes with Slurm on them; afterwards no job is left."""
    put(deployed, "facts.py", FACTS)
    put(deployed, "stubborn.py", STUBBORN)
    put(deployed, "two", "node1 slots=2\nnode2 slots=2\n")
    ready(deployed, "slurm")
    yield deployed
    slurm.release(deployed)


def batch(cluster: Deployed, *options: str, command: str) -> str:
    """Returns the number of a job that was handed in; what it says comes to the file of that number."""
    cluster.write("node1", f"/home/{JOB_USER}/job", f"#!/bin/sh\n{command}\n")
    done = cluster.run("node1", "sbatch", "--parsable", "--output=%j.out", "--exclusive", *options, "job")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for_text(cluster: Deployed, path: str, text: str, count: int) -> str:
    """Returns a file of the job user's on the first node once it holds a text so many times."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        found = cluster.run("node1", "cat", path).stdout
        if found.count(text) >= count:
            return found
        time.sleep(0.5)
    raise AssertionError(f"{path} does not hold {text!r} {count} times within {WAIT_S:g} s:\n{found}")


def places(text: str) -> list[list[str]]:
    """Returns host, rank and local rank of each rank that said its facts, in order of the ranks."""
    said: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    found = [[one["host"], one["env"]["RANK"], one["env"]["LOCAL_RANK"]] for one in said]
    return sorted(found, key=lambda place: int(place[1]))


def test_a_batch_job_without_a_hostfile_runs_a_rank_for_each_of_its_unequal_tasks(cluster: Deployed) -> None:
    run = f"echo tasks $SLURM_TASKS_PER_NODE\n{COMMAND} run --launcher slurm facts.py\necho ended $?"
    job = batch(cluster, "--nodes=2", "--ntasks=3", command=run)
    text = wait_for_text(cluster, f"{job}.out", "ended ", 1)
    assert "ended 0\n" in text and "tasks 2,1\n" in text, text
    assert places(text) == [["node1", "0", "0"], ["node1", "1", "1"], ["node2", "2", "0"]]


def test_a_cancelled_job_leaves_no_rank_on_any_node(cluster: Deployed) -> None:
    job = batch(cluster, "--nodes=2", "--ntasks=2", command=f"exec {COMMAND} run --launcher slurm stubborn.py")
    wait_for_text(cluster, f"{job}.out", "up\n", 2)
    assert segments(cluster, "node2")
    cluster.run("node1", "scancel", job)
    slurm.wait(cluster)
    deadline_s = time.monotonic() + WAIT_S
    left: dict[str, Any] = {}
    while time.monotonic() < deadline_s:
        left = {node.name: (processes(cluster, node.name), segments(cluster, node.name)) for node in cluster.nodes}
        if all(found == ([], []) for found in left.values()):
            return
        time.sleep(0.5)
    raise AssertionError(f"still there: {left}")


def test_a_launch_inside_a_step_shares_the_processors_that_the_step_holds(cluster: Deployed) -> None:
    step = ("srun", "--nodes=1", "--ntasks=1", "--nodelist=node1")
    run = (COMMAND, "run", "--launcher", "slurm", "--hostfile", "two", "facts.py")
    done = cluster.run("node1", *slurm.allocate(2), "--ntasks=4", *step, *run, timeout_s=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert [place[0] for place in places(done.stdout)] == ["node1", "node1", "node2", "node2"]


def test_a_host_outside_the_allocation_is_named(cluster: Deployed) -> None:
    words = ("salloc", "--quiet", "--exclusive", "--nodelist=node1", COMMAND, "run", "--launcher", "slurm")
    done = cluster.run("node1", *words, "--hostfile", "two", "facts.py")
    assert done.returncode == 2, done.stderr
    assert "host node2 is not a node of the Slurm allocation, which has node1" in done.stderr
