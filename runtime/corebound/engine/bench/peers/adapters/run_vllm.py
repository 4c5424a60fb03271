"""vLLM on CPUs, its engine stepped in this process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from protocol import BenchCase, BenchReport, CaseReport, between_lines, case_report, peak_rss_bytes, read_job

_MARGIN_TOKENS = 16


def main() -> int:
    """Measure, write the report, and return the exit code."""
    job = read_job()
    cpus = sorted(os.sched_getaffinity(0))
    each = max(1, len(cpus) // job.num_ranks)
    # Left alone, it keeps a core for its scheduler, which would halve a machine of two.
    places = [",".join(map(str, cpus[rank * each : (rank + 1) * each])) for rank in range(job.num_ranks)]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(places)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

    import vllm

    longest = max(case.num_prompt_tokens + case.num_new_tokens for case in job.cases)
    llm = vllm.LLM(
        job.model_dir,
        dtype=job.dtype,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        tensor_parallel_size=job.num_ranks,
        max_model_len=longest + _MARGIN_TOKENS,
        max_num_seqs=max(case.batch_size for case in job.cases),
    )
    cases = []
    for case in job.cases:
        run(llm.llm_engine, case.for_warm_up(), job.num_warm_up_tokens)
        cases.append(between_lines(job, case, run, llm.llm_engine, case, case.num_new_tokens))
    BenchReport(
        num_threads=each,
        peak_rss_bytes=peak_rss_bytes() + sum(peak_rss_bytes(pid) for pid in _children()),
        cases=cases,
        version=vllm.__version__,
    ).write(job.report_path)
    _remove_segments()
    return 0


def run(engine: Any, case: BenchCase, count: int) -> CaseReport:
    """Continue the prompts of a case by `count` tokens and return the times."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
    started_s = time.perf_counter()
    for row, prompt in enumerate(case.prompt_token_ids):
        engine.add_request(f"{row}", {"prompt_token_ids": prompt}, params)
    times: list[list[float]] = [[] for _ in case.prompt_token_ids]
    tokens: list[int] = []
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now_s = time.perf_counter() - started_s
        for output in outputs:
            row = int(output.request_id.split("-")[0])
            found = output.outputs[0].token_ids
            times[row] += [now_s] * (len(found) - len(times[row]))
            if row == 0:
                tokens = list(found)
    return case_report(times, time.perf_counter() - started_s, tokens)


def _remove_segments() -> None:
    """Remove the shared memory that vLLM leaves behind: what its ranks have mapped under its name."""
    for pid in _children():
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
            place = line.split(" ", 5)[-1].strip()
            if place.startswith("/dev/shm/vllm_dist_"):  # noqa: S108 - where POSIX shared memory is
                Path(place).unlink(missing_ok=True)


def _children() -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process().children(recursive=True)]


if __name__ == "__main__":
    raise SystemExit(main())
