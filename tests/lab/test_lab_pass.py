"""The one pass over two nodes that every change goes through: deploy, verify, launch, lose a node, go on."""

from __future__ import annotations

import pytest

from lab import faults
from lab.deployed import Deployed
from lab.generations import CUT_OFF_S, Watch, second, tokens_across
from lab.jobs import eventually, generation, left_behind

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(1800)]

# A host that falls silent is lost after 10 s; the rest is patience for a machine that has other work.
LOSS_TIMEOUT_S = 60.0


def test_every_node_passes_the_smoke_run_that_ends_the_deployment(deployed: Deployed) -> None:
    report = deployed.first_report
    assert report["verdict"] == "pass", report["checks"]
    assert [row["host"] for row in report["hosts"]] == ["node1", "node2"]
    assert {row["provider"] for row in report["across_nodes"]["all_reduce"]} >= {"gloo", "hierarchical"}


def test_a_killed_node_ends_the_job_and_the_next_launch_works(deployed: Deployed, expected: list[int]) -> None:
    node = second(deployed)
    job = generation(deployed)
    watch = Watch()
    with faults.killed(deployed, node):
        watch.check(job, code=4, within_s=LOSS_TIMEOUT_S)
        assert f"the agent on {node.address}" in job.stderr
    assert eventually(lambda: left_behind(deployed) == {}, CUT_OFF_S), left_behind(deployed)
    assert tokens_across(deployed) == expected
