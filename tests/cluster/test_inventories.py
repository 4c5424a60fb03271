"""Inventories and playbooks: they parse, chain and say clearly what is wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
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
        "--extra-vars=protect_verb=deploy",
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
    assert "hint: there are: lab local prod" in done.stderr


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
    inventory = write_inventory(tmp_path / "site", {"a": LOCALHOST}, cluster_ssh={"hosts": {"b": LOCALHOST}})
    done = run_playbook("validate.yml", inventory)
    assert done.returncode != 0
    assert "host b: in no group that Corebound knows" in done.stdout


@pytest.mark.parametrize(
    ("group", "remedy"),
    [
        ("nodez", "did you mean nodes?"),
        ("host_tunning", "did you mean host_tuning?"),
        ("model_delivery", "that role always runs, on the group nodes; remove the group"),
        ("rack1", "there are: nodes, "),
    ],
)
def test_a_group_that_switches_nothing_on_is_an_error(tmp_path: Path, group: str, remedy: str) -> None:
    inventory = write_inventory(tmp_path / "site", {"a": LOCALHOST}, **{group: {"hosts": {"a": LOCALHOST}}})
    done = run_playbook("validate.yml", inventory)
    assert done.returncode != 0
    assert f"inventory site: unknown group {group}: {remedy}" in " ".join(done.stdout.split())


def test_a_group_of_the_site_is_accepted_when_it_is_named(tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path / "site", {"a": LOCALHOST}, rack1={"hosts": {"a": LOCALHOST}})
    done = run_playbook("validate.yml", inventory, corebound_own_groups=["rack1"])
    assert done.returncode == 0, done.stdout


def site_in(folder: Path, **variables: object) -> Path:
    """Returns an inventory named prod, as the committed one is protected, with two names for this machine."""
    settings = yaml.safe_load((ROOT / "inventories/prod/group_vars/all.yml").read_text(encoding="utf-8"))
    inventory = write_inventory(folder / "prod", {"a": LOCALHOST, "b": {**LOCALHOST, **variables}})
    (inventory / "group_vars").mkdir()
    (inventory / "group_vars/all.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return inventory


def test_the_example_of_prod_is_a_valid_and_protected_inventory(tmp_path: Path) -> None:
    text = (ROOT / "inventories/prod/hosts.yml.example").read_text(encoding="utf-8")
    inventory = site_in(tmp_path)
    (inventory / "hosts.yml").write_text(text, encoding="utf-8")
    (inventory / "hosts.yml.example").write_text(text, encoding="utf-8")
    listed = run_tool("ansible-inventory", "-i", "inventories/defaults", "-i", inventory, "--list")
    assert listed.returncode == 0, listed.stderr
    hosts = json.loads(listed.stdout)["_meta"]["hostvars"]
    assert [host["corebound_protected"] for host in hosts.values()] == [True, True]
    assert {host["ansible_host"] for host in hosts.values()} == {"192.0.2.11", "192.0.2.12"}
    done = run_playbook("validate.yml", inventory)
    assert done.returncode == 0, done.stdout


def test_prod_without_hosts_says_how_to_name_them() -> None:
    script = ROOT / "playbooks/scripts/run_playbook"
    environ = {**environment(), "INVENTORY": "prod"}
    done = subprocess.run(
        [str(script), "--check-inventory"], env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    if (ROOT / "inventories/prod/hosts.yml").exists():
        assert done.returncode == 0
        return
    assert done.returncode == 2
    assert "error: inventories/prod/hosts.yml is not there" in done.stderr
    assert "cp inventories/prod/hosts.yml.example inventories/prod/hosts.yml" in done.stderr


def test_a_confirmation_for_another_inventory_is_refused() -> None:
    script = ROOT / "playbooks/scripts/run_playbook"
    environ = {**environment(), "INVENTORY": "local", "CONFIRM": "prod"}
    done = subprocess.run(
        [str(script), "--check-inventory"], env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "error: CONFIRM is prod, but the inventory is local" in done.stderr


@pytest.fixture
def job() -> Iterator[int]:
    """Returns the process id of something that looks like a rank, while it runs."""
    command = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(300)"]
    environ = {**os.environ, "COREBOUND_JOB_ID": "job-of-a-test"}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_deploy_to_a_protected_inventory_names_what_it_would_end(tmp_path: Path, job: int) -> None:
    inventory = site_in(tmp_path)
    stopped = run_playbook("protect.yml", inventory, protect_verb="deploy")
    assert stopped.returncode != 0
    for host in ("a", "b"):
        assert f"{host}: job job-of-a-test (user " in stopped.stdout
    assert f"pids {job}" in stopped.stdout
    assert "with CONFIRM=prod" in stopped.stdout
    assert run_playbook("protect.yml", inventory, protect_verb="deploy", corebound_confirm="prod").returncode == 0
    assert run_playbook("protect.yml", inventory, protect_verb="deploy", corebound_protected=False).returncode == 0
    assert run_playbook("protect.yml", inventory, "--check", protect_verb="deploy").returncode == 0


def test_reset_of_a_protected_inventory_always_asks(tmp_path: Path) -> None:
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix/.corebound-prefix").touch()
    inventory = site_in(tmp_path)
    done = run_playbook("reset.yml", inventory, corebound_prefix=str(tmp_path / "prefix"))
    assert done.returncode != 0
    assert "inventory prod is protected, and reset may end what runs there" in done.stdout
    assert "a: everything that deploy put there" in done.stdout
    assert (tmp_path / "prefix").is_dir()


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
