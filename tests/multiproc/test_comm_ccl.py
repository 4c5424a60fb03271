"""The provider over oneCCL, on real ranks: sums, moves, groups, failures, and ranks that Intel MPI starts itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from multiproc import comm_tasks as tasks
from multiproc.rank_harness import Ranks, needs_ccl, start_ranks

pytestmark = [pytest.mark.multiproc, pytest.mark.native, needs_ccl]

SIZES = [0, 1, 3, 33, 1000, 4097, 100_003]
SCRIPT = """
import json, sys
import torch
from corebound import comm
group = comm.init_distributed(60)
total = group.all_reduce(torch.full((1001,), float(group.rank + 1)))
some = comm.new_group([0, 1])
pair = some.all_reduce(torch.tensor([1.0])) if some else None
group.barrier()
if group.rank == 0:
    print(json.dumps([group.name, group.size, total[1000].item(), pair.item()]))
group.close()
"""


@pytest.fixture(scope="module", params=[2, 3])
def job(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    with start_ranks(request.param, COREBOUND_COMM="ccl", LOCAL_WORLD_SIZE=str(request.param)) as ranks:
        joined = ranks.run(tasks.join, "ccl", timeout_s=90)
        assert {state["name"] for state in joined} == {"ccl"}
        yield ranks
    assert [process.exitcode for process in ranks.processes] == [0] * request.param


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8"])
def test_sums_are_right_and_all_ranks_hold_identical_bits(job: Ranks, dtype: str) -> None:
    digests = job.run(tasks.check_sums_of_ccl, "world", dtype, SIZES, timeout_s=60)
    assert len(digests[0]) == len(SIZES)
    assert all(digest == digests[0] for digest in digests)


def test_gather_and_broadcast_move_any_dtype_from_any_root(job: Ranks) -> None:
    job.run(tasks.check_moves, "world", [0, 1, 3, 511, 5000], timeout_s=60)


def test_any_mixture_of_operations_sizes_and_delays_stays_right(job: Ranks) -> None:
    assert len(set(job.run(tasks.mix_operations, "world", 100, seed=5, timeout_s=60))) == 1


def test_views_objects_and_a_dtype_that_is_not_summed(job: Ranks) -> None:
    job.run(tasks.check_views, "world")
    for got in job.run(tasks.objects, "world"):
        assert got == [*([root, 5000 * root] for root in range(len(job.processes))), "CommError"]
    for result in job.run(tasks.sum_unsupported, "world"):
        assert [line.startswith("all_reduce of torch.float64 goes through gloo") for line in result["log"]] == [True]


def test_groups_that_overlap_alternate(job: Ranks) -> None:
    last = len(job.processes) - 1
    for name, ranks in (("first", [0, 1]), ("second", [0, last])):
        job.run(tasks.make_group, name, ranks, provider="ccl", timeout_s=60)
    job.run(tasks.check_two_groups, "first", "second", timeout_s=60)


@pytest.mark.parametrize(("num_ranks", "victim"), [(2, 0), (3, 2)])
def test_a_killed_rank_is_named_by_all_others_which_then_end_in_peace(num_ranks: int, victim: int) -> None:
    with start_ranks(num_ranks, LOCAL_WORLD_SIZE=str(num_ranks)) as job:
        job.run(tasks.join, "ccl", timeout_s=90)
        job.start(tasks.call_for_ever, "world", "all_reduce", 50_000)
        time.sleep(0.5)
        job.kill(victim)
        others = [rank for rank in range(num_ranks) if rank != victim]
        start = time.monotonic()
        for outcome in job.finish(ranks=others, timeout_s=10):
            assert outcome.error_type == "PeerLostError", outcome
            assert "ccl all_reduce of 200000 bytes of float32 on rank" in outcome.error
            assert f"group of ranks {','.join(map(str, range(num_ranks)))}" in outcome.error
        assert time.monotonic() - start < 10
        # The culprit may be the first that gave up, but for the two of a pair.
        assert num_ranks > 2 or f"rank {victim} is gone" in outcome.error
    assert [job.processes[rank].exitcode for rank in others] == [0] * len(others)


def test_a_late_rank_is_a_timeout_that_names_the_group_and_the_late_one_learns_of_it() -> None:
    with start_ranks(2, LOCAL_WORLD_SIZE="2") as job:
        job.run(tasks.join, "ccl", timeout_s=90)
        job.start(tasks.call, "world", "all_reduce", timeout_s=0.5, ranks=[0])
        (outcome,) = job.finish(ranks=[0], timeout_s=10)
        assert outcome.error_type == "CommTimeoutError", outcome
        assert "group of ranks 0,1: not all members came within 0.5 s" in outcome.error
        job.start(tasks.call, "world", "barrier", ranks=[1])
        (outcome,) = job.finish(ranks=[1], timeout_s=10)
        assert outcome.error_type == "PeerLostError", outcome
    assert [process.exitcode for process in job.processes] == [0, 0]


def test_a_member_that_never_comes_is_a_timeout_and_the_process_ends_in_peace() -> None:
    with start_ranks(1, LOCAL_WORLD_SIZE="1") as job:
        for task, words in (
            (tasks.meet_alone, "no word from rank 1 (host away) within 1 s"),
            (
                tasks.open_alone,
                "not all 2 members joined the communicator within 1 s; no sign of life from rank 1 (host",
            ),
        ):
            job.start(task, 1.0)
            (outcome,) = job.finish(timeout_s=30)
            assert outcome.error_type == "CommTimeoutError", outcome
            assert words in outcome.error
    assert job.processes[0].exitcode == 0


def test_ranks_that_mpiexec_starts_itself_use_mpi(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    mpiexec = Path(sys.prefix) / "bin/mpiexec.hydra"
    runtime = Path(__file__).parents[2] / "runtime"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PMI_", "HYDRA_", "I_MPI_"))}
    environ |= {"COREBOUND_COMM": "ccl", "CCL_LOG_LEVEL": "info", "PYTHONPATH": str(runtime), "OMP_NUM_THREADS": "1"}
    environ |= {"MASTER_PORT": str(free_port()), "COREBOUND_LOG_LEVEL": "info"}
    result = subprocess.run(
        [str(mpiexec), "-n", "2", sys.executable, str(script)], env=environ, capture_output=True, text=True, timeout=110
    )
    assert result.returncode == 0, result.stderr[-2000:]
    # Asked for its log, oneCCL writes to standard output after its start too.
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("[")]
    assert json.loads(line) == ["ccl", 2, 3.0, 2.0]
    assert "atl-mpi:" in result.stderr


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
