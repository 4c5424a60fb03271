"""Inventories and playbooks: they parse, chain and say clearly what is wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.ansible_runs import ROOT, environment, run_playbook, run_tool

INVENTORIES = sorted(
    path.parent.name for path in (ROOT / "inventories").glob("*/hosts.yml") if path.parent.name != "defaults"
)
PLAYBOOKS = sorted(path.name for path in (ROOT / "playbooks").glob("*.yml"))
LOCALHOST = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}


def write_inventory(folder: Path, nodes: dict[str, object], **groups: object) -> Path:
    """Returns an inventory with these hosts in `nodes`, and other groups as given."""
    folder.mkdir(exist_ok=True)
    children = {"nodes": {"hosts": nodes}, **groups}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": children}}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_an_inventory_parses_and_has_nodes(inventory: str) -> None:
    done = run_tool("ansible-inventory", "-i", "inventories/defaults", "-i", f"inventories/{inventory}", "--list")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nodes"]["hosts"]


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_playbook_passes_the_syntax_check(playbook: str) -> None:
    done = run_tool(
        "ansible-playbook",
        "-i",
        "inventories/defaults",
        "-i",
        "inventories/local",
        "--syntax-check",
        f"playbooks/{playbook}",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_default_groups_are_empty_and_commented() -> None:
    text = (ROOT / "inventories/defaults/hosts.yml").read_text(encoding="utf-8")
    lines = text.splitlines()
    for name, group in yaml.safe_load(text)["all"]["children"].items():
        assert group == {"hosts": {}}, name
        assert lines[lines.index(f"    {name}:") - 1].strip().startswith("#"), name


@pytest.mark.parametrize("name", ["prod-typo", "defaults", "../inventories/local", ""])
def test_an_unknown_inventory_prints_those_there_are(name: str) -> None:
    environ = {**environment(), "INVENTORY": name} if name else {**os.environ, "INVENTORY": "no such"}
    script = ROOT / "playbooks/scripts/run_playbook"
    done = subprocess.run(
        [str(script), "--check-inventory"], env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no inventory named")
    assert "hint: there are: lab local" in done.stderr


def test_the_local_inventory_is_valid() -> None:
    done = run_playbook("validate.yml", ROOT / "inventories/local")
    assert done.returncode == 0, done.stdout


def test_a_misspelt_variable_is_named_with_its_host_and_the_nearest_name(tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path / "site", {"worker-1": {**LOCALHOST, "runtime_prefx": "/srv"}})
    done = run_playbook("validate.yml", inventory)
    assert done.returncode != 0
    assert "host worker-1: unknown variable runtime_prefx: did you mean runtime_prefix?" in done.stdout


def test_an_inventory_without_nodes_says_where_to_put_them(tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path / "site", {}, spare={"hosts": {"worker-1": LOCALHOST}})
    done = run_playbook("validate.yml", inventory)
    assert done.returncode != 0
    assert "inventory site: group `nodes` has no host" in done.stdout


def test_a_host_outside_every_group_is_named(tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path / "site", {"a": LOCALHOST}, nodez={"hosts": {"b": LOCALHOST}})
    done = run_playbook("validate.yml", inventory)
    assert done.returncode != 0
    assert "host b: in no group that Corebound knows" in done.stdout


def test_a_model_folder_that_is_missing_is_told_before_anything_is_installed(tmp_path: Path) -> None:
    done = run_playbook("validate.yml", ROOT / "inventories/local", corebound_model=str(tmp_path / "bloom"))
    assert done.returncode != 0
    assert "bloom/config.json is not on this machine" in " ".join(done.stdout.split())


def test_a_wrong_choice_is_refused_by_the_argument_specification(tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path / "site", {"localhost": LOCALHOST})
    done = run_playbook(
        "../tests/cluster/one_role.yml", inventory, one_role="hostfile", hostfile_slots_per="sockets",
        corebound_prefix=str(tmp_path / "prefix"),
    )  # fmt: skip
    assert done.returncode != 0
    assert "must be one of: socket, numa_node" in done.stdout


def test_a_group_that_the_bundle_holds_nothing_for_is_told_before_anything_is_installed(tmp_path: Path) -> None:
    hosts = {"hosts": {"worker-1": {}}}
    inventory = write_inventory(tmp_path / "site", {"worker-1": LOCALHOST}, intel_mpi=hosts, oneccl=hosts)
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"with": ["intel_mpi"]}), encoding="utf-8")
    done = run_playbook("validate.yml", inventory, corebound_bundle_dir=str(tmp_path))
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "host worker-1: is in the group oneccl, but the bundle holds nothing for it" in said
    assert "make bundle BUNDLE_WITH=oneccl" in said
    assert "in the group intel_mpi, but" not in said
