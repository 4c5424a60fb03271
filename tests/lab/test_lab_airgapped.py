"""Deploying from a bundle where there is no index: nodes that reach nothing but the lab, and a machine without network.

The tests share two nodes and go through their life in the order of this file; the last one undoes the deployment.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.ansible_runs import ROOT, changed_tasks, environment, recap, run_playbook
from lab.airgap import cut_off, num_refused
from lab.conftest import Grow
from lab.layout import INVENTORY, Node
from lab.podman import Podman

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(2400)]

UNPACKED = ROOT / "build/bundle"
PREFIX = "/opt/corebound"
# Kept free for documentation: it belongs to nobody, should a packet ever leave.
NOWHERE = "192.0.2.1"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"
COPIES = "runtime : Copy the wheels that are missing or differ"


def make(*words: str, before: Sequence[str] = (), **environ: str) -> subprocess.CompletedProcess[str]:
    """Returns what a make target came to."""
    command = [*before, "make", f"PYTHON3={sys.executable}", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**environment(), **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


@pytest.fixture(scope="module")
def bundle() -> Path:
    """Returns a bundle of this checkout with all that a bundle can hold."""
    done = make("bundle", "BUNDLE_WITH=intel_mpi oneccl")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def members(grow_bare: Grow, podman: Podman) -> Iterator[list[Node]]:
    """Returns two bare nodes that reach the lab's addresses only, in an inventory with every optional group."""
    found = grow_bare(2)
    for node in found:
        cut_off(podman, node.name)
    inventory = yaml.safe_load(INVENTORY.read_text(encoding="utf-8"))
    for group in ("intel_mpi", "oneccl"):
        inventory["all"]["children"][group] = {"children": {"nodes": {}}}
    INVENTORY.write_text(yaml.safe_dump(inventory, sort_keys=False), encoding="utf-8")
    yield found


def deploy(bundle: Path) -> subprocess.CompletedProcess[str]:
    """Returns what `make deploy` from a bundle came to, with a short smoke run."""
    return make("deploy", "INVENTORY=lab", f"BUNDLE={bundle}", "OPTIONS=-e cluster_tests_max_new_tokens=4")


def with_flipped_byte(bundle: Path, start: str, target: Path) -> tuple[Path, str]:
    """Returns a copy of the bundle with one other byte in the middle of the file whose name starts so, and its name."""
    shutil.copyfile(bundle, target)
    with tarfile.open(bundle, "r:") as archive:
        entry = next(entry for entry in archive if entry.name.startswith(start))
    with target.open("r+b") as file:
        file.seek(entry.offset_data + entry.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return target, entry.name


def manifest_of(bundle: Path) -> dict[str, Any]:
    """Returns the manifest of a bundle."""
    with tarfile.open(bundle, "r:") as archive:
        file = archive.extractfile("MANIFEST.json")
        assert file is not None
        manifest: dict[str, Any] = json.load(file)
        return manifest


def tries(podman: Podman, node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    """Returns what a command on a node came to."""
    return podman("exec", node.name, *words, timeout_s=180, check=False)


def test_a_cut_off_node_reaches_the_other_one_and_nothing_else(members: list[Node], podman: Podman) -> None:
    node, other = members
    assert tries(podman, node, "python3", "-c", CONNECT, other.address, "22").returncode == 0
    assert num_refused(podman, node.name) == 0
    assert tries(podman, node, "python3", "-c", CONNECT, NOWHERE, "443").returncode != 0
    assert num_refused(podman, node.name) > 0
    num_others = num_refused(podman, node.name, "others")
    assert tries(podman, node, "python3", "-c", CONNECT, "pypi.org", "443").returncode != 0
    assert num_refused(podman, node.name, "others") > num_others


def test_a_damaged_bundle_is_refused_with_the_file_before_anything_is_changed(
    bundle: Path, members: list[Node], podman: Podman, tmp_path: Path
) -> None:
    damaged, name = with_flipped_byte(bundle, "wheels/runtime/numpy-", tmp_path / "damaged.tar")
    before = {path: path.stat().st_mtime_ns for path in UNPACKED.rglob("*")}
    done = deploy(damaged)
    assert done.returncode != 0
    expected = manifest_of(bundle)["files"][name]["sha256"]
    assert f"{name}: expected SHA-256 {expected}, found " in done.stderr
    assert "hint: no machine was changed" in done.stderr
    assert done.stdout == ""
    assert {path: path.stat().st_mtime_ns for path in UNPACKED.rglob("*")} == before
    for node in members:
        assert tries(podman, node, "ls", PREFIX).returncode != 0


def test_deploying_twice_from_a_bundle_asks_nobody_and_changes_nothing_the_second_time(
    bundle: Path, members: list[Node], podman: Podman
) -> None:
    before = [num_refused(podman, node.name) for node in members]
    first = deploy(bundle)
    assert first.returncode == 0, first.stdout + first.stderr
    second = deploy(bundle)
    assert second.returncode == 0, second.stdout + second.stderr
    for node in members:
        assert COPIES in changed_tasks(first.stdout, node.name)
        assert recap(second.stdout, node.name)["changed"] == 0, changed_tasks(second.stdout, node.name)
    assert [num_refused(podman, node.name) for node in members] == before


def test_pip_on_a_deployed_node_finds_no_index(members: list[Node], podman: Podman) -> None:
    words = [f"{PREFIX}/venv/bin/python", "-m", "pip", "--retries", "0", "--timeout", "5", "download", "--no-deps"]
    done = tries(podman, members[0], *words, "--dest", "/tmp/download", "click==8.5.1")
    assert done.returncode != 0
    assert "No matching distribution found for click" in done.stderr


def test_intel_mpi_starts_processes_where_the_launcher_looks_for_it(members: list[Node], podman: Podman) -> None:
    for node in members:
        done = tries(podman, node, f"{PREFIX}/venv/bin/mpiexec.hydra", "-n", "2", "hostname")
        assert done.stdout.split() == [node.name, node.name], done.stderr
    plan = [f"{PREFIX}/venv/bin/corebound", "plan", "--launcher", "impi", "--hostfile", f"{PREFIX}/etc/hostfile"]
    done = tries(podman, members[0], *plan, "--no_python", "hostname")
    assert f"{PREFIX}/venv/bin/mpiexec.hydra" in done.stdout, done.stderr


def test_doctor_finds_oneccl_on_nodes_that_have_no_compiler(members: list[Node], podman: Podman) -> None:
    for node in members:
        assert tries(podman, node, "g++", "--version").returncode != 0
        words = ["env", "COREBOUND_COMM=ccl", f"{PREFIX}/venv/bin/corebound", "doctor", "--json"]
        checks = json.loads(tries(podman, node, *words).stdout)["checks"]
        assert [check["status"] for check in checks if check["name"] == "oneccl"] == ["pass"]


def test_a_delivery_goes_on_with_the_files_that_are_missing_or_differ(members: list[Node], podman: Podman) -> None:
    damage = "rm rich-*.whl && printf x >> $(echo click-*.whl) && touch stale-1.0-py3-none-any.whl"
    podman.execute("node2", "sh", "-c", f"cd {PREFIX}/packages/wheels/runtime && {damage}")
    one_role = {"one_role": "runtime", "corebound_bundle_dir": str(UNPACKED)}
    done = run_playbook("../tests/cluster/one_role.yml", INVENTORY.parent, timeout_s=900, **one_role)
    assert done.returncode == 0, done.stdout
    assert changed_tasks(done.stdout, "node1") == []
    assert changed_tasks(done.stdout, "node2") == [COPIES, "runtime : Remove the wheels of an earlier bundle"]
    copied = [line for line in done.stdout.splitlines() if line.startswith("changed: [node2] => (item=")]
    assert sorted(line.partition("item=")[2].partition("-")[0] for line in copied) == ["click", "rich", "stale"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("python", "3.99", "python: expected 3.99, found 3."),
        ("machine", "riscv64", "machine: expected riscv64, found x86_64"),
        ("min_glibc", "9.1", "glibc: expected 9.1 or newer, found 2."),
    ],
)
def test_a_bundle_for_other_machines_is_refused_by_every_node(
    bundle: Path, members: list[Node], tmp_path: Path, key: str, value: str, words: str
) -> None:
    manifest = manifest_of(bundle)
    manifest["platform"][key] = value
    (tmp_path / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
    done = run_playbook("site.yml", INVENTORY.parent, timeout_s=600, corebound_bundle_dir=str(tmp_path))
    assert done.returncode != 0
    for node in members:
        assert f"{node.name}: bundle: {words}" in " ".join(done.stdout.split())
        assert recap(done.stdout, node.name)["changed"] == 0


def test_reset_takes_everything_away_again(members: list[Node], podman: Podman) -> None:
    done = run_playbook("reset.yml", INVENTORY.parent, timeout_s=900)
    assert done.returncode == 0, done.stdout
    for node in members:
        undone = {"oneccl : Remove the binding", "runtime : Remove what it names", "runtime : Remove the prefix"}
        assert undone <= set(changed_tasks(done.stdout, node.name))
        assert tries(podman, node, "ls", PREFIX).returncode != 0


def test_a_machine_without_network_and_tools_deploys_to_itself(bundle: Path, tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("this machine lacks unshare")
    venv = tmp_path / "venv"
    options = {
        "corebound_prefix": str(tmp_path / "prefix"),
        "corebound_link_dir": "",
        "corebound_reports_dir": str(tmp_path / "reports"),
        "cluster_tests_max_new_tokens": 4,
    }
    words = ["deploy", f"BUNDLE={bundle}", f"VENV={venv}", f"OPTIONS=--extra-vars '{json.dumps(options)}'"]
    alone = ["unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "alone"]
    done = make(*words, before=alone, HOME=str(tmp_path), PIP_CONFIG_FILE="/dev/null", PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert recap(done.stdout)["changed"] > 0
    report = json.loads((tmp_path / "reports/smoke.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "pass"
    # Running playbooks takes neither torch nor a compiler.
    assert not list((venv / "lib").glob("python3*/site-packages/torch"))
