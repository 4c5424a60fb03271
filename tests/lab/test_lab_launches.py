"""Launches across deployed nodes, by every transport, as the user of the jobs starts them."""

from __future__ import annotations

import json

import pytest

from lab.deployed import COMMAND, HOSTFILE, Deployed

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(1800)]
GENERATE = (COMMAND, "generate", "--json", "--model", "demo", "--prompt", "The river", "--max-new-tokens", "8")


def test_two_ranks_on_each_of_two_nodes_say_what_one_rank_says(deployed: Deployed) -> None:
    alone = deployed.run("node1", *GENERATE, "--num_accelerators", "1")
    assert alone.returncode == 0, alone.stderr
    together = deployed.run("node1", *GENERATE, "--hostfile", HOSTFILE)
    assert together.returncode == 0, together.stderr
    reports = [json.loads(done.stdout) for done in (alone, together)]
    assert reports[1]["outputs"] == reports[0]["outputs"]
    assert [rank["host"] for rank in reports[1]["ranks"]] == ["node1", "node1", "node2", "node2"]
