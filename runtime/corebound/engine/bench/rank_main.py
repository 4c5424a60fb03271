"""One measurement of our ranks: `python -m corebound.engine.bench.rank_main`, the job as JSON on rank 0."""

from __future__ import annotations

import time

import torch

from corebound.comm import Collectives
from corebound.comm.rank_process import leave, run_rank
from corebound.engine.bench.job import BenchJob, BenchReport
from corebound.engine.job import read_job
from corebound.engine.llm import LLM
from corebound.engine.metrics import summary
from corebound.engine.request import SamplingParams


def main() -> int:
    """Measure, let rank 0 write the report, and return the exit code."""
    return run_rank(_measure)


def _measure(collectives: Collectives) -> None:
    job = BenchJob(**collectives.broadcast_object(read_job() if collectives.rank == 0 else None))
    llm = LLM(job.model_dir, dtype=job.dtype, text=False, collectives=collectives)
    prompt = [job.prompt_token_ids]
    for count in {2, job.num_warm_up_tokens}:
        llm.generate(prompt, SamplingParams(max_new_tokens=count, ignore_eos=True))
    started_s = time.perf_counter()
    outputs = llm.generate(prompt, SamplingParams(max_new_tokens=job.num_new_tokens, ignore_eos=True))
    times = summary(outputs, time.perf_counter() - started_s)
    ranks = llm.ranks()
    shares = [collectives.broadcast_object(llm.weight_bytes_per_token, root=root) for root in range(collectives.size)]
    if collectives.rank == 0:
        BenchReport(
            num_threads=torch.get_num_threads(),
            first_token_ms=times["first_token_ms"],
            next_token_ms=times["next_token_ms"],
            tokens_per_s=times["tokens_per_s"],
            peak_rss_bytes=sum(entry["peak_rss_bytes"] for entry in ranks),
            weight_bytes_per_token=sum(shares),
            cpus=sorted({cpu for entry in ranks for cpu in entry["cpus"]}),
        ).write(job.report_path)


if __name__ == "__main__":
    leave(main())
