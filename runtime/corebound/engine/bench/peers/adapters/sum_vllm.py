"""vLLM's shared-memory all-reduce, called alone."""

from __future__ import annotations

import os

import ranks
import sums
import torch
import torch.distributed as dist
import vllm
from protocol import BenchJob, read_job
from vllm.platforms import current_platform


def measure(job: BenchJob) -> int:
    """Measure on this rank and return the exit code."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    current_platform.import_kernels()
    rank, size = dist.get_rank(), dist.get_world_size()
    name = f"corebound-bench-{os.environ['MASTER_PORT']}"
    handle = torch.ops._C.init_shm_manager(name, size, rank, 1)
    dist.barrier()
    torch.ops._C.join_shm_manager(handle, name)
    dist.barrier()
    sums.time_sums(job, lambda tensor: torch.ops._C.shm_allreduce(handle, tensor), vllm.__version__)
    dist.barrier()
    ranks.remove_segments(name)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    found = ranks.rank_job()
    raise SystemExit(ranks.run_ranks(read_job()) if found is None else measure(found))
