"""transformers with its own tensor parallelism, `tp_plan="auto"`, over gloo."""

from __future__ import annotations

import causal_lm
import ranks
import torch
import torch.distributed as dist
import transformers
from protocol import BenchJob


@torch.inference_mode()
def measure(job: BenchJob) -> int:
    """Measure on this rank, let rank 0 write the report, and return the exit code."""
    dist.init_process_group("gloo")
    cases = causal_lm.measure(causal_lm.load(job, tp_plan="auto"), job)
    ranks.write_report(job, cases, transformers.__version__)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(ranks.main(measure))
