"""The smoke run over two deployed nodes: it passes when all is well, and finds what was broken on one of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.ansible_runs import run_playbook
from lab.cluster import wait_for
from lab.deployed import COMMAND, HOSTFILE, MODEL, Deployed

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(3600)]
SMOKE_TIMEOUT_S = 1500.0


def smoke(deployed: Deployed) -> tuple[int, dict[str, Any], str]:
    """Returns exit code, report and output of a smoke run."""
    done = run_playbook("smoke.yml", deployed.inventory, timeout_s=SMOKE_TIMEOUT_S, **deployed.variables)
    return done.returncode, deployed.report(), done.stdout


def failures(report: dict[str, Any], host: str) -> dict[str, dict[str, Any]]:
    """Returns the failed checks of a host by name."""
    return {check["name"]: check for check in report["checks"] if check["host"] == host and not check["passed"]}


def test_everything_is_proven_on_each_node_and_across_them(deployed: Deployed) -> None:
    code, report, output = smoke(deployed)
    assert code == 0, output
    assert [(row["host"], row["verdict"]) for row in report["hosts"]] == [("node1", "pass"), ("node2", "pass")]
    assert all(row["memory_gb_per_s"] > 0 and row["shared_memory_all_reduce"]["p50_us"] > 0 for row in report["hosts"])
    assert [(rank["rank"], rank["host"]) for rank in report["binding"]] == [
        (0, "node1"),
        (1, "node1"),
        (2, "node2"),
        (3, "node2"),
    ]
    assert all(rank["found"]["cpus"] == rank["planned"]["cpus"] for rank in report["binding"])
    sums = report["across_nodes"]["all_reduce"]
    assert {"gloo", "hierarchical"} <= {row["provider"] for row in sums}
    assert all(row["num_hosts"] == 2 and row["p50_us"] > 0 for row in sums)
    passed = {check["name"] for check in report["checks"] if check["status"] == "pass"}
    assert "nodes together say what one rank says" in passed
    for name in ("node1", "node2"):
        assert "corebound-smoke" not in deployed.podman.execute(name, "ls", "/tmp")


def test_a_node_whose_sshd_is_stopped_fails_and_the_other_is_still_judged(deployed: Deployed) -> None:
    deployed.podman.execute("node2", "systemctl", "stop", "ssh.service")
    started = time.monotonic()
    try:
        code, report, output = smoke(deployed)
    finally:
        deployed.podman.execute("node2", "systemctl", "start", "ssh.service")
        wait_for(deployed.nodes)
    assert code != 0
    assert time.monotonic() - started < SMOKE_TIMEOUT_S
    assert [(row["host"], row["verdict"]) for row in report["hosts"]] == [("node1", "pass"), ("node2", "fail")], output
    (check,) = failures(report, "node2").values()
    evidence = Path(deployed.variables["corebound_reports_dir"], check["evidence"][0])
    assert check["detail"].splitlines()[0] in evidence.read_text(encoding="utf-8")
    assert report["across_nodes"]["not_run"] == "not run: fewer than two nodes of the hostfile answer"
    assert report["hosts"][0]["tokens_per_s"] > 0


def test_ranks_in_other_places_and_other_weights_are_found_on_the_node_that_has_them(deployed: Deployed) -> None:
    """node2 has a hostfile of its own, and a damaged model with no digests to tell."""
    node2, weights = deployed.nodes[1], f"{MODEL}/model.safetensors"
    execute = deployed.podman.execute
    execute("node2", "cp", "--archive", HOSTFILE, "/root/hostfile")
    execute("node2", "cp", "--archive", MODEL, "/root/model")
    try:
        execute("node2", "sed", "--in-place", f"s/^{node2.address} slots=2/{node2.address} slots=1/", HOSTFILE)
        execute("node2", "rm", f"{MODEL}/corebound-manifest.json")
        size = int(execute("node2", "stat", "--format=%s", weights))
        damage = f"head -c 200000 /dev/urandom | dd of={weights} bs=1 seek={size // 2} conv=notrunc status=none"
        execute("node2", "sh", "-c", damage)
        code, report, output = smoke(deployed)
    finally:
        execute("node2", "cp", "--archive", "/root/hostfile", HOSTFILE)
        execute("node2", "sh", "-c", f"rm -r {MODEL} && mv /root/model {MODEL}")
    assert code != 0
    found = failures(report, "node2")
    assert "rank 2 on node2: planned on CPUs 0-1, found on 0" in found["ranks run where they were planned to"]["detail"]
    assert "expected as on node1" in found["hostfile is that of the first node"]["detail"]
    assert set(found) & {"one rank says what it says on node1", "one rank generates in float32"}, output
    assert "ranks run where they were planned to" not in failures(report, "node1")
    folder = Path(deployed.variables["corebound_reports_dir"])
    for check in found.values():
        assert check["detail"].splitlines()[0] in (folder / check["evidence"][0]).read_text(encoding="utf-8")
    assert (folder / "evidence/node2/rank-logs.txt").is_file()
    assert deployed.run("node2", COMMAND, "doctor").returncode == 0
