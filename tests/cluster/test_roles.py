"""Single roles on this machine, each in a folder of its own: what they write, and that a second run writes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from cluster.ansible_runs import ROOT, recap, run_playbook

LOCAL = ROOT / "inventories/local"
pytestmark = pytest.mark.slow

ONE_ROLE = "../tests/cluster/one_role.yml"


@pytest.fixture
def three_nodes(tmp_path: Path) -> Path:
    """Returns an inventory of three names for this machine."""
    host = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    hosts = {
        "node-a": host,
        "node-b": {**host, "hostfile_slots": 4},
        "node-c": {**host, "hostfile_address": "10.1.2.3", "hostfile_slots": 2},
    }
    folder = tmp_path / "three"
    folder.mkdir()
    text = yaml.safe_dump({"all": {"children": {"nodes": {"hosts": hosts}}}})
    (folder / "hosts.yml").write_text(text, encoding="utf-8")
    return folder


def slot_lines(path: Path) -> list[str]:
    """Returns the hostfile's lines without comments."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def test_the_hostfile_counts_sockets_and_obeys_overrides(three_nodes: Path, tmp_path: Path) -> None:
    hostfile = tmp_path / "etc/hostfile"
    done = run_playbook(ONE_ROLE, three_nodes, one_role="hostfile", hostfile_path=str(hostfile))
    assert done.returncode == 0, done.stdout
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    sockets = {line for line in cpuinfo.splitlines() if line.startswith("physical id")}
    assert slot_lines(hostfile) == [f"node-a slots={max(1, len(sockets))}", "node-b slots=4", "10.1.2.3 slots=2"]
    for dialect in ("impi", "mpich"):
        lines = slot_lines(hostfile.with_name(f"hostfile.{dialect}"))
        assert lines == [f"node-a:{max(1, len(sockets))}", "node-b:4", "10.1.2.3:2"]


def test_the_hostfile_counts_numa_nodes_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    hostfile = tmp_path / "etc/hostfile"
    variables = {"one_role": "hostfile", "hostfile_path": str(hostfile), "hostfile_slots_per": "numa_node"}
    assert run_playbook(ONE_ROLE, LOCAL, **variables).returncode == 0
    nodes = [
        path for path in Path("/sys/devices/system/node").glob("node[0-9]*") if (path / "cpulist").read_text().strip()
    ]
    assert slot_lines(hostfile) == [f"localhost slots={max(1, len(nodes))}"]
    again = run_playbook(ONE_ROLE, LOCAL, **variables)
    assert recap(again.stdout)["changed"] == 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Returns a folder in the shape of a model, with a manifest."""
    import hashlib

    folder = tmp_path / "source/tiny"
    (folder / "extra").mkdir(parents=True)
    files = {"config.json": "{}", "weights.safetensors": "w" * 1000, "extra/vocab.txt": "a\nb\n"}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    entries = {name: {"sha256": hashlib.sha256(text.encode()).hexdigest()} for name, text in files.items()}
    (folder / "corebound-manifest.json").write_text(json.dumps({"files": entries}), encoding="utf-8")
    return folder


def deliver(model: Path, target: Path) -> tuple[int, str]:
    """Returns exit code and output of the model_delivery role."""
    done = run_playbook(
        ONE_ROLE, LOCAL, one_role="model_delivery", model_delivery_source=str(model), model_delivery_dir=str(target)
    )
    return done.returncode, done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    """Returns path -> bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_arrives_whole_and_is_repaired_where_it_differs(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "models"
    code, output = deliver(model, target)
    assert code == 0, output
    assert contents(target / "tiny") == contents(model)

    (target / "tiny/weights.safetensors").write_text("w" * 999 + "x", encoding="utf-8")
    (target / "tiny/extra/vocab.txt").unlink()
    (target / "tiny/stale.safetensors").write_text("old", encoding="utf-8")
    kept_mtime_ns = (target / "tiny/config.json").stat().st_mtime_ns
    code, output = deliver(model, target)
    assert code == 0, output
    assert contents(target / "tiny") == contents(model)
    assert (target / "tiny/config.json").stat().st_mtime_ns == kept_mtime_ns

    code, output = deliver(model, target)
    assert recap(output)["changed"] == 0


def test_a_slash_at_the_end_of_the_source_does_not_cost_other_models(model: Path, tmp_path: Path) -> None:
    """`corebound_model: /srv/bloom/` delivered into the folder of all models and removed what lay there."""
    other = tmp_path / "models/other/config.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}", encoding="utf-8")
    done = run_playbook(
        ONE_ROLE,
        LOCAL,
        one_role="model_delivery",
        model_delivery_source=f"{model}//",
        model_delivery_dir=str(tmp_path / "models"),
    )
    assert done.returncode == 0, done.stdout
    assert other.exists()
    assert contents(tmp_path / "models/tiny") == contents(model)


def test_a_name_that_is_no_folder_name_is_refused_before_anything_changes(model: Path, tmp_path: Path) -> None:
    done = run_playbook(
        ONE_ROLE,
        LOCAL,
        one_role="model_delivery",
        model_delivery_source=str(model),
        model_delivery_name="..",
        model_delivery_dir=str(tmp_path / "models"),
    )
    assert done.returncode != 0
    assert "model_delivery_name is `..`" in " ".join(done.stdout.split())
    assert not (tmp_path / "models").exists()


def test_a_damaged_source_is_not_spread(model: Path, tmp_path: Path) -> None:
    (model / "weights.safetensors").write_text("w" * 10, encoding="utf-8")
    code, output = deliver(model, tmp_path / "models")
    assert code != 0
    assert "weights.safetensors missing or not what" in " ".join(output.split())
    assert not (tmp_path / "models").exists()


def test_host_checks_report_every_problem_of_every_host_at_once(three_nodes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_playbook(
        ONE_ROLE,
        three_nodes,
        one_role="host_checks",
        corebound_prefix=str(tmp_path / "file/corebound"),
        host_checks_min_memory_gib=1e6,
    )
    assert done.returncode != 0
    for host in ("node-a", "node-b", "node-c"):
        assert f"{host}: prefix:" in done.stdout
        assert f"{host}: memory:" in done.stdout
    assert "set the variable corebound_prefix" in done.stdout


def python_of_another_time(folder: Path, ahead_s: int) -> Path:
    """Returns a Python whose clock is ahead by so much."""
    (folder / "sitecustomize.py").write_text(
        f"import time\nnow = time.time\ntime.time = lambda: now() + {ahead_s}\n", encoding="utf-8"
    )
    python = folder / "python-of-another-time"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(
    ("policy", "code", "said"),
    [
        ("fail", 2, "node-b: clock: the clock is 3600."),
        ("warn", 0, "node-b: clock: the clock is 3600."),
        (False, 0, ""),
    ],
)
def test_a_clock_an_hour_off_is_named_as_its_policy_says(
    three_nodes: Path, tmp_path: Path, policy: object, code: int, said: str
) -> None:
    hosts = yaml.safe_load((three_nodes / "hosts.yml").read_text(encoding="utf-8"))
    hosts["all"]["children"]["nodes"]["hosts"]["node-b"]["host_checks_python"] = str(
        python_of_another_time(tmp_path, 3600)
    )
    (three_nodes / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
    done = run_playbook(
        ONE_ROLE, three_nodes, one_role="host_checks", host_checks_clock_policy=policy,
        corebound_prefix=str(tmp_path / "corebound"),
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    assert said in done.stdout
    assert ("clock:" in done.stdout) == bool(said)
    assert "node-a: clock" not in done.stdout


def test_a_policy_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    done = run_playbook(ONE_ROLE, LOCAL, one_role="host_checks", host_checks_numa_policy="ignore")
    assert done.returncode != 0
    assert "must be one of: fail, warn, off" in done.stdout
