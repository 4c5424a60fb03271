"""A script that imports Corebound in DeepSpeed's place, started by torchrun, mpirun, accelerate and `corebound run`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import corebound
from corebound.config import env as environment
from corebound.launcher.transports.mpi import DIALECTS

pytestmark = [pytest.mark.multiproc, pytest.mark.native]

SCRIPT = """
import argparse, json, os, sys
import corebound as deepspeed

parser = argparse.ArgumentParser()
parser.add_argument("--local_rank", type=int, default=0)
parser.add_argument("--accelerate", action="store_true")
options = parser.parse_args()
if options.accelerate:
    from accelerate import Accelerator
    accelerator = Accelerator(cpu=True)
deepspeed.init_distributed(dist_backend="ccl", bind_cores=BIND)
import torch
import torch.distributed as dist
total = torch.ones(1001) * (dist.get_rank() + 1)
dist.all_reduce(total)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "KMP_AFFINITY")
sys.stdout.write(json.dumps({
    "env": {name: os.environ.get(name) for name in names},
    "rank": dist.get_rank(), "size": dist.get_world_size(), "sum": total[1000].item(),
    "cpus": sorted(os.sched_getaffinity(0)), "num_threads": torch.get_num_threads(),
    "tasks": sorted({str(sorted(os.sched_getaffinity(int(task)))) for task in os.listdir("/proc/self/task")}),
    "type": accelerator.state.distributed_type.value if options.accelerate else None,
}) + "\\n")
sys.stdout.flush()
dist.barrier()
dist.destroy_process_group()
"""
BIN = Path(sys.executable).parent
NUM_CORES = len(os.sched_getaffinity(0))
ROOT = ["--allow-run-as-root"] if os.geteuid() == 0 else []


def mpi(name: str) -> str:
    """The starter of an MPI, or the reason to skip."""
    found = DIALECTS[name].find(environment.snapshot())
    if found is None:
        pytest.skip(f"this machine lacks {DIALECTS[name].title}, to be had with {DIALECTS[name].package}")
    return str(found)


def command(outer: str, tmp_path: Path) -> list[str]:
    """The words that start two ranks of what follows them."""
    if outer == "torchrun":
        # Without a port of its own choice two runs at once would meet at 29500.
        return [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port())]
    if outer == "openmpi":
        return [mpi("openmpi"), *ROOT, "-n", "2", sys.executable]
    if outer in ("mpich", "impi"):
        return [mpi(outer), "-n", "2", sys.executable]
    if outer.startswith("accelerate"):
        starter = mpi(outer.partition("-")[2])
        # accelerate takes what the PATH has as mpirun, and tells by its words how to call it.
        (tmp_path / "bin").mkdir()
        if outer == "accelerate-openmpi":
            # Open MPI says its name only when it is called by that of accelerate's.
            (tmp_path / "bin/mpirun").symlink_to(starter)
        else:
            # Intel MPI looks for its parts beside itself.
            (tmp_path / "bin/mpirun").write_text(f'#!/bin/sh\nexec {starter} "$@"\n')
            (tmp_path / "bin/mpirun").chmod(0o755)
        (tmp_path / "hosts").write_text("localhost:2\n" if "open" not in outer else "localhost slots=2\n")
        flags = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
        flags += ["--dynamo_backend", "no", "--main_process_port", str(free_port())]
        return [str(BIN / "accelerate"), "launch", *flags, "--mpirun_hostfile", str(tmp_path / "hosts")]
    flags = ["--bind_cores_to_rank"] if outer == "corebound-bound" else []
    return [sys.executable, "-m", "corebound", "run", "--num_accelerators", "2", *flags]


def start(outer: str, tmp_path: Path, *args: str, bind: bool) -> tuple[list[dict[str, Any]], str]:
    """What each rank printed, in rank order, and what was said on standard error."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("BIND", str(bind)))
    words = command(outer, tmp_path)
    prefixes = ("PMI_", "HYDRA_", "I_MPI_", "OMPI_", "COREBOUND_", "OMP_", "KMP_", "MASTER_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    environ |= {"PYTHONPATH": str(Path(corebound.__file__).parents[1]), "COREBOUND_COMM_TIMEOUT_S": "100"}
    environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environ |= {"PATH": f"{tmp_path / 'bin'}:{environ['PATH']}", "HF_HOME": str(tmp_path)}
    if not outer.startswith("accelerate"):
        environ["MASTER_PORT"] = str(free_port())
    done = subprocess.run(
        [*words, "script.py", *args], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"env"')]
    return sorted(ranks, key=lambda rank: int(rank["rank"])), done.stderr


def check(ranks: list[dict[str, Any]], *, bound: bool) -> None:
    assert len(ranks) == 2
    for number, rank in enumerate(ranks):
        place = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        assert rank["env"].items() >= place.items()
        assert (rank["rank"], rank["size"], rank["sum"]) == (number, 2, 3.0)
    if bound:
        first, second = ranks
        assert first["cpus"] and second["cpus"] and not set(first["cpus"]) & set(second["cpus"])
        assert len(first["cpus"]) + len(second["cpus"]) == NUM_CORES
        for rank in ranks:
            assert rank["num_threads"] == len(rank["cpus"]) == int(rank["env"]["OMP_NUM_THREADS"])
            # Threads that torch and gloo started before are bound as well.
            assert rank["tasks"] == [str(rank["cpus"])]
            assert rank["env"]["KMP_AFFINITY"] is None


needs_cores = pytest.mark.skipif(NUM_CORES < 2, reason="this machine lacks a second core")


@needs_cores
@pytest.mark.parametrize("outer", ["torchrun", "openmpi", "mpich", "impi", "corebound-bound"])
def test_ranks_get_their_place_and_their_cores_whoever_starts_them(outer: str, tmp_path: Path) -> None:
    """DeepSpeed's Open MPI runner: "no MASTER_*/RANK env; no binding; no LOCAL_SIZE -> SHM off"."""
    ranks, said = start(outer, tmp_path, bind=True)
    check(ranks, bound=True)
    # As torch's message when two would listen at torchrun's port.
    assert "failed to bind" not in said


@needs_cores
@pytest.mark.parametrize("first", [False, True])
def test_accelerate_may_come_before_or_after_and_its_affinity_does_not_fight(first: bool, tmp_path: Path) -> None:
    """accelerate sets KMP_AFFINITY for every CPU launch; DeepSpeed: "ValueError telling to unset KMP_AFFINITY"."""
    outer = "accelerate-impi" if first else "accelerate-openmpi"
    ranks, said = start(outer, tmp_path, *(["--accelerate"] if first else []), bind=True)
    check(ranks, bound=True)
    assert said.count("KMP_AFFINITY is unset: it would fight the binding to cores") == 1
    assert [rank["type"] for rank in ranks] == (["MULTI_CPU"] * 2 if first else [None] * 2)


def test_ranks_that_torchrun_starts_anew_meet_again(tmp_path: Path) -> None:
    """torchrun keeps its store: what the first ranks wrote there must not be taken for words of the second."""
    (tmp_path / "twice.py").write_text(
        "import os, sys, time\n"
        "import corebound as deepspeed\n"
        # The second rank 0 is early: the words of rank 1 that it could find are those of the first.
        "time.sleep(2 * (os.environ['TORCHELASTIC_RESTART_COUNT'] == '1') * int(os.environ['RANK']))\n"
        "group = deepspeed.init_distributed('nccl')\n"
        "import torch\n"
        "total = group.all_reduce(torch.ones(3))[0].item()\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    os._exit(7)\n"
        "sys.stdout.write(f'{group.rank} {total:g}\\n')\n"
        "sys.stdout.flush()\n"
        "group.close()\n"
    )
    words = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--max_restarts", "1"]
    environ = {**os.environ, "PYTHONPATH": str(Path(corebound.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    words += ["--master_port", str(free_port()), "twice.py"]
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split("\n")) == ["", "0 2", "1 2"]
    assert "nccl is for GPUs" in done.stderr


def test_without_being_asked_nothing_is_bound(tmp_path: Path) -> None:
    ranks, _ = start("torchrun", tmp_path, bind=False)
    check(ranks, bound=False)
    assert {str(rank["cpus"]) for rank in ranks} == {str(sorted(os.sched_getaffinity(0)))}
    assert {rank["env"]["OMP_NUM_THREADS"] for rank in ranks} == {"1"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
