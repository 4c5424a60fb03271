"""Starts an adapter once more for each rank of an engine that shares its model between processes."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from protocol import BenchJob, BenchReport, CaseReport, peak_rss_bytes, read_job

_JOB_FLAG = "--rank-job"


def rank_job() -> BenchJob | None:
    """Return the job when this process is a rank that `run_ranks` started, else None."""
    if len(sys.argv) != 3 or sys.argv[1] != _JOB_FLAG:
        return None
    return BenchJob.from_json(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))


def main(measure: Callable[[BenchJob], int]) -> int:
    """Start the ranks of the job on standard input, or be one of them, which measures; return the exit code."""
    job = rank_job()
    return run_ranks(read_job()) if job is None else measure(job)


def write_report(job: BenchJob, cases: list[CaseReport], version: str) -> None:
    """Write what rank 0 measured and the memory of all ranks; every rank calls it."""
    import torch
    import torch.distributed as dist

    num_bytes = memory_of_all()
    if dist.get_rank() == 0:
        report = BenchReport(
            num_threads=torch.get_num_threads(), peak_rss_bytes=num_bytes, cases=cases, version=version
        )
        report.write(job.report_path)


def run_ranks(job: BenchJob) -> int:
    """Run this script as the ranks of a job, each on CPUs of its own, and return the first exit code that is not 0."""
    num_ranks = job.num_ranks
    path = Path(job.report_path).with_suffix(".job.json")
    path.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    cpus = sorted(os.sched_getaffinity(0))
    each = max(1, len(cpus) // num_ranks)
    port = _free_port()
    ranks = [
        subprocess.Popen(
            [
                "taskset",
                "--cpu-list",
                ",".join(map(str, cpus[rank * each : (rank + 1) * each])),
                "env",
                *(f"{name}={value}" for name, value in _place(rank, num_ranks, port, each).items()),
                sys.executable,
                sys.argv[0],
                _JOB_FLAG,
                str(path),
            ],
            stdin=subprocess.DEVNULL,
        )
        for rank in range(num_ranks)
    ]
    return next((code for code in [rank.wait() for rank in ranks] if code), 0)


def _place(rank: int, num_ranks: int, port: int, num_threads: int) -> dict[str, object]:
    return {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": num_ranks,
        "LOCAL_SIZE": num_ranks,
        "LOCAL_WORLD_SIZE": num_ranks,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": num_threads,
    }


def _free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])


def memory_of_all() -> int:
    """Return the most memory of all ranks together; every rank of a process group calls it."""
    import torch
    import torch.distributed as dist

    total = torch.tensor([peak_rss_bytes()], dtype=torch.int64)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return int(total)


def remove_segments(prefix: str) -> None:
    """Remove the shared memory of this launch that the engine leaves behind; rank 0 does it, after the last sum.

    Its names hold the prefix and the port that the launch rendezvoused at, which no other launch has.
    """
    import torch.distributed as dist

    dist.barrier()
    if dist.get_rank() == 0:
        for path in Path("/dev/shm").glob(f"*{prefix}*"):  # noqa: S108 - where POSIX shared memory is
            if os.environ["MASTER_PORT"] in path.name:
                path.unlink(missing_ok=True)
