from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from corebound.cli import main as cli_main
from corebound.cli.tables import format_bytes, render_table
from corebound.topology import read_topology
from fixtures.topology_trees import MACHINES, shared_machine


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = cli_main.main(["topology", *args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


CONTAINER_TEXT = """\
machine   Intel(R) Xeon(R) Platinum 8480+
sockets   2, with 64 cores, 2 CPUs a core
CPUs      128 online
allowed   6 CPUs on 3 cores: 4-6,68-70
memory    512 GiB, 6 GiB available, limited to 8 GiB, 12 of 16 huge pages of 2 MiB free, transparent huge pages: madvise
/dev/shm  64 MiB
cgroup    v2, CPUs 4-6,68-70, memory nodes 0, quota 3 CPUs

node  socket  kind                      memory   free     allowed cores  allowed CPUs  distances
   0  0       dram                      256 GiB  128 GiB              3  4-6,68-70     10 21
   1  1       dram, memory not allowed  256 GiB  128 GiB              0  -             21 10

cache           size each  number  CPUs each
L1 data         48 KiB         64          2
L1 instruction  32 KiB         64          2
L2 unified      2 MiB          64          2
L3 unified      105 MiB         2         64

instruction sets  runs  note
amx               no    missing amx_permission
avx512_bf16       yes   best (from cpuinfo)
avx512_vnni       yes
avx512            yes
avx2              yes
generic           yes
"""


def test_the_text_of_a_container_is_as_agreed(capsys: pytest.CaptureFixture[str]) -> None:
    root = shared_machine("container-6-of-128")
    code, out, err = run(capsys, "--root", str(root))
    assert code == 0
    assert out == CONTAINER_TEXT
    assert err == ""


@pytest.mark.parametrize("name", ["flat-hbm", "no-sysfs", "nothing", "sparse-nodes", "offline"])
def test_json_repeats_what_was_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = shared_machine(name)
    code, out, err = run(capsys, "--root", str(root), "--json")
    found = read_topology(root)
    document = json.loads(out)
    assert code == 0
    assert err == ""
    assert document["allowed_cpus"] == list(found.allowed_cpus)
    assert [node["id"] for node in document["nodes"]] == [node.id for node in found.nodes]
    assert [core["cpus"] for core in document["cores"]] == [list(core.cpus) for core in found.physical_cores()]
    assert document["best_isa"] == found.isa.best
    assert document["warnings"] == list(found.warnings)


def test_json_names_the_hbm_node_of_each_cpu_node(capsys: pytest.CaptureFixture[str]) -> None:
    root = shared_machine("flat-hbm")
    _, out, _ = run(capsys, "--root", str(root), "--json")
    assert json.loads(out)["hbm_nodes"] == [{"node": 0, "hbm_node": 2}, {"node": 1, "hbm_node": 3}]


def test_warnings_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    root = shared_machine("no-sysfs")
    _, out, err = run(capsys, "--root", str(root))
    assert err.startswith("warning: no sysfs")
    assert "warning" not in out


@pytest.mark.parametrize("name", MACHINES)
def test_no_machine_breaks_the_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = shared_machine(name)
    code, out, _ = run(capsys, "--root", str(root))
    assert code == 0
    assert "allowed" in out


def test_a_root_that_is_missing_is_a_host_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--root", str(tmp_path / "nowhere"))
    assert code == 3
    assert out == ""
    assert "no such directory" in err
    assert "hint:" in err


def test_a_process_says_in_one_line_where_it_may_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in {**place, "OMP_NUM_THREADS": "7"}.items():
        monkeypatch.setenv(name, value)
    code, out, _ = run(capsys, "--process", "--json")
    assert code == 0 and out.count("\n") == 1
    found = json.loads(out)
    assert found["cpus"] == sorted(os.sched_getaffinity(0))
    assert (found["rank"], found["local_rank"], found["num_threads"]) == (3, 1, 7)
    assert found["host"] == platform.node()
    code, out, _ = run(capsys, "--process")
    assert code == 0 and out.count("\n") == 1
    assert out.startswith(f"rank 3 on {platform.node()}: CPUs ") and "7 threads, memory policy " in out


def test_a_process_is_not_to_be_found_in_a_copied_tree(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--process", "--root", "/tmp")
    assert code == 2
    assert "--process and --root /tmp cannot be used together" in err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "corebound topology --json | jq" in out


@pytest.mark.parametrize("module", ["corebound.cli.topology", "corebound.cli.doctor", "corebound.topology"])
def test_torch_is_never_imported(module: str) -> None:
    code = (
        f"import sys, {module}, corebound.topology; corebound.topology.read_topology();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'rich')))"
    )
    result = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (3 << 40, "3 TiB"), (None, "unknown")],
)
def test_sizes_are_written_in_the_largest_unit_that_fits(num_bytes: int | None, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_a_table_aligns_numbers_to_the_right_and_text_to_the_left() -> None:
    assert render_table(["name", "n"], [["a", 5], ["bcdef", 100]]) == "name     n\na        5\nbcdef  100"


def test_a_cell_that_is_too_wide_is_cut_visibly() -> None:
    assert render_table(["x"], [["abcdefghij"]], max_width=6) == "x\nabc..."
