"""One measurement of our ranks: `python -m corebound.engine.bench.rank_main`, the job as JSON on rank 0."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import closing

import torch

from corebound import logs
from corebound.comm import init_distributed
from corebound.config import env
from corebound.engine.bench.job import BenchJob, BenchReport, read_job
from corebound.engine.llm import LLM
from corebound.engine.metrics import summary
from corebound.engine.request import SamplingParams
from corebound.errors import CoreboundError


def main() -> int:
    """Measure, let rank 0 write the report, and return the exit code."""
    rank = env.rank_environment()
    logs.setup(
        env.settings().log_level,
        rank=rank.rank if rank else None,
        world_size=rank.world_size if rank else None,
        host=socket.gethostname(),
    )
    try:
        _measure(rank is None or rank.rank == 0)
    except CoreboundError as error:
        sys.stderr.write(f"{error.render()}\n")
        return error.exit_code
    return 0


def _measure(is_first: bool) -> None:
    with closing(init_distributed()) as collectives:
        job = BenchJob(**collectives.broadcast_object(read_job() if is_first else None))
        llm = LLM(job.model_dir, dtype=job.dtype, text=False, collectives=collectives)
        prompt = [job.prompt_token_ids]
        for count in {2, job.num_warm_up_tokens}:
            llm.generate(prompt, SamplingParams(max_new_tokens=count, ignore_eos=True))
        started_s = time.perf_counter()
        outputs = llm.generate(prompt, SamplingParams(max_new_tokens=job.num_new_tokens, ignore_eos=True))
        times = summary(outputs, time.perf_counter() - started_s)
        ranks = llm.ranks()
        shares = [
            collectives.broadcast_object(llm.weight_bytes_per_token, root=root) for root in range(collectives.size)
        ]
        if is_first:
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
    raise SystemExit(main())
