"""DeepSpeed's automatic tensor parallelism on CPUs, over its shared memory."""

from __future__ import annotations

import causal_lm
import deepspeed
import ranks
import torch
import torch.distributed as dist
from protocol import BenchJob


@torch.inference_mode()
def measure(job: BenchJob) -> int:
    """Measure on this rank, let rank 0 write the report, and return the exit code."""
    deepspeed.init_distributed()
    engine = deepspeed.init_inference(
        causal_lm.load(job),
        tensor_parallel={"tp_size": dist.get_world_size()},
        dtype=getattr(torch, job.dtype),
        replace_with_kernel_inject=False,
    )
    cases = causal_lm.measure(engine.module, job)
    ranks.write_report(job, cases, deepspeed.__version__)
    ranks.remove_segments("deepspeed_allreduce_buffer_")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(ranks.main(measure))
