"""What happens when something breaks during a launch over two nodes: docs/launching.md states it, with the times.

Every fault is put right again by its context manager, and after every test nothing of the job is left and the next
launch says what it should.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

from lab import faults
from lab.deployed import PREFIX, Deployed
from lab.generations import CUT_OFF_S, Watch, right_or_refused, second, tokens_across
from lab.jobs import Job, eventually, generation, left_behind, look, rank_pid, start

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.native,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("nothing_is_left_and_the_next_launch_works"),
]
LOOP = """
import time
import torch
from corebound.comm.rank_process import run_rank

def work(group):
    while True:
        total = group.all_reduce(torch.full((4096,), group.rank + 1.0))
        assert total[0] == sum(range(1, group.size + 1))
        if group.rank == 0:
            print("summed", flush=True)
        time.sleep(0.1)

raise SystemExit(run_rank(work))
"""
# For joining as well, which takes long on a busy machine.
TIMEOUT_S = 30


def test_a_killed_rank(deployed: Deployed) -> None:
    node = second(deployed)
    job = generation(deployed)
    pid = rank_pid(deployed, node.name, 3)
    watch = Watch()
    deployed.podman.execute(node.name, "kill", "-KILL", str(pid))
    watch.check(job, code=137, within_s=10)
    assert f"rank 3 on {node.address} (pid {pid}) was killed by SIGKILL" in job.stderr


def test_a_killed_node(deployed: Deployed) -> None:
    node = second(deployed)
    job = generation(deployed)
    watch = Watch()
    with faults.killed(deployed, node):
        watch.check(job, code=4, within_s=20)
    assert f"the agent on {node.address}" in job.stderr


def test_a_node_that_hangs(deployed: Deployed) -> None:
    node = second(deployed)
    job = generation(deployed)
    watch = Watch()
    with faults.paused(deployed, node):
        watch.check(job, code=4, within_s=20)
    assert f"the agent on {node.address}" in job.stderr


def test_an_unplugged_node(deployed: Deployed) -> None:
    node = second(deployed)
    job = generation(deployed)
    watch = Watch()
    with faults.unplugged(deployed, node):
        watch.check(job, code=4, within_s=20)
        # What runs there knows of the cable as little as the launcher: it ends by itself, without being told.
        assert eventually(lambda: left_behind(deployed) == {}, CUT_OFF_S), left_behind(deployed)
    assert f"the agent on {node.address}" in job.stderr


def test_a_rank_that_stands_still(deployed: Deployed) -> None:
    node = second(deployed)
    job = generation(deployed, COREBOUND_COMM_TIMEOUT_S=str(TIMEOUT_S))
    pid = rank_pid(deployed, node.name, 3)
    watch = Watch()
    deployed.podman.execute(node.name, "kill", "-STOP", str(pid))
    watch.check(job, code=5, within_s=TIMEOUT_S + 20)
    assert f"waited {TIMEOUT_S} s for rank 3 (host {node.name}, pid {pid})" in job.stderr


def test_a_killed_launcher(deployed: Deployed) -> None:
    job = generation(deployed)
    [launcher] = [process for process in look(deployed, "node1")[0] if process.name == "corebound"]
    deployed.podman.execute("node1", "kill", "-KILL", str(launcher.pid))
    assert job.end(10) != 0
    assert eventually(lambda: left_behind(deployed) == {}, 10), left_behind(deployed)


def test_nodes_that_are_cut_from_each_other_only(deployed: Deployed, tmp_path: Path) -> None:
    """The launcher runs on a third host, this machine, which goes on hearing both."""
    hostfile, script = tmp_path / "hostfile", tmp_path / "loop.py"
    hostfile.write_text("".join(f"{node.address} slots=2\n" for node in deployed.nodes))
    script.write_text(LOOP)
    for node in deployed.nodes:
        deployed.podman.execute(node.name, "mkdir", "--parents", str(tmp_path))
        deployed.podman("cp", str(script), f"{node.name}:{script}")
    ssh = ("--launcher", "ssh", "--launcher_args", f"-F {deployed.place.ssh_config}")
    command = (sys.executable, "-m", "corebound", "run", *ssh, "--hostfile", hostfile)
    python = ("--remote_python", f"{PREFIX}/venv/bin/python")
    environ = {**os.environ, "COREBOUND_COMM_TIMEOUT_S": str(TIMEOUT_S)}
    job = Job(start([*command, *python, "--no_local_rank", script], cwd=tmp_path, env=environ))
    job.wait_for_output()
    watch = Watch()
    with faults.partition(deployed, *deployed.nodes):
        watch.check(job, code=5, within_s=TIMEOUT_S + 20)
    assert re.search(rf"waited {TIMEOUT_S} s for rank \d \(host node[12]\)", job.stderr)


def test_a_node_that_loses_a_third_of_its_packets(deployed: Deployed, expected: list[int]) -> None:
    with faults.loss(deployed, second(deployed), 30):
        right_or_refused(deployed, expected, within_s=300)


def test_a_slow_link(deployed: Deployed, expected: list[int]) -> None:
    with faults.slow_link(deployed, second(deployed), "10mbit"):
        started_s = time.monotonic()
        assert tokens_across(deployed) == expected
        print(f"right after {time.monotonic() - started_s:.1f} s")
