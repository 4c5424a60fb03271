"""A rank that keeps its model between turns: `python -m corebound.engine.bench.targets.resident_rank`, by a job.

Every rank looks for the next turn in a folder and sleeps meanwhile, so that those who wait leave the cores to others.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from corebound.comm import Collectives
from corebound.comm.rank_process import leave, run_rank
from corebound.engine.bench.peers.adapters.protocol import BenchReport, CaseReport
from corebound.engine.bench.rank_main import report_of
from corebound.engine.bench.targets.turn_files import ResidentJob, Turn, TurnCase, TurnReport, write_whole
from corebound.engine.job import read_job
from corebound.engine.llm import LLM
from corebound.engine.request import SamplingParams
from corebound.version import __version__

_LOOK_EVERY_S = 0.02
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Do turns until the last one, and return the exit code."""
    return run_rank(_serve)


def _serve(collectives: Collectives) -> None:
    job = ResidentJob(**collectives.broadcast_object(read_job() if collectives.rank == 0 else None))
    state = partial(write_whole, job.state_path(collectives.rank))
    state("loading the model")
    before_bytes = _sum(collectives, resident_bytes())
    options: dict[str, Any] = {"dtype": job.dtype, "kv_cache_gib": job.kv_cache_gib, "text": False}
    llm = LLM(job.model_dir, show_progress=False, collectives=collectives, **options)
    for number in itertools.count():
        state(f"waiting for turn {number}")
        turn = _next_turn(job, number)
        if turn is None:
            return
        cases = []
        for case in turn.cases:
            state(f"turn {number}, {case.name}")
            if turn.warm_up:
                _run(llm, case.for_warm_up())
            collectives.barrier()  # each rank found the turn in its own time
            cases.append(together([_run(llm, case) for _ in range(case.num_times)]))
        state(f"turn {number}, summing up")
        resident = _sum(collectives, resident_bytes())
        weight_bytes = _sum(collectives, llm.weight_bytes_per_token)
        ranks = llm.ranks()
        if collectives.rank != 0:
            continue
        report = BenchReport(
            num_threads=torch.get_num_threads(),
            peak_rss_bytes=sum(entry["peak_rss_bytes"] for entry in ranks),
            cases=cases,
            weight_bytes_per_token=weight_bytes,
            cpus=sorted({cpu for entry in ranks for cpu in entry["cpus"]}),
            version=__version__,
        )
        found = TurnReport(report=report, resident_bytes=resident, before_load_bytes=before_bytes)
        write_whole(job.report_path(number), dataclasses.asdict(found))


def _next_turn(job: ResidentJob, number: int) -> Turn | None:
    """Return the next turn, or None when there is none, or nobody left who could ask for one."""
    path = job.turn_path(number)
    while not path.is_file():
        if not Path(f"/proc/{job.owner_pid}").exists():
            return None
        time.sleep(_LOOK_EVERY_S)
    fields: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8"))
    return None if fields is None else Turn.from_json(fields)


def _run(llm: LLM, case: TurnCase) -> CaseReport:
    params = SamplingParams(max_new_tokens=case.case.num_new_tokens, ignore_eos=True, num_beams=case.num_beams)
    started_s = time.perf_counter()
    outputs = llm.generate(case.case.prompt_token_ids, params)
    return report_of(outputs, time.perf_counter() - started_s)


def together(reports: Sequence[CaseReport]) -> CaseReport:
    """Return the report of a case that was done several times: the median first token, and all steps."""
    return dataclasses.replace(
        reports[0],
        first_token_ms=statistics.median(report.first_token_ms for report in reports),
        step_ms=[step for report in reports for step in report.step_ms],
        elapsed_s=sum(report.elapsed_s for report in reports),
    )


def _sum(collectives: Collectives, value: int) -> int:
    return sum(int(collectives.broadcast_object(value, root=root)) for root in range(collectives.size))


def resident_bytes() -> int:
    """Return what this process has resident now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


if __name__ == "__main__":
    leave(main())
