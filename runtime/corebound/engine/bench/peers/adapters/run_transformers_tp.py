"""transformers with its own tensor parallelism, `tp_plan="auto"`, over gloo."""

from __future__ import annotations

import causal_lm
import ranks
import torch
import torch.distributed as dist
import transformers
from protocol import BenchJob, BenchReport, read_job


@torch.inference_mode()
def measure(job: BenchJob) -> int:
    """Measure on this rank, let rank 0 write the report, and return the exit code."""
    dist.init_process_group("gloo")
    cases = causal_lm.measure(causal_lm.load(job, tp_plan="auto"), job)
    num_bytes = ranks.memory_of_all()
    if dist.get_rank() == 0:
        BenchReport(
            num_threads=torch.get_num_threads(),
            peak_rss_bytes=num_bytes,
            cases=cases,
            version=transformers.__version__,
        ).write(job.report_path)
    dist.destroy_process_group()
    return 0


def main() -> int:
    """Start the ranks, or be one of them."""
    job = ranks.rank_job()
    return ranks.run_ranks(read_job()) if job is None else measure(job)


if __name__ == "__main__":
    raise SystemExit(main())
