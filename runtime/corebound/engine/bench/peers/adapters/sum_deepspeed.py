"""DeepSpeed's shared-memory all-reduce, called alone."""

from __future__ import annotations

import deepspeed
import deepspeed.comm
import ranks
import sums
import torch
import torch.distributed as dist
from protocol import BenchJob, read_job


def measure(job: BenchJob) -> int:
    """Measure on this rank and return the exit code."""
    torch.set_num_threads(1)
    deepspeed.init_distributed()
    operator = getattr(torch.ops.deepspeed, "inference_all_reduce_", None)
    if operator is None:
        raise SystemExit("DeepSpeed could not build its shared-memory operator here")
    sums.time_sums(job, operator, deepspeed.__version__)
    ranks.remove_segments("deepspeed_allreduce_buffer_")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    found = ranks.rank_job()
    raise SystemExit(ranks.run_ranks(read_job()) if found is None else measure(found))
