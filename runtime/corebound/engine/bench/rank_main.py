"""One measurement of our ranks: `python -m corebound.engine.bench.rank_main`, the job as JSON on rank 0."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence

import torch

from corebound.comm import Collectives
from corebound.comm.rank_process import leave, run_rank
from corebound.engine.bench.peers.adapters.protocol import (
    BenchCase,
    BenchJob,
    BenchReport,
    CaseReport,
    between_lines,
    case_report,
)
from corebound.engine.job import read_job
from corebound.engine.llm import LLM
from corebound.engine.request import RequestOutput, SamplingParams
from corebound.version import __version__


def main() -> int:
    """Measure, let rank 0 write the report, and return the exit code."""
    return run_rank(_measure)


def _measure(collectives: Collectives) -> None:
    job = BenchJob.from_json(collectives.broadcast_object(read_job() if collectives.rank == 0 else None))
    llm = LLM(job.model_dir, dtype=job.dtype, text=False, collectives=collectives)
    # The others sleep while rank 0 times a cache line between their cores, and do not know whether it tries again.
    if collectives.size > 1:
        library = job.line_library if collectives.rank == 0 else None
        job = dataclasses.replace(job, max_tries=1, line_library=library)
    cases = []
    for case in job.cases:
        _run(llm, case.for_warm_up(), job.num_warm_up_tokens)
        cases.append(between_lines(job, case, _run, llm, case, case.num_new_tokens))
    ranks = llm.ranks()
    shares = [collectives.broadcast_object(llm.weight_bytes_per_token, root=root) for root in range(collectives.size)]
    if collectives.rank == 0:
        BenchReport(
            num_threads=torch.get_num_threads(),
            peak_rss_bytes=sum(entry["peak_rss_bytes"] for entry in ranks),
            cases=cases,
            weight_bytes_per_token=sum(shares),
            cpus=sorted({cpu for entry in ranks for cpu in entry["cpus"]}),
            version=__version__,
        ).write(job.report_path)


def _run(llm: LLM, case: BenchCase, num_new_tokens: int) -> CaseReport:
    params = SamplingParams(max_new_tokens=num_new_tokens, ignore_eos=True)
    started_s = time.perf_counter()
    outputs = llm.generate(case.prompt_token_ids, params)
    return report_of(outputs, time.perf_counter() - started_s)


def report_of(outputs: Sequence[RequestOutput], elapsed_s: float) -> CaseReport:
    """Return the report of a case from its outputs."""
    times = [list(itertools.accumulate(output.token_gaps_s, initial=output.first_token_s)) for output in outputs]
    return case_report(times, elapsed_s, outputs[0].token_ids)


if __name__ == "__main__":
    leave(main())
