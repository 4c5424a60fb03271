"""The whole deployment over ssh: from bare nodes, again, with one more node, with a dead node, and its undoing.

The tests share two nodes and go through their life in the order of this file; the last one undoes the deployment.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.ansible_runs import ROOT, changed_tasks, recap, run_playbook
from lab.cluster import wait_for
from lab.conftest import Grow
from lab.layout import nodes
from lab.podman import Podman

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(1500)]

INVENTORY = ROOT / "inventories/lab"
DEPLOY_TIMEOUT_S = 900.0
# Ansible's own folder for its scripts, what dpkg writes with any package, Python's caches, and files of the moment.
NOT_OURS = re.compile(
    r"^/(proc|sys|dev|run|tmp|var/(log|cache|tmp|lib/(apt|dpkg|systemd))|root/\.ansible|home/admin/\.ansible)(/|$)"
    r"|__pycache__|^/etc/(ld\.so\.cache|passwd-|group-|shadow-|gshadow-|subuid-|subgid-)$|/\.sudo_as_admin_successful$"
)


@dataclass(frozen=True)
class State:
    """Packages and files of a node."""

    packages: set[str]
    files: set[str]


@dataclass(frozen=True)
class Deployment:
    """The two runs of site.yml that made the deployment, and the nodes before."""

    before: dict[str, State]
    first: subprocess.CompletedProcess[str]
    with_another: subprocess.CompletedProcess[str]
    variables: dict[str, Any]


def look_at(podman: Podman, name: str) -> State:
    """Returns packages and file tree of a node: names, kinds, sizes, owners, modes and where links point."""
    packages = podman.execute(name, "dpkg-query", "--show", "--showformat", "${Package}\\n").split()
    found = podman.execute(name, "find", "/", "-xdev", "-not", "-type", "d", "-printf", "%p\t%y %s %u %m %l\\n")
    folders = podman.execute(name, "find", "/", "-xdev", "-type", "d", "-printf", "%p\t%y %u %m\\n")
    lines = (found + folders).splitlines()
    return State(set(packages), {line for line in lines if not NOT_OURS.search(line.partition("\t")[0])})


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns the variables of the test's runs: a short smoke run, and reports in a temporary folder."""
    subprocess.run([sys.executable, str(ROOT / "runtime/packaging/build_wheel.py")], check=True, timeout=500)
    return {"corebound_reports_dir": str(tmp_path_factory.mktemp("reports")), "cluster_tests_max_new_tokens": 4}


@pytest.fixture(scope="module")
def deployment(grow: Grow, podman: Podman, variables: dict[str, Any]) -> Iterator[Deployment]:
    """Returns one node deployed to from nothing, and then a second one added to the inventory."""
    grow(1)
    before = {"node1": look_at(podman, "node1")}
    first = run_playbook("site.yml", INVENTORY, timeout_s=DEPLOY_TIMEOUT_S, **variables)
    assert first.returncode == 0, first.stdout + first.stderr
    grow(2)
    before["node2"] = look_at(podman, "node2")
    with_another = run_playbook("site.yml", INVENTORY, timeout_s=DEPLOY_TIMEOUT_S, **variables)
    assert with_another.returncode == 0, with_another.stdout + with_another.stderr
    yield Deployment(before, first, with_another, variables)


def test_problems_of_all_nodes_are_reported_together_and_nothing_is_changed(
    grow: Grow, podman: Podman, variables: dict[str, Any]
) -> None:
    grow(2)
    before = look_at(podman, "node1")
    done = run_playbook("site.yml", INVENTORY, host_checks_min_memory_gib=1e6, **variables)
    assert done.returncode != 0
    for name in ("node1", "node2"):
        assert re.search(rf"{name}: memory: .* expected 1e\+06 GiB", done.stdout)
    assert look_at(podman, "node1") == before


def test_another_node_changes_on_the_first_only_what_names_the_nodes(deployment: Deployment) -> None:
    assert recap(deployment.first.stdout, "node1")["changed"] > 0
    assert set(changed_tasks(deployment.with_another.stdout, "node1")) == {
        "cluster_ssh : Let the user in from every node",
        "cluster_ssh : Make the host keys of every node known to the user",
        "hostfile : Render the hostfile",
    }


def test_deploying_again_changes_nothing_on_any_node(deployment: Deployment) -> None:
    again = run_playbook("site.yml", INVENTORY, timeout_s=DEPLOY_TIMEOUT_S, **deployment.variables)
    assert again.returncode == 0, again.stdout + again.stderr
    for name in ("node1", "node2"):
        assert recap(again.stdout, name)["changed"] == 0, changed_tasks(again.stdout, name)


def test_the_smoke_run_reports_every_node(deployment: Deployment) -> None:
    done = run_playbook("smoke.yml", INVENTORY, timeout_s=DEPLOY_TIMEOUT_S, **deployment.variables)
    assert done.returncode == 0, done.stdout
    report = json.loads(Path(deployment.variables["corebound_reports_dir"], "smoke.json").read_text(encoding="utf-8"))
    assert [(row["host"], row["verdict"]) for row in report["hosts"]] == [("node1", "pass"), ("node2", "pass")]
    for row in report["hosts"]:
        assert {rank["host"] for rank in row["ranks"]} == {row["host"]}
    tokens: dict[str, list[list[int]]] = {name: [] for name in ("node1", "node2")}
    for output in report["outputs"]:
        tokens[output["host"]].append(output["token_ids"])
    assert tokens["node1"] == tokens["node2"]


@pytest.mark.parametrize(("client", "server"), [("node1", "node2"), ("node2", "node1"), ("node1", "node1")])
def test_the_user_of_jobs_logs_in_with_host_keys_checked(
    deployment: Deployment, podman: Podman, client: str, server: str
) -> None:
    words = ["runuser", "--user=corebound", "--", "ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]
    assert podman.execute(client, *words, server, "hostname").strip() == server


def test_each_reader_finds_the_hosts_in_its_own_form(deployment: Deployment, podman: Podman) -> None:
    for suffix, form in (("", "{} slots=2"), (".impi", "{}:2"), (".mpich", "{}:2")):
        text = podman.execute("node2", "cat", f"/opt/corebound/etc/hostfile{suffix}")
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert lines == [form.format(node.address) for node in nodes(2)]


def test_a_damaged_model_is_repaired_on_the_node_that_has_it(deployment: Deployment, podman: Podman) -> None:
    weights = "/opt/corebound/models/demo/model.safetensors"
    podman.execute("node2", "sh", "-c", f"printf x >> {weights}")
    done = run_playbook("site.yml", INVENTORY, timeout_s=DEPLOY_TIMEOUT_S, **deployment.variables)
    assert done.returncode == 0, done.stdout
    assert changed_tasks(done.stdout, "node2") == ["model_delivery : Copy the files that are missing or differ"]
    assert changed_tasks(done.stdout, "node1") == []


def test_a_dead_node_is_named_and_the_others_are_still_reported(deployment: Deployment, podman: Podman) -> None:
    podman("kill", "--signal", "KILL", "node2")
    started = time.monotonic()
    done = run_playbook("smoke.yml", INVENTORY, timeout_s=DEPLOY_TIMEOUT_S, **deployment.variables)
    seconds = time.monotonic() - started
    podman("start", "node2")
    wait_for(nodes(2))
    assert done.returncode != 0
    assert "failed on node2: node can be visited" in " ".join(done.stdout.split())
    report = json.loads(Path(deployment.variables["corebound_reports_dir"], "smoke.json").read_text(encoding="utf-8"))
    assert [(row["host"], row["verdict"]) for row in report["hosts"]] == [("node1", "pass"), ("node2", "fail")]
    # Most of it is what the node that lives is asked; the dead one costs a connection attempt.
    assert seconds < 300
    again = run_playbook("smoke.yml", INVENTORY, timeout_s=DEPLOY_TIMEOUT_S, **deployment.variables)
    assert again.returncode == 0, again.stdout


def test_reset_leaves_the_nodes_as_they_were(deployment: Deployment, podman: Podman) -> None:
    done = run_playbook("reset.yml", INVENTORY, timeout_s=300, **deployment.variables)
    assert done.returncode == 0, done.stdout
    for name, before in deployment.before.items():
        after = look_at(podman, name)
        kept = after.packages - before.packages
        said = re.search(rf"{name} keeps: ([\w. +-]*)", done.stdout)
        assert said and set(said[1].split()) <= kept
        files_of_kept = set(podman.execute(name, "dpkg-query", "--listfiles", *sorted(kept)).splitlines())
        different = {line.partition("\t")[0] for line in after.files ^ before.files}
        assert different - files_of_kept == set()
    again = run_playbook("reset.yml", INVENTORY, timeout_s=300, **deployment.variables)
    assert recap(again.stdout, "node1")["changed"] == 0
