"""DeepSpeed's automatic tensor parallelism on CPUs, over its shared memory."""

from __future__ import annotations

import causal_lm
import deepspeed
import ranks
import torch
import torch.distributed as dist
from protocol import BenchJob, BenchReport, read_job


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
    num_bytes = ranks.memory_of_all()
    if dist.get_rank() == 0:
        BenchReport(
            num_threads=torch.get_num_threads(),
            peak_rss_bytes=num_bytes,
            cases=cases,
            version=deepspeed.__version__,
        ).write(job.report_path)
    ranks.remove_segments("deepspeed_allreduce_buffer_")
    dist.destroy_process_group()
    return 0


def main() -> int:
    """Start the ranks, or be one of them."""
    job = ranks.rank_job()
    return ranks.run_ranks(read_job()) if job is None else measure(job)


if __name__ == "__main__":
    raise SystemExit(main())
