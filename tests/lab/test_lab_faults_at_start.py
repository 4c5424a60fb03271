"""What a launch over two nodes comes to when something is wrong with one of them from the start: docs/launching.md.

Every fault is put right again by its context manager, and after every test nothing of the job is left and the next
launch says what it should.
"""

from __future__ import annotations

import json
import re
import time

import pytest

from cluster.ansible_runs import ROOT, recap, run_playbook
from lab import faults
from lab.deployed import MODEL, Deployed
from lab.generations import SHORT, failing, second, tokens_across
from lab.jobs import ACROSS, START_S, Job

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.native,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("nothing_is_left_and_the_next_launch_works"),
]


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
