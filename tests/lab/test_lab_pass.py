"""The one pass over two nodes that every change goes through: deploy, verify, launch, lose a node, go on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.ansible_runs import run_playbook
from lab.cluster import wait_for
from lab.deployed import COMMAND, HOSTFILE, MODEL, Deployed

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(1800)]

GENERATE = (COMMAND, "generate", "--json", "--model", MODEL, "--prompt", "The river", "--hostfile", HOSTFILE)
# A host that falls silent is lost after 10 s; the rest is what a busy machine takes to start and to end things.
LOSS_TIMEOUT_S = 60.0
SMOKE_TIMEOUT_S = 600.0


def smoke(deployed: Deployed) -> tuple[int, dict[str, Any]]:
    """Returns the exit code and the report of a smoke run."""
    done = run_playbook("smoke.yml", deployed.inventory, timeout_s=SMOKE_TIMEOUT_S, **deployed.variables)
    report = Path(deployed.variables["corebound_reports_dir"], "smoke.json").read_text(encoding="utf-8")
    return done.returncode, json.loads(report)


def leftovers(deployed: Deployed, name: str) -> str:
    """Returns the job user's processes and segments on a node."""
    command = "pgrep --list-full --euid corebound | grep -v 'pgrep\\|sh -c' ; find /dev/shm -name 'corebound*'"
    return deployed.run(name, "sh", "-c", command, user="root").stdout


def test_every_node_passes_the_smoke_run(deployed: Deployed) -> None:
    code, report = smoke(deployed)
    assert (code, report["verdict"]) == (0, "pass"), report["checks"]
    assert [row["host"] for row in report["hosts"]] == ["node1", "node2"]


def test_a_killed_node_ends_the_job_and_the_next_launch_works(deployed: Deployed) -> None:
    endless = deployed.start("node1", *GENERATE, "--max-new-tokens", "400", "--prompt", "A long day")
    deadline = time.monotonic() + 60
    while not deployed.run("node2", "pgrep", "--full", "rank_main", user="root").stdout:
        assert endless.poll() is None and time.monotonic() < deadline, endless.communicate()
        time.sleep(0.1)
    killed = time.monotonic()
    deployed.podman("kill", "--signal", "KILL", "node2")
    errors = endless.communicate(timeout=LOSS_TIMEOUT_S)[1]
    seconds = time.monotonic() - killed
    deployed.podman("start", "node2")
    wait_for(deployed.nodes)
    assert endless.returncode == 4, errors
    assert "node2" in errors or deployed.nodes[1].address in errors
    assert seconds < LOSS_TIMEOUT_S
    assert leftovers(deployed, "node1") == ""
    again = deployed.run("node1", *GENERATE, "--max-new-tokens", "4")
    assert again.returncode == 0, again.stderr
    assert len(json.loads(again.stdout)["ranks"]) == 4
