"""What happens when something breaks during a launch over two nodes: docs/launching.md states it, with the times.

Every fault is put right again by its context manager, and after every test nothing of the job is left and the next
launch says what it should.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.ansible_runs import ROOT, recap, run_playbook
from lab import faults
from lab.deployed import MODEL, PREFIX, Deployed
from lab.jobs import ACROSS, GENERATE, START_S, Job, eventually, generation, left_behind, look, rank_pid, start
from lab.layout import Node

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(1800)]
SHORT = (*GENERATE, "--json", "--max-new-tokens", "8")
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
# A host that was cut off ends its ranks itself: it misses the launcher after 10 s, asks, waits and kills.
CUT_OFF_S = 20.0
# For joining as well, which takes long on a busy machine.
TIMEOUT_S = 30


@pytest.fixture(scope="module")
def expected(deployed: Deployed) -> list[int]:
    """Returns the tokens that one rank alone says."""
    done = deployed.run("node1", *SHORT, "--num_accelerators", "1")
    assert done.returncode == 0, done.stderr
    tokens: list[int] = json.loads(done.stdout)["outputs"][0]["token_ids"]
    return tokens


@pytest.fixture(autouse=True)
def nothing_is_left_and_the_next_launch_works(deployed: Deployed, expected: list[int]) -> Iterator[None]:
    assert eventually(lambda: left_behind(deployed) == {}, CUT_OFF_S), left_behind(deployed)
    yield
    assert eventually(lambda: left_behind(deployed) == {}, CUT_OFF_S), left_behind(deployed)
    assert tokens_across(deployed) == expected


def tokens_across(lab: Deployed, *words: str, timeout_s: float = START_S, **environ: str) -> list[int]:
    """Returns the tokens that all ranks of both nodes say together."""
    done = lab.run("node1", *SHORT, *ACROSS, *words, timeout_s=timeout_s, **environ)
    assert done.returncode == 0, done.stderr
    tokens: list[int] = json.loads(done.stdout)["outputs"][0]["token_ids"]
    return tokens


class Watch:
    """The time since the fault; `record` prints it for the report of the run."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def check(self, job: Job, code: int, within_s: float) -> None:
        """The job has ended with this code, and in this time."""
        found = job.end(within_s + 120)
        seconds = time.monotonic() - self._started_s
        print(f"exit code {found} after {seconds:.1f} s (allowed: {within_s:g} s)\n{job.stderr[-3000:]}")
        assert found == code, job.stderr
        assert seconds < within_s


def second(lab: Deployed) -> Node:
    """Returns the node that faults happen to; the launcher is on the other."""
    return lab.nodes[1]


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


def test_a_node_that_refuses_ssh(deployed: Deployed) -> None:
    node = second(deployed)
    with faults.ssh_refused(deployed, node):
        job = failing(deployed, code=4, within_s=30)
    assert "1 of 2 hosts cannot take part" in job.stderr
    assert f"{node.address}: could not be started" in job.stderr and "Connection refused" in job.stderr


def test_a_node_that_is_not_there_at_the_start(deployed: Deployed) -> None:
    node = second(deployed)
    with faults.unplugged(deployed, node):
        job = failing(deployed, code=4, within_s=30)
    assert f"{node.address}: could not be started" in job.stderr


def test_a_node_that_hangs_at_the_start(deployed: Deployed) -> None:
    node = second(deployed)
    with faults.paused(deployed, node):
        job = failing(deployed, code=4, within_s=40)
    assert f"{node.address}: " in job.stderr


def test_a_full_disk_under_the_logs(deployed: Deployed, expected: list[int]) -> None:
    node, folder = second(deployed), "/var/tmp/corebound-logs"
    deployed.podman.execute("node1", "install", "--directory", "--mode=1777", folder)
    with faults.small_disk(deployed, node, folder, "4k"):
        words = ("--enable_each_rank_log", f"{folder}/run")
        job = Job(deployed.start("node1", *SHORT, *ACROSS, *words, COREBOUND_LOG_LEVEL="debug"))
        code = job.end(START_S)
        print(job.stderr[-3000:])
        assert code == 0
    deployed.podman.execute("node1", "rm", "--recursive", folder)
    assert json.loads(job.stdout)["outputs"][0]["token_ids"] == expected
    assert f"{node.name}: {folder}/run/" in job.stderr and "No space left on device" in job.stderr


@pytest.mark.parametrize("free_kib", [0, 300])
def test_a_full_dev_shm(deployed: Deployed, free_kib: int) -> None:
    node = second(deployed)
    with faults.full_shared_memory(deployed, node, free_kib):
        job = failing(deployed, code=5, within_s=START_S, COREBOUND_COMM="hierarchical")
    assert "/dev/shm" in job.stderr and node.name in job.stderr
    assert "SIGBUS" not in job.stderr


def test_a_full_dev_shm_without_insisting_on_it(deployed: Deployed, expected: list[int]) -> None:
    with faults.full_shared_memory(deployed, second(deployed), 0):
        done = deployed.run("node1", *SHORT, *ACROSS, timeout_s=START_S)
    assert json.loads(done.stdout)["outputs"][0]["token_ids"] == expected
    assert "no shared memory" in done.stderr and "node2" in done.stderr


def test_a_damaged_model_on_one_node(deployed: Deployed) -> None:
    node, weights = second(deployed), f"{MODEL}/model.safetensors"
    with faults.damaged_file(deployed, node, weights):
        job = failing(deployed, code=6, within_s=20, after="collectives: ")
    assert re.search(rf"{node.name}: {weights}: .*expected SHA-256 [0-9a-f]{{64}}, found [0-9a-f]{{64}}", job.stderr)


def test_a_model_that_one_node_lacks(deployed: Deployed) -> None:
    node = second(deployed)
    with faults.absent(deployed, node, MODEL):
        job = failing(deployed, code=6, within_s=20, after="collectives: ")
    assert f"{node.name}: " in job.stderr and MODEL in job.stderr


def test_a_full_disk_and_a_damaged_file_when_the_model_is_delivered(deployed: Deployed) -> None:
    node, folder = second(deployed), "/var/tmp/corebound-models"
    role = {"one_role": "model_delivery", "model_delivery_dir": folder, "ansible_become": True}
    role["model_delivery_demo_dir"] = str(ROOT / "runtime/corebound/demo")  # by default it is beside the playbook

    def deliver() -> tuple[int, str]:
        playbook = "../tests/cluster/one_role.yml"
        done = run_playbook(playbook, deployed.inventory, timeout_s=600, **role)
        return done.returncode, done.stdout

    with faults.small_disk(deployed, node, folder, "1m", mode="0755"):
        code, output = deliver()
        print(output[-3000:])
        assert code != 0
        assert re.search(
            rf"failed: \[{node.name}\] \(item=model.safetensors\).*No space left on device", output, flags=re.DOTALL
        )
        assert recap(output, "node1")["failed"] == 0
    assert deliver()[0] == 0
    with faults.damaged_file(deployed, node, f"{folder}/demo/model.safetensors"):
        code, output = deliver()
        assert code == 0
        assert (recap(output, "node1")["changed"], recap(output, node.name)["changed"]) == (0, 1)
    for other in deployed.nodes:
        deployed.podman.execute(other.name, "rm", "--recursive", folder)


def test_clocks_an_hour_apart(deployed: Deployed, expected: list[int]) -> None:
    with faults.clock_shifted(deployed, second(deployed), "+1h"):
        started_s = time.monotonic()
        assert tokens_across(deployed) == expected
        print(f"right after {time.monotonic() - started_s:.1f} s")


def test_two_jobs_of_one_user_at_once(deployed: Deployed, expected: list[int]) -> None:
    jobs = [Job(deployed.start("node1", *SHORT, *ACROSS)) for _ in range(2)]
    for job in jobs:
        assert job.end(2 * START_S) == 0, job.stderr
        print(job.stderr)
        assert json.loads(job.stdout)["outputs"][0]["token_ids"] == expected
    # Who comes second is told; that they share cores is the users' choice.
    assert any("another job of yours runs on CPUs" in job.stderr for job in jobs)


def failing(lab: Deployed, *, code: int, within_s: float, after: str = "", **environ: str) -> Job:
    """Returns a short generation that ended with this code, and in this time, counted from when it said `after`."""
    job = Job(lab.start("node1", *SHORT, *ACROSS, **environ))
    assert eventually(lambda: after in job.stderr or job.process.poll() is not None, START_S), job.stderr
    assert after in job.stderr, job.stderr
    Watch().check(job, code, within_s)
    return job


def right_or_refused(lab: Deployed, expected: list[int], *, within_s: float) -> None:
    """A short generation says what it should, or fails with a message that names a node; either in this time."""
    watch = time.monotonic()
    job = Job(lab.start("node1", *SHORT, *ACROSS))
    code = job.end(within_s)
    print(f"exit code {code} after {time.monotonic() - watch:.1f} s\n{job.stderr[-3000:]}")
    if code == 0:
        assert json.loads(job.stdout)["outputs"][0]["token_ids"] == expected
    else:
        assert code in (4, 5)
        assert any(word in job.stderr for node in lab.nodes for word in (node.address, f"host {node.name}"))
