"""The whole deployment over ssh, with every group switched on that site.yml knows (but ipex, which has its own test).

From bare nodes, again, with one more node, with a damaged model, with a dead node, and its undoing. The tests share two
nodes and go through their life in the order of this file; the last one undoes the deployment.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.ansible_runs import ROOT, changed_tasks, recap, run_playbook
from lab.cluster import start_again
from lab.conftest import Grow
from lab.jobs import eventually
from lab.layout import nodes
from lab.podman import Podman
from lab.service import JOURNAL, UNIT, main_pid, ranks
from lab.state import State, look_at, unit_state

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(3600)]

INVENTORY = ROOT / "inventories/lab"
DEPLOY_TIMEOUT_S = 1200.0
RESTART_TIMEOUT_S = 120.0
START_TIMEOUT_S = 300.0
SERVICE = {
    "inference_service_command": ["/srv/long_running.py"],
    "inference_service_launch_options": ["--bind_cores_to_rank", "--no_local_rank"],
    "inference_service_environment": {"MOTTO": '100 % of $HOME "quoted"'},
    "inference_service_restart_s": 1,
    "inference_service_max_restarts": 3,
}
GROUPS: dict[str, dict[str, Any]] = {"intel_mpi": {}, "oneccl": {}, "host_tuning": {}, "inference_service": SERVICE}
Site = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Deployment:
    """The two runs of site.yml that made the deployment, what the second reported, and the nodes before."""

    before: dict[str, State]
    first: subprocess.CompletedProcess[str]
    with_another: subprocess.CompletedProcess[str]
    report: dict[str, Any]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the smoke runs' reports."""
    return tmp_path_factory.mktemp("reports")


def report_in(reports: Path) -> dict[str, Any]:
    """Returns the report of the last smoke run."""
    found: dict[str, Any] = json.loads((reports / "smoke/smoke.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def site(reports: Path) -> Site:
    """Returns the function that runs a playbook on the lab with every group switched on, and a short smoke run."""
    subprocess.run([sys.executable, str(ROOT / "runtime/packaging/build_wheel.py")], check=True, timeout=900)
    extra = reports / "groups.yml"
    children = {name: {"children": {"nodes": {}}, "vars": variables} for name, variables in GROUPS.items()}
    extra.write_text(yaml.safe_dump({"all": {"children": children}}), encoding="utf-8")
    words = {"corebound_reports_dir": str(reports / "smoke"), "cluster_tests_max_new_tokens": 4}

    def run(playbook: str, **more: Any) -> subprocess.CompletedProcess[str]:
        options = ("--inventory", str(extra))
        return run_playbook(playbook, INVENTORY, *options, timeout_s=DEPLOY_TIMEOUT_S, **{**words, **more})

    return run


@pytest.fixture(scope="module")
def deployment(grow: Grow, podman: Podman, site: Site, reports: Path) -> Deployment:
    """Returns one node deployed to from nothing, and then a second one added to the inventory."""
    before: dict[str, State] = {}
    runs = []
    for number in (1, 2):
        name = grow(number)[-1].name
        podman("cp", str(ROOT / "tests/lab/long_running.py"), f"{name}:/srv/long_running.py")
        before[name] = look_at(podman, name)
        runs.append(site("site.yml"))
        assert runs[-1].returncode == 0, runs[-1].stdout + runs[-1].stderr
    return Deployment(before, runs[0], runs[1], report_in(reports))


def test_problems_of_all_nodes_are_reported_together_and_nothing_is_changed(
    grow: Grow, podman: Podman, site: Site
) -> None:
    grow(2)
    before = look_at(podman, "node1")
    done = site("site.yml", host_checks_min_memory_gib=1e6)
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
        "inference_service : Write the unit",
        "inference_service : Start it now and with the machine, or not",
    }


def test_the_service_is_ready_when_all_ranks_run(deployment: Deployment, podman: Podman) -> None:
    assert unit_state(podman, UNIT) == ("active", "enabled")
    assert unit_state(podman, UNIT, "node2")[0] == "inactive"
    status = podman.execute("node1", "systemctl", "show", "--property=StatusText", "--value", UNIT)
    assert status.strip() == "4 ranks run on 2 hosts"
    assert len(ranks(podman, "node1")) == len(ranks(podman, "node2")) == 2
    assert '100 % of $HOME "quoted"' in podman.execute("node1", *JOURNAL)
    assert podman.execute("node1", "ps", "-o", "user=", "-p", main_pid(podman)).strip() == "corebound"


def test_deploying_again_changes_nothing_on_any_node(deployment: Deployment, podman: Podman, site: Site) -> None:
    before = main_pid(podman)
    again = site("site.yml")
    assert again.returncode == 0, again.stdout + again.stderr
    for name in ("node1", "node2"):
        assert recap(again.stdout, name)["changed"] == 0, changed_tasks(again.stdout, name)
    assert main_pid(podman) == before


def test_the_smoke_run_at_the_end_reports_every_node(deployment: Deployment) -> None:
    report = deployment.report
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


def test_the_whole_launch_is_started_again_when_a_rank_fails(deployment: Deployment, podman: Podman) -> None:
    before = {name: set(ranks(podman, name)) for name in ("node1", "node2")}
    podman.execute("node1", "systemctl", "reset-failed", UNIT)  # the starts by deploy count too
    podman.execute("node2", "touch", "/home/corebound/fail-3")

    def all_are_new() -> bool:
        return all(len(now := set(ranks(podman, name))) == 2 and not now & before[name] for name in before)

    assert eventually(all_are_new, RESTART_TIMEOUT_S)
    journal = podman.execute("node1", *JOURNAL)
    assert re.search(r"rank 3 on \S+ .*exited with 7|rank 3 on .* 7", journal)


def test_too_many_restarts_leave_it_failed(deployment: Deployment, podman: Podman) -> None:
    def has_failed() -> bool:
        return unit_state(podman, UNIT)[0] == "failed"

    def started_again_or_failed() -> bool:
        return has_failed() or main_pid(podman) not in ("0", before)

    for _ in range(8):
        if not has_failed():
            before = main_pid(podman)
            podman.execute("node1", "touch", "/home/corebound/fail-0")
            assert eventually(started_again_or_failed, RESTART_TIMEOUT_S)
    assert has_failed()
    podman("exec", "node1", "rm", "-f", "/home/corebound/fail-0")
    assert ranks(podman, "node1") == ranks(podman, "node2") == []
    podman.execute("node1", "systemctl", "reset-failed", UNIT)
    podman.execute("node1", "systemctl", "start", UNIT, timeout_s=START_TIMEOUT_S)
    assert len(ranks(podman, "node2")) == 2


def test_a_protected_inventory_names_the_service_and_its_ranks_before_reset(
    deployment: Deployment, podman: Podman, site: Site
) -> None:
    for playbook in ("site.yml", "reset.yml"):
        done = site(playbook, corebound_protected=True)
        assert done.returncode != 0
        assert f"node1: service {UNIT} is active" in done.stdout
        for name in ("node1", "node2"):
            assert re.search(rf"{name}: job [0-9a-f]+ \(user corebound, pids ", done.stdout)
        assert "run it again with CONFIRM=lab" in done.stdout
    assert unit_state(podman, UNIT)[0] == "active"


def test_a_dead_node_is_named_and_the_others_are_still_reported(
    deployment: Deployment, podman: Podman, site: Site, reports: Path
) -> None:
    podman("kill", "--signal", "KILL", "node2")
    started = time.monotonic()
    done = site("smoke.yml")
    seconds = time.monotonic() - started
    start_again(podman, nodes(2)[1:])
    assert done.returncode != 0
    assert "failed on node2: node can be visited" in " ".join(done.stdout.split())
    report = report_in(reports)
    assert [(row["host"], row["verdict"]) for row in report["hosts"]] == [("node1", "pass"), ("node2", "fail")]
    # Most of it is what the node that lives is asked; the dead one costs a connection attempt.
    assert seconds < 600


def test_a_clean_stop_leaves_nothing_on_any_node(deployment: Deployment, podman: Podman) -> None:
    # The launch went with the dead node, more often than it may be started again.
    podman.execute("node1", "systemctl", "reset-failed", UNIT)
    podman.execute("node1", "systemctl", "start", UNIT, timeout_s=START_TIMEOUT_S)
    assert len(ranks(podman, "node2")) == 2
    podman.execute("node1", "systemctl", "stop", UNIT, timeout_s=START_TIMEOUT_S)
    assert unit_state(podman, UNIT)[0] == "inactive"
    for name in ("node1", "node2"):
        assert ranks(podman, name) == []
        assert "corebound" not in podman.execute(name, "ls", "/dev/shm")
    podman.execute("node1", "systemctl", "start", UNIT, timeout_s=START_TIMEOUT_S)


def test_a_damaged_model_is_repaired_on_the_node_that_has_it(
    deployment: Deployment, podman: Podman, site: Site
) -> None:
    weights = "/opt/corebound/models/demo/model.safetensors"
    podman.execute("node2", "sh", "-c", f"printf x >> {weights}")
    done = site("site.yml")
    assert done.returncode == 0, done.stdout
    assert changed_tasks(done.stdout, "node2") == ["model_delivery : Copy the files that are missing or differ"]
    assert changed_tasks(done.stdout, "node1") == []


def test_reset_leaves_the_nodes_as_they_were(deployment: Deployment, podman: Podman, site: Site) -> None:
    done = site("reset.yml", corebound_protected=True, corebound_confirm="lab")
    assert done.returncode == 0, done.stdout
    assert ranks(podman, "node1") == ranks(podman, "node2") == []
    for name, before in deployment.before.items():
        after = look_at(podman, name)
        assert before.packages <= after.packages
        kept = after.packages - before.packages
        said = re.search(rf"{name} keeps: ([\w. +-]*)", done.stdout)
        assert said and set(said[1].split()) <= kept
        files_of_kept = set(podman.execute(name, "dpkg-query", "--listfiles", *sorted(kept)).splitlines())
        different = {line.partition("\t")[0] for line in after.files ^ before.files}
        assert different - files_of_kept == set()
    again = site("reset.yml")
    assert (recap(again.stdout, "node1")["changed"], recap(again.stdout, "node2")["changed"]) == (0, 0)
