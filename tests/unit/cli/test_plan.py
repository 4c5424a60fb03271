from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from corebound.cli.main import main
from fixtures.topology_trees import write_machine


@pytest.fixture(scope="module")
def interleaved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine of two sockets with even CPUs on one and odd ones on the other."""
    return write_machine("interleaved", tmp_path_factory.mktemp("interleaved"))


def plan_json(capsys: pytest.CaptureFixture[str], *args: str | Path) -> dict[str, Any]:
    assert main(["plan", "--json", *(str(arg) for arg in args)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_plan_of_another_machine_is_printed_with_the_fixed_keys(
    capsys: pytest.CaptureFixture[str], interleaved: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.py").touch()
    script = str(tmp_path / "s.py")
    found = plan_json(capsys, "--root", interleaved, "--bind_cores_to_rank", "--", script, "--steps", "2")
    assert [{key: rank[key] for key in ("rank", "local_rank", "host", "cpus")} for rank in found["ranks"]] == [
        {"rank": 0, "local_rank": 0, "host": "localhost", "cpus": [0, 2, 4, 6, 8, 10, 12, 14]},
        {"rank": 1, "local_rank": 1, "host": "localhost", "cpus": [1, 3, 5, 7, 9, 11, 13, 15]},
    ]
    for number, rank in enumerate(found["ranks"]):
        assert (rank["memory_nodes"], rank["memory_policy"], rank["num_threads"]) == ([number], "bind", 8)
        assert rank["env"]["RANK"] == str(number) and rank["env"]["OMP_NUM_THREADS"] == "8"
        assert rank["command"] == [sys.executable, "-u", script, f"--local_rank={number}", "--steps", "2"]
    assert found["commands"] == [[sys.executable, "-P", "-m", "corebound.launcher.agent"]]


def test_with_a_root_every_host_of_a_hostfile_looks_like_it(
    capsys: pytest.CaptureFixture[str], interleaved: Path, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\n")
    found = plan_json(capsys, "--root", interleaved, "-H", tmp_path / "hosts", "--bind-cores-to-rank")
    assert [(rank["host"], rank["cpus"][0]) for rank in found["ranks"]] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert len(found["commands"]) == 2


def test_cores_of_hosts_that_are_not_here_are_null(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("far.invalid slots=2\n")
    found = plan_json(capsys, "-H", tmp_path / "hosts")
    assert [rank["cpus"] for rank in found["ranks"]] == [None, None]


def test_the_table_shows_cores_memory_and_command(capsys: pytest.CaptureFixture[str], interleaved: Path) -> None:
    assert main(["plan", "--root", str(interleaved), "--num_gpus", "1", "--bind_cores_to_rank"]) == 0
    captured = capsys.readouterr()
    assert "0-15" in captured.out and "interleave 0-1" in captured.out and "own cores" in captured.out
    assert "1 rank on 1 host meet at 127.0.0.1:29500" in captured.out
    assert "warning: localhost: fewer ranks than the 2 NUMA nodes" in captured.err


def test_a_launch_that_does_not_fit_is_refused_with_the_counts(
    capsys: pytest.CaptureFixture[str], interleaved: Path
) -> None:
    assert main(["plan", "--root", str(interleaved), "--num_gpus", "17", "--bind_cores_to_rank"]) == 2
    assert "hint: use 1 to 16 ranks" in capsys.readouterr().err


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys\nfrom corebound.cli.main import main\ncode = main(['plan', '--json'])\n"
        "assert code == 0 and not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_slurm_without_a_hostfile_needs_an_allocation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    assert main(["plan", "--launcher", "slurm"]) == 2
    assert "no hostfile was given, and this is no Slurm allocation" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["ssh", "impi", "openmpi", "mpich"])
@pytest.mark.parametrize(
    "choice", [["--num_nodes", "2", "--num_gpus", "1"], ["--include", "a:0@b:0"], ["--exclude", "a:1@b:1@c"]]
)
def test_every_launcher_takes_filters_and_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, launcher: str, choice: list[str]
) -> None:
    """#5313, accelerate #3319: "impi does not support num_nodes/num_gpus or include/exclude" (ValueError)."""
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\nc slots=2\n")
    found = plan_json(capsys, "--launcher", launcher, "-H", tmp_path / "hosts", *choice)
    assert [(rank["host"], rank["slot"]) for rank in found["ranks"]] == [("a", 0), ("b", 0)]


def test_slots_that_are_meant_as_cores_are_explained(
    capsys: pytest.CaptureFixture[str], interleaved: Path, tmp_path: Path
) -> None:
    """#3624: users give slots = cores; slots are processes."""
    (tmp_path / "hosts").write_text("a slots=64\n")
    flags = ["--root", str(interleaved), "-H", str(tmp_path / "hosts"), "--bind_cores_to_rank"]
    assert main(["plan", *flags]) == 2
    assert "cannot bind 64 ranks to 16 physical cores" in capsys.readouterr().err
